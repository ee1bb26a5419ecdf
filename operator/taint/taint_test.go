package taint

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator/cluster"
	"github.com/heddle-mesh/heddle/operator/clustertest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const nodes = "/api/v1/nodes"

// seen is what a mirror says.
type seen struct {
	sync.Mutex
	nodes   []cluster.Tainted
	changed chan struct{}
}

func (s *seen) set(nodes ...cluster.Tainted) {
	s.Lock()
	defer s.Unlock()
	s.nodes = nodes
	close(s.changed)
	s.changed = make(chan struct{})
}

func taint(key string, effect corev1.TaintEffect) corev1.Taint {
	return corev1.Taint{Key: key, Value: "true", Effect: effect}
}

func ours(effect corev1.TaintEffect) corev1.Taint { return taint(v1alpha1.TaintAgentNotReady, effect) }

// put makes a node with taints.
func put(t *testing.T, s *clustertest.Server, name string, taints ...corev1.Taint) {
	t.Helper()
	list := []any{}
	for _, taint := range taints {
		list = append(list, clustertest.Object{"key": taint.Key, "value": taint.Value, "effect": string(taint.Effect)})
	}
	s.Put(t, nodes, clustertest.Object{"apiVersion": "v1", "kind": "Node", "metadata": clustertest.Object{"name": name},
		"spec": clustertest.Object{"podCIDR": "10.0.0.0/24", "taints": list}})
}

// left are the keys of a node's taints.
func left(s *clustertest.Server, name string) string {
	spec, _ := s.Get(nodes, name)["spec"].(map[string]any)
	list, _ := spec["taints"].([]any)
	var keys []string
	for _, taint := range list {
		keys = append(keys, fmt.Sprint(taint.(map[string]any)["key"], ":", taint.(map[string]any)["effect"]))
	}
	return strings.Join(keys, " ")
}

func start(t *testing.T, s *clustertest.Server) (*seen, *testenv.Log) {
	t.Helper()
	client, err := typedcorev1.NewForConfig(s.Config())
	if err != nil {
		t.Fatal(err)
	}
	mirror, log := &seen{changed: make(chan struct{})}, &testenv.Log{}
	r, err := New(Config{Nodes: client, Again: 50 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(log, nil)),
		Tainted: func() []cluster.Tainted { mirror.Lock(); defer mirror.Unlock(); return mirror.nodes },
		Changed: func() <-chan struct{} { mirror.Lock(); defer mirror.Unlock(); return mirror.changed }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return mirror, log
}

// TestTaintsOfReadyNodes: of a node whose agent is ready the startup taint goes, with all
// of its effects, and nothing else; of others it stays.
func TestTaintsOfReadyNodes(t *testing.T) {
	s := clustertest.Start(t)
	other := taint("node.kubernetes.io/unreachable", corev1.TaintEffectNoExecute)
	mine := []corev1.Taint{ours(corev1.TaintEffectNoSchedule), other, ours(corev1.TaintEffectNoExecute)}
	put(t, s, "ready", mine...)
	put(t, s, "alone", mine[0])
	put(t, s, "waits", mine...)
	put(t, s, "changed", append(mine, taint("x", corev1.TaintEffectNoSchedule))...)
	mirror, log := start(t, s)
	mirror.set(cluster.Tainted{Name: "ready", Taints: mine, Ready: true}, cluster.Tainted{Name: "alone", Taints: mine[:1], Ready: true}, cluster.Tainted{Name: "gone", Taints: mine, Ready: true},
		cluster.Tainted{Name: "waits", Taints: mine}, cluster.Tainted{Name: "changed", Taints: mine, Ready: true})
	testenv.Eventually(t, 10*time.Second, "the node that was looked at last is asked for", func() bool { return s.Requests()["patch nodes changed"] > 0 })
	for name, want := range map[string]string{"ready": "node.kubernetes.io/unreachable:NoExecute", "alone": "",
		"waits":   "heddle.dev/agent-not-ready:NoSchedule node.kubernetes.io/unreachable:NoExecute heddle.dev/agent-not-ready:NoExecute",
		"changed": "heddle.dev/agent-not-ready:NoSchedule node.kubernetes.io/unreachable:NoExecute heddle.dev/agent-not-ready:NoExecute x:NoSchedule"} {
		if got := left(s, name); got != want {
			t.Errorf("%s has %q, want %q", name, got, want)
		}
	}
	if spec, _ := s.Get(nodes, "ready")["spec"].(map[string]any); spec["podCIDR"] != "10.0.0.0/24" {
		t.Errorf("the node is %v", spec)
	}
	if strings.Contains(log.String(), "WARN") || strings.Count(log.String(), "node takes pods") != 2 {
		t.Errorf("the log says\n%s", log)
	}
	if s.Requests()["patch nodes waits"] > 0 {
		t.Error("a node whose agent is not ready was changed")
	}
}

// TestWithoutTheRight: patch on nodes is all that is needed, and without it the log says
// so once; with it, the taint goes without anything else having changed.
func TestWithoutTheRight(t *testing.T) {
	s := clustertest.Start(t)
	put(t, s, "n1", ours(corev1.TaintEffectNoSchedule))
	s.Forbid(func(r clustertest.Request) bool { return r.Verb == "patch" && r.Resource == "nodes" })
	mirror, log := start(t, s)
	node := cluster.Tainted{Name: "n1", Taints: []corev1.Taint{ours(corev1.TaintEffectNoSchedule)}, Ready: true}
	mirror.set(node)
	testenv.Eventually(t, 10*time.Second, "it is said", func() bool { return strings.Contains(log.String(), "this account cannot patch nodes n1") })
	s.Forbid(nil)
	testenv.Eventually(t, 20*time.Second, "it recovers", func() bool { return left(s, "n1") == "" })
	for request := range s.Requests() {
		if request != "patch nodes n1" {
			t.Errorf("it asks to %s", request)
		}
	}
	if n := strings.Count(log.String(), "WARN"); n != 1 {
		t.Errorf("said %d times:\n%s", n, log)
	}
}

func TestNewWants(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("nothing is enough")
	}
}
