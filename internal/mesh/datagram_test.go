package mesh_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/datagram"
)

// judge is the specification of datagram.Authorize, as plainly as possible.
func (n naive) judge(from netip.Addr, w mesh.Workload, port uint16) mesh.Decision {
	deny := func(r mesh.Reason) mesh.Decision { return mesh.Decision{Reason: r, Rule: -1} }
	i := slices.IndexFunc(n.workloads, func(w mesh.Workload) bool { return slices.Contains(w.Addresses, from) })
	if i < 0 || !n.workloads[i].Enrolled || !n.workloads[i].Gated || !w.Enrolled || !w.Gated || len(w.Datagrams) == 0 {
		return deny(mesh.ReasonKernelUDP)
	}
	source := n.workloads[i]
	for _, id := range []spiffeid.ID{source.Identity, w.Identity} {
		if slices.Contains(n.settings.RevokedIdentities, id) {
			return deny(mesh.ReasonIdentityRevoked)
		}
	}
	if slices.Contains([]uint16{15001, 15006, 15008, 15053}, port) {
		return deny(mesh.ReasonReservedPort)
	}
	n.policies = nil
	for _, p := range w.Datagrams {
		n.policies = append(n.policies, *p)
	}
	c := mesh.Connection{Peer: source.Identity, Source: from, Port: port}
	d := deny(mesh.ReasonPolicyNoMatch)
	if p, rule := n.first(mesh.ActionDeny, w, c); p != nil {
		d = mesh.Decision{Reason: mesh.ReasonPolicyDeny, Policy: p.Key, Rule: rule}
	} else if p, rule := n.first(mesh.ActionAllow, w, c); p != nil {
		d = mesh.Decision{Verdict: mesh.VerdictAllow, Reason: mesh.ReasonPolicyAllow, Policy: p.Key, Rule: rule}
	}
	for _, p := range n.policies {
		if p.Action == mesh.ActionAudit && n.rule(p, c) >= 0 {
			d.Audited = append(d.Audited, p.Key)
			if d.Verdict == mesh.VerdictAllow {
				d.Verdict = mesh.VerdictAudit
			}
		}
	}
	return d
}

// genDatagrams makes policies about UDP of a workload, as kube compiles them: those to
// ALLOW name their ports.
func genDatagrams(namespace string) *rapid.Generator[[]*mesh.Policy] {
	one := rapid.Custom(func(t *rapid.T) *mesh.Policy {
		p := genPolicy(t)
		p.Namespace, p.Selector = namespace, nil
		for i := range p.Rules {
			if p.Action == mesh.ActionAllow {
				p.Rules[i].To = append(p.Rules[i].To, mesh.Destination{Ports: []uint16{443}})
				p.Rules[i].To = slices.DeleteFunc(p.Rules[i].To, func(d mesh.Destination) bool { return len(d.Ports) == 0 })
			}
		}
		return &p
	})
	return rapid.Map(rapid.SliceOfNDistinct(one, 0, 4, func(p *mesh.Policy) mesh.Key { return p.Key }), func(all []*mesh.Policy) []*mesh.Policy {
		slices.SortFunc(all, func(a, b *mesh.Policy) int { return a.Key.Compare(b.Key) })
		return all
	})
}

// senders holds datagram.SenderNodes to its specification, of the policies of w, which alone of its
// namespace has some.
func (n naive) senders(t *rapid.T, v *mesh.View, w mesh.Workload) {
	for _, p := range w.Datagrams {
		want := map[string]bool{}
		for _, from := range n.workloads {
			for _, addr := range from.Addresses {
				for _, port := range p.Ports() {
					if p.Action == mesh.ActionAllow && w.Enrolled && w.Gated && from.Enrolled && from.Gated && n.rule(*p, mesh.Connection{Peer: from.Identity, Source: addr, Port: port}) >= 0 {
						want[from.Node] = true
					}
				}
			}
		}
		if got := datagram.SenderNodes(v, p.Key); !cmp.Equal(got, want, cmpopts.EquateEmpty()) {
			t.Fatalf("of %+v datagrams come from %v, want %v", p, got, want)
		}
	}
}

