package kube

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
)

func folderOf(t testing.TB, file string) fstest.MapFS {
	t.Helper()
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	folder := fstest.MapFS{}
	for _, f := range archive.Files {
		folder[f.Name] = &fstest.MapFile{Data: f.Data}
	}
	return folder
}

func load(t testing.TB, file string) *Objects {
	t.Helper()
	objs, err := LoadFolder(folderOf(t, file))
	if err != nil {
		t.Fatal(err)
	}
	return objs
}

func shuffle[T any](r *rand.Rand, items []T) {
	r.Shuffle(len(items), func(i, j int) { items[i], items[j] = items[j], items[i] })
}

// Equal objects in any order give equal parts: replicas of the operator agree.
func TestCompileIgnoresOrder(t *testing.T) {
	for _, file := range []string{"testdata/good/shop.txtar", "testdata/good/precedence.txtar", "testdata/good/warnings.txtar"} {
		var want string
		r := rand.New(rand.NewPCG(1, 2))
		for i := range 20 {
			objs := load(t, file)
			if i > 0 {
				shuffle(r, objs.Namespaces)
				shuffle(r, objs.Services)
				shuffle(r, objs.Workloads)
				shuffle(r, objs.PeerAuthentications)
				shuffle(r, objs.AuthorizationPolicies)
			}
			compiled, err := Compile(objs)
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			dump(&b, compiled)
			for _, w := range compiled.Warnings {
				b.WriteString(w.Error() + "\n")
			}
			if i == 0 {
				want = b.String()
			} else if diff := cmp.Diff(want, b.String()); diff != "" {
				t.Fatalf("%s in another order:\n%s", file, diff)
			}
		}
	}
}

// Objects that were not read from a folder compile as well, and their problems
// name them without a place.
func TestCompileWithoutFolder(t *testing.T) {
	objs := &Objects{
		Namespaces: []Sourced[corev1.Namespace]{{Value: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}}},
		Meshes: []Sourced[v1alpha1.Mesh]{{Value: &v1alpha1.Mesh{
			ObjectMeta: metav1.ObjectMeta{Name: "default"},
			Spec:       v1alpha1.MeshSpec{TrustDomain: "example.org", ClusterRanges: []v1alpha1.AddressBlock{"10.0.0.0/8"}},
		}}},
		Workloads: []Sourced[v1alpha1.Workload]{
			{Value: &v1alpha1.Workload{ObjectMeta: metav1.ObjectMeta{Name: "b", Namespace: "shop"}, Spec: v1alpha1.WorkloadSpec{Node: "n1", Addresses: []string{"10.0.0.1"}}}},
			{Value: &v1alpha1.Workload{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "shop", CreationTimestamp: metav1.NewTime(time.Unix(1, 0))}, Spec: v1alpha1.WorkloadSpec{Node: "n1", Addresses: []string{"10.0.0.1"}}}},
		},
	}
	_, err := Compile(objs)
	problems := Problems(err)
	if len(problems) != 1 {
		t.Fatalf("problems: %v", problems)
	}
	// The younger one is blamed.
	if text := problems[0].Error(); !strings.HasPrefix(text, "Workload shop/a: spec.addresses[0]: address 10.0.0.1 is used twice: it is also that of Workload shop/b;") {
		t.Error(text)
	}
	objs.Workloads = objs.Workloads[:1]
	compiled, err := Compile(objs)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := compiled.View("r"); err != nil || len(v.Workloads()) != 1 || !slices.Equal(v.OnNode("n1"), v.Workloads()) {
		t.Errorf("view %v, %v", v, err)
	}
}

// FuzzLoad: whatever the bytes are, loading and compiling returns, an error is
// made of problems that name the file, and what compiles makes a View.
func FuzzLoad(f *testing.F) {
	for _, file := range []string{"testdata/good/shop.txtar", "testdata/good/warnings.txtar", "testdata/bad/wrong-type.txtar", "testdata/bad/yaml-tricks.txtar", "testdata/bad/service.txtar", "testdata/bad/syntax.txtar"} {
		for name, content := range folderOf(f, file) {
			if name != "want" {
				f.Add(content.Data)
			}
		}
	}
	mesh := []byte("apiVersion: heddle.dev/v1alpha1\nkind: Mesh\nmetadata: {name: default}\nspec: {trustDomain: example.org, clusterRanges: [10.0.0.0/8]}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")
	f.Fuzz(func(t *testing.T, content []byte) {
		objs, err := LoadFolder(fstest.MapFS{"a.yaml": {Data: content}, "mesh.yaml": {Data: mesh}})
		if err != nil {
			if len(Problems(err)) == 0 {
				t.Fatalf("no problem in %v", err)
			}
			return
		}
		compiled, err := Compile(objs)
		if err != nil {
			if len(Problems(err)) == 0 {
				t.Fatalf("no problem in %v", err)
			}
			return
		}
		if _, err := compiled.View("r"); err != nil {
			t.Fatalf("compiled, but makes no view: %v", err)
		}
	})
}

// BenchmarkCompile is a folder's worth of 10,000 workloads in 50 namespaces, with
// 1,000 services and 1,000 policies.
func BenchmarkCompile(b *testing.B) {
	objs := &Objects{Meshes: []Sourced[v1alpha1.Mesh]{{Value: &v1alpha1.Mesh{
		ObjectMeta: metav1.ObjectMeta{Name: "default"},
		Spec:       v1alpha1.MeshSpec{TrustDomain: "example.org", ClusterRanges: []v1alpha1.AddressBlock{"10.0.0.0/8"}},
	}}}}
	meta := func(i int, name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: fmt.Sprintf("ns-%d", i%50), Name: fmt.Sprintf("%s-%d", name, i), Labels: map[string]string{"app": fmt.Sprint(i % 1000)}}
	}
	for i := range 50 {
		objs.Namespaces = append(objs.Namespaces, Sourced[corev1.Namespace]{Value: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("ns-%d", i)}}})
	}
	for i := range 10_000 {
		objs.Workloads = append(objs.Workloads, Sourced[v1alpha1.Workload]{Value: &v1alpha1.Workload{ObjectMeta: meta(i, "w"), Spec: v1alpha1.WorkloadSpec{Node: "n", Addresses: []string{fmt.Sprintf("10.0.%d.%d", i/250, i%250+1)}}}})
	}
	for i := range 1_000 {
		objs.Services = append(objs.Services, Sourced[corev1.Service]{Value: &corev1.Service{ObjectMeta: meta(i, "s"), Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": fmt.Sprint(i)}, ClusterIP: fmt.Sprintf("10.96.%d.%d", i/250, i%250+1), Ports: []corev1.ServicePort{{Port: 80}}}}})
		objs.AuthorizationPolicies = append(objs.AuthorizationPolicies, Sourced[v1alpha1.AuthorizationPolicy]{Value: &v1alpha1.AuthorizationPolicy{ObjectMeta: meta(i, "p"), Spec: v1alpha1.AuthorizationPolicySpec{
			Selector: &v1alpha1.Selector{MatchLabels: map[string]v1alpha1.LabelValue{"app": v1alpha1.LabelValue(fmt.Sprint(i))}}, Rules: []v1alpha1.Rule{{From: []v1alpha1.Source{{ServiceAccounts: []string{"default"}}}}}}}})
	}
	for b.Loop() {
		compiled, err := Compile(objs)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := compiled.View("r"); err != nil {
			b.Fatal(err)
		}
	}
}
