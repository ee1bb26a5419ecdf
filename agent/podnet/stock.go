package podnet

import (
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/netns"
)

func (p *Pod) stockOf(family int) *netns.Stock {
	if family == unix.AF_INET6 {
		return &p.sockets[1]
	}
	return &p.sockets[0]
}

// tidySockets gives back what was made ahead for a demand that has gone.
func (p *Pod) tidySockets() {
	for i := range p.sockets {
		if err := p.sockets[i].Tidy(); err != nil {
			p.node.config.Log.Warn("sockets made ahead not closed", "workload", p.name, "error", err)
		}
	}
}
