package delta

import (
	"cmp"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// state is a cluster, kept as plainly as possible: objects by kind and name.
type state map[string]map[mesh.Key]any

func (s state) set(kind string, key mesh.Key, object any) Change {
	if s[kind] == nil {
		s[kind] = map[mesh.Key]any{}
	}
	c := Change{Was: s[kind][key], Is: object}
	if object == nil {
		delete(s[kind], key)
	} else {
		s[kind][key] = object
	}
	return c
}

func sourced[T any](s state, kind string) (all []kube.Sourced[T]) {
	for _, o := range s[kind] {
		all = append(all, kube.Sourced[T]{Value: o.(*T)})
	}
	return all
}

func (s state) objects() *kube.Objects {
	o := &kube.Objects{Zones: map[string]string{"n1": "a"}, UDPByIdentity: len(s["udp"]) > 0, Meshes: sourced[v1alpha1.Mesh](s, "mesh"), Namespaces: sourced[corev1.Namespace](s, "namespace"),
		Services: sourced[corev1.Service](s, "service"), AuthorizationPolicies: sourced[v1alpha1.AuthorizationPolicy](s, "policy"),
		PeerAuthentications: sourced[v1alpha1.PeerAuthentication](s, "authentication"), Workloads: sourced[v1alpha1.Workload](s, "workload"),
		NetworkPolicies: sourced[networkingv1.NetworkPolicy](s, "network")}
	for _, p := range s["pod"] {
		o.Pods = append(o.Pods, p.(*kube.Pod))
	}
	for _, p := range s["slice"] {
		o.Slices = append(o.Slices, p.(*kube.EndpointSlice))
	}
	return o
}

func meta(key mesh.Key) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}
}

func drawKey(t *rapid.T, names ...string) mesh.Key {
	return mesh.Key{Namespace: rapid.SampledFrom([]string{"shop", "shop", "bank", "nowhere"}).Draw(t, "namespace"), Name: rapid.SampledFrom(names).Draw(t, "name")}
}

func one[T any](t *rapid.T, what string, of ...T) T { return rapid.SampledFrom(of).Draw(t, what) }

// seldom is true where what is left to compiling everything must not be in the way of
// the rest.
func seldom(t *rapid.T, what string) bool { return rapid.IntRange(0, 24).Draw(t, what) == 24 }

func drawLabels(t *rapid.T) map[string]string {
	return one(t, "labels", map[string]string{"app": "a"}, map[string]string{"app": "b"}, map[string]string{"app": "a", "tier": "1"}, nil,
		map[string]string{"app": "b", v1alpha1.LabelMesh: v1alpha1.MeshDisabled}, map[string]string{"app": "b", v1alpha1.LabelMesh: "perhaps"})
}

func drawPod(t *rapid.T, key mesh.Key) *kube.Pod {
	p := &kube.Pod{Namespace: key.Namespace, Name: key.Name, UID: one(t, "uid", "1", "2"), Node: one(t, "node", "n1", "n2", "n2", ""), ServiceAccount: one(t, "account", "a", "b"),
		Labels: drawLabels(t), Created: int64(rapid.IntRange(1, 3).Draw(t, "created")), Ready: rapid.Bool().Draw(t, "ready"), Terminating: rapid.Bool().Draw(t, "terminating"),
		HostNetwork: seldom(t, "host"), Finished: seldom(t, "finished"), ProbePorts: one(t, "probes", nil, []uint16{80}, []uint16{15008}),
		Ports: one(t, "ports", nil, []kube.NamedPort{{Name: "http", Port: 80}}, []kube.NamedPort{{Name: "http", Port: 8080}})}
	own := byte(len(key.Namespace)*16 + int(key.Name[1]-'0'))
	switch {
	case seldom(t, "anybody's"):
		p.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(1, 3).Draw(t, "address"))})}
	case seldom(t, "outside"):
		p.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(rapid.IntRange(1, 2).Draw(t, "address"))})}
	case rapid.Bool().Draw(t, "has an address"):
		p.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 1, own})}
	}
	return p
}

