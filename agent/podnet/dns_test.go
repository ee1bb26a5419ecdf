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
			w.captureDNS = true
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
	w.captureDNS = true
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
	older.Inherited, w.captureDNS = shared, false
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

// TestDNSSwitch: capture starts and ends in a pod that stays enrolled; whoever
// answers is told, and nothing is left of it.
func TestDNSSwitch(t *testing.T) {
	w := newWorld(t, true, true)
	n := w.open(t)
	p := w.enroll(t, n)
	upstream(t, w.ext, ext4)
	upstream(t, w.ext, ext6)
	ask := func(what, want string) {
		t.Helper()
		for ext, pod := range map[netip.Addr]netip.Addr{ext4: pod4, ext6: pod6} {
			c := udp(t, w.pod, netip.AddrPort{}, netip.AddrPortFrom(ext, 53))
			want := want
			if want == "upstream" {
				want = fmt.Sprintf("upstream to %s: q", pod)
			} else {
				want = fmt.Sprintf("%s at %s: q", want, netip.AddrPortFrom(ext, 53))
			}
			if got, err := exchange(c, netip.AddrPort{}, "q"); string(got) != want {
				t.Errorf("%s: %q, want %q: %v", what, got, want, err)
			}
		}
	}
	ask("at first", "upstream")
	direct := w.snapshot(t)
	for round := range 2 {
		streams, datagrams, changed := p.Names()
		if len(streams)+len(datagrams) != 0 || p.CapturesDNS() {
			t.Fatalf("%d sockets for names while nothing is captured", len(streams)+len(datagrams))
		}
		w.captureDNS = true
		if again := w.enroll(t, n); again != p {
			t.Fatal("it is another Pod")
		}
		wantClosed(t, changed)
		streams, datagrams, changed = p.Names()
		if len(streams) != 2 || len(datagrams) != 2 || !p.CapturesDNS() {
			t.Fatalf("%d listeners and %d UDP sockets for names, want 2 and 2", len(streams), len(datagrams))
		}
		name := fmt.Sprintf("agent-%d", round)
		answer(t, p, name)
		ask("captured", name)
		if err := p.Check(); err != nil {
			t.Error(err)
		}
		w.enroll(t, n) // nothing changes
		select {
		case <-changed:
			t.Error("told of a change that there is not")
		default:
		}
		w.captureDNS = false
		w.enroll(t, n)
		wantClosed(t, changed)
		ask("direct again", "upstream")
		// Whoever answers may close them, or not.
		if round == 0 {
			for i := range streams {
				if err := errors.Join(streams[i].Close(), datagrams[i].Close()); err != nil {
					t.Error(err)
				}
			}
			wantSame(t, "capture", direct, w.snapshot(t))
		}
		if err := p.Check(); err != nil {
			t.Error(err)
		}
	}
}

// TestDNSPortTaken: capture that cannot start is an error that says why, and leaves
// things as they were.
func TestDNSPortTaken(t *testing.T) {
	w := newWorld(t, true, false)
	n := w.open(t)
	p := w.enroll(t, n)
	taken := udp(t, w.pod, netip.MustParseAddrPort("127.0.0.1:15053"), netip.AddrPort{})
	upstream(t, w.ext, ext4)
	w.captureDNS = true
	ctx, cancel := contextFor(t, 10*time.Second)
	defer cancel()
	if _, err := n.Enroll(ctx, w.spec()); err == nil || !strings.Contains(err.Error(), "UDP port 15053 is in use") {
		t.Errorf("with the port taken: %v", err)
	}
	c := udp(t, w.pod, netip.AddrPort{}, netip.AddrPortFrom(ext4, 53))
	if got, err := exchange(c, netip.AddrPort{}, "q"); string(got) != "upstream to 10.66.1.2: q" {
		t.Errorf("as before: %q, %v", got, err)
	}
	taken.Close()
	w.enroll(t, n)
	answer(t, p, "agent")
	if got, err := exchange(c, netip.AddrPort{}, "q"); string(got) != "agent at 10.66.2.2:53: q" {
		t.Errorf("when it is free: %q, %v", got, err)
	}
}

func wantClosed(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	default:
		t.Error("whoever answers is not told")
	}
}
