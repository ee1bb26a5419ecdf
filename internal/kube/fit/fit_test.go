package fit_test

import (
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func meshOf(trustDomain string) []kube.Sourced[v1alpha1.Mesh] {
	return []kube.Sourced[v1alpha1.Mesh]{{Value: &v1alpha1.Mesh{ObjectMeta: metav1.ObjectMeta{Name: "default"},
		Spec: v1alpha1.MeshSpec{TrustDomain: trustDomain, ClusterRanges: []v1alpha1.AddressBlock{"10.0.0.0/8"}}}}}
}

// snapshot compiles and encodes objects of namespace shop.
func snapshot(t *testing.T, objs *kube.Objects) (*kube.Compiled, *mesh.View) {
	t.Helper()
	if objs.Meshes == nil {
		objs.Meshes = meshOf(strings.Repeat("a-long-name.", 10) + "example.org")
	}
	objs.Namespaces = []kube.Sourced[corev1.Namespace]{{Value: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}}}
	compiled, err := kube.CompileEach(objs)
	if err != nil {
		t.Fatal(err)
	}
	view, err := compiled.View("")
	if err != nil {
		t.Fatal(err)
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := discovery.NewSnapshot(view, 1, key); err != nil {
		t.Errorf("one object keeps everybody's configuration from being told: %v", err)
	}
	return compiled, view
}

func refusal(t *testing.T, c *kube.Compiled, says string) {
	t.Helper()
	for _, p := range c.Refused {
		if strings.Contains(p.Error(), says) {
			return
		}
	}
	t.Errorf("%q is not among what is refused: %v", says, c.Refused)
}

// policy is valid by its schema, and short as it is written.
func policy(name string, action v1alpha1.Action) kube.Sourced[v1alpha1.AuthorizationPolicy] {
	p := &v1alpha1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: v1alpha1.AuthorizationPolicySpec{Action: action}}
	var accounts []string
	for i := range 256 {
		accounts = append(accounts, fmt.Sprintf("%03d", i))
	}
	for range 4 {
		var rule v1alpha1.Rule
		for range 32 {
			rule.From = append(rule.From, v1alpha1.Source{ServiceAccounts: accounts})
		}
		p.Spec.Rules = append(p.Spec.Rules, rule)
	}
	return kube.Sourced[v1alpha1.AuthorizationPolicy]{Value: p}
}

func TestAPolicyIsMeasuredAsItIsTold(t *testing.T) {
	objs := &kube.Objects{AuthorizationPolicies: []kube.Sourced[v1alpha1.AuthorizationPolicy]{policy("allow", v1alpha1.ActionAllow), policy("deny", v1alpha1.ActionDeny)}}
	c, view := snapshot(t, objs)
	refusal(t, c, "AuthorizationPolicy shop/allow: spec: comes to")
	refusal(t, c, "AuthorizationPolicy shop/deny: spec: comes to")
	for _, p := range view.Policies() { // closed: one admits nobody, the other refuses everybody
		if want := map[string]int{"allow": 0, "deny": 1}[p.Name]; len(p.Rules) != want || want == 1 && len(p.Rules[0].From) > 0 {
			t.Errorf("%s has %d rules, want %d about everybody", p.Name, len(p.Rules), want)
		}
	}
	objs.AuthorizationPolicies[0].Value.Spec.Rules = objs.AuthorizationPolicies[0].Value.Spec.Rules[:1]
	objs.AuthorizationPolicies[0].Value.Spec.Rules[0].From = objs.AuthorizationPolicies[0].Value.Spec.Rules[0].From[:10]
	objs.AuthorizationPolicies = objs.AuthorizationPolicies[:1]
	if c, view := snapshot(t, objs); len(c.Refused) > 0 || len(view.Policies()[0].Rules) != 1 {
		t.Errorf("one that fits is refused: %v", c.Refused)
	}
}

// written returns a service without a selector, each of whose ports has its own slice
// of the endpoints.
func written(ports, endpoints int) *kube.Objects {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "big"}, Spec: corev1.ServiceSpec{ClusterIP: "10.255.0.1"}}
	objs := &kube.Objects{Services: []kube.Sourced[corev1.Service]{{Value: svc}}}
	addr := netip.MustParseAddr("10.0.0.1")
	var all []kube.Endpoint
	for range endpoints {
		all, addr = append(all, kube.Endpoint{Addr: addr}), addr.Next()
	}
	for i := range ports {
		name := fmt.Sprintf("p%d", i)
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: name, Port: int32(i + 1)})
		objs.Slices = append(objs.Slices, &kube.EndpointSlice{Namespace: "shop", Name: name, Service: "big",
			Ports: []kube.NamedPort{{Name: name, Port: uint16(i + 1)}}, Endpoints: all[i:]})
	}
	return objs
}