// TestDatagramsAreTheSpecification holds the evaluator to the naive one, and what it
// writes out for the gates to the evaluator: for every pair, every address and every port.
func TestDatagramsAreTheSpecification(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := naive{settings: settings()}
		if rapid.Bool().Draw(t, "revoke") {
			n.settings.RevokedIdentities = []spiffeid.ID{genIdentity(t)}
		}
		for i, key := range []mesh.Key{{Namespace: "shop", Name: "web"}, {Namespace: "shop", Name: "db"}, {Namespace: "bank", Name: "web"}} {
			w := workload(key.Namespace, key.Name, fmt.Sprintf("10.%d.2.3", i), fmt.Sprintf("fd00::%d", i+1))
			w.Enrolled, w.Gated = rapid.IntRange(0, 3).Draw(t, "enrolled") > 0, rapid.IntRange(0, 3).Draw(t, "gated") > 0
			w.Datagrams = genDatagrams(key.Namespace).Draw(t, "datagrams of "+key.String())
			w.Node = rapid.SampledFrom([]string{"n1", "n2"}).Draw(t, "node")
			n.workloads = append(n.workloads, w)
		}
		service := mesh.Service{Key: mesh.Key{Namespace: "shop", Name: "svc"}, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00:96::1")},
			UDPPorts: []mesh.ServicePort{{Port: 53, TargetPort: 443}, {Port: 80, TargetPort: 80}}}
		for _, w := range n.workloads {
			if rapid.Bool().Draw(t, "endpoint") {
				service.Endpoints = append(service.Endpoints, w.Key)
			}
		}
		service.Endpoints = mesh.SortedKeys(service.Endpoints)
		v, err := mesh.NewView("r", n.settings, slices.Clone(n.workloads), []mesh.Service{service}, nil)
		if err != nil {
			t.Fatal(err)
		}
		sources := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.96.0.1")}
		for _, w := range n.workloads {
			sources = append(sources, w.Addresses...)
		}
		n.senders(t, v, n.workloads[2])
		rules := map[mesh.Key]map[datagram.Rule]bool{}
		for _, node := range []string{"n1", "n2"} {
			for key, all := range datagram.Rules(v, node) {
				rules[key] = map[datagram.Rule]bool{}
				for _, r := range all {
					rules[key][r] = true
				}
				if w, _ := v.Workload(key); w.Node != node {
					t.Fatalf("%v is not of node %s", key, node)
				}
			}
		}
		ports := []uint16{53, 80, 443, 15008}
		for _, w := range n.workloads {
			n.checkIn(t, v, w, sources, ports, rules[w.Key])
			n.checkOut(t, w, service, ports, rules[w.Key])
		}
	})
}

// checkIn compares what may come to a workload.
func (n naive) checkIn(t *rapid.T, v *mesh.View, w mesh.Workload, sources []netip.Addr, ports []uint16, rules map[datagram.Rule]bool) {
	for _, from := range sources {
		for _, port := range ports {
			want := n.judge(from, w, port)
			got := datagram.Authorize(v, datagram.Conversation{Source: from, Destination: &w, Port: port})
			if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("from %v to %v port %d (-specification +evaluator):\n%s", from, w.Key, port, diff)
			}
			passes := want.Verdict != mesh.VerdictDeny && !slices.Contains(w.Addresses, from)
			if has := rules[datagram.Rule{Remote: from, Port: port, Inbound: true}]; has != passes {
				t.Fatalf("from %v to %v port %d: there is a rule: %v, and it is let in: %v", from, w.Key, port, has, passes)
			}
		}
	}
}

// checkOut compares what may leave a workload.
func (n naive) checkOut(t *rapid.T, w mesh.Workload, service mesh.Service, ports []uint16, rules map[datagram.Rule]bool) {
	let := func(to mesh.Workload, family netip.Addr, port uint16) bool {
		for _, from := range w.Addresses {
			if from.Is4() == family.Is4() && n.judge(from, to, port).Verdict == mesh.VerdictDeny {
				return false
			}
		}
		return true
	}
	check := func(addr netip.Addr, port uint16, want bool) {
		if has := rules[datagram.Rule{Remote: addr, Port: port}]; has != want {
			t.Fatalf("from %v to %v port %d: there is a rule: %v, and it is let in: %v", w.Key, addr, port, has, want)
		}
	}
	for _, port := range ports {
		for _, to := range n.workloads {
			for _, addr := range to.Addresses {
				check(addr, port, to.Key != w.Key && w.Enrolled && w.Gated && let(to, addr, port))
			}
		}
		for _, addr := range service.Addresses {
			target := map[uint16]uint16{53: 443, 80: 80}[port]
			all := w.Enrolled && w.Gated && target != 0 && len(service.Endpoints) > 0
			for _, key := range service.Endpoints {
				to := n.workloads[slices.IndexFunc(n.workloads, func(w mesh.Workload) bool { return w.Key == key })]
				open := slices.ContainsFunc(to.Datagrams, func(p *mesh.Policy) bool { return p.Action == mesh.ActionAllow && len(p.Ports()) > 0 }) && to.Enrolled && to.Gated
				all = all && open && (to.Key == w.Key || let(to, addr, target))
			}
			check(addr, port, all)
		}
	}
}

// A policy of a workload about UDP that cannot be is refused with the View.
func TestDatagramsAreValidated(t *testing.T) {
	w := workload("shop", "web", "10.0.0.1")
	w.Datagrams = []*mesh.Policy{{Key: mesh.Key{Namespace: "shop", Name: "p"}, Rules: []mesh.Rule{{To: []mesh.Destination{{Ports: []uint16{0}}}}}}}
	if _, err := mesh.NewView("r", settings(), []mesh.Workload{w}, nil, nil); err == nil {
		t.Error("a rule about port 0 is taken")
	}
}

