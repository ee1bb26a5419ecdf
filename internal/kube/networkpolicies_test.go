package kube

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
)

// end is one end of a connection: a pod, or somebody outside of the cluster.
type end struct {
	pod  *Pod // nil outside
	addr netip.Addr
}

// naiveAPI is the documentation of networking.k8s.io/v1, its fields one after the
// other, as predicates about two ends. It shares nothing with what is compiled.
type naiveAPI struct {
	policies   []*networkingv1.NetworkPolicy
	namespaces map[string]map[string]string
}

func matches(s *metav1.LabelSelector, of map[string]string) bool {
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && selector.Matches(labels.Set(of))
}

// types: "If this field is not specified, it will default based on the existence
// of ingress or egress rules; policies that contain an egress section are assumed
// to affect egress, and all policies are assumed to affect ingress."
func naiveTypes(p *networkingv1.NetworkPolicy) []networkingv1.PolicyType {
	types := p.Spec.PolicyTypes
	if len(types) == 0 {
		types = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(p.Spec.Egress) > 0 {
			types = append(types, networkingv1.PolicyTypeEgress)
		}
	}
	return types
}

// allowed: "Traffic is allowed to a pod if there are no NetworkPolicies selecting
// the pod OR if the traffic matches at least one rule across all of the
// NetworkPolicy objects whose podSelector matches the pod." And "a Pod cannot
// block access to itself".
func (n naiveAPI) allowed(direction networkingv1.PolicyType, src, dst end, port uint16) bool {
	if src.pod != nil && src.pod == dst.pod {
		return true
	}
	selected, other := dst, src
	if direction == networkingv1.PolicyTypeEgress {
		selected, other = src, dst
	}
	isolated := false
	for _, p := range n.policies {
		if selected.pod.Namespace != p.Namespace || !matches(&p.Spec.PodSelector, selected.pod.Labels) || !slices.Contains(naiveTypes(p), direction) {
			continue
		}
		isolated = true
		if direction == networkingv1.PolicyTypeIngress {
			for _, r := range p.Spec.Ingress {
				if n.peers(p.Namespace, r.From, other) && naivePorts(r.Ports, dst, port) {
					return true
				}
			}
			continue
		}
		for _, r := range p.Spec.Egress {
			if n.peers(p.Namespace, r.To, other) && naivePorts(r.Ports, dst, port) {
				return true
			}
		}
	}
	return !isolated
}

// peers: "If this field is empty or missing, this rule matches all sources."
func (n naiveAPI) peers(own string, list []networkingv1.NetworkPolicyPeer, other end) bool {
	return len(list) == 0 || slices.ContainsFunc(list, func(p networkingv1.NetworkPolicyPeer) bool {
		if p.IPBlock != nil {
			in := func(block string) bool { return netip.MustParsePrefix(block).Contains(other.addr) }
			return in(p.IPBlock.CIDR) && !slices.ContainsFunc(p.IPBlock.Except, in)
		}
		if other.pod == nil || other.pod.HostNetwork {
			return false // "selects pods", and in its node's network a pod is its node
		}
		if p.NamespaceSelector == nil {
			return other.pod.Namespace == own && matches(p.PodSelector, other.pod.Labels)
		}
		return matches(p.NamespaceSelector, n.namespaces[other.pod.Namespace]) && (p.PodSelector == nil || matches(p.PodSelector, other.pod.Labels))
	})
}

// ports: "If this field is empty or missing, this rule matches all ports."
func naivePorts(list []networkingv1.NetworkPolicyPort, dst end, port uint16) bool {
	return len(list) == 0 || slices.ContainsFunc(list, func(p networkingv1.NetworkPolicyPort) bool {
		switch {
		case p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP:
			return false
		case p.Port == nil: // "this matches all port names and numbers"
			return true
		case p.Port.Type == intstr.String: // "a numerical or named port on a pod"
			return dst.pod != nil && !dst.pod.HostNetwork && slices.Contains(dst.pod.Ports, NamedPort{p.Port.StrVal, port})
		case p.EndPort != nil:
			return int32(port) >= p.Port.IntVal && int32(port) <= *p.EndPort
		}
		return int32(port) == p.Port.IntVal
	})
}

// The generators draw from so few words that rules match often.

func draw[T any](t *rapid.T, of ...T) T { return rapid.SampledFrom(of).Draw(t, "one") }

func genLabels(t *rapid.T) map[string]string {
	all := map[string]string{}
	for _, key := range []string{"app", "tier"} {
		if value := draw(t, "", "a", "b", "c"); value != "" {
			all[key] = value
		}
	}
	return all
}

