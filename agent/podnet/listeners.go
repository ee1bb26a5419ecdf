package podnet

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/heddle-mesh/heddle/agent/podnet/listener"
	"github.com/heddle-mesh/heddle/agent/steer"
	"github.com/heddle-mesh/heddle/bpf"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// The ports of the agent's listeners, inside each pod. The tunnel's is
// mesh.TunnelPort.
const (
	OutboundPort = listener.OutboundPort
	InboundPort  = listener.InboundPort
)

// Listeners are the agent's listeners in one pod, one per address family that
// the pod has. A connection's LocalAddr is its original destination.
type Listeners struct {
	// Outbound takes what the pod's applications dial, Inbound the plaintext
	// that arrives from the wire, Tunnel HBONE.
	Outbound, Inbound, Tunnel []*net.TCPListener
}

// all calls fn on each listener with its port.
func (l *Listeners) all(fn func(port uint16, ln *net.TCPListener) error) error {
	var errs []error
	for _, group := range []struct {
		port      uint16
		listeners []*net.TCPListener
	}{{OutboundPort, l.Outbound}, {InboundPort, l.Inbound}, {mesh.TunnelPort, l.Tunnel}} {
		for _, ln := range group.listeners {
			errs = append(errs, fn(group.port, ln))
		}
	}
	return errors.Join(errs...)
}

func (l *Listeners) close() error {
	return l.all(func(_ uint16, ln *net.TCPListener) error {
		if err := ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
}

// listen opens the pod's listeners and hands them to the kernel.
func (p *Pod) listen(ctx context.Context) (err error) {
	if p.listeners, err = p.openListeners(ctx); err != nil {
		return err
	}
	return p.listeners.all(func(port uint16, ln *net.TCPListener) error {
		raw, err := ln.SyscallConn()
		if err != nil {
			return err
		}
		var inner error
		err = raw.Control(func(fd uintptr) { inner = p.kernel.SetListener(slotOf(port, ln), fd) })
		if err = errors.Join(err, inner); err != nil {
			return fmt.Errorf("redirect to listener %s: %w", ln.Addr(), err)
		}
		return nil
	})
}

// listenAgain replaces the listeners when somebody has closed any of them.
func (p *Pod) listenAgain(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kernel == nil {
		return p.errorf("listen: %w", ErrClosed)
	}
	closed := p.listeners.all(func(_ uint16, ln *net.TCPListener) error {
		raw, err := ln.SyscallConn()
		if err != nil {
			return err
		}
		return raw.Control(func(uintptr) {})
	})
	if closed == nil {
		return nil
	}
	if err := errors.Join(p.listeners.close(), p.listen(ctx)); err != nil {
		return p.errorf("listen again: %w", err)
	}
	return nil
}

// openListeners opens the listeners inside the pod, or adopts inherited ones;
// nothing leads to new ones yet.
func (p *Pod) openListeners(ctx context.Context) (Listeners, error) {
	var l Listeners
	mark := p.node.config.Mark
	err := p.ns.Do(func() error {
		for _, family := range steer.Families(p.addrs) {
			for port, group := range map[uint16]*[]*net.TCPListener{
				OutboundPort: &l.Outbound, InboundPort: &l.Inbound, mesh.TunnelPort: &l.Tunnel,
			} {
				ln, err := p.node.takeInherited(p.name, family, port, mark)
				if ln == nil && err == nil {
					ln, err = listener.Open(ctx, family, port, mark)
				}
				if err != nil {
					return err
				}
				*group = append(*group, ln)
			}
		}
		return nil
	})
	if err != nil {
		return Listeners{}, errors.Join(err, l.close())
	}
	return l, nil
}

func slotOf(port uint16, ln *net.TCPListener) bpf.Slot {
	v6 := addrPort(ln.Addr()).Addr().Is6()
	switch {
	case port == OutboundPort && v6:
		return bpf.OutboundV6
	case port == OutboundPort:
		return bpf.OutboundV4
	case port == InboundPort && v6:
		return bpf.InboundV6
	case port == InboundPort:
		return bpf.InboundV4
	case v6:
		return bpf.TunnelV6
	}
	return bpf.TunnelV4
}
