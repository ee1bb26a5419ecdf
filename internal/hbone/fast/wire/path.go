package wire

import (
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

// pathFor is for how long what the kernel said of a connection is good enough:
// many short streams end on one within it.
const pathFor = 100 * time.Millisecond

// Path is what the kernel said of a connection lately; the zero value is ready.
type Path struct {
	known hbone.Path
	at    time.Time
}

// Of asks the kernel, unless it has been asked just now.
func (p *Path) Of(fd int, now time.Time) hbone.Path {
	if p.at.IsZero() || now.Sub(p.at) > pathFor {
		p.known, p.at = hbone.PathOfSocket(fd), now
	}
	return p.known
}
