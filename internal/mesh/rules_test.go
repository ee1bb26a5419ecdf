package mesh_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/datagram"
)

// drawExchanging draws a workload, of five names, that takes datagrams or not.
func drawExchanging(t *rapid.T, i int) *mesh.Workload {
	addr := rapid.IntRange(10*i, 10*i+1).Draw(t, "address")
	w := workload([]string{"shop", "bank"}[i%2], []string{"web", "db"}[i/2%2], fmt.Sprintf("10.0.0.%d", addr), fmt.Sprintf("fd00::%d", addr))
	w.Name = fmt.Sprintf("%s-%d", w.Name, i)
	w.Addresses = w.Addresses[:rapid.IntRange(0, 2).Draw(t, "addresses")]
	w.Enrolled, w.Gated = rapid.IntRange(0, 9).Draw(t, "enrolled") > 0, rapid.IntRange(0, 9).Draw(t, "gated") > 0
	w.Ready = rapid.Bool().Draw(t, "ready")
	w.Datagrams = drawDatagrams(t, w.Namespace)
	w.Node = rapid.SampledFrom([]string{"n1", "n2"}).Draw(t, "node")
	return &w
}

// drawDatagrams draws what policies say about UDP: anything, or more often that everybody,
// or one identity, is let in, so that there is something to be taken away.
func drawDatagrams(t *rapid.T, namespace string) []*mesh.Policy {
	p := &mesh.Policy{Key: mesh.Key{Namespace: namespace, Name: "in"}, Rules: []mesh.Rule{{To: []mesh.Destination{{Ports: []uint16{80, 443}}}}}}
	switch rapid.IntRange(0, 3).Draw(t, "datagrams are") {
	case 0:
		return genDatagrams(namespace).Draw(t, "datagrams")
	case 1:
		p.Rules[0].From = []mesh.Source{{Identities: []mesh.IdentityPattern{mesh.IdentityPattern(identity("shop", "web").String())}}}
	}
	return []*mesh.Policy{p}
}

// drawOneField draws a change of what is there in one field, or of an address that goes from
// one workload to another.
func drawOneField(t *rapid.T, v *mesh.View) (c mesh.Change) {
	if all := v.Services(); len(all) > 0 && rapid.Bool().Draw(t, "of a service") {
		s := *all[rapid.IntRange(0, len(all)-1).Draw(t, "which")]
		switch another := drawThrough(t, 0); rapid.IntRange(0, 2).Draw(t, "field") {
		case 0:
			s.Addresses = []netip.Addr{netip.MustParseAddr(rapid.SampledFrom([]string{"10.96.0.7", "10.96.0.8", "fd00:96::7"}).Draw(t, "address"))}
		case 1:
			s.UDPPorts = another.UDPPorts
		case 2:
			s.Endpoints = another.Endpoints
		}
		c.Services = []*mesh.Service{&s}
		return c
	}
	all := v.Workloads()
	if len(all) == 0 {
		return c
	}
	w := *all[rapid.IntRange(0, len(all)-1).Draw(t, "which")]
	c.Workloads = []*mesh.Workload{&w}
	switch rapid.IntRange(0, 5).Draw(t, "field") {
	case 0:
		w.Enrolled = !w.Enrolled
	case 1:
		w.Gated = !w.Gated
	case 2:
		w.Node = rapid.SampledFrom([]string{"n1", "n2"}).Draw(t, "node")
	case 3:
		w.ServiceAccount = rapid.SampledFrom([]string{"web", "db", "other"}).Draw(t, "account")
		w.Identity = identity(w.Namespace, w.ServiceAccount)
	case 4:
		w.Datagrams = drawDatagrams(t, w.Namespace)
	case 5:
		if last := *all[len(all)-1]; last.Key != w.Key {
			w.Addresses, last.Addresses = last.Addresses, nil
			c.Workloads = append(c.Workloads, &last)
		}
	}
	return c
}

