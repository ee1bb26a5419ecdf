package delta

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/policies"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// overUDP is a cluster with a namespace of so many pods, in ten groups, into each of which a
// policy lets datagrams, and a service of 100 pods over UDP.
func overUDP(pods int) *kube.Objects {
	s := state{}
	s.set("udp", mesh.Key{}, "on")
	s.set("mesh", mesh.Key{}, &v1alpha1.Mesh{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.MeshSpec{TrustDomain: "example.org", ClusterRanges: []v1alpha1.AddressBlock{"10.0.0.0/8"}}})
	s.set("namespace", mesh.Key{Name: "game"}, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "game", Labels: map[string]string{v1alpha1.LabelMesh: v1alpha1.MeshEnabled}}})
	udp := v1alpha1.ProtocolUDP
	for i := range 10 {
		key := mesh.Key{Namespace: "game", Name: fmt.Sprint("app-", i)}
		s.set("policy", key, &v1alpha1.AuthorizationPolicy{ObjectMeta: meta(key), Spec: v1alpha1.AuthorizationPolicySpec{
			Selector: &v1alpha1.Selector{MatchLabels: map[string]v1alpha1.LabelValue{"app": v1alpha1.LabelValue(key.Name)}},
			Rules:    []v1alpha1.Rule{{From: []v1alpha1.Source{{ServiceAccounts: []string{"player"}}}, To: []v1alpha1.Destination{{Protocol: &udp, Ports: []v1alpha1.Port{7777}}}}}}})
	}
	for i := range pods {
		key := mesh.Key{Namespace: "game", Name: fmt.Sprintf("pod-%05d", i)}
		labels := map[string]string{"app": fmt.Sprint("app-", i%10), "group": fmt.Sprint("group-", i/100)}
		s.set("pod", key, &kube.Pod{Namespace: key.Namespace, Name: key.Name, UID: key.Name, Node: fmt.Sprint("node-", i%100), ServiceAccount: fmt.Sprint("app-", i%10), Labels: labels,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}, Ready: true})
		if i%100 == 0 {
			svc := mesh.Key{Namespace: "game", Name: labels["group"]}
			s.set("service", svc, &corev1.Service{ObjectMeta: meta(svc), Spec: corev1.ServiceSpec{Selector: map[string]string{"group": labels["group"]}, ClusterIP: fmt.Sprintf("10.200.0.%d", i/100),
				Ports: []corev1.ServicePort{{Port: 7777, Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromInt32(7777)}}}})
		}
	}
	return s.objects()
}

// TestAChangeOverUDPIsCompiledAlone: in a namespace whose policies let datagrams in, too; and
// what is told of a pod is the others' very own.
func TestAChangeOverUDPIsCompiledAlone(t *testing.T) {
	objs := overUDP(300)
	var c Compiler
	is := wholeView(t, &c, objs)
	for what, change := range changesOverUDP(objs) {
		r, ok := c.Apply(is, []Change{change})
		if n := r.Change.Size(); !ok || n == 0 || n > 2 {
			t.Fatalf("%s: compiled alone is %v, with %d changes", what, ok, n)
		}
		for _, w := range r.Change.Workloads {
			other, ok := is.Workload(mesh.Key{Namespace: "game", Name: "pod-00020"})
			if !ok || len(w.Datagrams) != 1 || w.Labels["app"] == "app-0" && w.Datagrams[0] != other.Datagrams[0] {
				t.Errorf("%s: %+v is said about UDP, and of another %+v", what, w.Datagrams, other)
			}
		}
		var err error
		if is, err = is.With("", r.Change); err != nil {
			t.Fatal(err)
		}
	}
}

// changesOverUDP are those that happen most.
func changesOverUDP(objs *kube.Objects) map[string]Change {
	byName := map[string]*kube.Pod{}
	for _, p := range objs.Pods {
		byName[p.Name] = p
	}
	ready, moved, added := *byName["pod-00000"], *byName["pod-00001"], *byName["pod-00010"]
	ready.Ready = false
	moved.Labels = map[string]string{"app": "app-0", "group": moved.Labels["group"]}
	added.Name, added.Addresses = "another", []netip.Addr{netip.MustParseAddr("10.255.0.1")}
	return map[string]Change{"readiness": {byName["pod-00000"], &ready}, "other labels": {byName["pod-00001"], &moved},
		"a pod more": {(*kube.Pod)(nil), &added}, "a pod less": {byName["pod-00002"], (*kube.Pod)(nil)}}
}

// longPolicy is a policy about UDP that comes to some 27,000 bytes.
func longPolicy(name, app string) *v1alpha1.AuthorizationPolicy {
	udp := v1alpha1.ProtocolUDP
	rule := v1alpha1.Rule{From: []v1alpha1.Source{{}}, To: []v1alpha1.Destination{{Protocol: &udp, Ports: []v1alpha1.Port{443}}}}
	for i := range 790 {
		rule.From[0].IPBlocks = append(rule.From[0].IPBlocks, v1alpha1.AddressBlock(fmt.Sprintf("10.%d.%d.0/24", i/250, i%250)))
	}
	return &v1alpha1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "game", Name: name},
		Spec: v1alpha1.AuthorizationPolicySpec{Selector: &v1alpha1.Selector{MatchLabels: map[string]v1alpha1.LabelValue{"app": v1alpha1.LabelValue(app)}}, Rules: []v1alpha1.Rule{rule}}}
}