func drawService(t *rapid.T, key mesh.Key) *corev1.Service {
	s := &corev1.Service{ObjectMeta: meta(key)}
	s.Spec.Selector = one(t, "selector", map[string]string{"app": "a"}, map[string]string{"app": "b"}, map[string]string{"app": "a", "tier": "1"})
	if seldom(t, "by hand") {
		s.Spec.Selector = nil
	}
	s.Spec.ClusterIP = one(t, "ip", "None", "", fmt.Sprintf("10.0.2.%d", len(key.Namespace)*16+int(key.Name[1]-'0')))
	if seldom(t, "external") {
		s.Spec.ExternalIPs = []string{one(t, "external IP", "10.0.0.1", "192.0.2.1", "192.0.2.201"), "192.0.2.200"}
		s.CreationTimestamp = metav1.Unix(int64(rapid.IntRange(1, 3).Draw(t, "created")), 0)
	}
	if seldom(t, "balanced") {
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.201"}}
	}
	if seldom(t, "anybody's") {
		s.Spec.ClusterIP = fmt.Sprintf("10.0.0.%d", rapid.IntRange(1, 3).Draw(t, "ip"))
	}
	s.Labels = one(t, "labels", nil, nil, map[string]string{v1alpha1.LabelWaypoint: "o1"}, map[string]string{v1alpha1.LabelWaypoint: "o2", v1alpha1.LabelWaypointBypass: "true"},
		map[string]string{v1alpha1.LabelWaypoint: "none"}, map[string]string{v1alpha1.LabelWaypoint: "No name", v1alpha1.LabelWaypointBypass: "perhaps"})
	s.Spec.Ports = []corev1.ServicePort{{Name: one(t, "port", "x", "x", "http", "https"), Port: 80, TargetPort: one(t, "target", intstr.FromInt32(80), intstr.FromString("http"), intstr.FromInt32(15008), intstr.FromInt32(15009))}}
	if rapid.Bool().Draw(t, "udp port") {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "y", Port: 443, Protocol: corev1.ProtocolUDP})
	}
	return s
}

func drawPolicy(t *rapid.T, key mesh.Key) *v1alpha1.AuthorizationPolicy {
	p := &v1alpha1.AuthorizationPolicy{ObjectMeta: meta(key)}
	p.Spec.Action = one(t, "action", v1alpha1.ActionAllow, v1alpha1.ActionDeny)
	if labels := one(t, "selector", nil, map[string]v1alpha1.LabelValue{"app": "a"}, map[string]v1alpha1.LabelValue{"app": "b"}, map[string]v1alpha1.LabelValue{"app": "c"}); labels != nil {
		p.Spec.Selector = &v1alpha1.Selector{MatchLabels: labels}
	}
	p.Spec.Rules = []v1alpha1.Rule{{From: []v1alpha1.Source{one(t, "from", v1alpha1.Source{ServiceAccounts: []string{"a"}}, v1alpha1.Source{Namespaces: []string{"bank"}},
		v1alpha1.Source{Namespaces: []string{"gone"}}, v1alpha1.Source{ServiceAccounts: []string{"*"}})}}}
	udp := v1alpha1.ProtocolUDP
	p.Spec.Rules[0].To = one(t, "to", nil, nil, nil, nil, []v1alpha1.Destination{{Ports: []v1alpha1.Port{80}}}, []v1alpha1.Destination{{Protocol: &udp, Ports: []v1alpha1.Port{443}}})
	if seldom(t, "about requests") {
		p.Spec.Rules[0].To = one(t, "requests", []v1alpha1.Destination{{Methods: []string{"GET"}}}, []v1alpha1.Destination{{Ports: []v1alpha1.Port{80}, NotPaths: []string{"/admin*"}}})
	}
	return p
}

