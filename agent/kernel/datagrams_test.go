package kernel

import (
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/agent/podnet"
	"github.com/heddle-mesh/heddle/bpf"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/datagram"
)

// datagramView has bank/db, which lets shop/web in at port 443 over UDP, and shop/evil not.
func datagramView(t *testing.T) *mesh.View {
	t.Helper()
	domain := spiffeid.RequireTrustDomainFromString("example.org")
	var all []mesh.Workload
	for _, w := range []struct{ namespace, name, addr string }{{"bank", "db", "10.0.0.1"}, {"shop", "web", "10.0.0.2"}, {"shop", "evil", "10.0.0.3"}} {
		id, err := mesh.IdentityFor(domain, w.namespace, w.name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, mesh.Workload{Key: mesh.Key{Namespace: w.namespace, Name: w.name}, ServiceAccount: w.name, Node: "n1", Identity: id, Enrolled: true, Gated: true, Addresses: []netip.Addr{netip.MustParseAddr(w.addr)}})
	}
	all[0].Datagrams = []*mesh.Policy{
		{Key: mesh.Key{Namespace: "bank", Name: "all"}, Rules: []mesh.Rule{{To: []mesh.Destination{{Ports: []uint16{443}}}}}},
		{Key: mesh.Key{Namespace: "bank", Name: "evil"}, Action: mesh.ActionDeny, Rules: []mesh.Rule{{}, {From: []mesh.Source{{Identities: []mesh.IdentityPattern{"spiffe://example.org/ns/shop/sa/evil"}}}}}},
	}
	all[0].Datagrams[1].Rules[0] = mesh.Rule{To: []mesh.Destination{{Ports: []uint16{1}}}}
	view, err := mesh.NewView("r", mesh.Settings{TrustDomain: domain}, all, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return view
}

// TestDatagramNews: what was recorded is not recorded again, and what an earlier agent saw is its own.
func TestDatagramNews(t *testing.T) {
	of := func(opened time.Duration, out, in uint64) bpf.Conversation {
		return bpf.Conversation{Local: netip.MustParseAddrPort("10.0.0.1:443"), Remote: netip.MustParseAddrPort("10.0.0.2:1000"), Opened: opened,
			Out: bpf.Count{Packets: out, Bytes: 10 * out}, In: bpf.Count{Packets: in, Bytes: 20 * in}}
	}
	const running = time.Minute
	for name, c := range map[string]struct {
		now, before bpf.Conversation
		out, in     uint64 // 0, 0: nothing
	}{
		"new":                     {of(time.Second, 1, 2), bpf.Conversation{}, 1, 2},
		"goes on":                 {of(time.Second, 5, 2), of(0, 1, 2), 4, 0},
		"silent":                  {of(time.Second, 5, 2), of(0, 5, 2), 0, 0},
		"of an earlier agent":     {of(2*running, 5, 2), bpf.Conversation{}, 0, 0},
		"of it, and goes on":      {of(2*running, 6, 2), of(2*running, 5, 2), 1, 0},
		"evicted and there again": {of(time.Second, 1, 1), of(running, 9, 9), 1, 1},
	} {
		since, ok := news(c.now, c.before, running)
		if ok != (c.out+c.in > 0) || ok && (since.Out != (bpf.Count{Packets: c.out, Bytes: 10 * c.out}) || since.In != (bpf.Count{Packets: c.in, Bytes: 20 * c.in})) {
			t.Errorf("%s: %+v, %v", name, since, ok)
		}
	}
}

// TestDatagramRecords: a record names both ends, policy and rule, from either side.
func TestDatagramRecords(t *testing.T) {
	view := datagramView(t)
	db, _ := view.Workload(mesh.Key{Namespace: "bank", Name: "db"})
	web, _ := view.Workload(mesh.Key{Namespace: "shop", Name: "web"})
	server, client := netip.MustParseAddrPort("10.0.0.1:443"), netip.MustParseAddrPort("10.0.0.2:1000")
	in := bpf.Conversation{Local: server, Remote: client, Direction: bpf.Inbound, Out: bpf.Count{Packets: 1, Bytes: 70}, In: bpf.Count{Packets: 2, Bytes: 50}}
	out := bpf.Conversation{Local: client, Remote: server, Direction: bpf.Outbound, Out: in.In, In: in.Out}
	for direction, r := range map[flow.Direction]flow.Record{flow.DirectionInbound: passed(view, db, in, in), flow.DirectionOutbound: passed(view, web, out, out)} {
		want := flow.Record{Start: r.Start, Duration: r.Duration, Direction: direction, Wire: flow.Wire{Transport: flow.TransportPlaintext}, Protocol: flow.ProtocolUDP, Packets: 3,
			Source: flow.Endpoint{Workload: web.Key, Identity: web.Identity, Addr: client}, Destination: flow.Endpoint{Workload: db.Key, Identity: db.Identity, Addr: server},
			Verdict: mesh.VerdictAllow, Reason: mesh.ReasonPolicyAllow, Policy: mesh.Key{Namespace: "bank", Name: "all"}, BytesSent: 50, BytesReceived: 70}
		if r != want {
			t.Errorf("%v:\n got %+v\nwant %+v", direction, r, want)
		}
	}
}

// TestDatagramRecordsOutside: a record of what left the mesh says that egress let it, also
// when that has changed since.
func TestDatagramRecordsOutside(t *testing.T) {
	view := datagramView(t)
	open := *view.Settings()
	open.UDPEgress = map[string]mesh.UDPEgress{"shop": {Allow: true}}
	var all []mesh.Workload
	for _, w := range view.Workloads() {
		all = append(all, *w)
	}
	opened, err := mesh.NewView("r", open, all, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	web, _ := view.Workload(mesh.Key{Namespace: "shop", Name: "web"})
	server, client := netip.MustParseAddrPort("192.0.2.1:123"), netip.MustParseAddrPort("10.0.0.2:1000")
	c := bpf.Conversation{Local: client, Remote: server, Direction: bpf.Outbound, Out: bpf.Count{Packets: 2, Bytes: 50}, In: bpf.Count{Packets: 1, Bytes: 70}}
	for _, v := range []*mesh.View{opened, view} {
		r := passed(v, web, c, c)
		want := flow.Record{Start: r.Start, Duration: r.Duration, Direction: flow.DirectionOutbound, Wire: flow.Wire{Transport: flow.TransportPlaintext}, Protocol: flow.ProtocolUDP, Packets: 3,
			Source: flow.Endpoint{Workload: web.Key, Identity: web.Identity, Addr: client}, Destination: flow.Endpoint{Addr: server},
			Verdict: mesh.VerdictAllow, Reason: mesh.ReasonEgressAllowed, Rule: -1, BytesSent: 50, BytesReceived: 70}
		if r != want {
			t.Errorf("\n got %+v\nwant %+v", r, want)
		}
	}
}

// TestDatagramDrops: a drop names the policy that refuses, or says why there is none.
func TestDatagramDrops(t *testing.T) {
	view := datagramView(t)
	db, _ := view.Workload(mesh.Key{Namespace: "bank", Name: "db"})
	evil, _ := view.Workload(mesh.Key{Namespace: "shop", Name: "evil"})
	for name, c := range map[string]struct {
		own                 *mesh.Workload
		direction           bpf.Direction
		source, destination string
		policy, detail      string
		rule, left          int
	}{
		"in":           {db, bpf.Inbound, "10.0.0.3:9", "10.0.0.1:443", "bank/evil", "", 1, 0},
		"out":          {evil, bpf.Outbound, "10.0.0.3:9", "10.0.0.1:443", "bank/evil", "", 1, 0},
		"no rule":      {db, bpf.Inbound, "10.0.0.2:9", "10.0.0.1:444", "", "PolicyNoMatch", -1, 0},
		"nobody's":     {db, bpf.Inbound, "192.0.2.1:9", "10.0.0.1:443", "", "", -1, 0},
		"allowed now":  {db, bpf.Inbound, "10.0.0.2:9", "10.0.0.1:443", "", "policy allows it now", -1, 0},
		"of the world": {evil, bpf.Outbound, "10.0.0.3:9", "192.0.2.1:443", "", "EgressDenied", -1, 0},
		"of a group":   {evil, bpf.Outbound, "10.0.0.3:9", "224.0.0.251:5353", "", "", -1, 0},
		"left out":     {db, bpf.Inbound, "10.0.0.2:9", "10.0.0.1:443", "", "policy allows it, but the pod's gate has no room for all that policies allow", -1, 5},
	} {
		r := flow.Record{Rule: -1}
		explainDatagram(view, c.own, &podnet.Drop{Drop: bpf.Drop{Direction: c.direction, Source: netip.MustParseAddrPort(c.source), Destination: netip.MustParseAddrPort(c.destination)}, Reason: mesh.ReasonKernelUDP}, c.left, &r)
		if flow.KeyWord(r.Policy) != c.policy || r.Rule != c.rule || r.Detail != c.detail {
			t.Errorf("%s: policy %v rule %d, %q", name, r.Policy, r.Rule, r.Detail)
		}
	}
}

// TestDatagramsAreAudited: what passes and what is refused names the AUDIT policies, at either end.
func TestDatagramsAreAudited(t *testing.T) {
	view := datagramView(t)
	db, _ := view.Workload(mesh.Key{Namespace: "bank", Name: "db"})
	audited := *db
	audited.Datagrams = append(slices.Clone(db.Datagrams), &mesh.Policy{Key: mesh.Key{Namespace: "bank", Name: "watch"}, Action: mesh.ActionAudit, Rules: []mesh.Rule{{}}})
	view, err := view.With("audited", mesh.Change{Workloads: []*mesh.Workload{&audited}})
	if err != nil {
		t.Fatal(err)
	}
	web, _ := view.Workload(mesh.Key{Namespace: "shop", Name: "web"})
	evil, _ := view.Workload(mesh.Key{Namespace: "shop", Name: "evil"})
	server := netip.MustParseAddrPort("10.0.0.1:443")
	for _, in := range []bool{true, false} {
		c, own, other := bpf.Conversation{Local: server, Remote: netip.MustParseAddrPort("10.0.0.2:1000"), Direction: bpf.Inbound}, &audited, &audited
		drop := &podnet.Drop{Drop: bpf.Drop{Direction: bpf.Inbound, Source: netip.MustParseAddrPort("10.0.0.3:9"), Destination: server}, Reason: mesh.ReasonKernelUDP}
		if !in {
			c.Local, c.Remote, c.Direction, drop.Direction, own, other = c.Remote, server, bpf.Outbound, bpf.Outbound, web, evil
		}
		if r := passed(view, own, c, c); r.Verdict != mesh.VerdictAudit || r.Audited != "bank/watch" || r.Policy.Name != "all" {
			t.Errorf("passed, inbound %v: %+v", in, r)
		}
		r := flow.Record{Rule: -1}
		if explainDatagram(view, other, drop, 0, &r); r.Audited != "bank/watch" || r.Policy.Name != "evil" {
			t.Errorf("dropped, inbound %v: %+v", in, r)
		}
	}
}

// TestDropsOfWhoIsBehindNoGate name who that is, and whose agent it is that has not said so.
func TestDropsOfWhoIsBehindNoGate(t *testing.T) {
	view := datagramView(t)
	web, _ := view.Workload(mesh.Key{Namespace: "shop", Name: "web"})
	open := *web
	open.Gated = false
	view, err := view.With("ungated", mesh.Change{Workloads: []*mesh.Workload{&open}})
	if err != nil {
		t.Fatal(err)
	}
	db, _ := view.Workload(mesh.Key{Namespace: "bank", Name: "db"})
	for _, c := range []struct {
		own       *mesh.Workload
		direction bpf.Direction
	}{{db, bpf.Inbound}, {&open, bpf.Outbound}} {
		r := flow.Record{Rule: -1}
		explainDatagram(view, c.own, &podnet.Drop{Drop: bpf.Drop{Direction: c.direction, Source: netip.MustParseAddrPort("10.0.0.2:9"), Destination: netip.MustParseAddrPort("10.0.0.1:443")}, Reason: mesh.ReasonKernelUDP}, 0, &r)
		if want := "the agent of node n1 has not said that shop/web is behind its gate"; r.Detail != want {
			t.Errorf("%v: %q, want %q", c.direction, r.Detail, want)
		}
	}
}

// TestDatagramsAreWorkedOutWhenTheyMayDiffer: what changes is worked out when workloads,
// services or settings changed, and never while no policy is about UDP.
func TestDatagramsAreWorkedOutWhenTheyMayDiffer(t *testing.T) {
	view := datagramView(t)
	with := func(v *mesh.View, c mesh.Change) *mesh.View {
		t.Helper()
		next, err := v.With("r", c)
		if err != nil {
			t.Fatal(err)
		}
		return next
	}
	db, _ := view.Workload(mesh.Key{Namespace: "bank", Name: "db"})
	web, _ := view.Workload(mesh.Key{Namespace: "shop", Name: "web"})
	silent, unready, moved := *db, *web, *web
	silent.Datagrams, unready.Ready, moved.Addresses = nil, !web.Ready, []netip.Addr{netip.MustParseAddr("10.0.0.9")}
	policy := with(view, mesh.Change{Policies: []*mesh.Policy{{Key: mesh.Key{Namespace: "shop", Name: "tcp"}}}})
	quiet := with(policy, mesh.Change{Workloads: []*mesh.Workload{&silent}})
	g := datagrams{datapath: &Datapath{name: "n1"}}
	for i, c := range []struct {
		view    *mesh.View
		fresh   bool
		changes int
	}{{view, true, 0}, {view, false, 0}, {policy, false, 0}, {with(policy, mesh.Change{Workloads: []*mesh.Workload{&unready}}), true, 0},
		{with(policy, mesh.Change{Workloads: []*mesh.Workload{&moved}}), true, 2}, {quiet, true, 2}, {with(quiet, mesh.Change{Workloads: []*mesh.Workload{&unready}}), false, 0}} {
		if changes, fresh := g.follow(c.view); fresh != c.fresh || len(changes) != c.changes {
			t.Errorf("view %d: fresh %v, changes %v, want %v, %d", i, fresh, changes, c.fresh, c.changes)
		}
	}
	told := &datagramPod{told: true}
	change := datagram.Change{Gone: []datagram.Rule{{Remote: web.Addresses[0], Port: 443, Inbound: true}}}
	if w := g.want(told, db.Key, change); w.whole || len(w.gone) != 1 || len(w.added) != 0 {
		t.Errorf("a gate that was told all wants %+v", w)
	}
	g.view = view
	for what, p := range map[string]*datagramPod{"was told nothing": {}, "had another inside": {told: true, leaves: true, inside: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}} {
		if w := g.want(p, db.Key, change); !w.whole || len(w.rules) != 1 || w.left != 0 {
			t.Errorf("a gate that %s wants %+v", what, w)
		}
	}
}

// TestWhatLeavesIsWorkedOut: without a policy about UDP, too, and with what is inside; a change of either is told.
func TestWhatLeavesIsWorkedOut(t *testing.T) {
	view := datagramView(t)
	with := func(ranges string, egress map[string]mesh.UDPEgress) *mesh.View {
		t.Helper()
		s := *view.Settings()
		s.UDPEgress, s.ClusterRanges = egress, []netip.Prefix{netip.MustParsePrefix(ranges)}
		var all []mesh.Workload
		for _, w := range view.Workloads() {
			w := *w
			w.Datagrams = nil
			all = append(all, w)
		}
		v, err := mesh.NewView("r", s, all, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	open := map[string]mesh.UDPEgress{"shop": {Allow: true, Ports: []uint16{123}}}
	g := datagrams{datapath: &Datapath{name: "n1"}}
	for i, c := range []struct {
		view  *mesh.View
		fresh bool
		whole int
		block string
	}{
		{with("10.0.0.0/8", nil), true, 0, ""}, {with("10.0.0.0/8", map[string]mesh.UDPEgress{"": {}, "shop": {}}), false, 0, ""},
		{with("10.0.0.0/8", open), true, 3, "10.0.0.0/8"}, {with("10.0.0.0/16", open), true, 3, "10.0.0.0/16"}, {with("10.0.0.0/8", nil), true, 3, ""}, {with("10.0.0.0/8", nil), false, 0, ""},
	} {
		changes, fresh := g.follow(c.view)
		if fresh != c.fresh || len(changes) != c.whole || (len(g.inside) > 0) != (c.block != "") || c.block != "" && !slices.Contains(g.inside, netip.MustParsePrefix(c.block)) {
			t.Errorf("view %d: fresh %v, %d workloads to be told, %v inside, want %v, %d, %s", i, fresh, len(changes), g.inside, c.fresh, c.whole, c.block)
		}
	}
}

// TestRoom: what is left out is a problem of the pod, and counted, until it is not or the pod is gone.
func TestRoom(t *testing.T) {
	r := newRoom()
	r.set("a", 3)
	r.set("b", 4)
	if err := r.Problem("a"); err == nil || !strings.Contains(err.Error(), "3 are left out") || testutil.ToFloat64(r.Collector()) != 7 {
		t.Errorf("%v, %v left", err, testutil.ToFloat64(r.Collector()))
	}
	r.set("a", 0)
	r.keep(func(pod string) bool { return pod == "a" })
	if r.Problem("a") != nil || r.Problem("b") != nil || testutil.ToFloat64(r.Collector()) != 0 {
		t.Errorf("%v left", testutil.ToFloat64(r.Collector()))
	}
}

// TestRoomIsTriedAgain: a gate that could not be given what found room is behind, and is told
// again a second later as any other.
func TestRoomIsTriedAgain(t *testing.T) {
	view := datagramView(t)
	d := &Datapath{name: "n1", room: newRoom(), log: slog.New(slog.DiscardHandler)}
	d.keys.byName = map[string]mesh.Key{"db": {Namespace: "bank", Name: "db"}}
	gone := &datagramPod{pod: &podnet.Pod{}, told: true, left: 3, short: true}
	g := datagrams{datapath: d, view: view, pods: map[string]*datagramPod{"db": gone}}
	if g.fill(view); gone.told || !g.behind {
		t.Errorf("a gate that is not there is told: %v, behind: %v", gone.told, g.behind)
	}
	gone.told, gone.short, g.behind = true, false, false
	if g.fill(view); g.behind {
		t.Error("a gate that has lost no rules is told anew")
	}
}
