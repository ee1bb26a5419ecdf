package podnet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/netns"
	"github.com/heddle-mesh/heddle/agent/podnet/tuples"
	"github.com/heddle-mesh/heddle/agent/steer"
	"github.com/heddle-mesh/heddle/bpf"
)

// Ports that stand in for a client's own when that is unknown or taken. They
// lie under the range from which Linux and others choose ports for clients, so
// that the client's next connection does not meet one of them.
const (
	substituteFirst = 16384
	substituteCount = 16384
	substituteTries = 16
)

// errPortTaken says that a client's tuple cannot be had; another port may.
var errPortTaken = errors.New("client port is taken")

// ErrRedirect marks a refusal because the connection to the application could
// not be exempted from redirection: it would have looped back to the agent.
var ErrRedirect = errors.New("exempt connection from redirection")

// DialTunnel connects to a peer's tunnel endpoint from the pod's address. It
// ends with ctx.
func (p *Pod) DialTunnel(ctx context.Context, remote netip.AddrPort) (*net.TCPConn, error) {
	return p.dialWire(ctx, remote, bpf.ClassTunnel)
}

// DialEgress connects, in plaintext, to a destination that policy allows, from
// the pod's address. It ends with ctx.
func (p *Pod) DialEgress(ctx context.Context, remote netip.AddrPort) (*net.TCPConn, error) {
	return p.dialWire(ctx, remote, bpf.ClassPlaintext)
}

// DialDNS makes a UDP socket that asks one DNS server, from the pod's address and
// a port that the kernel draws (RFC 5452, section 9.2). Nothing is sent.
func (p *Pod) DialDNS(remote netip.AddrPort) (*net.UDPConn, error) {
	remote = unmap(remote)
	conn, err := p.dialDNS(remote)
	if err != nil {
		return nil, p.errorf("ask %s: %w", remote, err)
	}
	return conn, nil
}

func (p *Pod) dialDNS(remote netip.AddrPort) (*net.UDPConn, error) {
	family := netns.Family(remote.Addr())
	local := steer.AddressOf(p.addrs, family)
	if !local.IsValid() {
		return nil, errors.New("the pod has no address of that family")
	}
	fd, err := p.node.maker.Datagram(p.ns, family)
	if err != nil {
		return nil, err
	}
	if err := p.mark(fd, bpf.ClassPlaintext); err != nil {
		return nil, errors.Join(err, netns.CloseFd(fd))
	}
	return netns.ConnectDatagram(fd, local, remote)
}

func (p *Pod) dialWire(ctx context.Context, remote netip.AddrPort, class bpf.Class) (*net.TCPConn, error) {
	remote = unmap(remote)
	family := netns.Family(remote.Addr())
	local := steer.AddressOf(p.addrs, family)
	if !local.IsValid() {
		return nil, p.errorf("dial %s: the pod has no address of that family", remote)
	}
	fd, err := p.socket(family, class)
	if err != nil {
		return nil, p.errorf("dial %s: %w", remote, err)
	}
	// The port is chosen by connect, with the whole tuple in view: otherwise a
	// pod could hold no more connections than there are ports.
	err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	if err == nil {
		err = unix.Bind(fd, netns.Sockaddr(netip.AddrPortFrom(local, 0)))
	}
	if err == nil && class == bpf.ClassTunnel {
		err = p.options.Congestion.Tunnel(fd)
	}
	if err != nil {
		return nil, errors.Join(p.errorf("dial %s from %s: %w", remote, local, err), netns.CloseFd(fd))
	}
	conn, err := netns.Connect(ctx, fd, remote)
	if err != nil {
		return nil, p.errorf("dial %s: %w", remote, err)
	}
	if class == bpf.ClassTunnel {
		_ = p.options.Congestion.Settle(conn) // one that is gone already: its handshake fails
	}
	return conn, nil
}

// DialApp connects to the application at app, one of the pod's own addresses,
// and shows it the client's address; the client's port too when client has one
// and no connection of the pod has that tuple, as the client's own plaintext
// connection does. It ends with ctx. An error that wraps ErrRedirect means that
// the kernel's table of such connections is full.
func (p *Pod) DialApp(ctx context.Context, client, app netip.AddrPort) (*net.TCPConn, error) {
	fd, wait, err := p.StartApp(client, app)
	if err == nil && wait != nil {
		err = wait(ctx)
	}
	if err != nil {
		return nil, err
	}
	conn, err := netns.Conn(fd)
	if err != nil {
		return nil, p.errorf("dial application at %s for %s: %w", app, client.Addr(), err)
	}
	return conn, nil
}

// StartApp is DialApp without waiting: the descriptor, which does not block and is
// the caller's, is connected if wait is nil. Otherwise wait must be called, once,
// for what DialApp waits for, and closes the descriptor if it fails.
func (p *Pod) StartApp(client, app netip.AddrPort) (fd int, wait func(context.Context) error, err error) {
	client, app = unmap(client), unmap(app)
	if !slices.Contains(p.addrs, app.Addr()) {
		return -1, nil, p.errorf("dial application at %s: not an address of the pod", app)
	}
	if client.Addr().Is4() != app.Addr().Is4() {
		return -1, nil, p.errorf("dial application at %s: client %s is of another family", app, client.Addr())
	}
	if client.Port() != 0 {
		if fd, wait, err = p.startAppFrom(client, app); err == nil {
			return fd, wait, nil
		}
	}
	for range substituteTries {
		if err != nil && !errors.Is(err, errPortTaken) {
			break
		}
		from := netip.AddrPortFrom(client.Addr(), uint16(substituteFirst+rand.IntN(substituteCount)))
		if fd, wait, err = p.startAppFrom(from, app); err == nil {
			return fd, wait, nil
		}
	}
	return -1, nil, p.dialAppError(client, app, err)
}

