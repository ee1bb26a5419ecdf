package proxy

import "github.com/heddle-mesh/heddle/internal/mesh"

// Serves reports whether a pod is served.
func (p *Proxy) Serves(key mesh.Key) bool {
	_, ok := p.podOf(key)
	return ok
}

// Charges is what connections have taken from the budgets; Tunnels are tunnel connections, whose
// sockets are not among the others.
type Charges struct{ Connections, Sockets, Balanced, Tunnels int64 }

// Charges adds up all pods'; Balanced is that of the workloads of connections.
func (p *Proxy) Charges() (c Charges) {
	for _, key := range p.keys() {
		if pod, ok := p.podOf(key); ok {
			c.Connections += pod.Connections.Load()
			c.Tunnels += pod.Tunnels.Load()
		}
	}
	c.Sockets = p.sockets.Load() - c.Tunnels
	for _, w := range p.cfg.Store.View().Workloads() {
		c.Balanced += int64(p.balancer.Active(w.Key))
	}
	return c
}

// Allowance is the bounds of what a pod takes; equal ones are the same.
type Allowance struct{ memory, handshakes any }

// Allowance returns that of a pod that is served.
func (p *Proxy) Allowance(key mesh.Key) Allowance {
	pod, _ := p.podOf(key)
	return Allowance{pod.Memory, pod.Handshakes}
}

// Leaving reports whether a pod is another process's to be.
func (p *Proxy) Leaving(key mesh.Key) bool {
	pod, ok := p.podOf(key)
	return ok && pod.moving()
}
