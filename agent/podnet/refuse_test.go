package podnet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/netns"
	"github.com/heddle-mesh/heddle/agent/steer"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestEnrollRefuses: each pod that cannot be enrolled is refused with an error
// that names what is wrong, and is as it was before.
func TestEnrollRefuses(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		spoil func(t *testing.T, w *world, s *Spec)
		want  string
	}{
		"gone":         {func(t *testing.T, w *world, s *Spec) { s.NetNSPath = "/run/netns/no-such" }, "network namespace /run/netns/no-such is gone"},
		"plain file":   {func(t *testing.T, w *world, s *Spec) { s.NetNSPath = plain }, plain + ": not a network namespace"},
		"other kind":   {func(t *testing.T, w *world, s *Spec) { s.NetNSPath = "/proc/self/ns/mnt" }, "not of the network kind"},
		"no path":      {func(t *testing.T, w *world, s *Spec) { s.NetNSPath = "" }, "no network namespace"},
		"the node's":   {func(t *testing.T, w *world, s *Spec) { s.NetNSPath = w.node.Path }, "the agent's own network namespace"},
		"bad name":     {func(t *testing.T, w *world, s *Spec) { s.Name = "../x" }, "1 to 128 of [a-z0-9_-]"},
		"no address":   {func(t *testing.T, w *world, s *Spec) { s.Addresses = nil }, "0 addresses"},
		"loopback":     {func(t *testing.T, w *world, s *Spec) { s.Addresses = []netip.Addr{netip.IPv6Loopback()} }, "::1 cannot be a pod's address"},
		"foreign":      {func(t *testing.T, w *world, s *Spec) { s.Addresses = append(s.Addresses, ext4) }, "address 10.66.2.2 is on no interface of the pod (it has 10.66.1.2, fd66:1::2)"},
		"lo down":      {func(t *testing.T, w *world, s *Spec) { w.setDown(t, w.pod, "lo") }, "loopback is down"},
		"on loopback":  {onLoopback, "on the loopback interface lo"},
		"two ways":     {secondWay, "interface eth1 of the pod is a second way out (a veth to the node)"},
		"two links":    {twoLinks, "addresses are on two interfaces, eth0 and eth1"},
		"other node":   {otherNode, "the host side of eth0 is not in the agent's network namespace"},
		"not a veth":   {notVeth, "interface br0 of the pod is of type bridge"},
		"port taken":   {portTaken, "port 15006 is in use in the pod"},
		"table in use": {tableTaken, "routing table 100 is used in the pod"},
		"gate blinded": {blinded, "GRO is on at vpod"},
		"gate skipped": {skipped, "the gate did not see the outbound test packet"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, true, true)
			n := w.open(t)
			spec := w.spec()
			c.spoil(t, w, &spec)
			before := w.snapshot(t)
			ctx, cancel := contextFor(t, 20*time.Second)
			defer cancel()
			_, err := n.Enroll(ctx, spec)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), spec.Name) {
				t.Errorf("error %v, want one with %q and the pod's name", err, c.want)
			}
			wantSame(t, "a refusal", before, w.snapshot(t))
		})
	}
}

func (w *world) setDown(t *testing.T, ns *testenv.NetNS, name string) {
	ns.Must(t, func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(l)
	})
}

func onLoopback(t *testing.T, w *world, s *Spec) {
	a := netip.MustParseAddr("10.66.7.7")
	w.pod.Must(t, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}})
	})
	s.Addresses = []netip.Addr{a}
}

func secondWay(t *testing.T, w *world, _ *Spec) {
	testenv.Veth(t, w.node, "vsecond", nil, w.pod, "eth1", []string{"10.66.8.2/24"})
	settle(t, w.node, "vsecond")
	settle(t, w.pod, "eth1")
}

func twoLinks(t *testing.T, w *world, s *Spec) {
	secondWay(t, w, s)
	s.Addresses = append(s.Addresses, netip.MustParseAddr("10.66.8.2"))
}

// otherNode enrolls the client, whose veth ends in a namespace that is not this
// agent's.
func otherNode(t *testing.T, w *world, s *Spec) {
	elsewhere := testenv.NewNetNS(t, "elsewhere")
	testenv.Veth(t, w.ext, "velsewhere", nil, elsewhere, "eth0", []string{"10.66.8.2/24"})
	s.NetNSPath, s.Addresses = elsewhere.Path, []netip.Addr{netip.MustParseAddr("10.66.8.2")}
}

func notVeth(t *testing.T, w *world, s *Spec) {
	w.pod.Must(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(bridge); err != nil {
			return err
		}
		if err := netlink.AddrAdd(bridge, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 66, 8, 8), Mask: net.CIDRMask(32, 32)}}); err != nil {
			return err
		}
		return delLink("eth0")
	})
	s.Addresses = []netip.Addr{netip.MustParseAddr("10.66.8.8")}
}

func portTaken(t *testing.T, w *world, _ *Spec) {
	app.listen(t, w.pod, netip.MustParseAddrPort("0.0.0.0:15006"))
}

func tableTaken(t *testing.T, w *world, _ *Spec) {
	w.pod.Must(t, func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Table: DefaultTable,
			Dst: &net.IPNet{IP: net.IPv4(10, 77, 0, 0).To4(), Mask: net.CIDRMask(16, 32)}})
	})
}

func blinded(t *testing.T, w *world, _ *Spec) {
	w.node.Must(t, func() error { return setGRO("vpod") })
}

// skipped loses the pod's packets before the gate, as a CNI's fast path does.
func skipped(t *testing.T, w *world, _ *Spec) {
	w.setDown(t, w.node, "vpod")
	testenv.Eventually(t, 5*time.Second, "the pod's routes say linkdown", func() bool {
		return strings.Contains(w.snapshot(t)[w.pod.Name+" routes4"], "scope link src 10.66.1.2 linkdown")
	})
}

