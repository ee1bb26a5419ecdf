package podnet

import (
	"context"
	"errors"

	"github.com/heddle-mesh/heddle/agent/podnet/listener"
	"github.com/heddle-mesh/heddle/agent/steer"
)

// The ports of the agent's listeners, inside each pod. The tunnel's is
// mesh.TunnelPort, that of DNS mesh.DNSPort.
const (
	OutboundPort = listener.OutboundPort
	InboundPort  = listener.InboundPort
)

// Listeners are the agent's sockets in one pod.
type Listeners = listener.Set

// listen opens the pod's sockets and hands them to the kernel.
func (p *Pod) listen(ctx context.Context) (err error) {
	if p.listeners, err = p.openListeners(ctx); err != nil {
		return err
	}
	return p.listeners.Lead(p.kernel.SetListener)
}

// listenAgain replaces the sockets when somebody has closed any of them.
func (p *Pod) listenAgain(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kernel == nil {
		return p.errorf("listen: %w", ErrClosed)
	}
	closed := p.listeners.All(func(s *listener.Socket) error {
		raw, err := s.SyscallConn()
		if err != nil {
			return err
		}
		return raw.Control(func(uintptr) {})
	})
	if closed == nil {
		return nil
	}
	if err := errors.Join(p.listeners.Close(), p.listen(ctx)); err != nil {
		return p.errorf("listen again: %w", err)
	}
	return nil
}

// openListeners opens the sockets inside the pod, or adopts inherited ones;
// nothing leads to new ones yet.
func (p *Pod) openListeners(ctx context.Context) (l Listeners, err error) {
	err = p.ns.Do(func() (err error) {
		l, err = listener.OpenSet(ctx, steer.Families(p.addrs), p.options, p.names.captured.Load(), p.inherited)
		return err
	})
	return l, err
}

func (p *Pod) inherited(want Inherited) (int, bool) { return p.node.takeInherited(p.name, want) }
