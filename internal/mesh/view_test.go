package mesh_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

func service(name, addr string, port, target uint16, endpoints ...string) mesh.Service {
	s := mesh.Service{Key: mesh.Key{Namespace: "shop", Name: name}, Ports: []mesh.ServicePort{{Port: port, TargetPort: target}}}
	if addr != "" {
		s.Addresses = []netip.Addr{netip.MustParseAddr(addr)}
	}
	for _, e := range endpoints {
		s.Endpoints = append(s.Endpoints, mesh.Key{Namespace: "shop", Name: e})
	}
	return s
}

// Every refusal names the objects that are in conflict.
func TestNewViewRefuses(t *testing.T) {
	web := workload("shop", "web", "10.0.0.1")
	with := func(change func(*mesh.Workload)) mesh.Workload {
		w := workload("shop", "web", "10.0.0.1")
		change(&w)
		return w
	}
	source := func(s mesh.Source) []mesh.Policy {
		return []mesh.Policy{policy("p", mesh.ActionAllow, mesh.Rule{From: []mesh.Source{s}})}
	}
	for _, test := range []struct {
		name      string
		settings  mesh.Settings
		workloads []mesh.Workload
		services  []mesh.Service
		policies  []mesh.Policy
		want      []string
	}{
		{name: "address of two workloads", workloads: []mesh.Workload{web, workload("bank", "db", "::ffff:10.0.0.1")}, want: []string{"10.0.0.1", "workload bank/db", "workload shop/web"}},
		{name: "address of workload and service", workloads: []mesh.Workload{web}, services: []mesh.Service{service("web", "10.0.0.1", 80, 80)}, want: []string{"10.0.0.1", "workload shop/web", "service shop/web"}},
		{name: "address given twice", workloads: []mesh.Workload{workload("shop", "web", "10.0.0.1", "10.0.0.1")}, want: []string{"shop/web", "twice"}},
		{name: "address given twice, not side by side", workloads: []mesh.Workload{workload("shop", "web", "10.0.0.1", "fd00::1", "10.0.0.1")}, want: []string{"shop/web", "twice"}},
		{name: "workload twice", workloads: []mesh.Workload{web, workload("shop", "web", "10.0.0.2")}, want: []string{"shop/web", "twice"}},
		{name: "service twice", services: []mesh.Service{service("web", "10.0.0.1", 1, 1), service("web", "10.0.0.2", 1, 1)}, want: []string{"shop/web", "twice"}},
		{name: "policy twice", policies: []mesh.Policy{policy("p", mesh.ActionAllow), policy("p", mesh.ActionDeny)}, want: []string{"shop/p", "twice"}},
		{name: "port twice", services: []mesh.Service{{Key: mesh.Key{Namespace: "shop", Name: "web"}, Ports: []mesh.ServicePort{{Port: 1, TargetPort: 1}, {Port: 1, TargetPort: 2}}}}, want: []string{"shop/web", "port 1", "twice"}},
		{name: "port zero", services: []mesh.Service{service("web", "", 80, 0)}, want: []string{"shop/web", "port 80"}},
		{name: "loopback", workloads: []mesh.Workload{workload("shop", "web", "127.0.0.1")}, want: []string{"shop/web", "127.0.0.1"}},
		{name: "no node", workloads: []mesh.Workload{with(func(w *mesh.Workload) { w.Node = "" })}, want: []string{"shop/web", "node"}},
		{name: "foreign identity", workloads: []mesh.Workload{with(func(w *mesh.Workload) { w.Identity = identity("bank", "web") })}, want: []string{"shop/web", "ns/bank/sa/web", "ns/shop/sa/web"}},
		{name: "no service account", workloads: []mesh.Workload{with(func(w *mesh.Workload) { w.ServiceAccount = "" })}, want: []string{"shop/web", "identity"}},
		{name: "slash in a name", workloads: []mesh.Workload{with(func(w *mesh.Workload) { w.Name = "a/b" })}, want: []string{"shop/a/b", `"/"`}},
		{name: "no name", services: []mesh.Service{{}}, want: []string{"service /", "empty"}},
		{name: "policy without a namespace", policies: []mesh.Policy{{Key: mesh.Key{Name: "p"}}}, want: []string{"policy /p", "empty"}},
		{name: "pattern", policies: source(mesh.Source{Identities: []mesh.IdentityPattern{"spiffe://example.org/ns/sh*"}}), want: []string{"shop/p", "rule 0", "sh*"}},
		{name: "negated pattern", policies: source(mesh.Source{NotIdentities: []mesh.IdentityPattern{"web"}}), want: []string{"shop/p", "web"}},
		{name: "block", policies: source(mesh.Source{IPBlocks: []netip.Prefix{{}}}), want: []string{"shop/p", "invalid"}},
		{name: "mapped block", policies: source(mesh.Source{NotIPBlocks: []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")}}), want: []string{"shop/p", "IPv4"}},
		{name: "empty namespace", policies: source(mesh.Source{Namespaces: []string{""}}), want: []string{"shop/p", "namespace"}},
		{name: "port zero in policy", policies: []mesh.Policy{policy("p", mesh.ActionAllow, mesh.Rule{To: []mesh.Destination{{Ports: []uint16{0}}}})}, want: []string{"shop/p", "rule 0", "ports"}},
		{name: "unknown action", policies: []mesh.Policy{policy("p", 7)}, want: []string{"shop/p", "action 7"}},
		{name: "empty revocation", settings: mesh.Settings{TrustDomain: domain(), RevokedIdentities: []spiffeid.ID{{}}}, want: []string{"revoke"}},
		{name: "invalid range", settings: mesh.Settings{TrustDomain: domain(), ClusterRanges: []netip.Prefix{{}}}, want: []string{"cluster range"}},
		{name: "mapped range", settings: mesh.Settings{TrustDomain: domain(), ClusterRanges: []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")}}, want: []string{"cluster range", "IPv4"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.settings.TrustDomain.IsZero() {
				test.settings = settings()
			}
			_, err := mesh.NewView("r", test.settings, test.workloads, test.services, test.policies)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, word := range test.want {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("error does not say %q: %v", word, err)
				}
			}
		})
	}
	if _, err := mesh.NewView("r", mesh.Settings{}, nil, nil, nil); err == nil || !strings.Contains(err.Error(), "trust domain") {
		t.Errorf("without a trust domain: %v", err)
	}
}

func TestNewViewReportsAll(t *testing.T) {
	_, err := mesh.NewView("r", settings(), []mesh.Workload{workload("a", "x", "10.0.0.1"), workload("b", "y", "10.0.0.1"), workload("c", "z", "127.0.0.1")}, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "b/y") || !strings.Contains(err.Error(), "c/z") {
		t.Errorf("want both problems, have %v", err)
	}
}

// TestSeveralAddresses: workloads and services of many addresses, of which some are
// in the same place of an index, are found at each, before and after a change.
func TestSeveralAddresses(t *testing.T) {
	var workloads []mesh.Workload
	var services []mesh.Service
	for i := range 600 {
		w := workload("shop", fmt.Sprintf("w%d", i), fmt.Sprintf("10.0.%d.%d", i/200, i%200+1), fmt.Sprintf("fd00::%x", i+1), fmt.Sprintf("fd01::%x", i+1))
		s := service(fmt.Sprintf("s%d", i), fmt.Sprintf("10.96.%d.%d", i/200, i%200+1), 80, 8080)
		s.Addresses = append(s.Addresses, netip.MustParseAddr(fmt.Sprintf("fd96::%x", i+1)))
		workloads, services = append(workloads, w), append(services, s)
	}
	v := mustView(t, settings(), workloads, services, nil)
	found := func(v *mesh.View, gone func(i int) bool) {
		t.Helper()
		for i := range workloads {
			for _, addr := range workloads[i].Addresses {
				if w, ok := v.WorkloadAt(addr); ok == gone(i) || ok && w.Key != workloads[i].Key {
					t.Errorf("workload at %v of %v: %v, %v", addr, workloads[i].Key, w, ok)
				}
			}
			for _, addr := range services[i].Addresses {
				if s, ok := v.ServiceAt(addr); ok == gone(i) || ok && s.Key != services[i].Key {
					t.Errorf("service at %v of %v: %v, %v", addr, services[i].Key, s, ok)
				}
			}
		}
	}
	found(v, func(int) bool { return false })
	var c mesh.Change
	for i := 0; i < len(workloads); i += 2 {
		c.GoneWorkloads, c.GoneServices = append(c.GoneWorkloads, workloads[i].Key), append(c.GoneServices, services[i].Key)
		c.Workloads, c.Services = append(c.Workloads, &workloads[i+1]), append(c.Services, &services[i+1])
	}
	v, err := v.With("r2", c)
	if err != nil {
		t.Fatal(err)
	}
	found(v, func(i int) bool { return i%2 == 0 })
}

func TestViewAccessors(t *testing.T) {
	other := workload("shop", "db", "10.0.0.2", "fd00::2")
	other.Node = "n2"
	s := settings()
	s.RevokedIdentities = []spiffeid.ID{identity("x", "y")}
	ws := []mesh.Workload{other, workload("shop", "api", "10.0.0.1"), workload("bank", "api", "10.0.0.3")}
	v := mustView(t, s, ws, []mesh.Service{service("web", "10.96.0.1", 80, 8080, "db", "api", "db")}, []mesh.Policy{policy("b", mesh.ActionAllow), policy("a", mesh.ActionDeny)})
	if !v.Synced() || v.Revision() != "r1" || v.Settings().TrustDomain != domain() {
		t.Errorf("synced %v, revision %q, settings %v", v.Synced(), v.Revision(), v.Settings())
	}
	keys := func(ws []*mesh.Workload) (names []string) {
		for _, w := range ws {
			names = append(names, w.Key.String())
		}
		return names
	}
	if diff := cmp.Diff([]string{"bank/api", "shop/api", "shop/db"}, keys(v.Workloads())); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"shop/db"}, keys(v.OnNode("n2"))); diff != "" {
		t.Error(diff)
	}
	if w, ok := v.WorkloadAt(netip.MustParseAddr("::ffff:10.0.0.2")); !ok || w.Name != "db" {
		t.Errorf("workload at mapped address: %v", w)
	}
	if _, ok := v.WorkloadAt(netip.MustParseAddr("10.96.0.1")); ok {
		t.Error("a service's address has a workload")
	}
	svc, ok := v.ServiceAt(netip.MustParseAddr("10.96.0.1"))
	if !ok || svc.Hostname() != "web.shop.svc.cluster.local" || len(svc.Endpoints) != 2 || svc.Endpoints[0].Name != "api" {
		t.Errorf("service at its address: %+v", svc)
	}
	if same, ok := v.Service(svc.Key); !ok || same != svc || len(v.Services()) != 1 {
		t.Errorf("service by key: %v", same)
	}
	if _, ok := v.ServiceAt(netip.MustParseAddr("10.0.0.1")); ok {
		t.Error("a workload's address has a service")
	}
	if ps := v.Policies(); len(ps) != 2 || ps[0].Name != "a" || !ps[0].Selects(v.Workloads()[1].Namespace, v.Workloads()[1].Labels) || ps[0].Selects(v.Workloads()[0].Namespace, v.Workloads()[0].Labels) {
		t.Errorf("policies: %v", ps)
	}
	if !v.Revoked(identity("x", "y")) || v.Revoked(identity("x", "z")) {
		t.Error("revocation")
	}
}