// TestDatagramsAreBoundedAsCompilingEverything: around what agents are told of a namespace
// at most, changes of pods come to what compiling the end state comes to.
func TestDatagramsAreBoundedAsCompilingEverything(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	applied, bounded := 0, 0
	for walk := range uint64(5) { // not by rapid: each compilation is of a megabyte
		w := nearTheBound{rand: rand.New(rand.NewPCG(seed, walk)), state: state{"udp": {mesh.Key{}: "on"}}}
		w.set("mesh", mesh.Key{}, &v1alpha1.Mesh{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.MeshSpec{TrustDomain: "example.org", ClusterRanges: []v1alpha1.AddressBlock{"10.0.0.0/8"}}})
		w.set("namespace", mesh.Key{Name: "game"}, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "game", Labels: map[string]string{v1alpha1.LabelMesh: v1alpha1.MeshEnabled}}})
		for name, app := range map[string]string{"one": "a", "two": "b", "three": "b", "many-1": "c", "many-2": "c", "many-3": "c", "many-4": "c", "many-5": "c", "many-6": "c"} {
			w.set("policy", mesh.Key{Namespace: "game", Name: name}, longPolicy(name, app))
		}
		for i := range 25 + w.rand.IntN(15) {
			w.change(i)
		}
		var c Compiler
		is := wholeView(t, &c, w.objects())
		for range 12 {
			var changes []Change
			for range 1 + w.rand.IntN(3) {
				changes = append(changes, w.change(w.rand.IntN(40)))
			}
			want, err := kube.CompileEach(w.objects())
			if err != nil {
				t.Fatal(err)
			}
			if want.DatagramBytes["game"] > policies.MaxNamespace {
				bounded++
			}
			r, ok := c.Apply(is, changes)
			if !ok {
				is = wholeView(t, &c, w.objects())
				continue
			}
			applied++
			if is, err = is.With("", r.Change); err != nil {
				t.Fatal(err)
			}
			var workloads []*mesh.Workload
			for i := range want.Workloads {
				workloads = append(workloads, &want.Workloads[i])
			}
			lists(t, fmt.Sprintf("%+v", changes), is.Workloads(), workloads)
			if got, want := said(r.Refused)+"--\n"+said(r.Warnings), said(want.Refused)+"--\n"+said(want.Warnings); got != want {
				t.Fatalf("%+v: says\n%s\nwant\n%s", changes, got, want)
			}
			if got, want := c.datagrams.bytes["game"], want.DatagramBytes["game"]; got != want {
				t.Fatalf("%+v: %d bytes are followed, and are %d", changes, got, want)
			}
		}
	}
	t.Logf("%d changes without compiling everything, %d states of more than is told", applied, bounded)
	if applied < 3 || bounded < 3 {
		t.Errorf("%d changes without compiling everything, %d states of more than is told: this test says little", applied, bounded)
	}
}

// wholeView compiles everything.
func wholeView(t testing.TB, c *Compiler, objs *kube.Objects) *mesh.View {
	t.Helper()
	compiled, err := c.Compile(objs)
	if err != nil {
		t.Fatal(err)
	}
	is, err := compiled.View("")
	if err != nil {
		t.Fatal(err)
	}
	return is
}

// nearTheBound is a namespace whose pods come and go.
type nearTheBound struct {
	state
	rand *rand.Rand
}

func (w *nearTheBound) change(i int) Change {
	key := mesh.Key{Namespace: "game", Name: fmt.Sprintf("p%02d", i)}
	if was, ok := w.state["pod"][key].(*kube.Pod); ok && w.rand.IntN(3) == 0 {
		w.set("pod", key, nil)
		return Change{Was: was, Is: nil}
	}
	p := &kube.Pod{Namespace: key.Namespace, Name: key.Name, UID: "1", Node: "n1", ServiceAccount: "a", Ready: w.rand.IntN(2) == 0, Labels: map[string]string{"app": []string{"a", "b", "b", "b", "b", "b", "c", "d"}[w.rand.IntN(8)]}}
	switch w.rand.IntN(20) {
	case 0:
	case 1:
		p.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.1")} // outside
	default:
		p.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(i)})}
	}
	return w.set("pod", key, p)
}

// BenchmarkOverUDP is a namespace of 5,000 pods whose policies let datagrams in: as a whole,
// and a change of one pod, to the View.
func BenchmarkOverUDP(b *testing.B) {
	objs := overUDP(5000)
	var c Compiler
	b.Run("whole", func(b *testing.B) {
		for b.Loop() {
			wholeView(b, &c, objs)
		}
	})
	for what, change := range changesOverUDP(objs) {
		b.Run(what, func(b *testing.B) {
			is := wholeView(b, &c, objs)
			for b.Loop() {
				r, ok := c.Apply(is, []Change{change})
				if !ok {
					b.Fatal("not compiled alone")
				}
				if _, err := is.With("", r.Change); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
