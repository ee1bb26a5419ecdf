package cluster

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator/clustertest"
	"github.com/heddle-mesh/heddle/operator/publish"
)

// The size of a cluster that an operator must be good for.
const (
	manyPods     = 10_000
	manyServices = 1_000
	manySpaces   = 50
	manyNodes    = 100
)

// fill puts a large cluster into a source, as its reflectors would.
func fill(t testing.TB, source *Source) {
	t.Helper()
	fillWith(t, source, manyPods, manyServices)
}

func fillWith(t testing.TB, source *Source, pods, services int) {
	t.Helper()
	lists := map[string][]any{"nodes": nil, "endpointslices": nil, "networkpolicies": nil, "workloads": nil, "peerauthentications": nil}
	for i := range pods {
		lists["pods"] = append(lists["pods"], pod(i))
	}
	for i := range manySpaces {
		lists["namespaces"] = append(lists["namespaces"], &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("team-%d", i),
			Labels: map[string]string{v1alpha1.LabelMesh: v1alpha1.MeshEnabled}}})
	}
	for i := range manyNodes {
		lists["nodes"] = append(lists["nodes"], &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node-%d", i), Labels: map[string]string{corev1.LabelTopologyZone: string("abc"[i%3])}}})
	}
	for i := range services {
		lists["services"] = append(lists["services"], &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("team-%d", i%manySpaces), Name: fmt.Sprintf("app-%d", i)},
			Spec: corev1.ServiceSpec{Selector: map[string]string{"app": fmt.Sprintf("app-%d", i)}, ClusterIP: fmt.Sprintf("10.200.%d.%d", i/250, i%250+1),
				Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}})
		lists["authorizationpolicies"] = append(lists["authorizationpolicies"], policy(i, 8080))
	}
	lists["meshes"] = []any{&v1alpha1.Mesh{ObjectMeta: metav1.ObjectMeta{Name: "default"},
		Spec: v1alpha1.MeshSpec{TrustDomain: "example.org", ClusterRanges: []v1alpha1.AddressBlock{"10.0.0.0/8"}}}}
	for resource, list := range lists {
		if err := source.table(resource).Replace(list, "100"); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range gatewayResources() {
		source.table(r.name).absent()
	}
}

func policy(i, port int) *v1alpha1.AuthorizationPolicy {
	app := fmt.Sprintf("app-%d", i)
	return &v1alpha1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("team-%d", i%manySpaces), Name: app, Generation: int64(port), ResourceVersion: fmt.Sprint(port)},
		Spec: v1alpha1.AuthorizationPolicySpec{Selector: &v1alpha1.Selector{MatchLabels: map[string]v1alpha1.LabelValue{"app": v1alpha1.LabelValue(app)}},
			Rules: []v1alpha1.Rule{{From: []v1alpha1.Source{{ServiceAccounts: []string{app}}}, To: []v1alpha1.Destination{{Ports: []v1alpha1.Port{v1alpha1.Port(port)}}}}}}}
}

func heap() uint64 {
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestMemoryPerWorkload holds an operator to what issue and design allow: all
// that a replica keeps of a pod, in the mirror, the objects that were compiled
// last, the model, the snapshot and the sets of all the nodes, and what is encoded for those that join. What streams cost
// beside it, e2e/scale measures.
//
// It measures in a process of its own: what tests before it have left behind would
// be let go meanwhile.
func TestMemoryPerWorkload(t *testing.T) {
	const most = 3 << 10 // bytes
	const alone = "HEDDLE_TEST_ALONE"
	if os.Getenv(alone) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMemoryPerWorkload$", "-test.v", "-test.timeout=5m")
		cmd.Env = append(os.Environ(), alone+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "bytes per workload") {
			t.Errorf("in a process of its own: %v", err)
		}
		t.Logf("%s", out)
		return
	}
	before := heap()
	p := startPlane(t)
	testenv.Eventually(t, time.Minute, "everything is compiled", func() bool {
		now, _ := p.compiler.Outcome()
		return now.Snapshot != nil
	})
	now, _ := p.compiler.Outcome()
	if n := len(now.Snapshot.View().Workloads()); len(now.Refused) > 0 || n != manyPods {
		t.Fatalf("%d workloads, refused %v", n, now.Refused[:min(3, len(now.Refused))])
	}
	for i := range manyNodes {
		now.Snapshot.HashFor(fmt.Sprintf("node-%d", i))
	}
	t.Run("a node has joined", func(t *testing.T) { // for whom all is encoded
		enforced(t, "everything", map[string]*mesh.Store{"node-0": p.join(t, "node-0")}, func(_ string, v *mesh.View) bool { return len(v.Workloads()) == manyPods })
	})
	per := (int64(heap()) - int64(before)) / manyPods
	t.Logf("%d bytes per workload and replica, with the sets of %d nodes", per, manyNodes)
	if per > most || per <= 0 {
		t.Errorf("%d bytes per workload, more than %d", per, most)
	}
	runtime.KeepAlive(p)
}

// BenchmarkChangeToSnapshot changes one policy, or the readiness of one pod, in a
// large cluster and waits until what it means is published.
func BenchmarkChangeToSnapshot(b *testing.B) {
	source := NewSource((&clustertest.Server{}).Config(), false, slog.New(slog.DiscardHandler))
	fill(b, source)
	server, err := discovery.NewServer(discovery.ServerConfig{Authenticate: nobody, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	c := publish.NewCluster(publish.ClusterConfig{Source: source, TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Key: testKey(),
		Store: mesh.NewStore(), Server: server, Logger: slog.New(slog.DiscardHandler)})
	stop := following(b, c)
	defer stop()
	await := func(before *discovery.Snapshot) *discovery.Snapshot {
		for {
			now, changed := c.Outcome()
			if now.Snapshot != before && now.Snapshot != nil {
				return now.Snapshot
			}
			<-changed
		}
	}
	last := await(nil)
	for name, change := range map[string]func(i int){
		"policy": func(i int) {
			if err := source.table("authorizationpolicies").Update(policy(i%manyServices, 1000+i)); err != nil {
				b.Error(err)
			}
		},
		"endpoint": func(i int) {
			p := pod(i % manyPods)
			p.ResourceVersion = fmt.Sprint(1_000_000 + i)
			if was, _ := source.Pod(mesh.Key{Namespace: p.Namespace, Name: p.Name}); was.Ready {
				p.Status.Conditions[0].Status = corev1.ConditionFalse
			}
			if err := source.table("pods").Update(p); err != nil {
				b.Error(err)
			}
		},
	} {
		b.Run(name, func(b *testing.B) {
			var took []time.Duration
			for i := 0; b.Loop(); i++ {
				began := time.Now()
				change(i)
				last = await(last)
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}