// change changes one object of the cluster.
func (s state) change(t *rapid.T) Change {
	var key mesh.Key
	var object any
	kind := one(t, "kind", "pod", "pod", "pod", "pod", "service", "policy", "policy")
	if seldom(t, "other") {
		kind = one(t, "other kind", "namespace", "authentication", "workload", "network", "slice")
	}
	switch key = drawKey(t, "o1", "o2", "o3", "o4"); kind {
	case "pod":
		object = drawPod(t, key)
		if was, ok := s["pod"][key].(*kube.Pod); ok && rapid.Bool().Draw(t, "readiness only") {
			as := *was
			as.Ready, as.ReadySince, as.Terminating = !as.Ready, as.ReadySince+1, rapid.Bool().Draw(t, "leaving")
			object = &as
		}
	case "service":
		object = drawService(t, key)
	case "policy":
		object = drawPolicy(t, key)
	case "namespace":
		key = mesh.Key{Name: key.Namespace}
		object = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: key.Name, Labels: map[string]string{v1alpha1.LabelMesh: one(t, "enrolled", v1alpha1.MeshEnabled, v1alpha1.MeshDisabled),
			v1alpha1.LabelWaypoint: one(t, "waypoint", "o2", "o3", "none")}}}
	case "authentication":
		a := &v1alpha1.PeerAuthentication{ObjectMeta: meta(key)}
		a.Spec.Mode = one(t, "mode", v1alpha1.PeerAuthenticationMode("STRICT"), "PERMISSIVE")
		if rapid.Bool().Draw(t, "some") {
			a.Spec.Selector = &v1alpha1.Selector{MatchLabels: map[string]v1alpha1.LabelValue{"app": "a"}}
		}
		object = a
	case "workload":
		w := &v1alpha1.Workload{ObjectMeta: meta(key)}
		w.Labels = map[string]string{"app": "a"}
		w.Spec.Node, w.Spec.Addresses, w.Spec.NetworkNamespace = "n1", []string{"10.0.0.1"}, "/run/netns/x"
		object = w
	case "network":
		object = &networkingv1.NetworkPolicy{ObjectMeta: meta(key), Spec: networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{}}}}}}}
	case "slice":
		object = &kube.EndpointSlice{Namespace: key.Namespace, Name: key.Name, Service: key.Name, Ports: []kube.NamedPort{{Name: "x", Port: 80}}, Endpoints: []kube.Endpoint{{Addr: netip.MustParseAddr("10.0.0.2")}}}
	}
	if rapid.IntRange(0, 3).Draw(t, "gone") == 0 && kind != "namespace" {
		object = nil
	}
	if s[kind][key] == nil && object == nil {
		return Change{}
	}
	return s.set(kind, key, object)
}

func said(problems []*kube.Problem) string {
	text := ""
	for _, p := range problems {
		text += p.Error() + "\n"
	}
	return text
}

func view(t *rapid.T, compiled *kube.Compiled) *mesh.View {
	v, err := compiled.View("")
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// compare compares what two Views are made of.
func compare(t rapid.TB, what string, got, want *mesh.View) {
	lists(t, what, got.Workloads(), want.Workloads())
	lists(t, what, got.Services(), want.Services())
	lists(t, what, got.Policies(), want.Policies())
	if !reflect.DeepEqual(got.Settings(), want.Settings()) || !reflect.DeepEqual(got.Network().Policies(), want.Network().Policies()) || !reflect.DeepEqual(got.Network().Shards(), want.Network().Shards()) {
		t.Fatalf("%s: settings or networks differ", what)
	}
}

func lists[T any](t rapid.TB, what string, got, want []*T) {
	if len(got) != len(want) {
		t.Fatalf("%s: %d of %T, want %d", what, len(got), *new(T), len(want))
	}
	for i := range got {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Fatalf("%s: is\n%#v\nwant\n%#v", what, *got[i], *want[i])
		}
	}
}

