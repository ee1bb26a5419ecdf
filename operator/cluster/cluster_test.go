package cluster

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator/clustertest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const (
	core   = "/api/v1"
	heddle = "/apis/heddle.dev/v1alpha1"
)

// follow runs a source on a server until the test ends.
func follow(t testing.TB, s *clustertest.Server) *Source {
	t.Helper()
	return followSource(t, NewSource(s.Config(), false, slog.New(slog.DiscardHandler)))
}

func followSource(t testing.TB, source *Source) *Source {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	testenv.Eventually(t, 20*time.Second, "everything is read", func() bool { return source.Synced() == nil })
	return source
}

func testKey() ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(slices.Repeat([]byte{1}, ed25519.SeedSize))
}

func snapshotOf(t testing.TB, compiled *kube.Compiled) *discovery.Snapshot {
	t.Helper()
	view, err := compiled.View("")
	if err != nil {
		t.Fatal(err)
	}
	s, err := discovery.NewSnapshot(view, 1, testKey())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// The same objects give the same snapshot, whether they are read from a folder or
// from an API server.
func TestAFolderAndAClusterGiveTheSameSnapshot(t *testing.T) {
	files, err := filepath.Glob("../../internal/kube/testdata/good/*.txtar")
	if err != nil || len(files) < 3 {
		t.Fatalf("golden files %v: %v", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			folder := fstest.MapFS{}
			for _, f := range archive.Files {
				folder[f.Name] = &fstest.MapFile{Data: f.Data}
			}
			objs, err := kube.LoadFolder(folder)
			if err != nil {
				t.Fatal(err)
			}
			objs.UDPByIdentity = filepath.Base(file) == "udp.txtar"
			strict, err := kube.Compile(objs)
			if err != nil {
				t.Fatal(err)
			}
			s := clustertest.Start(t)
			putAll(t, s, objs)
			there, epoch := follow(t, s).Objects()
			there.UDPByIdentity = objs.UDPByIdentity
			each, err := kube.CompileEach(there)
			if err != nil {
				t.Fatal(err)
			}
			if len(each.Refused) > 0 || epoch == 0 {
				t.Errorf("refused %v, epoch %d", each.Refused, epoch)
			}
			a, b := snapshotOf(t, strict), snapshotOf(t, each)
			if a.View().Revision() != b.View().Revision() {
				t.Errorf("revisions %s and %s", a.View().Revision(), b.View().Revision())
			}
			for _, w := range a.View().Workloads() {
				if !bytes.Equal(a.HashFor(w.Node), b.HashFor(w.Node)) {
					t.Errorf("%s is told something else", w.Node)
				}
			}
		})
	}
}

func putAll(t *testing.T, s *clustertest.Server, objs *kube.Objects) {
	t.Helper()
	for _, o := range objs.Namespaces {
		s.Put(t, core+"/namespaces", typed(t, o.Value, "v1", "Namespace"))
	}
	for _, o := range objs.Services {
		s.Put(t, core+"/namespaces/"+o.Value.Namespace+"/services", typed(t, o.Value, "v1", "Service"))
	}
	for _, o := range objs.NetworkPolicies {
		s.Put(t, "/apis/networking.k8s.io/v1/namespaces/"+o.Value.Namespace+"/networkpolicies", typed(t, o.Value, "networking.k8s.io/v1", "NetworkPolicy"))
	}
	for _, o := range objs.Meshes {
		s.Put(t, heddle+"/meshes", typed(t, o.Value, "heddle.dev/v1alpha1", "Mesh"))
	}
	for _, o := range objs.Workloads {
		s.Put(t, heddle+"/namespaces/"+o.Value.Namespace+"/workloads", typed(t, o.Value, "heddle.dev/v1alpha1", "Workload"))
	}
	for _, o := range objs.PeerAuthentications {
		s.Put(t, heddle+"/namespaces/"+o.Value.Namespace+"/peerauthentications", typed(t, o.Value, "heddle.dev/v1alpha1", "PeerAuthentication"))
	}
	for _, o := range objs.AuthorizationPolicies {
		s.Put(t, heddle+"/namespaces/"+o.Value.Namespace+"/authorizationpolicies", typed(t, o.Value, "heddle.dev/v1alpha1", "AuthorizationPolicy"))
	}
}

func typed(t *testing.T, object any, apiVersion, kind string) clustertest.Object {
	t.Helper()
	text, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	var o clustertest.Object
	if err := json.Unmarshal(text, &o); err != nil {
		t.Fatal(err)
	}
	o["apiVersion"], o["kind"] = apiVersion, kind
	return o
}

// pod is a running one, as large as real ones are.
func pod(i int) *corev1.Pod {
	app := fmt.Sprintf("app-%d", i%1000)
	p := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("team-%d", i%50), Name: fmt.Sprintf("%s-7d9f8b6c5d-%05d", app, i), UID: "",
			Labels:            map[string]string{"app": app, "pod-template-hash": fmt.Sprintf("7d9f8b%04d", i%1000), "version": "v1"},
			Annotations:       map[string]string{"note": strings.Repeat("x", 500)},
			CreationTimestamp: metav1.NewTime(time.Unix(1_700_000_000+int64(i), 0)),
			ManagedFields:     []metav1.ManagedFieldsEntry{{Manager: "kubelet", FieldsV1: metav1.NewFieldsV1(`"` + strings.Repeat("f", 1500) + `"`)}}},
		Spec: corev1.PodSpec{NodeName: fmt.Sprintf("node-%d", (i+i/1000)%100), ServiceAccountName: app, Containers: []corev1.Container{{
			Name: "main", Image: "registry.example/" + app, Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
			Env: slices.Repeat([]corev1.EnvVar{{Name: "SETTING", Value: strings.Repeat("v", 40)}}, 20)}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: fmt.Sprintf("10.%d.%d.%d", 1+i>>16, i>>8&255, i&255)}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
	p.UID = "0f9e8d7c-6b5a-4c3d-2e1f-" // as long as real ones
	p.UID += p.UID[:12]
	return p
}

