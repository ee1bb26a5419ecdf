package listener

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/netns"
	"github.com/heddle-mesh/heddle/bpf"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Set is the agent's sockets in one pod, one of each kind per address family that
// the pod has. A connection's LocalAddr is its original destination.
type Set struct {
	// Outbound takes what the pod's applications dial, Inbound the plaintext
	// that arrives from the wire, Tunnel HBONE.
	Outbound, Inbound, Tunnel []*net.TCPListener
	// Names takes what applications dial at port 53, and Queries the datagrams
	// that they send there. Both are empty unless DNS is captured.
	Names   []*net.TCPListener
	Queries []*Queries

	congestion netns.Congestion
}

// Socket is one of a Set.
type Socket struct {
	syscall.Conn
	io.Closer
	Port           uint16
	IPv6, Datagram bool
}

// All calls fn on each socket.
func (l *Set) All(fn func(*Socket) error) error {
	var errs []error
	for port, group := range l.groups() {
		for _, ln := range *group {
			at, _ := netip.ParseAddrPort(ln.Addr().String()) // the net package's own
			errs = append(errs, fn(&Socket{Conn: ln, Closer: ln, Port: port, IPv6: at.Addr().Is6()}))
		}
	}
	for _, q := range l.Queries {
		errs = append(errs, fn(&Socket{Conn: q, Closer: q, Port: mesh.DNSPort, IPv6: q.v6, Datagram: true}))
	}
	return errors.Join(errs...)
}

// Lead hands the sockets to the kernel.
func (l *Set) Lead(set func(bpf.Slot, uintptr) error) error {
	return l.All(func(s *Socket) error {
		raw, err := s.SyscallConn()
		if err != nil {
			return err
		}
		var inner error
		err = raw.Control(func(fd uintptr) { inner = set(s.slot(), fd) })
		if err = errors.Join(err, inner); err != nil {
			return fmt.Errorf("redirect to the socket of port %d: %w", s.Port, err)
		}
		return nil
	})
}

// slot is where the kernel has the socket.
func (s *Socket) slot() bpf.Slot {
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

func (l *Set) groups() map[uint16]*[]*net.TCPListener {
	return map[uint16]*[]*net.TCPListener{
		OutboundPort: &l.Outbound, InboundPort: &l.Inbound, mesh.TunnelPort: &l.Tunnel, mesh.DNSPort: &l.Names,
	}
}

// Close closes those that are open.
func (l *Set) Close() error {
	return l.All(func(s *Socket) error {
		if err := s.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
}

// From returns the descriptor, which stays its owner's, of a socket that another
// agent has opened in the pod, if there is one.
type From func(Inherited) (int, bool)

// OpenSet opens a Set in the calling thread's network namespace, those for DNS only
// if asked to.
func OpenSet(ctx context.Context, families []int, o Options, dns bool, inherited From) (l Set, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	l.congestion = o.Congestion
	for _, family := range families {
		for port, group := range l.groups() {
			if port == mesh.DNSPort {
				continue
			}
			ln, err := open(ctx, family, port, o, inherited)
			if err != nil {
				return l, err
			}
			*group = append(*group, ln)
		}
	}
	if dns {
		names, err := OpenNames(ctx, families, o, inherited)
		if err != nil {
			return l, err
		}
		l.Names, l.Queries = names.Names, names.Queries
	}
	return l, nil
}

// OpenNames opens the sockets of a Set that are for DNS, as OpenSet does.
func OpenNames(ctx context.Context, families []int, o Options, inherited From) (l Set, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	for _, family := range families {
		ln, err := open(ctx, family, mesh.DNSPort, o, inherited)
		if err != nil {
			return l, err
		}
		l.Names = append(l.Names, ln)
		var q *Queries
		if fd, ok := inherited(Inherited{Port: mesh.DNSPort, IPv6: family == unix.AF_INET6, Datagram: true}); ok {
			q, err = AdoptQueries(fd, family, o.Mark)
		} else {
			q, err = OpenQueries(family, mesh.DNSPort, o.Mark)
		}
		if err != nil {
			return l, err
		}
		l.Queries = append(l.Queries, q)
	}
	return l, nil
}

func open(ctx context.Context, family int, port uint16, o Options, inherited From) (*net.TCPListener, error) {
	if fd, ok := inherited(Inherited{Port: port, IPv6: family == unix.AF_INET6}); ok {
		return Adopt(fd, family, port, o)
	}
	return Open(ctx, family, port, o)
}

// settling accepts tunnels, and gives each the congestion control that its path wants.
type settling struct {
	*net.TCPListener
	congestion netns.Congestion
}

// Accept implements net.Listener.
func (s settling) Accept() (net.Conn, error) {
	c, err := s.AcceptTCP()
	if err != nil {
		return nil, err
	}
	_ = s.congestion.Settle(c) // one that is gone already: whoever reads it sees that
	return c, nil
}

// Tunnels returns the listeners of Tunnel as what to accept from.
func (l *Set) Tunnels() (all []net.Listener) {
	for _, t := range l.Tunnel {
		all = append(all, settling{TCPListener: t, congestion: l.congestion})
	}
	return all
}
