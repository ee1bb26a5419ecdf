package explain

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube"
)

const networkPolicies = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: db-in}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
    - ports: [{protocol: UDP, port: 53}, {protocol: SCTP, port: 9}]
    - from: [{podSelector: {matchLabels: {app: web}}}]
      ports: [{port: 3306}, {protocol: UDP, port: 3306}]
    - from: [{ipBlock: {cidr: 10.1.0.0/16, except: [10.1.0.0/24]}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: db-more}
spec:
  podSelector: {matchLabels: {name: db-2}}
  ingress:
    - from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: bank}}}]
      ports: [{port: 3306}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: web-out}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress:
    - to: [{podSelector: {}}]
      ports: [{port: 3306, endPort: 3310}]
    - to: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}]
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: closed}, spec: {podSelector: {matchLabels: {app: stolen}}}}
`

// said are the verdict and the reason, and what NetworkPolicies say, of an answer.
func said(a *Answer) string {
	all := network(a.NetworkPolicies)
	for _, e := range a.Endpoints {
		all = append(all, network(e.NetworkPolicies)...)
	}
	return strings.Join(append([]string{a.Verdict, a.Reason}, all...), " | ")
}

func TestNetworkPolicies(t *testing.T) {
	dir, _ := view(t)
	if err := os.WriteFile(filepath.Join(dir, "np.yaml"), []byte(networkPolicies), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := fromFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		source, destination string
		said, note          string
	}{
		{"shop/web-1", "shop/db-1:3306", "allow | PolicyAllow | allow egress shop/web-out[0] | allow ingress shop/db-in[1]", ""},
		{"shop/web-1", "shop/db-1:3311", "deny | NetworkPolicyEgress | deny egress shop/web-out",
			"NetworkPolicy shop/web-out isolates the source, and has no egress rule that admits it; egress[0]: port 3311 is not among its ports; egress[1]: 10.1.0.2 is not among its peers"},
		{"bank/ledger", "shop/db-1:3306", "deny | NetworkPolicyIngress | deny ingress shop/db-in",
			"isolates the destination, and has no ingress rule that admits it; ingress[0]: it is for SCTP and UDP only, and connections are TCP; " +
				"ingress[1]: 10.1.0.5 is not among its peers; its ports of UDP do not count, as connections are TCP; ingress[2]: 10.1.0.5 is in the exception 10.1.0.0/24 of its ipBlock"},
		{"bank/ledger", "shop/db-1:80", "deny | NetworkPolicyIngress | deny ingress shop/db-in", "ingress[1]: 10.1.0.5 is not among its peers, and port 80 is not among its ports"},
		// One that admits is enough; then AuthorizationPolicies are asked.
		{"bank/ledger", "shop/db-2:3306", "deny | PolicyNoMatch | deny ingress shop/db-in | allow ingress shop/db-more[0]", "no rule of shop/db-only-web"},
		{"bank/ledger", "shop/stolen:80", "deny | IdentityRevoked | deny ingress shop/closed", "names the source, or the destination"},
		{"shop/web-1", "plain/old:80", "deny | NetworkPolicyEgress | deny egress shop/web-out", "10.1.0.6 is not among its peers"},
		{"shop/web-1", "192.0.2.7:443", "allow | EgressAllowed | allow egress shop/web-out[1]", "outside the mesh"},
		{"shop/web-1", "192.0.2.200:443", "deny | NetworkPolicyEgress | deny egress shop/web-out", "192.0.2.200 is in the exception 192.0.2.128/25 of its ipBlock"},
		{"192.0.2.7", "shop/two:80", "allow | Permissive", ""},
		{"shop/web-1", "shop/web-1:3306", "allow | NoPolicy", ""}, // itself
		{"plain/old", "192.0.2.7:443", "allow | EgressAllowed", "no say"},
	} {
		a, err := Explain(m, tc.source, tc.destination)
		if err != nil {
			t.Errorf("%s to %s: %v", tc.source, tc.destination, err)
			continue
		}
		if notes := strings.Join(a.Notes, "\n") + "\n"; said(a) != tc.said || !strings.Contains(notes, tc.note) {
			t.Errorf("%s to %s: %s\n%s\nwant %s\n%s", tc.source, tc.destination, said(a), notes, tc.said, tc.note)
		}
		var out bytes.Buffer
		if err := Print(&out, false, a); err != nil || strings.Contains(tc.said, "gress shop/") != strings.Contains(out.String(), "gress shop/") {
			t.Errorf("%v\n%s", err, out.String())
		}
	}
}

// TestNetworkPoliciesOfACluster: names of ports, which only pods have, and rules
// that are refused while the rest is in force.
func TestNetworkPoliciesOfACluster(t *testing.T) {
	settings := &v1alpha1.Mesh{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.MeshName}}
	settings.Spec.TrustDomain, settings.Spec.ClusterRanges = "m", []v1alpha1.AddressBlock{"10.0.0.0/8"}
	shop := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{v1alpha1.LabelMesh: v1alpha1.MeshEnabled}}}
	named := intstr.FromString("mysql")
	policy := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"}, Spec: networkingv1.NetworkPolicySpec{
		PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}},
		Ingress: []networkingv1.NetworkPolicyIngressRule{
			{From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "ten"}}}},
			{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{}}}, Ports: []networkingv1.NetworkPolicyPort{{Port: &named}}},
		},
	}}
	pod := func(name, address string, ports ...kube.NamedPort) *kube.Pod {
		return &kube.Pod{Namespace: "shop", Name: name, UID: name, Labels: map[string]string{"app": name}, Node: "n1", ServiceAccount: name, Ready: true,
			Addresses: []netip.Addr{netip.MustParseAddr(address)}, Ports: ports}
	}
	objects := &kube.Objects{
		Meshes: []kube.Sourced[v1alpha1.Mesh]{{Value: settings}}, Namespaces: []kube.Sourced[corev1.Namespace]{{Value: shop}},
		NetworkPolicies: []kube.Sourced[networkingv1.NetworkPolicy]{{Value: policy}},
		Pods:            []*kube.Pod{pod("web", "10.1.0.1"), pod("db", "10.1.0.2", kube.NamedPort{Name: "mysql", Port: 3306})},
	}
	compiled, err := kube.CompileEach(objects)
	if err != nil {
		t.Fatal(err)
	}
	m, err := modelOf(objects, compiled)
	if err != nil {
		t.Fatal(err)
	}
	for destination, want := range map[string]struct{ said, note string }{
		"shop/db:3306": {"allow | NoPolicy | allow ingress shop/db[1]", ""},
		"shop/db:3307": {"deny | NetworkPolicyIngress | deny ingress shop/db",
			`ingress[0]: it is refused: spec.ingress[0].from[0].ipBlock.cidr: "ten" is not an address block; ingress[1]: port 3307 is not among its ports`},
	} {
		a, err := Explain(m, "shop/web", destination)
		if err != nil {
			t.Fatal(err)
		}
		if notes := strings.Join(a.Notes, "\n"); said(a) != want.said || !strings.Contains(notes, want.note) {
			t.Errorf("%s: %s\n%s\nwant %s\n%s", destination, said(a), notes, want.said, want.note)
		}
	}
}