// Changes in any order, as many at a time as there may be, come to what compiling
// the end state comes to: the model, and what is refused and warned of.
func TestChangesAreTheSameAsCompilingEverything(t *testing.T) {
	applied, all := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		s := state{}
		if rapid.Bool().Draw(t, "udp") {
			s.set("udp", mesh.Key{}, "on")
		}
		spec := v1alpha1.MeshSpec{TrustDomain: "example.org", ClusterRanges: []v1alpha1.AddressBlock{"10.0.0.0/8"}}
		if rapid.Bool().Draw(t, "federated") { // with who may have an address that pods and services claim, too
			spec.Federation = []v1alpha1.FederatedDomain{{TrustDomain: "other.org", Endpoint: "https://other.org/", Profile: v1alpha1.FederationWeb,
				Workloads: []v1alpha1.FederatedWorkload{{Identity: "spiffe://other.org/x", Addresses: []string{one(t, "declared", "10.0.0.1", "10.0.1.65", "10.0.2.65")}}}}}
		}
		s.set("mesh", mesh.Key{}, &v1alpha1.Mesh{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: spec})
		for _, name := range []string{"shop", "bank"} {
			s.set("namespace", mesh.Key{Name: name}, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1alpha1.LabelMesh: v1alpha1.MeshEnabled}}})
		}
		for range rapid.IntRange(0, 10).Draw(t, "objects") {
			s.change(t)
		}
		var c Compiler
		compiled, err := c.Compile(s.objects())
		if err != nil {
			t.Fatal(err)
		}
		is := view(t, compiled)
		for range rapid.IntRange(1, 10).Draw(t, "rounds") {
			var changes []Change
			for range rapid.IntRange(1, 3).Draw(t, "changes") {
				if change := s.change(t); change != (Change{}) {
					changes = append(changes, change)
				}
			}
			oracle, err := kube.CompileEach(s.objects())
			if err != nil {
				t.Fatal(err)
			}
			want := view(t, oracle)
			all++
			r, ok := c.Apply(is, changes)
			if !ok {
				if compiled, err = c.Compile(s.objects()); err != nil {
					t.Fatal(err)
				}
				is = view(t, compiled)
				continue
			}
			applied++
			if is, err = is.With("", r.Change); err != nil {
				t.Fatal(err)
			}
			compare(t, fmt.Sprintf("%+v", changes), is, want)
			if got, want := said(r.Refused)+"--\n"+said(r.Warnings), said(oracle.Refused)+"--\n"+said(oracle.Warnings); got != want {
				t.Fatalf("%+v: says\n%s\nwant\n%s", changes, got, want)
			}
			if got := len(r.Objects.AuthorizationPolicies); got != len(s["policy"]) {
				t.Fatalf("%d policies, want %d", got, len(s["policy"]))
			}
		}
	})
	t.Logf("%d of %d changes without compiling everything", applied, all)
	if applied < all/8 {
		t.Errorf("%d of %d changes without compiling everything: this test says little", applied, all)
	}
}

// TestASharedAddressIsNobodysAlone: a pod of a service that has lost its external address
// to another does not give it back; one whose address nobody else wants is compiled alone.
func TestASharedAddressIsNobodysAlone(t *testing.T) {
	for what, shared := range map[string]bool{"lost to another": true, "its own": false} {
		objs := large(20)
		first, second := objs.Services[0].Value, objs.Services[1].Value
		first.Spec.ExternalIPs, second.Spec.ExternalIPs = []string{"192.0.2.1"}, []string{"192.0.2.2"}
		if shared {
			second.Spec.ExternalIPs = first.Spec.ExternalIPs
			second.CreationTimestamp = metav1.Unix(1e9, 0)
		}
		var c Compiler
		is := wholeView(t, &c, objs)
		i := slices.IndexFunc(objs.Pods, func(p *kube.Pod) bool { return mesh.Selects(second.Spec.Selector, p.Labels) })
		later := *objs.Pods[i]
		later.Ports = append(slices.Clone(later.Ports), kube.NamedPort{Name: "later", Port: 9}) // so that its services are compiled
		r, ok := c.Apply(is, []Change{{Was: objs.Pods[i], Is: &later}})
		if ok == shared || len(r.Change.Services) > 0 {
			t.Errorf("%s: compiled alone is %v, with %d services changed", what, ok, len(r.Change.Services))
		}
	}
}