func TestPatternValidate(t *testing.T) {
	for pattern, ok := range map[mesh.IdentityPattern]bool{
		"spiffe://example.org/ns/shop/sa/web":   true,
		"spiffe://example.org/*":                true,
		"spiffe://example.org/ns/*/sa/*":        true,
		"spiffe://example.org":                  false,
		"spiffe://example.org/":                 false,
		"spiffe://example.org/ns//sa":           false,
		"spiffe://example.org/ns/../sa":         false,
		"spiffe://example.org/ns/shop/":         false,
		"spiffe://example.org/ns/sh*p":          false,
		"spiffe://example.org/ns/**":            false,
		"spiffe://*/ns/shop":                    false,
		"spiffe://Example.org/ns/shop":          false,
		"spiffe://example.org:8080/ns/shop":     false,
		"example.org/ns/shop/sa/web":            false,
		"*":                                     false,
		"":                                      false,
		"spiffe://example.org/ns/shop/sa/w b":   false,
		"spiffe://example.org/ns/shop/sa/w%20b": false,
	} {
		if err := pattern.Validate(); (err == nil) != ok {
			t.Errorf("%q: %v, want valid %v", string(pattern), err, ok)
		}
	}
}

func FuzzIdentityPattern(f *testing.F) {
	f.Add("spiffe://example.org/ns/*/sa/*", "/ns/a/sa/b")
	f.Fuzz(func(t *testing.T, pattern, path string) {
		p := mesh.IdentityPattern(pattern)
		id, err := spiffeid.FromPath(domain(), path)
		if err != nil || p.Validate() != nil {
			return
		}
		if got, want := p.Match(id), naiveMatch(pattern, id.String()); got != want {
			t.Fatalf("%q matches %v: %v, want %v", pattern, id, got, want)
		}
	})
}