func (p *Pod) dialAppError(client, app netip.AddrPort, err error) error {
	return p.errorf("dial application at %s for %s: %w", app, client.Addr(), err)
}

// startAppFrom connects from exactly client. The tuple passes redirection from
// after bind until the connection is up; while the connection lives, the gate
// drops what comes from the wire on it.
func (p *Pod) startAppFrom(client, app netip.AddrPort) (fd int, wait func(context.Context) error, err error) {
	t := tuples.Tuple{Client: client, App: app}
	if !p.passthru.Claim(t) {
		return -1, nil, errPortTaken
	}
	fd, connected, err := p.startClaimed(t)
	if err != nil {
		p.passthru.Release(t)
		return -1, nil, err
	}
	if connected {
		return fd, nil, p.holdTuple(t, fd)
	}
	return fd, func(ctx context.Context) error {
		if err := netns.Await(ctx, fd); err != nil {
			err = errors.Join(err, netns.CloseFd(fd), p.forgetTuple(t))
			p.passthru.Release(t)
			return p.dialAppError(client, app, err)
		}
		if err := p.holdTuple(t, fd); err != nil {
			return p.dialAppError(client, app, err)
		}
		return nil
	}, nil
}

func (p *Pod) startClaimed(t tuples.Tuple) (fd int, connected bool, err error) {
	family := netns.Family(t.App.Addr())
	fd, err = p.socket(family, bpf.ClassLocal)
	if err != nil {
		return -1, false, err
	}
	if err := p.bindClient(fd, family, t.Client); err != nil {
		return -1, false, errors.Join(err, netns.CloseFd(fd))
	}
	// It also looks for a live connection on the tuple, as the client's own
	// plaintext one is: a SYN would reach that, not the application, and the
	// answer would end both.
	err = p.Kernel(func(k *bpf.Pod) error { return k.AddPassthru(t.Client, t.App) })
	if errors.Is(err, bpf.ErrPassthruBusy) {
		return -1, false, errors.Join(errPortTaken, netns.CloseFd(fd))
	}
	if err != nil {
		return -1, false, errors.Join(fmt.Errorf("%w: %w", ErrRedirect, err), netns.CloseFd(fd))
	}
	connected, err = netns.Start(fd, t.App)
	if err != nil {
		if errors.Is(err, unix.EADDRNOTAVAIL) {
			err = errPortTaken // connect found the tuple in use
		}
		return -1, false, errors.Join(err, netns.CloseFd(fd), p.forgetTuple(t))
	}
	return fd, connected, nil
}

// holdTuple leaves a tuple, whose connection is up, with the gate alone. The
// connection does not outlive an error.
func (p *Pod) holdTuple(t tuples.Tuple, fd int) error {
	err := p.Kernel(func(k *bpf.Pod) error { return k.HoldPassthru(t.Client, t.App) })
	if err != nil {
		err = errors.Join(fmt.Errorf("%w: %w", ErrRedirect, err), netns.CloseFd(fd), p.forgetTuple(t))
		p.passthru.Release(t)
		return err
	}
	p.passthru.Hold(t)
	return nil
}

func (p *Pod) bindClient(fd, family int, client netip.AddrPort) error {
	if err := p.options.Client(fd, family); err != nil {
		return err
	}
	err := netns.Bind(fd, client)
	if errors.Is(err, unix.EADDRINUSE) {
		return errPortTaken
	}
	if err != nil {
		return fmt.Errorf("bind to %s: %w", client, err)
	}
	return nil
}

// socket makes a marked and stamped socket in the pod.
func (p *Pod) socket(family int, class bpf.Class) (int, error) {
	fd, err := p.stockOf(family).Take(func(into []int) error { return p.node.maker.Sockets(p.ns, family, into) })
	if err != nil {
		return -1, err
	}
	if err := p.mark(fd, class); err != nil {
		return -1, errors.Join(err, netns.CloseFd(fd))
	}
	return fd, nil
}

// mark marks and stamps a socket in the pod, which stays the caller's.
func (p *Pod) mark(fd int, class bpf.Class) error {
	if err := netns.SetOption(fd, unix.SOL_SOCKET, unix.SO_MARK, int(p.node.config.Mark)); err != nil {
		return fmt.Errorf("set SO_MARK: %w", err)
	}
	if err := p.Kernel(func(k *bpf.Pod) error { return k.Stamp(uintptr(fd), class) }); err != nil {
		return fmt.Errorf("stamp socket: %w", err)
	}
	return nil
}

// forgetTuple takes a tuple out of the kernel's table.
func (p *Pod) forgetTuple(t tuples.Tuple) error {
	return p.Kernel(func(k *bpf.Pod) error { return k.RemovePassthru(t.Client, t.App) })
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
