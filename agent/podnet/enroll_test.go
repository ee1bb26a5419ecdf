package podnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

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

// TestEnrollWithoutRefusal: where no program more fits on the pod's loopback interface,
// connections to services that nobody serves are not refused, and all else is as ever.
func TestEnrollWithoutRefusal(t *testing.T) {
	w := newWorld(t, true, false)
	n := w.open(t)
	w.pod.Must(t, crowdLoopback)
	p := w.enroll(t, n)
	if err := p.Unrefused(); err == nil {
		t.Error("nothing says that the refusal is missing")
	}
	if err := p.Check(); err != nil {
		t.Errorf("check: %v", err)
	}
	w.each(t, func(t *testing.T, pod, ext netip.Addr) { tryEveryPath(t, w, p, pod, ext) })
	if err := p.Unenroll(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// crowdLoopback fills lo's hook (BPF_MPROG_MAX, include/linux/bpf_mprog.h), or, before
// Linux 6.6, takes the refusal's priority for another protocol.
func crowdLoopback() error {
	const loopback = 1
	for {
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}})
		if err != nil {
			return err
		}
		defer prog.Close()
		// Without a link, whose descriptor would have to stay open.
		err = link.RawAttachProgram(link.RawAttachProgramOptions{Target: loopback, Program: prog, Attach: ebpf.AttachTCXIngress})
		if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL) {
			return takePriority(loopback, prog.FD())
		}
		if errors.Is(err, unix.ERANGE) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func takePriority(ifindex, prog int) error {
	qdisc := &netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}, QdiscType: "clsact"}
	if err := netlink.QdiscAdd(qdisc); err != nil {
		return err
	}
	return netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: ifindex, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: unix.ETH_P_IP, Priority: 1},
		Fd:          prog, Name: "first", DirectAction: true,
	})
}