func TestNamespaceOf(t *testing.T) {
	for text, want := range map[string]string{
		"spiffe://example.org/ns/shop/sa/web":   "shop",
		"spiffe://example.org/ns/shop/sa/web/x": "",
		"spiffe://example.org/ns/shop/web":      "",
		"spiffe://example.org/ns/shop":          "",
		"spiffe://example.org/node/n1":          "",
		"spiffe://example.org":                  "",
		"spiffe://other.org/ns/shop/sa/web":     "",
	} {
		if got := mesh.NamespaceOf(domain(), spiffeid.RequireFromString(text)); got != want {
			t.Errorf("%s proves namespace %q, want %q", text, got, want)
		}
	}
	if got := mesh.NamespaceOf(domain(), spiffeid.ID{}); got != "" {
		t.Errorf("no identity proves %q", got)
	}
	for _, bad := range [][2]string{{"", "a"}, {"a", ""}, {"a/b", "c"}, {"a", "b c"}, {"..", "a"}} {
		if id, err := mesh.IdentityFor(domain(), bad[0], bad[1]); err == nil {
			t.Errorf("identity of %q: %v", bad, id)
		}
	}
	if _, err := mesh.IdentityFor(spiffeid.TrustDomain{}, "a", "b"); err == nil {
		t.Error("identity without a trust domain")
	}
}

func TestReasonWords(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range mesh.Reasons() {
		word := r.String()
		if back, err := mesh.ParseReason(word); err != nil || back != r || word == "" || seen[word] {
			t.Errorf("reason %d: word %q, parsed %v, %v", r, word, back, err)
		}
		seen[word] = true
	}
	if _, err := mesh.ParseReason("Whatever"); err == nil {
		t.Error("parsed a word that is no reason")
	}
}
