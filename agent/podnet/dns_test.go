package podnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/podnet/listener"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// udp opens a UDP socket in a namespace, connected if remote is valid; it is
// closed with the test.
func udp(t testing.TB, ns *testenv.NetNS, local, remote netip.AddrPort) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	ns.Must(t, func() (err error) {
		if remote.IsValid() {
			c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(remote))
		} else {
			c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(local))
		}
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// upstream is a server that says what it was asked and by whom.
func upstream(t testing.TB, ns *testenv.NetNS, at netip.Addr) *asked {
	t.Helper()
	a := &asked{}
	c := udp(t, ns, netip.AddrPortFrom(at, 53), netip.AddrPort{})
	a.wg.Go(func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			a.Lock()
			a.texts = append(a.texts, string(b[:n]))
			a.Unlock()
			c.WriteToUDPAddrPort(fmt.Appendf(nil, "upstream to %s: %s", from.Addr().Unmap(), b[:n]), from)
		}
	})
	t.Cleanup(func() { c.Close(); a.wg.Wait() })
	return a
}

type asked struct {
	sync.Mutex
	texts []string
	wg    sync.WaitGroup
}

func (a *asked) all() string {
	a.Lock()
	defer a.Unlock()
	return strings.Join(a.texts, ",")
}

// answer plays the agent: it answers on the pod's sockets, asking upstream for
// what begins with "ask".
func answer(t testing.TB, p *Pod, name string) {
	t.Helper()
	var wg sync.WaitGroup
	queries := p.Listeners().Queries
	for _, q := range queries {
		wg.Go(func() { serveQueries(p, q, name) })
	}
	t.Cleanup(func() {
		for _, q := range queries {
			q.Close()
		}
		wg.Wait()
	})
}

func serveQueries(p *Pod, q *listener.Queries, name string) {
	b := make([]byte, 4096)
	for {
		n, to, from, err := q.Read(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		text := fmt.Appendf(nil, "%s at %s: %s", name, to, b[:n])
		if strings.HasPrefix(string(b[:n]), "ask") {
			if text, err = forward(p, to, b[:n]); err != nil {
				text = []byte(err.Error())
			}
		}
		if strings.HasPrefix(string(b[:n]), "large") {
			text = append(text, make([]byte, 60_000)...)
		}
		q.Reply(text, to, from)
	}
}

func forward(p *Pod, to netip.AddrPort, query []byte) ([]byte, error) {
	c, err := p.DialDNS(to)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return exchange(c, netip.AddrPort{}, string(query))
}

// exchange sends a datagram, to an address unless c is connected, and returns
// the answer, which has to come from there.
func exchange(c *net.UDPConn, to netip.AddrPort, text string) ([]byte, error) {
	c.SetDeadline(time.Now().Add(time.Second))
	var err error
	if to.IsValid() {
		_, err = c.WriteToUDPAddrPort([]byte(text), to)
	} else {
		_, err = c.Write([]byte(text))
	}
	if err != nil {
		return nil, err
	}
	b := make([]byte, 1<<16)
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err == nil && to.IsValid() && unmap(from) != to {
		err = fmt.Errorf("answered by %s", from)
	}
	return b[:n], err
}

// TestDNS: a pod's datagrams to port 53 reach the agent with their destination,
// and the answers come from there, large ones too, to sockets that are connected
// and to others, though something in the pod has port 53 itself; the agent asks
// from the pod's address; without the agent nothing leaves.
func TestDNS(t *testing.T) {
	for name, has := range map[string][2]bool{"dual": {true, true}, "v4 only": {true, false}, "v6 only": {false, true}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, has[0], has[1])
			w.config.CaptureDNS = true
			n := w.start(t)
			before := w.snapshot(t)
			p := w.enroll(t, n)
			if err := p.Check(); err != nil {
				t.Error(err)
			}
			answer(t, p, "agent")
			upstreams := map[netip.Addr]*asked{}
			w.each(t, func(t *testing.T, pod, ext netip.Addr) {
				upstreams[ext] = upstream(t, w.ext, ext)
				own := upstream(t, w.pod, pod)
				to := netip.AddrPortFrom(ext, 53)
				connected := udp(t, w.pod, netip.AddrPort{}, to)
				free := udp(t, w.pod, netip.AddrPortFrom(unspecified(ext), 0), netip.AddrPort{})
				for _, text := range []string{"q", "large"} {
					want := fmt.Sprintf("agent at %s: %s", to, text)
					for _, ask := range []func() ([]byte, error){
						func() ([]byte, error) { return exchange(connected, netip.AddrPort{}, text) },
						func() ([]byte, error) { return exchange(free, to, text) },
					} {
						if got, err := ask(); err != nil || !strings.HasPrefix(string(got), want) || text == "large" && len(got) < 60_000 {
							t.Errorf("answer of %d bytes %.80q, want %q: %v", len(got), got, want, err)
						}
					}
				}
				got, err := exchange(connected, netip.AddrPort{}, "ask")
				if want := fmt.Sprintf("upstream to %s: ask", pod); string(got) != want {
					t.Errorf("forwarded: %q, want %q: %v", got, want, err)
				}
				if got := own.all(); got != "" {
					t.Errorf("the pod's own server was asked %q", got)
				}
			})
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			w.each(t, func(t *testing.T, pod, ext netip.Addr) {
				seen := upstream(t, w.ext, ext)
				c := udp(t, w.pod, netip.AddrPort{}, netip.AddrPortFrom(ext, 53))
				if got, err := exchange(c, netip.AddrPort{}, "alone"); err == nil {
					t.Errorf("answered without the agent: %q", got)
				}
				marked := udp(t, w.pod, netip.AddrPort{}, netip.AddrPortFrom(ext, 53))
				setMark(t, marked, DefaultMark)
				if got, err := exchange(marked, netip.AddrPort{}, "forged"); err == nil {
					t.Errorf("a marked socket that is not for DNS was answered: %q", got)
				}
				if got := seen.all(); got != "" {
					t.Errorf("left without the agent: %q", got)
				}
			})
			n = w.reopen(t)
			defer n.Close()
			p = w.enroll(t, n)
			if err := p.Check(); err != nil {
				t.Error(err)
			}
			if err := p.Unenroll(t.Context()); err != nil {
				t.Fatal(err)
			}
			wantSame(t, "unenrolling", before, w.snapshot(t))
		})
	}
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func setMark(t *testing.T, c *net.UDPConn, mark int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark)
	})
	if err = errors.Join(err, inner); err != nil {
		t.Fatal(err)
	}
}