// What a change costs does not depend on how many there are of what it does not
// concern.
func TestAChangeIsCompiledAlone(t *testing.T) {
	objs := large(2000)
	var c Compiler
	is := wholeView(t, &c, objs)
	for what, change := range changesOf(objs) {
		r, ok := c.Apply(is, []Change{change})
		if n := r.Change.Size(); !ok || n == 0 || n > 2 {
			t.Errorf("%s: compiled alone is %v, with %d changes", what, ok, n)
		}
		var err error
		if is, err = is.With("", r.Change); err != nil {
			t.Fatal(err)
		}
	}
}

// changesOf are those that happen most.
func changesOf(objs *kube.Objects) map[string]Change {
	ready, policy := *objs.Pods[0], *objs.AuthorizationPolicies[3].Value
	ready.Ready = false
	policy.Spec.Action = v1alpha1.ActionDeny
	added := *objs.Pods[17]
	added.Name, added.Addresses = "another", []netip.Addr{netip.MustParseAddr("10.255.0.1")}
	return map[string]Change{"readiness": {objs.Pods[0], &ready}, "a policy": {objs.AuthorizationPolicies[3].Value, &policy},
		"a pod more": {nil, &added}, "a pod less": {objs.Pods[30], (*kube.Pod)(nil)}}
}

// large is a cluster of pods with services and policies of ten each.
func large(pods int) *kube.Objects {
	s := state{}
	s.set("mesh", mesh.Key{}, &v1alpha1.Mesh{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.MeshSpec{TrustDomain: "example.org", ClusterRanges: []v1alpha1.AddressBlock{"10.0.0.0/8"}}})
	for i := range 50 {
		s.set("namespace", mesh.Key{Name: fmt.Sprint("team-", i)}, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("team-", i), Labels: map[string]string{v1alpha1.LabelMesh: v1alpha1.MeshEnabled}}})
	}
	for i := range pods {
		app := i / 10
		key := mesh.Key{Namespace: fmt.Sprint("team-", app%50), Name: fmt.Sprint("app-", app)}
		labels := map[string]string{"app": key.Name}
		if i%10 == 0 {
			s.set("service", key, &corev1.Service{ObjectMeta: meta(key), Spec: corev1.ServiceSpec{Selector: labels, ClusterIP: fmt.Sprintf("10.200.%d.%d", app>>8, app&255), Ports: []corev1.ServicePort{{Port: 80}}}})
			s.set("policy", key, &v1alpha1.AuthorizationPolicy{ObjectMeta: meta(key), Spec: v1alpha1.AuthorizationPolicySpec{Selector: &v1alpha1.Selector{MatchLabels: map[string]v1alpha1.LabelValue{"app": v1alpha1.LabelValue(key.Name)}},
				Rules: []v1alpha1.Rule{{From: []v1alpha1.Source{{ServiceAccounts: []string{key.Name}}}}}}})
		}
		name := mesh.Key{Namespace: key.Namespace, Name: fmt.Sprint(key.Name, "-", i)}
		s.set("pod", name, &kube.Pod{Namespace: name.Namespace, Name: name.Name, Node: fmt.Sprint("node-", i%100), ServiceAccount: key.Name, Labels: labels,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1 + byte(i>>16), byte(i >> 8), byte(i)})}, Ready: true})
	}
	o := s.objects()
	slices.SortFunc(o.Pods, func(a, b *kube.Pod) int { return cmp.Compare(a.Name, b.Name) })
	return o
}

func BenchmarkApply(b *testing.B) {
	for _, pods := range []int{10_000, 50_000} {
		objs := large(pods)
		var c Compiler
		compiled, err := c.Compile(objs)
		if err != nil {
			b.Fatal(err)
		}
		is, err := compiled.View("")
		if err != nil {
			b.Fatal(err)
		}
		for what, change := range changesOf(objs) {
			b.Run(fmt.Sprint(what, "/", pods), func(b *testing.B) {
				for b.Loop() {
					if _, ok := c.Apply(is, []Change{change}); !ok {
						b.Fatal("not compiled alone")
					}
				}
			})
		}
	}
}

