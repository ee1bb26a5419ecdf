package fit_test

import (
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// snapshot compiles and encodes objects of namespace shop.
func snapshot(t *testing.T, objs *kube.Objects) (*kube.Compiled, *mesh.View) {
	t.Helper()
	objs.Meshes = []kube.Sourced[v1alpha1.Mesh]{{Value: &v1alpha1.Mesh{ObjectMeta: metav1.ObjectMeta{Name: "default"},
		Spec: v1alpha1.MeshSpec{TrustDomain: strings.Repeat("a-long-name.", 10) + "example.org", ClusterRanges: []v1alpha1.AddressBlock{"10.0.0.0/8"}}}}}
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