func genSelector(t *rapid.T) *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	switch draw(t, 0, 1, 1, 2, 2, 3) {
	case 1:
		s.MatchLabels = map[string]string{draw(t, "app", "tier"): draw(t, "a", "b", "c")}
	case 2:
		s.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: draw(t, "app", "tier"),
			Operator: draw(t, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn), Values: rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 3).Draw(t, "values")}}
	case 3:
		s.MatchLabels = map[string]string{"app": draw(t, "a", "b")}
		s.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "tier", Operator: draw(t, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}}
	}
	return s
}

func genPeer(t *rapid.T) networkingv1.NetworkPolicyPeer {
	var p networkingv1.NetworkPolicyPeer
	switch draw(t, 0, 1, 2, 3) {
	case 0:
		p.PodSelector = genSelector(t)
	case 1:
		p.NamespaceSelector = genSelector(t)
	case 2:
		p.PodSelector, p.NamespaceSelector = genSelector(t), genSelector(t)
		if rapid.Bool().Draw(t, "by name") {
			p.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": draw(t, "ns0", "ns1")}}
		}
	case 3:
		p.IPBlock = draw(t, &networkingv1.IPBlock{CIDR: "0.0.0.0/0"}, &networkingv1.IPBlock{CIDR: "10.0.0.0/8", Except: []string{"10.0.1.0/24", "10.0.0.2/32"}},
			&networkingv1.IPBlock{CIDR: "192.0.2.0/24", Except: []string{"192.0.2.128/25"}}, &networkingv1.IPBlock{CIDR: "fd00::/16", Except: []string{"fd00:0:1::/64"}})
	}
	return p
}

func genPort(t *rapid.T) networkingv1.NetworkPolicyPort {
	var p networkingv1.NetworkPolicyPort
	if protocol := draw(t, "", "", corev1.ProtocolTCP, corev1.ProtocolUDP); protocol != "" {
		p.Protocol = &protocol
	}
	number := func(n int) *intstr.IntOrString { v := intstr.FromInt(n); return &v }
	switch draw(t, 0, 1, 1, 2, 3) {
	case 1:
		p.Port = number(draw(t, 80, 443, 8080))
	case 2:
		last := int32(draw(t, 80, 443, 8080))
		p.Port, p.EndPort = number(80), &last
	case 3:
		name := intstr.FromString(draw(t, "http", "admin"))
		p.Port = &name
	}
	return p
}

func genNetworkPolicy(t *rapid.T, name string) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: draw(t, "ns0", "ns1", "ns2"), Name: name}}
	p.Spec.PodSelector = *genSelector(t)
	peers, ports := rapid.SliceOfN(rapid.Custom(genPeer), 0, 2), rapid.SliceOfN(rapid.Custom(genPort), 0, 2)
	for range draw(t, 0, 1, 2) {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: peers.Draw(t, "from"), Ports: ports.Draw(t, "ports")})
	}
	for range draw(t, 0, 1, 2) {
		p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: peers.Draw(t, "to"), Ports: ports.Draw(t, "ports")})
	}
	const in, out = networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress
	p.Spec.PolicyTypes = draw(t, nil, []networkingv1.PolicyType{in}, []networkingv1.PolicyType{out}, []networkingv1.PolicyType{in, out})
	return p
}

func genPod(t *rapid.T, i int) *Pod {
	p := &Pod{Namespace: draw(t, "ns0", "ns1", "ns2"), Name: fmt.Sprintf("p%d", i), UID: fmt.Sprint(i), Node: draw(t, "n1", "n2"), ServiceAccount: "default", Labels: genLabels(t),
		Ready: rapid.Bool().Draw(t, "ready"), Terminating: rapid.Bool().Draw(t, "terminating"), HostNetwork: draw(t, false, false, false, true)}
	p.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i % 2), byte(i + 1)})}
	if rapid.Bool().Draw(t, "dual") {
		p.Addresses = append(p.Addresses, netip.MustParseAddr(fmt.Sprintf("fd00:0:%d::%x", i%2, i+1)))
	}
	for _, name := range []string{"http", "admin"} {
		if port := draw(t, uint16(0), 80, 443, 8080); port > 0 {
			p.Ports = append(p.Ports, NamedPort{name, port})
		}
	}
	return p
}

