package podnet

import (
	"context"
	"errors"
	"fmt"

	"github.com/heddle-mesh/heddle/agent/podnet/listener"
	"github.com/heddle-mesh/heddle/agent/steer"
	"github.com/heddle-mesh/heddle/bpf"
	"github.com/heddle-mesh/heddle/internal/mesh"
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
	return p.listeners.All(func(s *listener.Socket) error {
		raw, err := s.SyscallConn()
		if err != nil {
			return err
		}
		var inner error
		err = raw.Control(func(fd uintptr) { inner = p.kernel.SetListener(slotOf(s), fd) })
		if err = errors.Join(err, inner); err != nil {
			return fmt.Errorf("redirect to the socket of port %d: %w", s.Port, err)
		}
		return nil
	})
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
	config := &p.node.config
	err = p.ns.Do(func() (err error) {
		l, err = listener.OpenSet(ctx, steer.Families(p.addrs), config.Mark, config.CaptureDNS, func(want Inherited) (int, bool) {
			return p.node.takeInherited(p.name, want)
		})
		return err
	})
	return l, err
}

// slotOf is where the kernel has the socket.
func slotOf(s *listener.Socket) bpf.Slot {
	slots := map[uint16][2]bpf.Slot{
		OutboundPort:    {bpf.OutboundV4, bpf.OutboundV6},
		InboundPort:     {bpf.InboundV4, bpf.InboundV6},
		mesh.TunnelPort: {bpf.TunnelV4, bpf.TunnelV6},
		mesh.DNSPort:    {bpf.DNSStreamV4, bpf.DNSStreamV6},
	}[s.Port]
	if s.Datagram {
		slots = [2]bpf.Slot{bpf.DNSDatagramV4, bpf.DNSDatagramV6}
	}
	if s.IPv6 {
		return slots[1]
	}
	return slots[0]
}