func TestAServiceIsMeasuredAsItIsTold(t *testing.T) {
	c, view := snapshot(t, written(24, 2500))
	refusal(t, c, "Service shop/big: spec.ports: with the workloads of each, come to more")
	if s := view.Services()[0]; len(s.Ports) == 0 || len(s.Ports) >= 24 || len(s.Endpoints) != 2500 {
		t.Errorf("%d ports and %d endpoints are left", len(s.Ports), len(s.Endpoints))
	}
	c, view = snapshot(t, written(1, 5000))
	refusal(t, c, "Service shop/big: spec: has 5000 endpoints: the first 3000 get connections")
	if n := len(view.Services()[0].Endpoints); n != 3000 {
		t.Errorf("%d endpoints are left", n)
	}
	if c, view := snapshot(t, written(10, 100)); len(c.Refused) > 0 || len(view.Services()[0].Ports) != 10 {
		t.Errorf("one that fits is refused: %v", c.Refused)
	}
}

// TestAMeshIsMeasuredAsItIsTold: as many revoked identities as may be written stop nothing;
// those beyond a message get no certificate, and first those that can have none.
func TestAMeshIsMeasuredAsItIsTold(t *testing.T) {
	objs := written(1, 3)
	objs.Meshes = meshOf("example.org")
	spec := &objs.Meshes[0].Value.Spec
	for i := range 64 { // as much of all else as the schema allows
		spec.ClusterRanges = append(spec.ClusterRanges[:i], v1alpha1.AddressBlock(fmt.Sprintf("fd00:%x::/32", i)))
	}
	spec.ClusterRanges[0] = "10.0.0.0/8"
	for i := range 4096 {
		spec.Egress.Namespaces = append(spec.Egress.Namespaces, v1alpha1.NamespaceEgress{Namespace: fmt.Sprintf("%063d", i), Mode: v1alpha1.EgressDeny})
	}
	spec.Egress.UDP = &v1alpha1.UDPEgress{}
	for i := range 1024 {
		ns := v1alpha1.NamespaceUDPEgress{Namespace: fmt.Sprintf("%063d", i), Mode: v1alpha1.EgressAllow}
		for port := range 64 {
			ns.Ports = append(ns.Ports, v1alpha1.Port(65535-port))
		}
		spec.Egress.UDP.Namespaces = append(spec.Egress.UDP.Namespaces, ns)
	}
	if c, view := snapshot(t, objs); len(c.Refused) > 0 || len(view.Settings().UDPEgress) != 1025 {
		t.Errorf("what the schema allows is refused: %v", c.Refused)
	}
	all := spec.Egress.UDP
	spec.Egress.UDP = nil
	const others, ours = 96, 4000
	for i := range others + ours {
		domain := "example.org"
		if i < others {
			domain = "elsewhere.example"
		}
		spec.RevokedIdentities = append(spec.RevokedIdentities, fmt.Sprintf("spiffe://%s/ns/%060d/sa/%0100d", domain, i, i))
	}
	c, view := snapshot(t, objs)
	refusal(t, c, "Mesh default: spec.revokedIdentities: come to more than agents take: ")
	if len(c.Refused) != 1 || len(view.Services()) != 1 || len(view.Settings().EgressNamespaces) != 4096 {
		t.Errorf("more is refused than what is too much: %v", c.Refused)
	}
	told, untold := view.Settings().RevokedIdentities, view.Settings().RevokedUntold
	if len(told)+len(untold) != others+ours || len(untold) == 0 || len(told) < 3000 {
		t.Errorf("%d are told and %d are not", len(told), len(untold))
	}
	for i, id := range untold {
		if view.Revoked(id) || !view.Barred(id) || i < len(untold)-others && id.TrustDomain().Name() != "example.org" || i >= len(untold)-others && id.TrustDomain().Name() == "example.org" {
			t.Fatalf("%d of what is not told is %s: revoked %v, barred %v", i, id, view.Revoked(id), view.Barred(id))
		}
	}
	if !view.Revoked(told[0]) || !view.Barred(told[0]) || view.Barred(spiffeid.RequireFromString("spiffe://example.org/ns/shop/sa/web")) {
		t.Error("who is revoked is another")
	}
	// Nobody but agents refuses identities of a federated trust domain: they are told of those.
	spec.Federation = []v1alpha1.FederatedDomain{{TrustDomain: "elsewhere.example", Endpoint: "https://elsewhere.example/", Profile: v1alpha1.FederationWeb}}
	c, view = snapshot(t, objs)
	refusal(t, c, "Mesh default: spec.revokedIdentities: come to more than agents take: ")
	for i, text := range spec.RevokedIdentities[:others] {
		if id := spiffeid.RequireFromString(text); !view.Revoked(id) {
			t.Fatalf("%d of a federated trust domain, %s, is not told; refused %v", i, id, c.Refused)
		}
	}
	// Workloads of theirs take of the same message.
	fewer := len(view.Settings().RevokedIdentities)
	for i := range 64 {
		spec.Federation[0].Workloads = append(spec.Federation[0].Workloads, v1alpha1.FederatedWorkload{Identity: fmt.Sprintf("spiffe://elsewhere.example/%d/%s", i, strings.Repeat("x", 2000)), Addresses: []string{fmt.Sprintf("fd00:1::%x", i+1)}})
	}
	if _, view = snapshot(t, objs); len(view.Settings().RevokedIdentities) >= fewer || len(view.Settings().Federation[0].Workloads) != 64 {
		t.Errorf("%d revoked are told beside 64 workloads, %d without", len(view.Settings().RevokedIdentities), fewer)
	}
	// Nothing leaves over UDP where there is no room for that beside the rest.
	revoked := spec.RevokedIdentities
	spec.Egress.UDP, spec.RevokedIdentities = all, nil
	for d := range 3 {
		partner := v1alpha1.FederatedDomain{TrustDomain: fmt.Sprintf("d%d.example", d), Endpoint: "https://elsewhere.example/", Profile: v1alpha1.FederationWeb}
		for i := range 64 {
			partner.Workloads = append(partner.Workloads, v1alpha1.FederatedWorkload{Identity: fmt.Sprintf("spiffe://d%d.example/%d/%s", d, i, strings.Repeat("x", 2000)), Addresses: []string{fmt.Sprintf("fd00:1::%d:%x", d+1, i+1)}})
		}
		spec.Federation = append(spec.Federation, partner)
	}
	c, view = snapshot(t, objs)
	refusal(t, c, "Mesh default: spec.egress.udp: does not fit into one message to an agent beside what else the Mesh says: it is of 1024 namespaces; name fewer")
	if len(c.Refused) != 1 || len(view.Settings().UDPEgress) != 0 || len(view.Settings().Federation) != 4 {
		t.Errorf("of what does not fit, %d are told; %v", len(view.Settings().UDPEgress), c.Refused)
	}
	spec.Egress.UDP, spec.RevokedIdentities = nil, revoked
	spec.Federation = nil
	spec.RevokedIdentities = spec.RevokedIdentities[:3000]
	if c, view := snapshot(t, objs); len(c.Refused) > 0 || len(view.Settings().RevokedIdentities) != 3000 || len(view.Settings().RevokedUntold) > 0 {
		t.Errorf("one that fits is refused: %v", c.Refused)
	}
}

// TestLabelsOfAWorkloadAreMeasured: they are told to every agent that may need them.
func TestLabelsOfAWorkloadAreMeasured(t *testing.T) {
	w := &v1alpha1.Workload{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "vm", Labels: map[string]string{}}, Spec: v1alpha1.WorkloadSpec{Node: "n1", Addresses: []string{"10.0.0.1"}}}
	for i := range 10_000 {
		w.Labels[fmt.Sprintf("label-%050d", i)] = strings.Repeat("x", 63)
	}
	c, view := snapshot(t, &kube.Objects{Workloads: []kube.Sourced[v1alpha1.Workload]{{Value: w}}})
	refusal(t, c, "Workload shop/vm: metadata.labels: have ")
	if len(view.Workloads()) != 0 || len(c.Refused) != 1 {
		t.Errorf("%d workloads are told; refused %v", len(view.Workloads()), c.Refused)
	}
}