// TestDNSHandOver: the successor has the same sockets, and answers what waited
// in them; one without DNS, as an older one, takes capture back, and the donor
// that goes on after all puts it in place again.
func TestDNSHandOver(t *testing.T) {
	w := newWorld(t, true, true)
	w.config.CaptureDNS = true
	old := w.start(t)
	w.enroll(t, old)
	shared, err := old.Share()
	if err != nil {
		t.Fatal(err)
	}
	if len(shared["shop_web"]) != 10 {
		t.Errorf("%d sockets are shared, want 10", len(shared["shop_web"]))
	}
	next := w.config
	next.Inherited = shared
	n, err := Open(next)
	if err != nil {
		t.Fatal(err)
	}
	p := w.enroll(t, n)
	listener.CloseAll(shared)
	c := udp(t, w.pod, netip.AddrPort{}, netip.AddrPortFrom(ext4, 53))
	if _, err := c.Write([]byte("waits")); err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	answer(t, p, "successor")
	c.SetReadDeadline(time.Now().Add(2 * time.Second))
	b := make([]byte, 100)
	k, err := c.Read(b)
	if got, want := string(b[:k]), "successor at 10.66.2.2:53: waits"; got != want {
		t.Errorf("a query that waited: %q, want %q: %v", got, want, err)
	}
	seen := upstream(t, w.ext, ext4)
	if shared, err = n.Share(); err != nil {
		t.Fatal(err)
	}
	defer listener.CloseAll(shared)
	older := w.config
	older.CaptureDNS, older.Inherited = false, shared
	second, err := Open(older)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	w.enroll(t, second)
	if got, err := exchange(c, netip.AddrPort{}, "direct"); string(got) != "upstream to 10.66.1.2: direct" {
		t.Errorf("with an agent that takes no DNS: %q, %v (%s)", got, err, seen.all())
	}
	if err := n.Reclaim(); err != nil {
		t.Fatal(err)
	}
	got, err := exchange(c, netip.AddrPort{}, "again")
	if want := "successor at 10.66.2.2:53: again"; string(got) != want {
		t.Errorf("after the donor has taken it up again: %q, want %q: %v", got, want, err)
	}
	if err := n.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}