// stopAfter is a context that ends when it was asked so many times.
type stopAfter struct {
	context.Context
	left int
}

func (c *stopAfter) Err() error {
	c.left--
	if c.left < 0 {
		return context.Canceled
	}
	return nil
}

// TestEnrollStopsAnywhere: whichever step fails, the pod is as before.
func TestEnrollStopsAnywhere(t *testing.T) {
	w := newWorld(t, true, true)
	n := w.open(t)
	before := w.snapshot(t)
	for steps := range 6 {
		_, err := n.Enroll(&stopAfter{t.Context(), steps}, w.spec())
		if !errors.Is(err, context.Canceled) {
			t.Errorf("stopped after %d steps: %v", steps, err)
		}
		wantSame(t, "a stopped enrolment", before, w.snapshot(t))
	}
	w.enroll(t, n)
}

// TestAdoptionFails: an agent that cannot take over a pod leaves its gate shut.
func TestAdoptionFails(t *testing.T) {
	w := newWorld(t, true, false)
	n := w.start(t)
	w.enroll(t, n)
	pins := w.pins(t)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	outside := serve(t, app.listen(t, w.ext, netip.AddrPortFrom(ext4, 80)))
	taken := app.listen(t, w.pod, netip.MustParseAddrPort("127.0.0.1:15001"))
	n = w.reopen(t)
	if _, err := n.Enroll(t.Context(), w.spec()); err == nil || !strings.Contains(err.Error(), "port 15001 is in use") {
		t.Errorf("enroll: %v", err)
	}
	if now := w.pins(t); len(now) != len(pins) {
		t.Errorf("pins %v, want %v", now, pins)
	}
	ctx, cancel := contextFor(t, 300*time.Millisecond)
	defer cancel()
	if c, err := netns.Connect(ctx, app.socket(t, w.pod, ext4), netip.AddrPortFrom(ext4, 80)); err == nil {
		c.Close()
		t.Error("the pod reached the outside")
	}
	if len(outside.seen) > 0 {
		t.Errorf("plaintext left the pod: %v", outside.seen)
	}
	taken.Close()
	w.enroll(t, n)
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

// TestSettingsChange: an agent with another mark and table puts the rules right.
func TestSettingsChange(t *testing.T) {
	w := newWorld(t, true, true)
	before := w.snapshot(t)
	n := w.start(t)
	w.enroll(t, n)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	w.config.Mark, w.config.MarkMask, w.config.Table = 0x5500000, 0xff00000, 5151
	n = w.reopen(t)
	p := w.enroll(t, n)
	rules := w.snapshot(t)[w.pod.Name+" rules4"]
	if strings.Count(rules, "\n") != 5 || !strings.Contains(rules, "fwmark 0x5500000/0xff00000") || strings.Contains(rules, "lookup 100 ") {
		t.Errorf("rules after a change of settings:\n%s", rules)
	}
	w.each(t, func(t *testing.T, pod, ext netip.Addr) { tryEveryPath(t, w, p, pod, ext) })
	if err := p.Unenroll(t.Context()); err != nil {
		t.Error(err)
	}
	after := w.snapshot(t)
	wantSame(t, "unenrolling", before, after)
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

func TestCheckSeesTampering(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, w *world)
		want  string
	}{
		"rule":  {func(t *testing.T, w *world) { w.pod.Must(t, removeRules) }, "is missing"},
		"way":   {func(t *testing.T, w *world) { secondWay(t, w, nil) }, "second way out"},
		"blind": {func(t *testing.T, w *world) { blinded(t, w, nil) }, "GRO is on"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, true, false)
			p := w.enroll(t, w.open(t))
			if err := p.Check(); err != nil {
				t.Fatal(err)
			}
			c.spoil(t, w)
			if err := p.Check(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("check: %v, want %q", err, c.want)
			}
		})
	}
}

func removeRules() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	return steer.Uninstall(h)
}

func TestUpdate(t *testing.T) {
	w := newWorld(t, true, false)
	n := w.open(t)
	p := w.enroll(t, n)
	serve(t, listenerFor(p.Listeners().Inbound, pod4))
	try := func() error {
		ctx, cancel := contextFor(t, 500*time.Millisecond)
		defer cancel()
		c, err := netns.Connect(ctx, app.socket(t, w.ext, pod4), netip.AddrPortFrom(pod4, 8080))
		if err == nil {
			c.Close()
		}
		return err
	}
	if err := try(); err == nil {
		t.Error("plaintext entered a STRICT pod")
	}
	open := w.spec()
	open.PortModes = map[uint16]mesh.Mode{8080: mesh.ModePermissive}
	w.enrollSpec(t, n, open)
	if err := try(); err != nil {
		t.Errorf("plaintext to a PERMISSIVE port: %v", err)
	}
	if err := p.update(w.spec()); err != nil {
		t.Error(err)
	}
	if err := try(); err == nil {
		t.Error("plaintext entered a pod that is STRICT again")
	}
	if err := p.Listeners().Outbound[0].Close(); err != nil {
		t.Fatal(err)
	}
	w.enroll(t, n)
	serve(t, listenerFor(p.Listeners().Outbound, pod4))
	c, err := app.dial(t, w.pod, netip.AddrPortFrom(ext4, 80))
	if err != nil {
		t.Fatalf("after a listener was closed and opened again: %v", err)
	}
	mustPing(t, c)
	other := w.spec()
	other.Addresses = []netip.Addr{ext4}
	if err := p.update(other); err == nil || !strings.Contains(err.Error(), "unenroll it first") {
		t.Errorf("update of addresses: %v", err)
	}
}