// TestDatagramTo: a conversation with a service is judged at its endpoints, and the first
// that refuses decides.
func TestDatagramTo(t *testing.T) {
	allow := func(name string, ports ...uint16) []*mesh.Policy {
		return []*mesh.Policy{{Key: mesh.Key{Namespace: "shop", Name: name}, Rules: []mesh.Rule{{To: []mesh.Destination{{Ports: ports}}}}}}
	}
	a, b := workload("shop", "a", "10.0.0.1"), workload("shop", "b", "10.0.0.2")
	a.Datagrams, b.Datagrams = allow("a", 443, 444), allow("b", 443)
	s := mesh.Service{Key: mesh.Key{Namespace: "shop", Name: "s"}, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Endpoints: []mesh.Key{a.Key, b.Key},
		UDPPorts: []mesh.ServicePort{{Port: 1, TargetPort: 443}, {Port: 2, TargetPort: 444}}}
	v := mustView(t, settings(), []mesh.Workload{a, b, workload("bank", "c", "10.0.0.3")}, []mesh.Service{s}, nil)
	from := mustWorkload(t, v, "bank", "c")
	for to, want := range map[string]mesh.Reason{
		"10.0.0.1:444": mesh.ReasonPolicyAllow, "10.0.0.2:444": mesh.ReasonPolicyNoMatch, "10.0.0.3:444": mesh.ReasonKernelUDP, "192.0.2.1:53": mesh.ReasonKernelUDP,
		"10.96.0.1:1": mesh.ReasonPolicyAllow, "10.96.0.1:2": mesh.ReasonPolicyNoMatch, "10.96.0.1:3": mesh.ReasonKernelUDP,
	} {
		address := netip.MustParseAddrPort(to)
		d, service, _ := datagram.AuthorizeTo(v, from, address)
		if d.Reason != want || (service == s.Key) != (address.Addr() == s.Addresses[0]) {
			t.Errorf("%s: %v by %v, service %v, want %v", to, d.Reason, d.Policy, service, want)
		}
	}
}

// TestDatagramOfWhoIsGone: a source that the View does not have is asked about by its own
// identity, whoever has its address now; what comes from an address is its owner's.
func TestDatagramOfWhoIsGone(t *testing.T) {
	w, heir, gone := workload("shop", "w", "10.0.0.1"), workload("bank", "heir", "10.0.0.2"), workload("bank", "gone", "10.0.0.2")
	w.Datagrams = []*mesh.Policy{{Key: mesh.Key{Namespace: "shop", Name: "p"}, Rules: []mesh.Rule{{
		From: []mesh.Source{{Identities: []mesh.IdentityPattern{mesh.IdentityPattern(gone.Identity.String())}}}, To: []mesh.Destination{{Ports: []uint16{443}}}}}}}
	v := mustView(t, settings(), []mesh.Workload{w, heir}, nil, nil)
	for source, want := range map[*mesh.Workload]mesh.Reason{&gone: mesh.ReasonPolicyAllow, mustWorkload(t, v, "bank", "heir"): mesh.ReasonPolicyNoMatch} {
		if d, _, _ := datagram.AuthorizeTo(v, source, netip.MustParseAddrPort("10.0.0.1:443")); d.Reason != want {
			t.Errorf("%v: %v, want %v", source.Key, d.Reason, want)
		}
	}
	if d := datagram.Authorize(v, datagram.Conversation{Source: gone.Addresses[0], Destination: &w, Port: 443}); d.Reason != mesh.ReasonPolicyNoMatch {
		t.Errorf("from its address: %v", d.Reason)
	}
}

// BenchmarkDatagramRules writes out the rules of a node that has one workload which takes
// datagrams from the mesh's other 10,000, of 100 identities.
func BenchmarkDatagramRules(b *testing.B) {
	var all []mesh.Workload
	for i := range 10_000 {
		w := workload("shop", fmt.Sprintf("w%d", i%100), fmt.Sprintf("10.1.%d.%d", i/250, i%250+1))
		w.Name, w.Node = fmt.Sprintf("w%d", i), fmt.Sprintf("n%d", 2+i%300)
		all = append(all, w)
	}
	server := workload("bank", "server", "10.2.0.1")
	server.Datagrams = []*mesh.Policy{{Key: mesh.Key{Namespace: "bank", Name: "p"}, Rules: []mesh.Rule{{
		From: []mesh.Source{{Namespaces: []string{"shop"}}}, To: []mesh.Destination{{Ports: []uint16{443}}}}}}}
	v := mustView(b, settings(), append(all, server), nil, nil)
	for b.Loop() {
		if rules := datagram.Rules(v, "n1"); len(rules[server.Key]) != 10_000 {
			b.Fatalf("%d rules", len(rules[server.Key]))
		}
	}
}