// An endpoint that is no pod goes with the last service that has it.
func TestServicesOfHostPodsAreLeftToCompilingEverything(t *testing.T) {
	key := mesh.Key{Namespace: "shop", Name: "exporter"}
	service := func(app string) *corev1.Service {
		return &corev1.Service{ObjectMeta: meta(key), Spec: corev1.ServiceSpec{Selector: map[string]string{"app": app}, ClusterIP: "10.0.2.1", Ports: []corev1.ServicePort{{Port: 80}}}}
	}
	for what, after := range map[string]*corev1.Service{"deleted": nil, "of pods": service("web")} {
		s := state{}
		s.set("mesh", mesh.Key{}, &v1alpha1.Mesh{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.MeshSpec{TrustDomain: "example.org", ClusterRanges: []v1alpha1.AddressBlock{"10.0.0.0/8"}}})
		s.set("namespace", mesh.Key{Name: "shop"}, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{v1alpha1.LabelMesh: v1alpha1.MeshEnabled}}})
		for app, address := range map[string]string{"exporter": "192.0.2.1", "web": "10.0.1.1"} {
			s.set("pod", mesh.Key{Namespace: "shop", Name: app}, &kube.Pod{Namespace: "shop", Name: app, Node: "n1", ServiceAccount: "a", Labels: map[string]string{"app": app},
				Addresses: []netip.Addr{netip.MustParseAddr(address)}, HostNetwork: app == "exporter", Ready: true})
		}
		// Another service, so that the pods of "web" are known by their labels.
		s.set("service", mesh.Key{Namespace: "shop", Name: "other"}, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "other"},
			Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, ClusterIP: "10.0.2.2", Ports: []corev1.ServicePort{{Port: 80}}}})
		s.set("service", key, service("exporter"))
		var c Compiler
		compiled, err := c.Compile(s.objects())
		if err != nil {
			t.Fatal(err)
		}
		is, err := compiled.View("")
		if err != nil {
			t.Fatal(err)
		}
		external := mesh.Key{Namespace: kube.ExternalNamespace, Name: "192.0.2.1"}
		if _, ok := is.Workload(external); !ok {
			t.Fatalf("%v is no endpoint", external)
		}
		if r, ok := c.Apply(is, []Change{{service("exporter"), after}}); ok {
			next, err := is.With("", r.Change)
			if err != nil {
				t.Fatal(err)
			}
			if _, still := next.Workload(external); still {
				t.Errorf("%s: %v is still there", what, external)
			}
		}
	}
}