// TestNetworkPoliciesAreTheAPI holds what is compiled, and how it is judged, to
// the API's documentation: in 2,000 generated clusters, each connection of every
// pod to every other, and from and to some addresses outside.
func TestNetworkPoliciesAreTheAPI(t *testing.T) {
	var judged, refused int
	for range 20 {
		rapid.Check(t, func(t *rapid.T) {
			j, r := judgeCluster(t)
			judged, refused = judged+j, refused+r
		})
	}
	t.Logf("%d connections judged, %d of them refused", judged, refused)
	if judged < 10_000 || refused < judged/20 || refused > judged*19/20 {
		t.Errorf("%d connections judged, %d of them refused: this shows too little", judged, refused)
	}
}

func judgeCluster(t *rapid.T) (judged, refused int) {
	n := naiveAPI{namespaces: map[string]map[string]string{}}
	objs := &Objects{Meshes: []Sourced[v1alpha1.Mesh]{{Value: &v1alpha1.Mesh{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.MeshSpec{
		TrustDomain: "example.org", ClusterRanges: []v1alpha1.AddressBlock{"10.0.0.0/8", "fd00::/16"},
		Defaults: v1alpha1.MeshDefaults{PeerAuthentication: v1alpha1.PeerAuthenticationPermissive},
	}}}}}
	for i := range 3 {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("ns%d", i), Labels: genLabels(t)}}
		ns.Labels["kubernetes.io/metadata.name"] = ns.Name
		if i != 2 {
			ns.Labels[v1alpha1.LabelMesh] = v1alpha1.MeshEnabled
		}
		n.namespaces[ns.Name] = ns.Labels
		objs.Namespaces = append(objs.Namespaces, Sourced[corev1.Namespace]{Value: ns})
	}
	ends := []end{{nil, netip.MustParseAddr("192.0.2.7")}, {nil, netip.MustParseAddr("192.0.2.200")}, {nil, netip.MustParseAddr("2001:db8::1")}}
	for i := range draw(t, 3, 6) {
		p := genPod(t, i)
		if p.HostNetwork {
			for _, label := range []string{"ns0", "ns1"} {
				if p.Namespace == label {
					p.Labels[v1alpha1.LabelMesh] = v1alpha1.MeshDisabled // else it is refused
				}
			}
		}
		objs.Pods = append(objs.Pods, p)
		for _, addr := range p.Addresses {
			ends = append(ends, end{p, addr})
		}
	}
	for i := range draw(t, 1, 2, 4) {
		p := genNetworkPolicy(t, fmt.Sprintf("np%d", i))
		n.policies = append(n.policies, p)
		objs.NetworkPolicies = append(objs.NetworkPolicies, Sourced[networkingv1.NetworkPolicy]{Value: p})
	}
	compiled, err := CompileEach(objs)
	if err != nil || len(compiled.Refused) > 0 {
		t.Fatalf("%v\n%s", err, problemLines(compiled.Refused))
	}
	view, err := compiled.View("r")
	if err != nil {
		t.Fatal(err)
	}
	for _, src := range ends {
		for _, dst := range ends {
			for _, port := range []uint16{80, 443, 8080, 9000} {
				j, r := n.judge(t, view, src, dst, port)
				judged, refused = judged+j, refused+r
			}
		}
	}
	return judged, refused
}

func workloadOf(view *mesh.View, e end) *mesh.Workload {
	if e.pod == nil || e.pod.HostNetwork {
		return nil
	}
	w, _ := view.Workload(e.pod.Key())
	return w
}

// judge compares both directions of one connection.
func (n naiveAPI) judge(t *rapid.T, view *mesh.View, src, dst end, port uint16) (judged, refused int) {
	from, to := workloadOf(view, src), workloadOf(view, dst)
	at := fmt.Sprintf("%v to %v port %d", src.addr, dst.addr, port)
	say := func(what string, got, want bool) {
		if judged++; !want {
			refused++
		}
		if got != want {
			t.Fatalf("%s of %s: admitted %v, the API says %v; policies %+v", what, at, got, want, n.policies)
		}
	}
	if to != nil {
		c := mesh.Connection{Source: src.addr, Destination: to, Port: port}
		if from != nil && from.Enrolled && to.Enrolled {
			c.Peer = from.Identity
		}
		_, d := view.Authorize(c)
		say("ingress", d.Reason != mesh.ReasonNetworkPolicyIngress, n.allowed(networkingv1.PolicyTypeIngress, src, dst, port))
		if (d.Reason == mesh.ReasonNetworkPolicyIngress) != (d.Verdict == mesh.VerdictDeny) {
			t.Fatalf("ingress of %s: %+v", at, d)
		}
	}
	if from != nil {
		d, ok := view.Leaves(from, netip.AddrPortFrom(dst.addr, port))
		say("egress", ok, n.allowed(networkingv1.PolicyTypeEgress, src, dst, port))
		if !ok && (d.Reason != mesh.ReasonNetworkPolicyEgress || d.Policy.Namespace != from.Namespace || d.Policy.Name == "") {
			t.Fatalf("egress of %s: %+v", at, d)
		}
	}
	return judged, refused
}