// drawThrough draws a service, of two names, with some of five workloads behind it.
func drawThrough(t *rapid.T, i int) *mesh.Service {
	s := &mesh.Service{Key: mesh.Key{Namespace: "shop", Name: fmt.Sprintf("s%d", i)}, Addresses: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.96.0.%d", i+1))}}
	if rapid.IntRange(0, 4).Draw(t, "udp") > 0 {
		s.UDPPorts = []mesh.ServicePort{{Port: 53, TargetPort: rapid.SampledFrom([]uint16{80, 443}).Draw(t, "target")}, {Port: 80, TargetPort: 80}}[:rapid.IntRange(1, 2).Draw(t, "ports")]
	}
	for i := range 5 {
		if rapid.IntRange(0, 3).Draw(t, "endpoint") == 0 {
			s.Endpoints = append(s.Endpoints, drawExchangingKey(i))
		}
	}
	s.Endpoints = mesh.SortedKeys(s.Endpoints)
	return s
}

func drawExchangingKey(i int) mesh.Key {
	return mesh.Key{Namespace: []string{"shop", "bank"}[i%2], Name: fmt.Sprintf("%s-%d", []string{"web", "db"}[i/2%2], i)}
}

// drawExchange draws what changes: of everything, or of some.
func drawExchange(t *rapid.T, all bool) (c mesh.Change) {
	for i := range 5 {
		switch what := rapid.IntRange(0, 5).Draw(t, "workload"); {
		case all || what == 0:
			c.Workloads = append(c.Workloads, drawExchanging(t, i))
		case what == 1:
			c.GoneWorkloads = append(c.GoneWorkloads, drawExchangingKey(i))
		}
	}
	for i := range 2 {
		switch what := rapid.IntRange(0, 5).Draw(t, "service"); {
		case all || what == 0:
			c.Services = append(c.Services, drawThrough(t, i))
		case what == 1:
			c.GoneServices = append(c.GoneServices, mesh.Key{Namespace: "shop", Name: fmt.Sprintf("s%d", i)})
		}
	}
	if all || rapid.IntRange(0, 19).Draw(t, "settings") == 0 {
		s := settings()
		if rapid.Bool().Draw(t, "revoke") {
			s.RevokedIdentities = []spiffeid.ID{identity("shop", "web")}
		}
		if rapid.Bool().Draw(t, "leaves") {
			s.UDPEgress = map[string]mesh.UDPEgress{"shop": {Allow: true, Ports: []uint16{123}}}
		}
		c.Settings = &s
	}
	return c
}

func ruleSet(rules []datagram.Rule) map[datagram.Rule]bool {
	set := map[datagram.Rule]bool{}
	for _, r := range rules {
		set[r] = true
	}
	return set
}

// TestRuleChangesAreTheRules: what differs between two Views is what Rules of both differ in,
// be it that of the step between them or of several.
func TestRuleChangesAreTheRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		first := drawExchange(t, true)
		v, err := mesh.ViewOf("r", *first.Settings, first.Workloads, first.Services, nil, mesh.Network{})
		if err != nil {
			t.Fatal(err)
		}
		views := []*mesh.View{v}
		for range rapid.IntRange(1, 4).Draw(t, "changes") {
			before := views[len(views)-1]
			c := drawOneField(t, before)
			if rapid.IntRange(0, 2).Draw(t, "more than a field") == 0 {
				c = drawExchange(t, false)
			}
			next, err := before.With("r", c)
			if err != nil {
				continue // an address has one owner
			}
			for _, before := range []*mesh.View{before, v} {
				for _, node := range []string{"n1", "n2"} {
					checkRuleChanges(t, before, next, node)
				}
			}
			views = append(views, next)
		}
	})
}

func checkRuleChanges(t *rapid.T, v, next *mesh.View, node string) {
	before, after, changes := datagram.Rules(v, node), datagram.Rules(next, node), datagram.Changes(v, next, node)
	for key := range union(before, after) {
		checkRuleChange(t, next, node, key, ruleSet(before[key]), ruleSet(after[key]), changes[key])
	}
}

func union(a, b map[mesh.Key][]datagram.Rule) map[mesh.Key]bool {
	all := map[mesh.Key]bool{}
	for _, m := range []map[mesh.Key][]datagram.Rule{a, b} {
		for key := range m {
			all[key] = true
		}
	}
	return all
}

