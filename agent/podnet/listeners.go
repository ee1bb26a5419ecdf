package podnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/podnet/datagram"
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

// Listeners are the agent's sockets in one pod, one of each kind per address
// family that the pod has. A connection's LocalAddr is its original destination.
type Listeners struct {
	// Outbound takes what the pod's applications dial, Inbound the plaintext
	// that arrives from the wire, Tunnel HBONE.
	Outbound, Inbound, Tunnel []*net.TCPListener
	// Names takes what applications dial at port 53, and Queries the datagrams
	// that they send there. Both are empty unless Config.CaptureDNS.
	Names   []*net.TCPListener
	Queries []*datagram.Socket
}

// socket is one of the agent's sockets in a pod.
type socket struct {
	syscall.Conn
	io.Closer
	port         uint16
	v6, datagram bool
}

// all calls fn on each socket.
func (l *Listeners) all(fn func(*socket) error) error {
	var errs []error
	for port, group := range l.groups() {
		for _, ln := range *group {
			errs = append(errs, fn(&socket{Conn: ln, Closer: ln, port: port, v6: addrPort(ln.Addr()).Addr().Is6()}))
		}
	}
	for _, q := range l.Queries {
		errs = append(errs, fn(&socket{Conn: q, Closer: q, port: mesh.DNSPort, v6: q.IsIPv6(), datagram: true}))
	}
	return errors.Join(errs...)
}

func (l *Listeners) groups() map[uint16]*[]*net.TCPListener {
	return map[uint16]*[]*net.TCPListener{
		OutboundPort: &l.Outbound, InboundPort: &l.Inbound, mesh.TunnelPort: &l.Tunnel, mesh.DNSPort: &l.Names,
	}
}

func (l *Listeners) close() error {
	return l.all(func(s *socket) error {
		if err := s.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
}

// listen opens the pod's sockets and hands them to the kernel.
func (p *Pod) listen(ctx context.Context) (err error) {
	if p.listeners, err = p.openListeners(ctx); err != nil {
		return err
	}
	return p.listeners.all(func(s *socket) error {
		raw, err := s.SyscallConn()
		if err != nil {
			return err
		}
		var inner error
		err = raw.Control(func(fd uintptr) { inner = p.kernel.SetListener(s.slot(), fd) })
		if err = errors.Join(err, inner); err != nil {
			return fmt.Errorf("redirect to the socket of port %d: %w", s.port, err)
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
	closed := p.listeners.all(func(s *socket) error {
		raw, err := s.SyscallConn()
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

// openListeners opens the sockets inside the pod, or adopts inherited ones;
// nothing leads to new ones yet.
func (p *Pod) openListeners(ctx context.Context) (Listeners, error) {
	var l Listeners
	err := p.ns.Do(func() error {
		for _, family := range steer.Families(p.addrs) {
			for port, group := range l.groups() {
				if port == mesh.DNSPort && !p.node.config.CaptureDNS {
					continue
				}
				ln, err := p.openListener(ctx, family, port)
				if err != nil {
					return err
				}
				*group = append(*group, ln)
			}
			if !p.node.config.CaptureDNS {
				continue
			}
			queries, err := p.openQueries(family)
			if err != nil {
				return err
			}
			l.Queries = append(l.Queries, queries)
		}
		return nil
	})
	if err != nil {
		return Listeners{}, errors.Join(err, l.close())
	}
	return l, nil
}

func (p *Pod) openListener(ctx context.Context, family int, port uint16) (*net.TCPListener, error) {
	mark := p.node.config.Mark
	if fd, ok := p.node.takeInherited(p.name, Inherited{Port: port, IPv6: family == unix.AF_INET6}); ok {
		return listener.Adopt(fd, family, mark)
	}
	return listener.Open(ctx, family, port, mark)
}

func (p *Pod) openQueries(family int) (*datagram.Socket, error) {
	mark := p.node.config.Mark
	if fd, ok := p.node.takeInherited(p.name, Inherited{Port: mesh.DNSPort, IPv6: family == unix.AF_INET6, Datagram: true}); ok {
		return datagram.Adopt(fd, family, mark)
	}
	return datagram.Open(family, mesh.DNSPort, mark)
}

// slot is where the kernel has the socket.
func (s *socket) slot() bpf.Slot {
	slots := map[uint16][2]bpf.Slot{
		OutboundPort:    {bpf.OutboundV4, bpf.OutboundV6},
		InboundPort:     {bpf.InboundV4, bpf.InboundV6},
		mesh.TunnelPort: {bpf.TunnelV4, bpf.TunnelV6},
		mesh.DNSPort:    {bpf.DNSStreamV4, bpf.DNSStreamV6},
	}[s.port]
	if s.datagram {
		slots = [2]bpf.Slot{bpf.DNSDatagramV4, bpf.DNSDatagramV6}
	}
	if s.v6 {
		return slots[1]
	}
	return slots[0]
}
