package podnet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/netns"
	"github.com/heddle-mesh/heddle/bpf"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// pins maps each pin of the pod to its inode: a link that was attached anew has
// another.
func (w *world) pins(t *testing.T) map[string]uint64 {
	t.Helper()
	inodes := map[string]uint64{}
	err := filepath.WalkDir(w.config.PinDir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.Contains(path, "shop_web") {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		inodes[filepath.Base(path)] = info.Sys().(*syscall.Stat_t).Ino
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return inodes
}

// TestRestart kills and replaces the agent several times under an application
// that keeps dialling out: nothing of it arrives, and everything works again.
func TestRestart(t *testing.T) {
	w := newWorld(t, true, true)
	n := w.start(t)
	outside := serve(t, app.listen(t, w.ext, netip.AddrPortFrom(ext4, 80)))
	serve(t, app.listen(t, w.pod, netip.AddrPortFrom(pod4, 8080)))
	// Lives through all of it, because it is older than the enrolment.
	old := w.pair(t, w.pod, w.ext, netip.AddrPortFrom(ext4, 7000))
	w.enroll(t, n)
	pins, steady := w.pins(t), w.snapshot(t)
	for name := range listenersOf(steady) {
		delete(steady, name)
	}

	ctx, stop := context.WithCancel(t.Context())
	var dialling sync.WaitGroup
	for _, way := range []struct {
		from *testenv.NetNS
		to   netip.AddrPort
	}{{w.pod, netip.AddrPortFrom(ext4, 80)}, {w.ext, netip.AddrPortFrom(pod4, 8080)}} {
		dialling.Go(func() {
			for ctx.Err() == nil {
				try, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
				if c, err := netns.Connect(try, app.socket(t, way.from, way.to.Addr()), way.to); err == nil {
					c.Write([]byte("plaintext"))
					c.Close()
				}
				cancel()
			}
		})
	}
	for range 3 {
		if err := n.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
		n = w.reopen(t)
		w.enroll(t, n)
		if now := w.pins(t); !maps.Equal(pins, now) {
			t.Errorf("pins changed: the gate was attached anew\nbefore %v\nafter  %v", pins, now)
		}
	}
	stop()
	dialling.Wait()
	after := w.snapshot(t)
	for name := range listenersOf(after) {
		delete(after, name)
	}
	wantSame(t, "restarting", steady, after)
	outside.mu.Lock()
	if len(outside.seen) > 0 {
		t.Errorf("plaintext left the pod: %v", outside.seen)
	}
	outside.mu.Unlock()
	if err := bothWays(old[0], old[1]); err != nil {
		t.Errorf("the connection from before: %v", err)
	}
	p := n.Pods()["shop_web"]
	w.each(t, func(t *testing.T, pod, ext netip.Addr) {
		agent := serve(t, listenerFor(p.Listeners().Outbound, pod))
		c, err := app.dial(t, w.pod, netip.AddrPortFrom(ext, 443))
		if err != nil {
			t.Fatal(err)
		}
		mustPing(t, c)
		agent.want(t, fmt.Sprintf("%s from %s", netip.AddrPortFrom(ext, 443), addrPort(c.LocalAddr())))
	})
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}

// listenersOf picks the counts of listeners: the test's own come and go.
func listenersOf(snapshot map[string]string) map[string]string {
	found := map[string]string{}
	for name, value := range snapshot {
		if strings.HasSuffix(name, " listeners") {
			found[name] = value
		}
	}
	return found
}

// TestLiveConnectionsSurvive enrolls a pod that has connections of every live
// kind, dialled and accepted.
func TestLiveConnectionsSurvive(t *testing.T) {
	w := newWorld(t, true, true)
	n := w.open(t)
	var checks []func() error
	for _, a := range w.addrs {
		ext := map[bool]netip.Addr{true: ext4, false: ext6}[a.Is4()]
		for name, pair := range map[string][2]*net.TCPConn{
			"dialled":  w.pair(t, w.pod, w.ext, netip.AddrPortFrom(ext, 7000)),
			"accepted": w.pair(t, w.ext, w.pod, netip.AddrPortFrom(a, 7001)),
		} {
			checks = append(checks, check(name+" established", func() error { return bothWays(pair[0], pair[1]) }))
		}
		shut := w.pair(t, w.pod, w.ext, netip.AddrPortFrom(ext, 7002))
		shut[1].CloseWrite()
		checks = append(checks, check("pod in CLOSE_WAIT sends", func() error { return oneWay(shut[0], shut[1]) }))
		half := w.pair(t, w.pod, w.ext, netip.AddrPortFrom(ext, 7003))
		half[0].CloseWrite()
		checks = append(checks, check("pod in FIN_WAIT2 receives", func() error { return oneWay(half[1], half[0]) }))
	}
	time.Sleep(100 * time.Millisecond) // for the FINs
	p := w.enroll(t, n)
	for _, c := range checks {
		if err := c(); err != nil {
			t.Error(err)
		}
	}
	err := p.Kernel(func(k *bpf.Pod) error {
		c, err := k.Counters()
		if c.Grandfathered.Out.Bytes == 0 {
			t.Errorf("nothing was counted as grandfathered: %+v", c)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	// New ones are captured all the same.
	agent := serve(t, listenerFor(p.Listeners().Outbound, pod4))
	c, err := app.dial(t, w.pod, netip.AddrPortFrom(ext4, 7000))
	if err != nil {
		t.Fatal(err)
	}
	mustPing(t, c)
	agent.want(t, fmt.Sprintf("%s from %s", netip.AddrPortFrom(ext4, 7000), addrPort(c.LocalAddr())))
}

func check(what string, fn func() error) func() error {
	return func() error {
		if err := fn(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	}
}

// pair connects an application in from with one in to.
func (w *world) pair(t *testing.T, from, to *testenv.NetNS, at netip.AddrPort) [2]*net.TCPConn {
	t.Helper()
	ln := app.listen(t, to, at)
	c, err := app.dial(t, from, at)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return [2]*net.TCPConn{c, s}
}

func bothWays(a, b *net.TCPConn) error {
	for range 3 {
		if err := errors.Join(oneMessage(a, b), oneMessage(b, a)); err != nil {
			return err
		}
	}
	return nil
}

func oneMessage(from, to *net.TCPConn) error {
	from.SetDeadline(time.Now().Add(dialWait))
	to.SetDeadline(time.Now().Add(dialWait))
	if _, err := from.Write([]byte("hi")); err != nil {
		return err
	}
	_, err := to.Read(make([]byte, 2))
	return err
}

// oneWay sends a megabyte and the end.
func oneWay(from, to *net.TCPConn) error {
	from.SetDeadline(time.Now().Add(2 * dialWait))
	to.SetDeadline(time.Now().Add(2 * dialWait))
	sent := make(chan error, 1)
	go func() {
		_, err := from.Write(make([]byte, 1<<20))
		sent <- errors.Join(err, from.CloseWrite())
	}()
	total, buf := 0, make([]byte, 64<<10)
	for {
		n, err := to.Read(buf)
		total += n
		if err != nil {
			break
		}
	}
	if total != 1<<20 {
		return errors.Join(fmt.Errorf("%d of %d bytes arrived", total, 1<<20), <-sent)
	}
	return <-sent
}

// TestNamespaceGone: the pod's namespace disappears under a living agent, which
// is told, and under a dead one, whose successor prunes.
func TestNamespaceGone(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		t.Run(fmt.Sprintf("restarted=%t", restarted), func(t *testing.T) {
			w := newWorld(t, true, false)
			short := testenv.NewNetNS(t, "short")
			testenv.Veth(t, w.node, "vshort", []string{"10.66.9.1/24"}, short, "eth0", []string{"10.66.9.2/24"})
			// A bind mount of its own, so that the test can take it away.
			path := filepath.Join(t.TempDir(), "netns")
			mountNS(t, short, path)
			spec := Spec{Name: "shop_web", NetNSPath: path, Addresses: []netip.Addr{netip.MustParseAddr("10.66.9.2")}}
			n := w.start(t)
			before := w.snapshot(t)
			w.enrollSpec(t, n, spec)
			if restarted {
				if err := n.Close(); err != nil {
					t.Fatal(err)
				}
			}
			unmountNS(t, path)
			if restarted {
				n = w.reopen(t)
				if _, err := n.Enroll(t.Context(), spec); err == nil || !strings.Contains(err.Error(), path+" is gone") {
					t.Errorf("enroll a namespace that is gone: %v", err)
				}
			} else {
				wantGone(t, n, "shop_web", path+" is gone")
			}
			pruned, err := n.Prune(t.Context(), map[string]bool{"other": true})
			if err != nil || !slices.Equal(pruned, []string{"shop_web"}) {
				t.Errorf("pruned %v: %v", pruned, err)
			}
			wantSame(t, "pruning", before, w.snapshot(t))
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNamespaceDestroyed: once the pod is taken back, nothing of the agent's
// keeps the namespace alive, and a namespace that died with its agent is taken
// back without being there.
func TestNamespaceDestroyed(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		t.Run(fmt.Sprintf("restarted=%t", restarted), func(t *testing.T) {
			w := newWorld(t, true, false)
			path := filepath.Join(t.TempDir(), "netns")
			w.unnamedPod(t, path)
			n := w.start(t)
			spec := Spec{Name: "shop_web", NetNSPath: path, Addresses: []netip.Addr{netip.MustParseAddr("10.66.9.2")}}
			p := w.enrollSpec(t, n, spec)
			if c, err := p.DialEgress(t.Context(), netip.AddrPortFrom(ext4, 1)); err == nil {
				c.Close()
			}
			if restarted {
				if err := n.Close(); err != nil {
					t.Fatal(err)
				}
				unmountNS(t, path)
				w.waitDestroyed(t)
				n = w.reopen(t)
			} else {
				unmountNS(t, path)
			}
			if pruned, err := n.Prune(t.Context(), nil); err != nil || len(pruned) != 1 {
				t.Errorf("pruned %v: %v", pruned, err)
			}
			w.waitDestroyed(t)
			if pins := w.pins(t); len(pins) > 0 {
				t.Errorf("pins left: %v", pins)
			}
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// unnamedPod makes a pod that only the mount at path keeps alive.
func (w *world) unnamedPod(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) }) // in case the test stops early
	err := netns.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth0"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "vshort", PeerNamespace: netlink.NsFd(w.node.Fd())}); err != nil {
			return err
		}
		for name, addr := range map[string]string{"lo": "127.0.0.1/8", "eth0": "10.66.9.2/24"} {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			a, err := netlink.ParseAddr(addr)
			if err != nil {
				return err
			}
			if err := netlink.AddrReplace(l, a); err != nil {
				return err
			}
			if err := netlink.LinkSetUp(l); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	w.node.Must(t, func() error {
		l, err := netlink.LinkByName("vshort")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	})
}

// waitDestroyed waits until the namespace is gone, and its veth with it.
func (w *world) waitDestroyed(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, 30*time.Second, "the namespace dies", func() bool {
		gone := false
		w.node.Must(t, func() error {
			_, err := netlink.LinkByName("vshort")
			gone = errors.As(err, new(netlink.LinkNotFoundError))
			return nil
		})
		return gone
	})
}

func TestWatchHostVeth(t *testing.T) {
	w := newWorld(t, true, false)
	n := w.open(t)
	w.enroll(t, n)
	w.node.Must(t, func() error { return delLink("vpod") })
	wantGone(t, n, "shop_web", "vpod, the host side of the pod's veth, is gone")
	if err := n.Unenroll(t.Context(), "shop_web"); err != nil {
		t.Errorf("unenroll: %v", err)
	}
}

func wantGone(t *testing.T, n *Node, name, why string) {
	t.Helper()
	ctx, cancel := contextFor(t, 5*time.Second)
	defer cancel()
	var got []string
	err := n.Watch(ctx, func(name string, why error) {
		got = append(got, name+" "+why.Error())
		time.AfterFunc(200*time.Millisecond, cancel) // once is enough
	})
	if !errors.Is(err, context.Canceled) || len(got) != 1 || !strings.HasPrefix(got[0], name) || !strings.Contains(got[0], why) {
		t.Errorf("watch: %v, reported %q, want %s once, because %s", err, got, name, why)
	}
}

// TestPodRemade: the path leads to a new namespace, with the agent alive and
// with it gone meanwhile.
func TestPodRemade(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		t.Run(fmt.Sprintf("restarted=%t", restarted), func(t *testing.T) {
			w := newWorld(t, true, false)
			second := testenv.NewNetNS(t, "second")
			testenv.Veth(t, w.node, "vsecond", []string{"10.66.9.1/24"}, second, "eth0", []string{"10.66.9.2/24"})
			path := filepath.Join(t.TempDir(), "netns")
			mountNS(t, w.pod, path)
			n := w.start(t)
			before := w.snapshot(t)
			first := w.enrollSpec(t, n, Spec{Name: "shop_web", NetNSPath: path, Addresses: w.addrs})
			if restarted {
				if err := n.Close(); err != nil {
					t.Fatal(err)
				}
				n = w.reopen(t)
			}
			unmountNS(t, path)
			mountNS(t, second, path)
			spec := Spec{Name: "shop_web", NetNSPath: path, Addresses: []netip.Addr{netip.MustParseAddr("10.66.9.2")}, Mode: mesh.ModePermissive}
			p := w.enrollSpec(t, n, spec)
			if p == first {
				t.Error("the new namespace has the old Pod")
			}
			if _, err := first.DialTunnel(t.Context(), netip.AddrPortFrom(ext4, 80)); err == nil {
				t.Error("the old Pod still dials")
			}
			if err := p.Unenroll(t.Context()); err != nil {
				t.Error(err)
			}
			after := w.snapshot(t)
			if restarted {
				// The old namespace had lost its path when its agent was dead:
				// its rules go with it, and nobody can reach them before.
				maps.DeleteFunc(after, func(k, _ string) bool { return strings.HasPrefix(k, w.pod.Name) })
				maps.DeleteFunc(before, func(k, _ string) bool { return strings.HasPrefix(k, w.pod.Name) })
			}
			if testenv.KernelOlderThan(t, "6.6") {
				// There the twin is a filter on the interface that was left, and
				// goes with it.
				delete(before, w.pod.Name+" qdiscs")
				delete(after, w.pod.Name+" qdiscs")
			}
			wantSame(t, "remaking the pod", before, after)
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
