package podnet

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

func listenerFor(lns []*net.TCPListener, like netip.Addr) *net.TCPListener {
	for _, ln := range lns {
		if addrPort(ln.Addr()).Addr().Is4() == like.Is4() {
			return ln
		}
	}
	return nil
}

func TestEnrollAndUnenroll(t *testing.T) {
	for name, has := range map[string][2]bool{"dual": {true, true}, "v4 only": {true, false}, "v6 only": {false, true}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, has[0], has[1])
			n := w.open(t)
			before := w.snapshot(t)
			p := w.enroll(t, n)
			if err := p.Check(); err != nil {
				t.Errorf("check: %v", err)
			}
			again := w.enroll(t, n)
			if again != p {
				t.Error("enrolling twice gave two pods")
			}
			during := w.snapshot(t)
			w.each(t, func(t *testing.T, pod, ext netip.Addr) { tryEveryPath(t, w, p, pod, ext) })
			if err := p.Unenroll(t.Context()); err != nil {
				t.Fatal(err)
			}
			wantSame(t, "unenrolling", before, w.snapshot(t))
			if len(during) == len(before) && fmt.Sprint(during) == fmt.Sprint(before) {
				t.Error("the snapshot does not see what enrolling changes")
			}
			w.each(t, func(t *testing.T, pod, ext netip.Addr) {
				serve(t, app.listen(t, w.ext, netip.AddrPortFrom(ext, 8080)))
				c, err := app.dial(t, w.pod, netip.AddrPortFrom(ext, 8080))
				if err != nil {
					t.Fatalf("after unenrolling: %v", err)
				}
				mustPing(t, c)
			})
		})
	}
}

// tryEveryPath goes through the four ways of a connection: out, in, to the
// application, and within the pod.
func tryEveryPath(t *testing.T, w *world, p *Pod, pod, ext netip.Addr) {
	outside := serve(t, app.listen(t, w.ext, netip.AddrPortFrom(ext, 80)))
	application := serve(t, app.listen(t, w.pod, netip.AddrPortFrom(pod, 8080)))

	t.Run("outbound", func(t *testing.T) {
		agent := serve(t, listenerFor(p.Listeners().Outbound, pod))
		c, err := app.dial(t, w.pod, netip.AddrPortFrom(ext, 80))
		if err != nil {
			t.Fatal(err)
		}
		mustPing(t, c)
		agent.want(t, fmt.Sprintf("%s from %s", netip.AddrPortFrom(ext, 80), addrPort(c.LocalAddr())))
		if c.LocalAddr().(*net.TCPAddr).AddrPort().Addr() != pod {
			t.Errorf("the application's address is %s, want %s", c.LocalAddr(), pod)
		}
	})
	t.Run("tunnel out", func(t *testing.T) {
		c, err := p.DialTunnel(t.Context(), netip.AddrPortFrom(ext, 80))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		mustPing(t, c)
		outside.want(t, fmt.Sprintf("%s from %s", netip.AddrPortFrom(ext, 80), addrPort(c.LocalAddr())))
	})
	t.Run("tunnel in", func(t *testing.T) {
		agent := serve(t, listenerFor(p.Listeners().Tunnel, pod))
		c, err := app.dial(t, w.ext, netip.AddrPortFrom(pod, mesh.TunnelPort))
		if err != nil {
			t.Fatal(err)
		}
		mustPing(t, c)
		agent.want(t, fmt.Sprintf("%s from %s", addrPort(c.RemoteAddr()), addrPort(c.LocalAddr())))
	})
	t.Run("application", func(t *testing.T) {
		for _, port := range []uint16{40000, 0} {
			c, err := p.DialApp(t.Context(), netip.AddrPortFrom(ext, port), netip.AddrPortFrom(pod, 8080))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			mustPing(t, c)
			local := addrPort(c.LocalAddr())
			if local.Addr() != ext || port != 0 && local.Port() != port {
				t.Errorf("connected from %s, want %s:%d", local, ext, port)
			}
			application.want(t, fmt.Sprintf("%s from %s", netip.AddrPortFrom(pod, 8080), local))
		}
	})
	t.Run("within", func(t *testing.T) {
		c, err := app.dial(t, w.pod, netip.AddrPortFrom(pod, 8080))
		if err != nil {
			t.Fatal(err)
		}
		mustPing(t, c)
	})
}