// TestNetworkPoliciesAreEqualOnReplicas compiles the same objects in another order.
func TestNetworkPoliciesAreEqualOnReplicas(t *testing.T) {
	objs := clusterOf(t, manyPeers(200))
	for i := range 500 {
		objs.Pods = append(objs.Pods, podOf(fmt.Sprintf("p%d", i), fmt.Sprintf("10.1.%d.%d", i/200, i%200+1), func(p *Pod) { p.Labels = map[string]string{"app": fmt.Sprint(i % 7)} }))
	}
	first := compileEach(t, objs).Network
	if len(first.Sets) < 10 {
		t.Fatalf("only %d shards: this shows little", len(first.Sets))
	}
	shuffle := rand.New(rand.NewPCG(1, 2))
	for range 5 {
		shuffle.Shuffle(len(objs.Pods), reflect.Swapper(objs.Pods))
		shuffle.Shuffle(len(objs.NetworkPolicies), reflect.Swapper(objs.NetworkPolicies))
		if !reflect.DeepEqual(compileEach(t, objs).Network, first) {
			t.Fatal("another order gives another configuration")
		}
	}
	// A pod that comes changes one shard of each set that it is in, and no policy.
	objs.Pods = append(objs.Pods, podOf("new", "10.1.9.9", func(p *Pod) { p.Labels = map[string]string{"app": "0"} }))
	second := compileEach(t, objs).Network
	if !reflect.DeepEqual(second.Policies, first.Policies) {
		t.Error("a pod that comes changes policies")
	}
	changed := 0
	for i := range second.Sets {
		if !slices.ContainsFunc(first.Sets, func(s2 netpolicy.Shard) bool { return reflect.DeepEqual(s2, second.Sets[i]) }) {
			changed++
		}
	}
	if changed != 2 {
		t.Errorf("a pod that is in two sets changes %d shards, want 2", changed)
	}
}

// manyPeers has policies by which app 0 to 6, and everybody, may come.
func manyPeers(n int) string {
	var b strings.Builder
	for i := range n {
		selector := fmt.Sprintf("matchLabels: {app: \"%d\"}", i%7)
		if i%10 == 9 {
			selector = ""
		}
		fmt.Fprintf(&b, `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: np%d}
spec: {podSelector: {matchLabels: {app: "%d"}}, ingress: [{from: [{podSelector: {%s}}]}]}
---
`, i, i%3, selector)
	}
	return b.String()
}

