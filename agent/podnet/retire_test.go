package podnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/heddle-mesh/heddle/agent/netns"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// gateOf maps the programs of a gate to the inodes of their links: one that was
// attached anew has another. Kernels before 6.6 have no such links: there the
// map is empty, and what gets through is all that tells.
func (w *world) gateOf(t *testing.T, prefix string) map[string]uint64 {
	t.Helper()
	links := map[string]uint64{}
	folders, err := filepath.Glob(filepath.Join(w.config.PinDir, "*", "pods", prefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range folders {
		for _, name := range []string{"host_outbound", "host_inbound", "pod_outbound", "pod_inbound"} {
			info, err := os.Stat(filepath.Join(folder, name))
			if errors.Is(err, fs.ErrNotExist) && testenv.KernelOlderThan(t, "6.6") {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			links[name] = info.Sys().(*syscall.Stat_t).Ino
		}
	}
	return links
}

// attempts dials again and again in plaintext, out of a namespace and into it,
// until stop, which reports whoever got through.
func (w *world) attempts(t *testing.T, pod *testenv.NetNS, at netip.Addr) (stop func()) {
	t.Helper()
	outside := serve(t, app.listen(t, w.ext, netip.AddrPortFrom(ext4, 80)))
	within := serve(t, app.listen(t, pod, netip.AddrPortFrom(netip.IPv4Unspecified(), 8080)))
	ctx, cancel := context.WithCancel(t.Context())
	var dialling sync.WaitGroup
	for _, way := range []struct {
		from *testenv.NetNS
		to   netip.AddrPort
	}{{pod, netip.AddrPortFrom(ext4, 80)}, {w.ext, netip.AddrPortFrom(at, 8080)}} {
		dialling.Go(func() {
			for ctx.Err() == nil {
				try, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
				if c, err := netns.Connect(try, app.socket(t, way.from, way.to.Addr()), way.to); err == nil {
					c.Close()
				}
				cancel()
			}
		})
	}
	return func() {
		t.Helper()
		time.Sleep(100 * time.Millisecond)
		cancel()
		dialling.Wait()
		for _, p := range []*peers{outside, within} {
			p.mu.Lock()
			if len(p.seen) > 0 {
				t.Errorf("plaintext passed %d times, first %v", len(p.seen), p.seen[0])
			}
			p.mu.Unlock()
		}
	}
}

// TestAddressesChange: the gate of a pod that gets other addresses is the same
// one all the time, and knows the new ones.
func TestAddressesChange(t *testing.T) {
	w := newWorld(t, true, true)
	moved := netip.MustParseAddr("10.66.1.3")
	w.pod.Must(t, func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(eth0, &netlink.Addr{IPNet: &net.IPNet{IP: moved.AsSlice(), Mask: net.CIDRMask(24, 32)}})
	})
	n := w.open(t)
	before := w.snapshot(t)
	first := w.enroll(t, n)
	gate := w.gateOf(t, "shop_web")
	stop := w.attempts(t, w.pod, moved)
	spec := w.spec()
	var p *Pod
	for _, addrs := range [][]netip.Addr{{pod6}, {moved, pod6}, {pod4, moved}, {moved}} {
		spec.Addresses = addrs
		p = w.enrollSpec(t, n, spec)
		if now := w.gateOf(t, ""); !maps.Equal(gate, now) {
			t.Errorf("with %v the gate was attached anew: before %v, after %v", addrs, gate, now)
		}
		if err := p.Check(); err != nil {
			t.Errorf("check with %v: %v", addrs, err)
		}
	}
	stop()
	if _, err := first.DialTunnel(t.Context(), netip.AddrPortFrom(ext4, 80)); err == nil {
		t.Error("the Pod of the former addresses still dials")
	}
	outside := serve(t, app.listen(t, w.ext, netip.AddrPortFrom(ext4, 443)))
	c, err := p.DialTunnel(t.Context(), netip.AddrPortFrom(ext4, 443))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	mustPing(t, c)
	outside.want(t, fmt.Sprintf("%s:443 from %s", ext4, netip.AddrPortFrom(moved, addrPort(c.LocalAddr()).Port())))
	if err := p.Unenroll(t.Context()); err != nil {
		t.Error(err)
	}
	after := w.snapshot(t)
	maps.DeleteFunc(before, func(k, _ string) bool { return strings.HasSuffix(k, " listeners") })
	maps.DeleteFunc(after, func(k, _ string) bool { return strings.HasSuffix(k, " listeners") })
	wantSame(t, "unenrolling", before, after)
}

// TestNamespaceChanges: the pod goes to another namespace and back, under one
// agent or several. The namespace that it leaves stays closed by the very gate
// that it had, until the pod is unenrolled.
func TestNamespaceChanges(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		t.Run(fmt.Sprintf("restarted=%t", restarted), func(t *testing.T) {
			w := newWorld(t, true, false)
			second := testenv.NewNetNS(t, "second")
			testenv.Veth(t, w.node, "vsecond", []string{"10.66.9.1/24"}, second, "eth0", []string{"10.66.9.2/24"})
			testenv.DefaultRoute(t, second, "10.66.9.1")
			settle(t, w.node, "vsecond")
			settle(t, second, "eth0")
			there := Spec{Name: "shop_web", NetNSPath: second.Path, Addresses: []netip.Addr{netip.MustParseAddr("10.66.9.2")}}
			n := w.start(t)
			defer func() {
				if err := n.Close(); err != nil {
					t.Error(err)
				}
			}()
			again := func() {
				if restarted {
					if err := n.Close(); err != nil {
						t.Fatal(err)
					}
					n = w.reopen(t)
				}
			}
			before := w.snapshot(t)
			w.enroll(t, n)
			gate := w.gateOf(t, "shop_web")
			stop := w.attempts(t, w.pod, pod4)
			again()
			if p := w.enrollSpec(t, n, there); p.Check() != nil {
				t.Error(p.Check())
			}
			if left := w.gateOf(t, retiredPrefix); !maps.Equal(left, gate) {
				t.Errorf("the gate that was left is %v, was %v", left, gate)
			}
			again()
			wantRetired(t, n, w.pod.Path)
			if pruned, err := n.Prune(t.Context(), map[string]bool{"shop_web": true}); err != nil || len(pruned) > 0 {
				t.Errorf("pruned %v: %v", pruned, err)
			}
			other := w.spec()
			other.Name = "shop_api"
			w.enrollSpec(t, n, other) // somebody else's now, by the same gate
			if now := w.gateOf(t, "shop_api"); !maps.Equal(now, gate) {
				t.Errorf("the gate that was taken over is %v, was %v", now, gate)
			}
			wantRetired(t, n)
			if _, err := n.Enroll(t.Context(), w.spec()); err == nil || !strings.Contains(err.Error(), "pod shop_api is enrolled in this network namespace still") {
				t.Errorf("two pods in one namespace: %v", err)
			}
			// The two change places: each leaves its own before it has the other's.
			swapped := there
			swapped.Name = "shop_api"
			again()
			w.enrollSpec(t, n, swapped)
			w.enroll(t, n)
			if now := w.gateOf(t, "shop_web"); !maps.Equal(now, gate) {
				t.Errorf("the gate that was taken back is %v, was %v", now, gate)
			}
			wantRetired(t, n)
			stop()
			for _, name := range []string{"shop_web", "shop_api"} {
				if err := n.Unenroll(t.Context(), name); err != nil {
					t.Error(err)
				}
			}
			after := w.snapshot(t)
			maps.DeleteFunc(before, func(k, _ string) bool { return strings.HasSuffix(k, " listeners") })
			maps.DeleteFunc(after, func(k, _ string) bool { return strings.HasSuffix(k, " listeners") })
			wantSame(t, "unenrolling", before, after)
		})
	}
}

func wantRetired(t *testing.T, n *Node, paths ...string) {
	t.Helper()
	var have []string
	for _, left := range n.Retired() {
		have = append(have, left.Path)
	}
	if fmt.Sprint(have) != fmt.Sprint(paths) {
		t.Errorf("closed namespaces that pods have left: %v, want %v", have, paths)
	}
}

// TestRetiredIsReleased: by unenrolling the pod that left it, and by the end of
// the namespace.
func TestRetiredIsReleased(t *testing.T) {
	for _, how := range []string{"unenrolled", "destroyed"} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t, true, false)
			n := w.open(t)
			path := filepath.Join(t.TempDir(), "netns")
			w.unnamedPod(t, path)
			w.enrollSpec(t, n, Spec{Name: "shop_web", NetNSPath: path, Addresses: []netip.Addr{netip.MustParseAddr("10.66.9.2")}})
			w.enroll(t, n)
			wantRetired(t, n, path)
			if how == "unenrolled" {
				if err := n.Unenroll(t.Context(), "shop_web"); err != nil {
					t.Error(err)
				}
			} else {
				unmountNS(t, path)
				w.waitDestroyed(t) // nothing of the agent's keeps it
				n.sweepRetired()
			}
			wantRetired(t, n)
			if left := w.gateOf(t, retiredPrefix); len(left) > 0 {
				t.Errorf("pins left: %v", left)
			}
		})
	}
}