// TestPoliciesAboutRequestsFollowWhoSeesThem: what is said of one is what compiling everything says, whatever it is that
// takes its waypoint away, or brings it.
func TestPoliciesAboutRequestsFollowWhoSeesThem(t *testing.T) {
	key := func(name string) mesh.Key { return mesh.Key{Namespace: "shop", Name: name} }
	pod := func(name, address string, labels map[string]string) *kube.Pod {
		return &kube.Pod{Namespace: "shop", Name: name, Node: "n1", ServiceAccount: "a", Labels: labels, Addresses: []netip.Addr{netip.MustParseAddr(address)}, Ready: true}
	}
	service := func(name, port, ip string, labels map[string]string) *corev1.Service {
		target := map[string]int32{"a": 8080, "w": int32(mesh.WaypointPort)}[name]
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: labels},
			Spec: corev1.ServiceSpec{Selector: map[string]string{"app": name}, ClusterIP: ip, Ports: []corev1.ServicePort{{Name: port, Port: 80, TargetPort: intstr.FromInt32(target)}}}}
	}
	policy := func(to ...v1alpha1.Destination) *v1alpha1.AuthorizationPolicy {
		return &v1alpha1.AuthorizationPolicy{ObjectMeta: meta(key("p")), Spec: v1alpha1.AuthorizationPolicySpec{Rules: []v1alpha1.Rule{{To: to}}}}
	}
	namespace := func(labels map[string]string) *corev1.Namespace {
		labels[v1alpha1.LabelMesh] = v1alpha1.MeshEnabled
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: labels}}
	}
	unready := func(p *kube.Pod) *kube.Pod { p.Ready = false; return p }
	app := func(name string) map[string]string { return map[string]string{"app": name} }
	behind, get := map[string]string{v1alpha1.LabelWaypoint: "w"}, v1alpha1.Destination{Methods: []string{"GET"}}
	s := state{}
	s.set("mesh", mesh.Key{}, &v1alpha1.Mesh{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.MeshSpec{TrustDomain: "example.org", ClusterRanges: []v1alpha1.AddressBlock{"10.0.0.0/8"}}})
	s.set("namespace", mesh.Key{Name: "shop"}, namespace(map[string]string{}))
	s.set("pod", key("a"), pod("a", "10.0.1.1", app("a")))
	s.set("pod", key("w"), pod("w", "10.0.1.2", app("w")))
	s.set("service", key("a"), service("a", "http", "10.0.2.1", behind))
	s.set("service", key("w"), service("w", "http", "10.0.2.2", nil))
	s.set("policy", key("p"), policy(get))
	var c Compiler
	compiled, err := c.Compile(s.objects())
	if err != nil {
		t.Fatal(err)
	}
	if len(compiled.Refused) > 0 {
		t.Fatalf("at first: %s", said(compiled.Refused))
	}
	is, err := compiled.View("")
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		what, kind string
		key        mesh.Key
		is         any
		refused    bool
	}{
		{"the pod is not ready", "pod", key("a"), unready(pod("a", "10.0.1.1", app("a"))), false},
		{"the label goes", "service", key("a"), service("a", "http", "10.0.2.1", nil), true},
		{"the namespace has it", "namespace", mesh.Key{Name: "shop"}, namespace(map[string]string{v1alpha1.LabelWaypoint: "w"}), false},
		{"the port is of TLS", "service", key("a"), service("a", "https", "10.0.2.1", behind), true},
		{"it is again of HTTP", "service", key("a"), service("a", "http", "10.0.2.1", behind), false},
		{"the pod is of no service", "pod", key("a"), pod("a", "10.0.1.1", app("other")), true},
		{"it is again of its own", "pod", key("a"), pod("a", "10.0.1.1", app("a")), false},
		{"another is of none", "pod", key("b"), pod("b", "10.0.1.3", app("b")), true},
		{"it goes", "pod", key("b"), nil, false},
		{"the policy is about another port", "policy", key("p"), policy(v1alpha1.Destination{Ports: []v1alpha1.Port{9}, Methods: []string{"GET"}}), true},
		{"it is about the port alone", "policy", key("p"), policy(v1alpha1.Destination{Ports: []v1alpha1.Port{9}}), false},
		{"it is about requests again", "policy", key("p"), policy(get), false},
		{"the service goes", "service", key("a"), nil, true},
		{"the policy goes", "policy", key("p"), nil, false},
	} {
		change := s.set(step.kind, step.key, step.is)
		r, ok := c.Apply(is, []Change{change})
		if compiled, err = kube.CompileEach(s.objects()); err != nil {
			t.Fatal(err)
		}
		want := said(compiled.Refused)
		if alone := step.what == "the pod is not ready"; ok != alone {
			t.Errorf("%s: compiled alone is %v", step.what, ok)
		}
		if ok {
			if got := said(r.Refused); got != want {
				t.Errorf("%s: says\n%s\nwant\n%s", step.what, got, want)
			}
			if is, err = is.With("", r.Change); err != nil {
				t.Fatal(err)
			}
		} else {
			if compiled, err = c.Compile(s.objects()); err != nil {
				t.Fatal(err)
			}
			if is, err = compiled.View(""); err != nil {
				t.Fatal(err)
			}
		}
		if got := said(compiled.Refused) != ""; got != step.refused {
			t.Errorf("%s: refused is %v, want %v: %s", step.what, got, step.refused, want)
		}
	}
}
