package agent

import "github.com/heddle-mesh/heddle/agent/handover"

// SetSeam lets a test limit the versions of the hand-over that an agent speaks,
// and stop it on its way.
func (c *Config) SetSeam(versions handover.Versions, at func(point string)) {
	c.seam = seam{versions, at}
}