// What cannot be understood lets nobody in, and is said.
func TestRefusedNetworkPoliciesLetNobodyIn(t *testing.T) {
	web, db := podOf("web", "10.0.0.1"), podOf("db", "10.0.0.2")
	number, name, udp, odd := intstr.FromInt(80), intstr.FromString("no name!"), corev1.ProtocolUDP, corev1.Protocol("ICMP")
	last := int32(79)
	all := &metav1.LabelSelector{}
	bad := metav1.LabelSelector{MatchLabels: map[string]string{"a b": "c"}}
	peers := func(p ...networkingv1.NetworkPolicyPeer) networkingv1.NetworkPolicySpec {
		return networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{From: p}}}
	}
	ports := func(p ...networkingv1.NetworkPolicyPort) networkingv1.NetworkPolicySpec {
		return networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{Ports: p}}}
	}
	var many []networkingv1.NetworkPolicyPort
	for range 20_000 {
		many = append(many, networkingv1.NetworkPolicyPort{Port: &number})
	}
	var long []string
	for i := range 30_000 {
		long = append(long, fmt.Sprintf("value-%d", i))
	}
	for field, spec := range map[string]networkingv1.NetworkPolicySpec{
		"spec.podSelector":                             {PodSelector: bad, Ingress: []networkingv1.NetworkPolicyIngressRule{{}}},
		"spec.podSelector: says":                       {PodSelector: metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpIn, Values: long}}}},
		"spec.policyTypes[0]":                          {PolicyTypes: []networkingv1.PolicyType{"Sideways"}},
		"spec: has 20000":                              ports(many...),
		"spec.ingress[0].from[0]: is empty":            peers(networkingv1.NetworkPolicyPeer{}),
		"spec.ingress[0].from[0]: has ipBlock beside":  peers(networkingv1.NetworkPolicyPeer{PodSelector: all, IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0/8"}}),
		"spec.ingress[0].from[0].podSelector":          peers(networkingv1.NetworkPolicyPeer{PodSelector: &bad}),
		"spec.ingress[0].from[0].namespaceSelector":    peers(networkingv1.NetworkPolicyPeer{NamespaceSelector: &bad, PodSelector: all}),
		"spec.ingress[0].from[0].ipBlock.cidr":         peers(networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "010.0.0.0/8"}}),
		"spec.ingress[0].from[0].ipBlock.except[0]":    peers(networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0/8", Except: []string{"10.0.0.9"}}}),
		"spec.ingress[0].from[0].ipBlock.except[0]: 1": peers(networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0/8", Except: []string{"192.0.2.0/24"}}}),
		"spec.ingress[0].ports[0].port":                ports(networkingv1.NetworkPolicyPort{Port: &name}),
		"spec.ingress[0].ports[0]: 80 to 79":           ports(networkingv1.NetworkPolicyPort{Port: &number, EndPort: &last}),
		"spec.ingress[0].ports[0].endPort":             ports(networkingv1.NetworkPolicyPort{EndPort: &last}),
		"spec.ingress[0].ports[0].protocol":            ports(networkingv1.NetworkPolicyPort{Protocol: &odd}),
		"":                                             ports(networkingv1.NetworkPolicyPort{Protocol: &udp}), // no TCP, and nothing wrong
	} {
		t.Run(field, func(t *testing.T) {
			objs := clusterOf(t, "", web, db)
			objs.NetworkPolicies = []Sourced[networkingv1.NetworkPolicy]{{Value: &networkingv1.NetworkPolicy{
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "np"}, Spec: spec}}}
			c := compileEach(t, objs)
			if got := problemLines(c.Refused); field == "" && got != "" || !strings.Contains(got, field) {
				t.Errorf("problems: %q", got)
			}
			view, err := c.View("r")
			if err != nil {
				t.Fatal(err)
			}
			to, _ := view.Workload(db.Key())
			_, d := view.Authorize(mesh.Connection{Peer: spiffeid.RequireFromString("spiffe://example.org/ns/shop/sa/web"), Source: web.Addresses[0], Destination: to, Port: 80})
			if d.Reason != mesh.ReasonNetworkPolicyIngress || d.Policy != (mesh.Key{Namespace: "shop", Name: "np"}) {
				t.Errorf("%+v, want nobody to be let in by policy np", d)
			}
		})
	}
}

// BenchmarkCompileNetworkPolicies compiles a cluster of 10,000 pods with and
// without 1,000 policies: of ten, seven are by an app's label, two by a
// namespace's, and one is open to all pods.
func BenchmarkCompileNetworkPolicies(b *testing.B) {
	for _, n := range []int{0, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			objs := manyPolicies(b, n)
			for b.Loop() {
				compiled, err := CompileEach(objs)
				if err != nil || len(compiled.Refused) > 0 {
					b.Fatal(err, problemLines(compiled.Refused))
				}
				if _, err := compiled.View("r"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func manyPolicies(b *testing.B, n int) *Objects {
	var yaml strings.Builder
	for i := range 50 {
		fmt.Fprintf(&yaml, "apiVersion: v1\nkind: Namespace\nmetadata: {name: team-%d, labels: {heddle.dev/mesh: enabled, tier: \"%d\"}}\n---\n", i, i%5)
	}
	objs := clusterOf(b, yaml.String())
	http := intstr.FromString("http")
	for i := range n {
		peer := networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprintf("app-%d", i)}}}
		switch i % 10 {
		case 7, 8:
			peer = networkingv1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"tier": fmt.Sprint(i % 5)}}}
		case 9:
			peer = networkingv1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{}}
		}
		objs.NetworkPolicies = append(objs.NetworkPolicies, Sourced[networkingv1.NetworkPolicy]{Value: &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("team-%d", i%50), Name: fmt.Sprintf("np-%d", i)},
			Spec: networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprintf("app-%d", i)}},
				Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{peer}, Ports: []networkingv1.NetworkPolicyPort{{Port: &http}}}}}}})
	}
	for i := range 10_000 {
		objs.Pods = append(objs.Pods, podOf(fmt.Sprintf("p%d", i), fmt.Sprintf("10.%d.%d.%d", 1+i>>16, i>>8&255, i&255), func(p *Pod) {
			p.Namespace, p.Labels, p.Node = fmt.Sprintf("team-%d", i%50), map[string]string{"app": fmt.Sprintf("app-%d", i%1000)}, fmt.Sprintf("n%d", i%100)
		}))
	}
	return objs
}
