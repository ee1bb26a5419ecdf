package podnet

import (
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/podnet/listener"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func algorithm(t *testing.T, c any) (name string) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { name, inner = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION) }); err != nil || inner != nil {
		t.Fatal(err, inner)
	}
	return name
}

// TestCongestion: in a pod whose default is BBR, connections between it and the agent do not pace at either end, a tunnel over a short
// path does not, and what leaves in plaintext does; with SystemCongestion, on adopted listeners too, all do.
func TestCongestion(t *testing.T) {
	w := newWorld(t, true, true)
	for _, ns := range []*testenv.NetNS{w.pod, w.ext} {
		ns.Must(t, func() error { return os.WriteFile("/proc/sys/net/ipv4/tcp_congestion_control", []byte("bbr"), 0) })
	}
	n := w.start(t)
	p := w.enroll(t, n)
	look := func(t *testing.T, p *Pod, local, tunnel string) {
		w.each(t, func(t *testing.T, pod, ext netip.Addr) { w.lookAtCongestion(t, p, pod, ext, local, tunnel) })
	}
	t.Run("auto", func(t *testing.T) { look(t, p, "reno", "cubic") })
	shared, err := n.Share()
	if err != nil {
		t.Fatal(err)
	}
	config := w.config
	config.SystemCongestion, config.Inherited = true, shared
	next, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	p = w.enroll(t, next)
	listener.CloseAll(shared)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	t.Run("system", func(t *testing.T) { look(t, p, "bbr", "bbr") })
}

func (w *world) lookAtCongestion(t *testing.T, p *Pod, pod, ext netip.Addr, local, tunnel string) {
	is := func(what, want string, c any) {
		t.Helper()
		if got := algorithm(t, c); got != want {
			t.Errorf("%s goes by %q, want %q", what, got, want)
		}
	}
	pair := func(what string, accept func() (net.Conn, error), dial func() (net.Conn, error), accepted, dialed string) {
		t.Helper()
		c, err := dial()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer c.Close()
		a, err := accept()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer a.Close()
		is(what+", as accepted,", accepted, a)
		is(what+", as dialed,", dialed, c)
	}
	from := func(ns *testenv.NetNS, to netip.AddrPort) func() (net.Conn, error) {
		return func() (net.Conn, error) { return app.dial(t, ns, to) }
	}
	program := app.listen(t, w.pod, netip.AddrPortFrom(pod, 8080))
	defer program.Close()
	peer := app.listen(t, w.ext, netip.AddrPortFrom(ext, mesh.TunnelPort))
	defer peer.Close()
	pair("what a program dials", listenerFor(p.Listeners().Outbound, pod).Accept, from(w.pod, netip.AddrPortFrom(ext, 80)), local, local)
	pair("what goes to a program", program.Accept, func() (net.Conn, error) {
		return p.DialApp(t.Context(), netip.AddrPortFrom(ext, 0), netip.AddrPortFrom(pod, 8080))
	}, local, local)
	pair("a peer's tunnel", tunnelsFor(p, pod).Accept, from(w.ext, netip.AddrPortFrom(pod, mesh.TunnelPort)), tunnel, "bbr")
	to := netip.AddrPortFrom(ext, mesh.TunnelPort)
	pair("a tunnel", peer.Accept, func() (net.Conn, error) { return p.DialTunnel(t.Context(), to) }, "bbr", tunnel)
	pair("plaintext out of the mesh", peer.Accept, func() (net.Conn, error) { return p.DialEgress(t.Context(), to) }, "bbr", "bbr")
}

func tunnelsFor(p *Pod, like netip.Addr) net.Listener {
	listeners := p.Listeners()
	for _, l := range listeners.Tunnels() {
		if l.Addr().(*net.TCPAddr).AddrPort().Addr().Is4() == like.Is4() {
			return l
		}
	}
	return nil
}
