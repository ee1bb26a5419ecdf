package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/proxyheader"
)

// Target is what a stream is for.
type Target struct {
	// App is the pod's own address and the port to connect to.
	App netip.AddrPort
	// Service is the one at whose address and port, Behind, the pod is asked as its
	// waypoint; nil and zero when the pod is asked for itself.
	Service *mesh.Service
	Behind  netip.AddrPort
}

// TargetOf finds what a stream to w is for, at one of the addresses that its node has of
// it; or the status and the reason with which to refuse it, and an error that says why.
func TargetOf(view *mesh.View, w *mesh.Workload, addresses []netip.Addr, req *hbone.StreamRequest) (t Target, status int, reason mesh.Reason, err error) {
	status, reason, err = AddressedTo(w, addresses, req.Authority)
	if err == nil {
		return Target{App: req.Authority}, status, reason, nil
	}
	service := view.Behind(req.Authority, w.Key)
	at := Unmap(req.Local).Addr() // where the peer found the pod
	if service == nil || !w.HasAddress(at) {
		return Target{}, status, reason, err
	}
	if n := len(req.Peer.String()); n > proxyheader.MaxIdentity { // a waypoint cannot be told
		return Target{}, http.StatusBadRequest, mesh.ReasonBadRequest, fmt.Errorf("an identity of %d bytes, more than %d", n, proxyheader.MaxIdentity)
	}
	return Target{netip.AddrPortFrom(at, mesh.WaypointPort), service, req.Authority}, http.StatusOK, mesh.ReasonUnknown, nil
}

// Foretold reports whether the peer may know sooner than this node's View what a stream
// to a pod is for: a service of the pod's namespace, of which the pod has become the waypoint.
func Foretold(view *mesh.View, pod mesh.Key, addresses []netip.Addr, authority netip.AddrPort) bool {
	w, known := view.Workload(pod)
	addr := authority.Addr().Unmap()
	if !known || w.HasAddress(addr) || Among(addresses, addr) || view.Behind(authority, pod) != nil {
		return false
	}
	if service, ok := view.ServiceAt(addr); ok {
		return service.Namespace == pod.Namespace
	}
	return view.InCluster(addr) && view.IsWaypoint(w)
}

// Hop is where a waypoint's workload is asked for what was dialled.
func Hop(waypoint *mesh.Workload, dialled netip.Addr, src *mesh.Workload) (netip.AddrPort, bool) {
	addr, ok := waypoint.AddressFor(dialled, src)
	return netip.AddrPortFrom(addr, mesh.WaypointPort), ok
}

// hop returns the address that NetworkPolicies are asked about for a connection of src: the
// destination's, which that of a waypoint is not in the record.
func hop(view *mesh.View, r *flow.Record, src *mesh.Workload) netip.AddrPort {
	if r.Waypoint != (mesh.Key{}) {
		if w, ok := view.Workload(r.Destination.Workload); ok {
			if at, ok := Hop(w, r.Destination.Addr.Addr(), src); ok {
				return at
			}
		}
	}
	return r.Destination.Addr
}

// asked is what the destination of a record is asked to authorize.
func asked(r *flow.Record, w *mesh.Workload) mesh.Connection {
	c := mesh.Connection{Peer: r.Source.Identity, Source: r.Source.Addr.Addr(), Destination: w, Port: r.Destination.Addr.Port()}
	if r.Waypoint != (mesh.Key{}) {
		c.Port, c.Behind = mesh.WaypointPort, r.Destination.Addr
	}
	return c
}

// preface is what the application of a permitted connection is sent before anything of the
// client's: a waypoint is told whose connection it is, nobody else anything.
func preface(permit mesh.Permit, client netip.AddrPort) []byte {
	if !permit.Behind().IsValid() {
		return nil
	}
	return proxyheader.Append(nil, proxyheader.Header{Client: client, Service: permit.Behind(), Identity: permit.Peer().String()})
}

// errPreface says that a new connection took less than a preface.
var errPreface = errors.New("the waypoint's socket takes no header")

// DialApp is Sockets.DialApp of a permitted connection, with its preface sent: at app, or
// where else the application may be.
func DialApp(ctx context.Context, by Sockets, permit mesh.Permit, client Client, app netip.AddrPort) (*net.TCPConn, error) {
	conn, err := by.DialApp(ctx, client.AddrPort, app)
	if from, to, ok := client.otherwise(permit, app, err); ok {
		if other, no := by.DialApp(ctx, from, to); no == nil {
			conn, err = other, nil
		}
	}
	first := preface(permit, client.AddrPort)
	if err != nil || len(first) == 0 {
		return conn, err
	}
	stop := context.AfterFunc(ctx, func() { Reset(conn) })
	n, err := conn.Write(first)
	if stopped := stop(); err != nil || !stopped {
		Reset(conn)
		return nil, fmt.Errorf("%w: %d of %d bytes: %w", errPreface, n, len(first), errors.Join(err, ctx.Err()))
	}
	return conn, nil
}

// StartApp is Starter.StartApp of a permitted connection, with its preface sent once it is
// connected: at app, or where else the application may be. What wait returns takes the place
// of fd.
func StartApp(by Starter, permit mesh.Permit, client Client, app netip.AddrPort) (fd int, wait func(context.Context) (int, error), err error) {
	fd, waits, err := by.StartApp(client.AddrPort, app)
	tried := waits == nil // and refused, if it was, on the spot
	if from, to, ok := client.otherwise(permit, app, err); ok {
		if other, more, no := by.StartApp(from, to); no == nil {
			fd, waits, err = other, more, nil
		}
	}
	first := preface(permit, client.AddrPort)
	if err != nil {
		return fd, nil, err
	}
	if waits == nil {
		return fd, nil, send(fd, first)
	}
	return fd, func(ctx context.Context) (int, error) {
		err := waits(ctx)
		if from, to, ok := client.otherwise(permit, app, err); ok && !tried {
			fd, err = startOther(ctx, by, from, to, err)
		}
		if err != nil {
			return -1, err
		}
		return fd, send(fd, first)
	}, nil
}

// startOther connects from and to the other addresses; without success it returns the error of the first.
func startOther(ctx context.Context, by Starter, from, to netip.AddrPort, first error) (int, error) {
	fd, wait, err := by.StartApp(from, to)
	if err == nil && wait != nil {
		err = wait(ctx)
	}
	if err != nil {
		return -1, first
	}
	return fd, nil
}

// send writes to a socket that does not block, and closes it when it fails. A new one has
// room for more than a header.
func send(fd int, first []byte) error {
	if len(first) == 0 {
		return nil
	}
	n, err := unix.SendmsgN(fd, first, nil, nil, unix.MSG_NOSIGNAL)
	if err == nil && n == len(first) {
		return nil
	}
	ResetSocket(fd)
	if err == nil {
		err = unix.ENOBUFS
	}
	return fmt.Errorf("%w: %d of %d bytes: %w", errPreface, n, len(first), err)
}