func checkRuleChange(t *rapid.T, next *mesh.View, node string, key mesh.Key, before, after map[datagram.Rule]bool, c datagram.Change) {
	if rules, left := datagram.RulesOf(next, node, key); !maps.Equal(ruleSet(rules), after) || left != 0 {
		t.Fatalf("%v by itself: %v and %d left, want %v", key, rules, left, after)
	}
	if c.Whole {
		return
	}
	for _, r := range c.Gone {
		if !before[r] || after[r] {
			t.Fatalf("%v: %v is gone, was there: %v, is there: %v", key, r, before[r], after[r])
		}
		delete(before, r)
	}
	for _, r := range c.Added {
		if before[r] || !after[r] {
			t.Fatalf("%v: %v is added, was there: %v, is there: %v", key, r, before[r], after[r])
		}
		before[r] = true
	}
	if !maps.Equal(before, after) {
		t.Fatalf("%v: rules %v after the changes, want %v", key, before, after)
	}
}

// TestRuleChangesAreFew: of a workload that changed, others are told what that is about, and
// nothing is said of what Rules do not ask for.
func TestRuleChangesAreFew(t *testing.T) {
	server, client, other := workload("shop", "server", "10.0.0.1"), workload("shop", "client", "10.0.0.2"), workload("shop", "other", "10.0.0.3")
	client.Node = "n2"
	server.Datagrams = []*mesh.Policy{{Key: mesh.Key{Namespace: "shop", Name: "p"}, Rules: []mesh.Rule{{To: []mesh.Destination{{Ports: []uint16{443}}}}}}}
	v := mustView(t, settings(), []mesh.Workload{server, client, other}, nil, nil)
	with := func(c mesh.Change) *mesh.View {
		t.Helper()
		next, err := v.With("r", c)
		if err != nil {
			t.Fatal(err)
		}
		return next
	}
	unready, moved, closed := client, client, server
	unready.Ready, moved.Addresses, closed.Gated = false, []netip.Addr{netip.MustParseAddr("10.0.0.4")}, false
	if all := datagram.Changes(v, with(mesh.Change{Workloads: []*mesh.Workload{&unready}}), "n1"); len(all) > 0 {
		t.Errorf("of one that is not ready: %v", all)
	}
	in := func(addr string) []datagram.Rule {
		return []datagram.Rule{{Remote: netip.MustParseAddr(addr), Port: 443, Inbound: true}}
	}
	if all := datagram.Changes(v, with(mesh.Change{Workloads: []*mesh.Workload{&moved}}), "n1"); len(all) != 1 || !slices.Equal(all[server.Key].Gone, in("10.0.0.2")) || !slices.Equal(all[server.Key].Added, in("10.0.0.4")) {
		t.Errorf("of one that has another address: %v", all)
	}
	all := datagram.Changes(v, with(mesh.Change{Workloads: []*mesh.Workload{&closed}}), "n1")
	if out := []datagram.Rule{{Remote: netip.MustParseAddr("10.0.0.1"), Port: 443}}; len(all) != 2 || !all[server.Key].Whole || !slices.Equal(all[other.Key].Gone, out) {
		t.Errorf("of one that is no longer behind its gate: %v", all)
	}
}

// TestRulesAreBounded: of more than a gate holds the first are written, and the others counted.
func TestRulesAreBounded(t *testing.T) {
	var all []mesh.Workload
	const clients, ports = 6600, 10
	for i := range clients {
		w := workload("shop", fmt.Sprintf("w%d", i%10), fmt.Sprintf("10.1.%d.%d", i/250, i%250+1))
		w.Name, w.Node = fmt.Sprintf("w%d", i), "n2"
		all = append(all, w)
	}
	server := workload("bank", "server", "10.2.0.1")
	p := &mesh.Policy{Key: mesh.Key{Namespace: "bank", Name: "p"}, Rules: []mesh.Rule{{To: []mesh.Destination{{}}}}}
	for i := range ports {
		p.Rules[0].To[0].Ports = append(p.Rules[0].To[0].Ports, uint16(1000+i))
	}
	server.Datagrams = []*mesh.Policy{p}
	v := mustView(t, settings(), append(all, server), nil, nil)
	if rules, left := datagram.RulesOf(v, "n1", server.Key); len(ruleSet(rules)) != datagram.MaxRules || left != clients*ports-datagram.MaxRules {
		t.Errorf("%d rules, %d left", len(rules), left)
	}
}
