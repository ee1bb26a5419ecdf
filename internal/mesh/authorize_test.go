package mesh_test

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/request"
)

func policy(name string, action mesh.Action, rules ...mesh.Rule) mesh.Policy {
	return mesh.Policy{Key: mesh.Key{Namespace: "shop", Name: name}, Action: action, Rules: rules}
}

func from(patterns ...mesh.IdentityPattern) mesh.Rule {
	return mesh.Rule{From: []mesh.Source{{Identities: patterns}}}
}

func TestAuthorizeOrder(t *testing.T) {
	w := workload("shop", "api", "10.0.0.1")
	w.PortModes = map[uint16]mesh.Mode{8080: mesh.ModePermissive}
	w.ProbePorts = []uint16{9000}
	s := settings()
	s.RevokedIdentities = []spiffeid.ID{identity("shop", "thief")}
	v := mustView(t, s, []mesh.Workload{w}, nil, []mesh.Policy{
		policy("a-allow", mesh.ActionAllow, from("spiffe://example.org/ns/shop/sa/*")),
		policy("b-allow", mesh.ActionAllow, mesh.Rule{To: []mesh.Destination{{Ports: []uint16{8080}}}}),
		policy("z-deny", mesh.ActionDeny, from("spiffe://example.org/ns/shop/sa/none"), from("spiffe://example.org/ns/*/sa/bad")),
		policy("z-audit", mesh.ActionAudit, mesh.Rule{To: []mesh.Destination{{Ports: []uint16{7000}}}}),
	})
	api := mustWorkload(t, v, "shop", "api")
	key := func(name string) mesh.Key { return mesh.Key{Namespace: "shop", Name: name} }
	for _, test := range []struct {
		name  string
		peer  spiffeid.ID
		port  uint16
		probe bool
		want  mesh.Decision
	}{
		{"revoked before allowed", identity("shop", "thief"), 80, false, mesh.Decision{Reason: mesh.ReasonIdentityRevoked, Rule: -1}},
		{"allowed", identity("shop", "web"), 80, false, mesh.Decision{Verdict: mesh.VerdictAllow, Reason: mesh.ReasonPolicyAllow, Policy: key("a-allow")}},
		{"deny wins, with its rule", identity("shop", "bad"), 80, false, mesh.Decision{Reason: mesh.ReasonPolicyDeny, Policy: key("z-deny"), Rule: 1}},
		{"nothing matches", identity("bank", "web"), 80, false, mesh.Decision{Reason: mesh.ReasonPolicyNoMatch, Rule: -1}},
		{"audited", identity("shop", "web"), 7000, false, mesh.Decision{Verdict: mesh.VerdictAudit, Reason: mesh.ReasonPolicyAllow, Policy: key("a-allow"), Audited: []mesh.Key{key("z-audit")}}},
		{"audited and refused", identity("bank", "web"), 7000, false, mesh.Decision{Reason: mesh.ReasonPolicyNoMatch, Rule: -1, Audited: []mesh.Key{key("z-audit")}}},
		{"plaintext to strict", spiffeid.ID{}, 80, false, mesh.Decision{Reason: mesh.ReasonStrictPlaintext, Rule: -1}},
		{"plaintext to permissive by policy", spiffeid.ID{}, 8080, false, mesh.Decision{Verdict: mesh.VerdictAllow, Reason: mesh.ReasonPolicyAllow, Policy: key("b-allow")}},
		{"probe", spiffeid.ID{}, 9000, true, mesh.Decision{Verdict: mesh.VerdictAllow, Reason: mesh.ReasonProbe, Rule: -1}},
		{"probe to another port", spiffeid.ID{}, 80, true, mesh.Decision{Reason: mesh.ReasonStrictPlaintext, Rule: -1}},
		{"the agent's own port", identity("shop", "web"), mesh.TunnelPort, false, mesh.Decision{Reason: mesh.ReasonReservedPort, Rule: -1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, got := v.Authorize(mesh.Connection{Peer: test.peer, Source: netip.MustParseAddr("10.0.0.9"), Destination: api, Port: test.port, Probe: test.probe})
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestAuthorizeDefaults(t *testing.T) {
	open, empty := workload("bank", "web", "10.0.0.2"), workload("shop", "api", "10.0.0.1")
	open.Mode = mesh.ModePermissive
	v := mustView(t, settings(), []mesh.Workload{open, empty}, nil, []mesh.Policy{policy("nobody", mesh.ActionAllow)})
	for _, test := range []struct {
		namespace, name string
		peer            spiffeid.ID
		want            mesh.Reason
	}{
		{"bank", "web", identity("x", "y"), mesh.ReasonNoPolicy},
		{"bank", "web", spiffeid.ID{}, mesh.ReasonPermissive},
		{"shop", "api", identity("shop", "api"), mesh.ReasonPolicyNoMatch},
	} {
		_, d := v.Authorize(mesh.Connection{Peer: test.peer, Destination: mustWorkload(t, v, test.namespace, test.name), Port: 1})
		if d.Reason != test.want {
			t.Errorf("%v to %s/%s: %v, want %v", test.peer, test.namespace, test.name, d.Reason, test.want)
		}
	}
}

// What policies say of requests, asked with a request and of the connection alone.
func TestAuthorizeRequests(t *testing.T) {
	s := settings()
	s.Federation = []mesh.FederatedDomain{{TrustDomain: spiffeid.RequireTrustDomainFromString("other.org")}}
	foreign := spiffeid.RequireFromString("spiffe://other.org/ns/bank/sa/web")
	read := mesh.Destination{Requests: &mesh.RequestMatch{Methods: []string{"GET"}}}
	admin := mesh.Destination{Ports: []uint16{80}, Requests: &mesh.RequestMatch{Paths: []request.Pattern{"/admin*"}}}
	web := identity("shop", "web")
	readers := from("spiffe://example.org/ns/shop/sa/web", "spiffe://other.org/*")
	readers.To = []mesh.Destination{read}
	v := mustView(t, s, []mesh.Workload{workload("shop", "api", "10.0.0.1")}, nil, []mesh.Policy{
		policy("allow-job", mesh.ActionAllow, from("spiffe://example.org/ns/shop/sa/job")),
		policy("allow-read", mesh.ActionAllow, readers),
		policy("deny-admin", mesh.ActionDeny, mesh.Rule{To: []mesh.Destination{admin}}),
		policy("log-read", mesh.ActionAudit, mesh.Rule{To: []mesh.Destination{read}}),
	})
	if w, _ := v.Workload(mesh.Key{Namespace: "shop", Name: "api"}); !v.AboutRequests(w) {
		t.Error("the policies are not about requests")
	}
	request := func(method, path string) *mesh.Request {
		r := &mesh.Request{Host: "api", Method: method}
		r.SetPath(path)
		return r
	}
	for _, test := range []struct {
		name    string
		peer    spiffeid.ID
		port    uint16
		request *mesh.Request
		former  bool
		reason  mesh.Reason
		policy  string
		audited bool
	}{
		{"a request", web, 80, request("GET", "/x"), false, mesh.ReasonPolicyAllow, "allow-read", true},
		{"another method", web, 80, request("POST", "/x"), false, mesh.ReasonPolicyNoMatch, "", false},
		{"a path that is denied", web, 80, request("GET", "/admin/x"), false, mesh.ReasonPolicyDeny, "deny-admin", true},
		{"that path at another port", web, 90, request("GET", "/admin/x"), false, mesh.ReasonPolicyAllow, "allow-read", true},
		{"a tunnel", web, 80, request("CONNECT", ""), false, mesh.ReasonPolicyDeny, "deny-admin", true},
		{"a connection", web, 80, nil, false, mesh.ReasonRequestUnseen, "deny-admin", true},
		{"a connection that no DENY is about", web, 90, nil, false, mesh.ReasonRequestUnseen, "allow-read", true},
		{"a connection of somebody else", identity("bank", "web"), 90, nil, false, mesh.ReasonPolicyNoMatch, "", true},
		{"a connection that may bring any request", identity("shop", "job"), 90, nil, false, mesh.ReasonPolicyAllow, "allow-job", true},
		{"a former waypoint", identity("shop", "way"), 80, nil, true, mesh.ReasonWaypoint, "", false},
		{"a foreign request", foreign, 90, request("GET", "/"), false, mesh.ReasonPolicyAllow, "allow-read", true},
		{"another foreign request", foreign, 90, request("PUT", "/"), false, mesh.ReasonForeignIdentity, "", false},
		{"a foreign connection", foreign, 90, nil, false, mesh.ReasonRequestUnseen, "allow-read", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, d := v.Authorize(mesh.Connection{Peer: test.peer, Source: netip.MustParseAddr("10.0.0.9"), Destination: v.Workloads()[0], Port: test.port, Request: test.request, Former: test.former})
			if d.Reason != test.reason || d.Policy.Name != test.policy || (len(d.Audited) > 0) != test.audited {
				t.Errorf("%v by %q, audited %v; want %v by %q, audited %v", d.Reason, d.Policy.Name, d.Audited, test.reason, test.policy, test.audited)
			}
		})
	}
}

// A negative never admits for want of proof: "everyone but web" does not admit
// web in plaintext, nor an identity whose namespace is not of this mesh.
func TestNegativesNeedProof(t *testing.T) {
	w := workload("shop", "api", "10.0.0.1")
	w.Mode = mesh.ModePermissive
	s := settings()
	s.Federation = []mesh.FederatedDomain{{TrustDomain: spiffeid.RequireTrustDomainFromString("other.org")}}
	foreign := spiffeid.RequireFromString("spiffe://other.org/ns/bank/sa/web")
	notWeb := mesh.Rule{From: []mesh.Source{{NotIdentities: []mesh.IdentityPattern{"spiffe://example.org/ns/shop/sa/web"}}}}
	notBank := mesh.Rule{From: []mesh.Source{{NotNamespaces: []string{"bank"}}}}
	for _, test := range []struct {
		action mesh.Action
		rule   mesh.Rule
		peer   spiffeid.ID
		want   mesh.Reason
	}{
		{mesh.ActionAllow, notWeb, spiffeid.ID{}, mesh.ReasonPolicyNoMatch},
		{mesh.ActionAllow, notWeb, identity("shop", "db"), mesh.ReasonPolicyAllow},
		{mesh.ActionAllow, notWeb, foreign, mesh.ReasonForeignIdentity}, // which no negative names
		{mesh.ActionAllow, notBank, foreign, mesh.ReasonForeignIdentity},
		{mesh.ActionAllow, notBank, identity("shop", "db"), mesh.ReasonPolicyAllow},
		{mesh.ActionDeny, notWeb, spiffeid.ID{}, mesh.ReasonPolicyDeny},
		{mesh.ActionDeny, notBank, foreign, mesh.ReasonPolicyDeny},
		{mesh.ActionDeny, notBank, identity("bank", "db"), mesh.ReasonNoPolicy},
	} {
		v := mustView(t, s, []mesh.Workload{w}, nil, []mesh.Policy{policy("p", test.action, test.rule)})
		_, d := v.Authorize(mesh.Connection{Peer: test.peer, Destination: v.Workloads()[0], Port: 1})
		if d.Reason != test.want {
			t.Errorf("%v, peer %v: %v, want %v", test.action, test.peer, d.Reason, test.want)
		}
	}
}

// An identity of another trust domain is let in by its name, where the mesh is federated with that.
func TestForeignIdentities(t *testing.T) {
	foreign, everybody := spiffeid.RequireFromString("spiffe://other.org/ns/shop/sa/web"), mesh.Rule{}
	federated := settings()
	federated.Federation = []mesh.FederatedDomain{{TrustDomain: foreign.TrustDomain()}}
	revoked := federated
	revoked.RevokedIdentities = []spiffeid.ID{foreign}
	rule := func(s mesh.Source) *mesh.Rule { return &mesh.Rule{From: []mesh.Source{s}} }
	for _, test := range []struct {
		name     string
		settings mesh.Settings
		action   mesh.Action
		rule     *mesh.Rule
		want     mesh.Reason
	}{
		{"not federated", settings(), mesh.ActionAllow, rule(mesh.Source{Identities: []mesh.IdentityPattern{"spiffe://other.org/*"}}), mesh.ReasonNotFederated},
		{"no policy", federated, 0, nil, mesh.ReasonForeignIdentity},
		{"everybody", federated, mesh.ActionAllow, &everybody, mesh.ReasonForeignIdentity},
		{"by address", federated, mesh.ActionAllow, rule(mesh.Source{IPBlocks: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}), mesh.ReasonForeignIdentity},
		{"by namespace", federated, mesh.ActionAllow, rule(mesh.Source{Namespaces: []string{"shop"}}), mesh.ReasonForeignIdentity},
		{"ours of the same path", federated, mesh.ActionAllow, rule(mesh.Source{Identities: []mesh.IdentityPattern{"spiffe://example.org/ns/shop/sa/web"}}), mesh.ReasonForeignIdentity},
		{"by name", federated, mesh.ActionAllow, rule(mesh.Source{Identities: []mesh.IdentityPattern{"spiffe://other.org/ns/*/sa/web"}}), mesh.ReasonPolicyAllow},
		{"by trust domain", federated, mesh.ActionAllow, rule(mesh.Source{Identities: []mesh.IdentityPattern{"spiffe://other.org/*"}}), mesh.ReasonPolicyAllow},
		{"by name, revoked", revoked, mesh.ActionAllow, rule(mesh.Source{Identities: []mesh.IdentityPattern{"spiffe://other.org/*"}}), mesh.ReasonIdentityRevoked},
		{"denied", federated, mesh.ActionDeny, &everybody, mesh.ReasonPolicyDeny},
	} {
		t.Run(test.name, func(t *testing.T) {
			var ps []mesh.Policy
			if test.rule != nil {
				ps = append(ps, policy("p", test.action, *test.rule))
			}
			v := mustView(t, test.settings, []mesh.Workload{workload("shop", "api", "10.0.0.1")}, nil, ps)
			permit, d := v.Authorize(mesh.Connection{Peer: foreign, Source: netip.MustParseAddr("192.0.2.1"), Destination: v.Workloads()[0], Port: 1})
			if d.Reason != test.want || permit.Valid() != (test.want == mesh.ReasonPolicyAllow) {
				t.Errorf("%v, permitted %v, want %v", d.Reason, permit.Valid(), test.want)
			}
		})
	}
	for _, td := range []string{"", "example.org"} {
		s := settings()
		s.Federation = []mesh.FederatedDomain{{}}
		if td != "" {
			s.Federation[0].TrustDomain = spiffeid.RequireTrustDomainFromString(td)
		}
		if _, err := mesh.NewView("r", s, nil, nil, nil); err == nil {
			t.Errorf("a View is federated with %q", td)
		}
	}
}

// A connection that was accepted under an older View is judged by the new one.
func TestAuthorizeAcrossViews(t *testing.T) {
	old := mustView(t, settings(), []mesh.Workload{workload("shop", "api", "10.0.0.1"), workload("shop", "gone", "10.0.0.2")}, nil, nil)
	now := mustView(t, settings(), []mesh.Workload{workload("shop", "api", "10.0.0.1")}, nil, []mesh.Policy{policy("nobody", mesh.ActionAllow)})
	peer := identity("shop", "web")
	permit, d := old.Authorize(mesh.Connection{Peer: peer, Destination: mustWorkload(t, old, "shop", "api"), Port: 1})
	if !permit.Valid() {
		t.Fatal(d)
	}
	if _, d = now.Authorize(mesh.Connection{Peer: peer, Destination: permit.Destination(), Port: 1}); d.Reason != mesh.ReasonPolicyNoMatch {
		t.Errorf("under the new view: %v", d)
	}
	if _, d = now.Authorize(mesh.Connection{Peer: peer, Destination: mustWorkload(t, old, "shop", "gone"), Port: 1}); d.Reason != mesh.ReasonUnknownDestination {
		t.Errorf("to a workload that is gone: %v", d)
	}
	if _, d = now.Authorize(mesh.Connection{Peer: peer, Port: 1}); d.Reason != mesh.ReasonUnknownDestination {
		t.Errorf("to none: %v", d)
	}
	if _, d = mesh.NewStore().View().Authorize(mesh.Connection{Peer: peer, Destination: permit.Destination()}); d.Reason != mesh.ReasonNotSynced {
		t.Errorf("before any configuration: %v", d)
	}
}

// manyPolicies is a View of 1,000 policies, of which 20 select shop/api; the
// connection is allowed by the last of them, and denied is refused by the last.
func manyPolicies(t testing.TB) (v *mesh.View, allowed, denied, unmatched mesh.Connection) {
	ws := []mesh.Workload{workload("shop", "api", "10.0.0.1")}
	var ps []mesh.Policy
	for i := range 1000 {
		p := policy(fmt.Sprintf("p%04d", i), mesh.ActionAllow)
		p.Selector = map[string]string{"app": fmt.Sprintf("other-%d", i)}
		if i%50 == 0 {
			p.Selector = map[string]string{"app": "api"}
		}
		if i%100 == 50 {
			p.Action = mesh.ActionDeny
		}
		for j := range 5 {
			r := from(mesh.IdentityPattern(fmt.Sprintf("spiffe://example.org/ns/shop/sa/caller-%d-%d", i, j)), mesh.IdentityPattern(fmt.Sprintf("spiffe://example.org/ns/team-%d/sa/caller", j)))
			if j == 1 { // two rules of each policy are not in the index of identities
				r = mesh.Rule{From: []mesh.Source{{Namespaces: []string{fmt.Sprintf("ns-%d", i)}, NotIPBlocks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}}}
			}
			if j == 2 {
				r = from(mesh.IdentityPattern(fmt.Sprintf("spiffe://example.org/ns/*/sa/job-%d", i)))
			}
			r.To = []mesh.Destination{{Ports: []uint16{8080, 9090}}}
			p.Rules = append(p.Rules, r)
		}
		ps = append(ps, p)
	}
	v = mustView(t, settings(), ws, nil, ps)
	connection := func(account string) mesh.Connection {
		return mesh.Connection{Peer: identity("shop", account), Source: netip.MustParseAddr("10.0.0.9"), Destination: v.Workloads()[0], Port: 9090}
	}
	return v, connection("caller-900-4"), connection("caller-950-4"), connection("stranger")
}

// unindexed is a View of 1,000 policies, of which 20 select shop/api whose sources no
// index can tell apart: all are looked at, and none admits the connection.
func unindexed(t testing.TB) (v *mesh.View, unmatched mesh.Connection) {
	var ps []mesh.Policy
	for i := range 1000 {
		p := policy(fmt.Sprintf("p%04d", i), mesh.ActionAllow, mesh.Rule{From: []mesh.Source{{
			Identities: []mesh.IdentityPattern{"spiffe://example.org/ns/shop/*"}, IPBlocks: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", i/50+1))},
		}}})
		p.Selector = map[string]string{"app": fmt.Sprintf("other-%d", i)}
		if i%50 == 0 {
			p.Selector = map[string]string{"app": "api"}
		}
		ps = append(ps, p)
	}
	v = mustView(t, settings(), []mesh.Workload{workload("shop", "api", "10.0.0.1")}, nil, ps)
	return v, mesh.Connection{Peer: identity("shop", "stranger"), Source: netip.MustParseAddr("10.0.0.9"), Destination: v.Workloads()[0], Port: 9090}
}

// manyRequests is a View of 1,000 policies, of which 20 select shop/api, each with requests in
// five rules: one request is let in by the last, another one by none, and of a third connection nothing is known.
func manyRequests(t testing.TB) (v *mesh.View, allowed, unmatched, unseen mesh.Connection) {
	var ps []mesh.Policy
	for i := range 1000 {
		p := policy(fmt.Sprintf("p%04d", i), mesh.ActionAllow)
		p.Selector = map[string]string{"app": fmt.Sprintf("other-%d", i)}
		if i%50 == 0 {
			p.Selector = map[string]string{"app": "api"}
		}
		for j := range 5 {
			r := from(mesh.IdentityPattern(fmt.Sprintf("spiffe://example.org/ns/shop/sa/caller-%d", j)))
			r.To = []mesh.Destination{{Ports: []uint16{9090}, Requests: &mesh.RequestMatch{Methods: []string{"GET"}, Paths: []request.Pattern{request.Pattern(fmt.Sprintf("/p%d/*", i))}}}}
			p.Rules = append(p.Rules, r)
		}
		ps = append(ps, p)
	}
	v = mustView(t, settings(), []mesh.Workload{workload("shop", "api", "10.0.0.1")}, nil, ps)
	connection := func(path string) mesh.Connection {
		r := &mesh.Request{Host: "api.shop:9090", Method: "GET", Headers: []mesh.RequestHeader{{Name: "Accept", Value: "*/*"}}}
		r.SetPath(path)
		return mesh.Connection{Peer: identity("shop", "caller-3"), Source: netip.MustParseAddr("10.0.0.9"), Destination: v.Workloads()[0], Port: 9090, Request: r}
	}
	unseen = connection("/")
	unseen.Request = nil
	return v, connection("/p950/x"), connection("/x"), unseen
}

// evaluation is one connection that a View decides about.
type evaluation struct {
	name string
	view *mesh.View
	c    mesh.Connection
	want mesh.Reason
}

func evaluations(t testing.TB) []evaluation {
	v, allowed, denied, unmatched := manyPolicies(t)
	plain, c := unindexed(t)
	requests, let, other, unseen := manyRequests(t)
	return []evaluation{{"request", requests, let, mesh.ReasonPolicyAllow}, {"other request", requests, other, mesh.ReasonPolicyNoMatch}, {"unseen request", requests, unseen, mesh.ReasonRequestUnseen},
		{"allow", v, allowed, mesh.ReasonPolicyAllow}, {"deny", v, denied, mesh.ReasonPolicyDeny},
		{"nomatch", v, unmatched, mesh.ReasonPolicyNoMatch}, {"unindexed", plain, c, mesh.ReasonPolicyNoMatch}}
}

func TestAuthorizeAllocatesNothing(t *testing.T) {
	for _, e := range evaluations(t) {
		if _, d := e.view.Authorize(e.c); d.Reason != e.want {
			t.Errorf("%s: %v, want %v", e.name, d.Reason, e.want)
		}
		if n := testing.AllocsPerRun(100, func() { e.view.Authorize(e.c) }); n != 0 {
			t.Errorf("%s: %v allocations, want none", e.name, n)
		}
	}
}

func BenchmarkAuthorize(b *testing.B) {
	for _, e := range evaluations(b) {
		b.Run(e.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				e.view.Authorize(e.c)
			}
		})
	}
}

// The policies of a workload are indexed when first asked for, by whoever asks.
func TestAuthorizeConcurrently(t *testing.T) {
	v, allowed, denied, _ := manyPolicies(t)
	var askers sync.WaitGroup
	for range 8 {
		askers.Go(func() {
			_, a := v.Authorize(allowed)
			_, d := v.Authorize(denied)
			if a.Reason != mesh.ReasonPolicyAllow || d.Reason != mesh.ReasonPolicyDeny {
				t.Errorf("%v, %v", a, d)
			}
		})
	}
	askers.Wait()
}
