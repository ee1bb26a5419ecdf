package proxy

import (
	"github.com/heddle-mesh/heddle/agent/proxy/budget"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Budget bounds what one pod, and all pods together, may make the agent hold.
type Budget = budget.Budget

// DefaultBudget is budget.Default.
func DefaultBudget() Budget { return budget.Default() }

// allowanceOf returns that of a pod that is about to be served. One that is served
// anew, since nobody took it over, and still has connections from before, has no
// second one for others.
func (p *Proxy) allowanceOf(key mesh.Key) *budget.Allowance {
	if before, ok := p.podOf(key); ok && before.Connections.Load() > 0 {
		return before.Allowance
	}
	return p.cfg.Budget.Allowance(&p.sockets)
}

func (p *Proxy) dischargeSocket() { p.sockets.Add(-1) }

// charged notes that the connection has to give back sockets of the node, and
// one connection of the destination's pod if that is on this node too.
func (c *connection) charged(sockets int8, also *pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sockets += sockets
	c.also = also
}

// discharge gives back what a connection has charged, under its lock.
func (p *Proxy) discharge(c *connection) {
	if c.sockets > 0 {
		c.pod.Connections.Add(-1)
	}
	if c.also != nil {
		c.also.Connections.Add(-1)
	}
	p.sockets.Add(-int64(c.sockets))
	if c.balanced {
		p.balancer.End(c.record.Destination.Workload)
	}
	c.sockets, c.balanced = 0, false
}

// balance counts a connection to a workload until its end, or unbalance.
func (p *Proxy) balance(c *connection, to mesh.Key) {
	p.balancer.Begin(to)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.balanced = true
}

func (c *connection) unbalance() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.balanced {
		c.proxy.balancer.End(c.record.Destination.Workload)
	}
	c.balanced = false
}