func TestHeartbeatsWakeNobody(t *testing.T) {
	s := clustertest.Start(t)
	node := &corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{corev1.LabelTopologyZone: "a"}}}
	p := pod(1)
	path := core + "/namespaces/" + p.Namespace + "/pods"
	s.Put(t, core+"/nodes", node)
	s.Put(t, path, p)
	source := follow(t, s)
	changed := source.Changed()
	_, before := source.Objects()
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, LastHeartbeatTime: metav1.Now()}}
	s.Put(t, core+"/nodes", node)
	p.Annotations["note"] = "another"
	s.Put(t, path, p)
	// What comes after them has been seen after them.
	marker := &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: "shop"}}
	time.Sleep(200 * time.Millisecond)
	select {
	case <-changed:
		t.Error("a heartbeat and an annotation woke somebody")
	default:
	}
	if _, epoch := source.Objects(); epoch != before {
		t.Errorf("the epoch went from %d to %d", before, epoch)
	}
	s.Put(t, core+"/namespaces", marker)
	testenv.Eventually(t, time.Minute, "a change wakes", func() bool { _, epoch := source.Objects(); return epoch > before })
	node.Labels[corev1.LabelTopologyZone] = "b"
	s.Put(t, core+"/nodes", node)
	testenv.Eventually(t, time.Minute, "a zone arrives", func() bool { objs, _ := source.Objects(); return objs.Zones["n1"] == "b" })
	s.Delete(path, p.Name)
	testenv.Eventually(t, time.Minute, "a deletion arrives", func() bool { objs, _ := source.Objects(); return len(objs.Pods) == 0 })
	if source.HasNode("n2") || !source.HasNode("n1") {
		t.Error("nodes")
	}
}

// A watch that was lost for too long ends in a list: what is gone is gone, and
// the epoch is that of the list.
func TestAListAfterALostWatch(t *testing.T) {
	source := NewSource((&clustertest.Server{}).Config(), false, slog.New(slog.DiscardHandler))
	pods := source.table("pods")
	if err := pods.Replace([]any{pod(1), pod(2)}, "50"); err != nil {
		t.Fatal(err)
	}
	changed := source.Changed()
	if err := pods.Replace([]any{pod(2), pod(1)}, "60"); err != nil {
		t.Fatal(err)
	}
	if _, epoch := source.Objects(); epoch != 50 {
		t.Errorf("epoch %d after a list that says the same", epoch)
	}
	if err := pods.Replace([]any{pod(2)}, "70"); err != nil {
		t.Fatal(err)
	}
	objs, epoch := source.Objects()
	if len(objs.Pods) != 1 || epoch != 70 {
		t.Errorf("%d pods, epoch %d", len(objs.Pods), epoch)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was woken")
	}
	// An event that another watch had overtaken does not set the epoch back.
	late := pod(3)
	late.ResourceVersion = "65"
	if err := pods.Add(late); err != nil {
		t.Fatal(err)
	}
	if objs, epoch := source.Objects(); len(objs.Pods) != 2 || epoch != 70 {
		t.Errorf("%d pods, epoch %d", len(objs.Pods), epoch)
	}
	if _, ok := source.Pod(mesh.Key{Namespace: late.Namespace, Name: late.Name}); !ok {
		t.Error("the pod is not found by its name")
	}
}

func nobody(context.Context) (discovery.Caller, error) { return discovery.Caller{}, context.Canceled }

// following runs a publisher until the returned function is called.
func following(t testing.TB, c interface{ Follow(context.Context) error }) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Follow(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestSlicesWithAFalseLabel: a slice that says it is of Kubernetes' own controller is kept
// where that is asked for, and it is not like one.
func TestSlicesWithAFalseLabel(t *testing.T) {
	s := clustertest.Start(t)
	slice := func(name string, owners ...any) map[string]any {
		return map[string]any{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": []any{}, "ports": []any{},
			"metadata": map[string]any{"namespace": "shop", "name": name, "ownerReferences": owners,
				"labels": map[string]any{"kubernetes.io/service-name": "s", "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}}}
	}
	const path = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices"
	s.Put(t, path, slice("s-own", map[string]any{"apiVersion": "v1", "kind": "Service", "name": "s", "uid": "u", "controller": true}))
	s.Put(t, path, slice("s-false"))
	for all, want := range map[bool]int{false: 0, true: 1} {
		source := followSource(t, NewSource(s.Config(), all, slog.New(slog.DiscardHandler)))
		objs, _ := source.Objects()
		if len(objs.Slices) != want || want > 0 && (objs.Slices[0].Name != "s-false" || !objs.Slices[0].Claims) {
			t.Errorf("all slices %v: %+v, want %d", all, objs.Slices, want)
		}
	}
}
