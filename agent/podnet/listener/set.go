package listener

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

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

// OpenSet opens a Set in the calling thread's network namespace, those for DNS only
// if asked to. inherited returns the descriptor, which stays its owner's, of a
// socket that another agent has opened there, if there is one.
func OpenSet(ctx context.Context, families []int, mark uint32, dns bool, inherited func(Inherited) (int, bool)) (l Set, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	for _, family := range families {
		v6 := family == unix.AF_INET6
		for port, group := range l.groups() {
			if port == mesh.DNSPort && !dns {
				continue
			}
			var ln *net.TCPListener
			if fd, ok := inherited(Inherited{Port: port, IPv6: v6}); ok {
				ln, err = Adopt(fd, family, mark)
			} else {
				ln, err = Open(ctx, family, port, mark)
			}
			if err != nil {
				return l, err
			}
			*group = append(*group, ln)
		}
		if !dns {
			continue
		}
		var q *Queries
		if fd, ok := inherited(Inherited{Port: mesh.DNSPort, IPv6: v6, Datagram: true}); ok {
			q, err = AdoptQueries(fd, family, mark)
		} else {
			q, err = OpenQueries(family, mesh.DNSPort, mark)
		}
		if err != nil {
			return l, err
		}
		l.Queries = append(l.Queries, q)
	}
	return l, nil
}
