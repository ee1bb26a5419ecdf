package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/heddle-mesh/heddle/api/meshpb"
)

// followingAgent enrolls its node's pods as the label of their namespace says,
// unless it is stuck.
type followingAgent struct {
	fakeAgent
	api     atomic.Pointer[dynamic.Interface]
	stuck   atomic.Bool
	lingers atomic.Bool // pods that are to leave stay
}

func (f *followingAgent) Status(ctx context.Context) (*meshpb.AgentStatus, error) {
	s, err := f.fakeAgent.Status(ctx)
	if err != nil || f.api.Load() == nil {
		return s, err
	}
	s.Pods = nil
	api := *f.api.Load()
	namespace, err := api.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}).Get(ctx, "shop", metav1.GetOptions{})
	in := err == nil && namespace.GetLabels()["heddle.dev/mesh"] == "enabled"
	if err != nil || !in && !f.lingers.Load() {
		return s, err
	}
	pods, err := api.Resource(schema.GroupVersionResource{Version: "v1", Resource: "pods"}).Namespace("shop").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for i := range pods.Items {
		if node, _, _ := unstructured.NestedString(pods.Items[i].Object, "spec", "nodeName"); node == f.node {
			p := &meshpb.PodStatus{Workload: "shop/" + pods.Items[i].GetName(), State: "enrolled", Mode: "STRICT"}
			if f.stuck.Load() {
				p.State, p.Error = "failed", "XDP on the veth"
			}
			if !in {
				p.StaysNs = time.Date(2030, 1, 1, 20, 0, 5, 0, time.UTC).UnixNano()
			}
			s.Pods = append(s.Pods, p)
		}
	}
	return s, nil
}

func shopPod(name, app, node, address string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: %[1]s, labels: {app: %[2]s}}
spec: {nodeName: %[3]s, serviceAccountName: %[2]s, containers: [{name: c, image: x, ports: [{name: https, containerPort: 8443}]}]}
status: {phase: Running, podIP: %[4]s, podIPs: [{ip: %[4]s}], conditions: [{type: Ready, status: "True"}]}
`, name, app, node, address)
}

// newShop is a cluster with pods of a namespace shop on two nodes, whose agents
// follow its label.
func newShop(t *testing.T) *onCluster {
	t.Helper()
	agents := []*followingAgent{{fakeAgent: fakeAgent{node: "n1"}}, {fakeAgent: fakeAgent{node: "n2"}}}
	w := newCluster(t, agents[0], agents[1])
	w.Put(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n"+shopPod("web-1", "web", "n1", "10.244.1.5")+"---\n"+shopPod("db-1", "db", "n2", "10.244.1.6"))
	for _, a := range agents {
		a.api.Store(&w.API)
	}
	w.following = agents
	return w
}

// healthy says what controllers would: that everything is ready.
func (w *onCluster) healthy() {
	w.t.Helper()
	for name, status := range map[string]string{
		"deployments heddle-operator": `{"observedGeneration":100,"replicas":2,"updatedReplicas":2,"availableReplicas":2,"readyReplicas":2}`,
		"daemonsets heddle-agent":     `{"observedGeneration":100,"desiredNumberScheduled":2,"currentNumberScheduled":2,"numberMisscheduled":0,"numberReady":2,"numberAvailable":2,"updatedNumberScheduled":2}`,
	} {
		resource, name, _ := strings.Cut(name, " ")
		_, err := w.API.Resource(schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: resource}).Namespace("heddle-system").
			Patch(w.t.Context(), name, types.MergePatchType, []byte(`{"status":`+status+`}`), metav1.PatchOptions{}, "status")
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// TestNamespaceOfACluster takes a namespace into the mesh and out of it, and asks
// about it on the way.
func TestNamespaceOfACluster(t *testing.T) {
	w := newShop(t)
	w.Put(t, `apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec: {selector: {app: web}, ports: [{port: 443, targetPort: https}]}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: guard}
webhooks: [{name: guard.shop.example, sideEffects: None, admissionReviewVersions: [v1], clientConfig: {service: {namespace: shop, name: web}}}]`)
	w.enrolled()
	w.expect(0, "shop       enabled  2/2 ", "status")
	if out := w.expect(0, `"lagSeconds": 0`, "status", "-o", "json"); !json.Valid([]byte(out)) {
		t.Errorf("no JSON:\n%s", out)
	}
	w.explained()
	w.analyzed()
	if _, out, _ := heddle(t, "--kubeconfig", w.Kubeconfig, "__complete", "enroll", "sh"); !strings.Contains(out, "shop") {
		t.Errorf("completion of a namespace: %s", out)
	}
	w.unenrolled()
	for _, a := range w.following {
		a.stuck.Store(true)
	}
	w.expect(1, "web-1 on node n1 is failed: XDP on the veth", "enroll", "shop", "--wait=3s", "--force")
	w.expect(1, "not in the mesh", "status")
	for _, a := range w.following {
		a.stuck.Store(false)
		a.lingers.Store(true)
	}
	w.expect(1, "web-1 on node n1 is enrolled: it has left again and again, and stays until 20:00:05 UTC", "unenroll", "shop", "--wait=3s")
}

func (w *onCluster) label() string {
	return w.Get(w.t, "v1", "Namespace", "", "shop").GetLabels()["heddle.dev/mesh"]
}

// inIstio: a namespace of another mesh that runs is refused, and one whose pods it has left is not.
func (w *onCluster) inIstio() {
	w.t.Helper()
	const istiod = `{apiVersion: v1, kind: Pod, metadata: {namespace: default, name: istiod, labels: {app: istiod}}, spec: {containers: [{name: discovery, image: x}]}}`
	w.Put(w.t, istiod)
	w.Put(w.t, `{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio-injection: enabled}}}`)
	w.expect(1, "namespace shop is in Istio, which runs, by istio-injection=enabled", "enroll", "shop", "--fix")
	if w.label() != "" {
		w.t.Fatal("a namespace of another mesh was labelled")
	}
	w.Put(w.t, `{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio-injection: disabled}}}`)
	w.expect(0, "could be enrolled", "enroll", "shop", "--dry-run", "--fix")
	w.Delete(w.t, istiod)
}

// held: nothing is applied, and no label set, where an older PeerAuthentication holds against
// what would be applied.
func (w *onCluster) held() {
	t := w.t
	t.Helper()
	const mine = "{apiVersion: heddle.dev/v1alpha1, kind: PeerAuthentication, metadata: {namespace: shop, name: mine}, spec: {selector: {matchLabels: {app: web}}, portModes: [{port: 8443, mode: STRICT}]}}"
	w.Put(t, mine)
	out := w.expect(1, "PeerAuthentication shop/mine says STRICT", "enroll", "shop", "--fix")
	if strings.Contains(out, "is applied") || w.label() != "" || w.Get(t, "heddle.dev/v1alpha1", "PeerAuthentication", "shop", "web-plaintext-8443") != nil {
		t.Errorf("it went on, although this would not help:\n%s", out)
	}
	w.expect(1, "--fix cannot", "enroll", "shop", "--fix", "--dry-run")
	w.Delete(t, mine)
}

func (w *onCluster) enrolled() {
	t := w.t
	t.Helper()
	w.expect(2, "there is no namespace none: `kubectl get namespaces`", "enroll", "none")
	w.expect(1, "cannot start without", "enroll", "kube-system")
	w.expect(1, "cannot start without", "enroll", "heddle-system")
	w.expect(1, "ask an administrator", "enroll", "shop", "--context", "guest")
	w.expect(1, "heddle install", "enroll", "shop", "--system-namespace", "default")
	w.expect(2, "accepts 1 arg", "enroll")
	w.inIstio()
	w.held()
	w.expect(1, "name: web-plaintext-8443", "enroll", "shop")
	w.expect(1, "--fix does it", "enroll", "shop")
	w.expect(0, "could be enrolled, with what is printed above", "enroll", "shop", "--dry-run", "--fix")
	if w.label() != "" {
		t.Fatal("it was labelled although it was refused")
	}
	w.Put(t, "{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: ours}, spec: {rules: [{from: [{namespaces: [shop]}]}]}}")
	w.Put(t, "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: pods}, spec: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}}")
	out := w.expect(0, "2 of 2 pods are in the mesh", "enroll", "shop", "--fix", "--strict", "--wait=20s", "-o", "json")
	var result struct {
		Enrolled bool
		Pods     []struct{ State string }
		Findings []struct{ Kind string }
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil || !result.Enrolled || len(result.Pods) != 2 || result.Pods[0].State != "enrolled" || len(result.Findings) != 3 {
		t.Errorf("%v: %s", err, out)
	}
	for _, name := range []string{"web-plaintext-8443", "heddle-strict"} {
		if w.Get(t, "heddle.dev/v1alpha1", "PeerAuthentication", "shop", name) == nil {
			t.Errorf("there is no PeerAuthentication %s", name)
		}
	}
	for kind, version := range map[string]string{"AuthorizationPolicy": "heddle.dev/v1alpha1", "NetworkPolicy": "networking.k8s.io/v1"} {
		if w.Get(t, version, kind, "shop", "web-plaintext-8443") == nil {
			t.Errorf("there is no %s", kind)
		}
	}
	w.expect(0, "Nothing is cut off.", "analyze")
	w.Delete(t, "{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: ours}}")
	w.Delete(t, "{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: web-plaintext-8443}}")
	w.Delete(t, "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: pods}}")
	w.Delete(t, "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: web-plaintext-8443}}")
	if w.label() != "enabled" {
		t.Error("it has no label")
	}
	w.expect(0, "Namespace shop is enrolled.", "enroll", "shop", "--wait")
}

func (w *onCluster) explained() {
	w.t.Helper()
	w.expect(0, "tunnel", "explain", "shop/web", "shop/db:3306")
	w.expect(0, "not seen by a waypoint", "explain", "shop/web", "shop/db:3306", "--method", "GET", "--path", "/x")
	w.expect(0, "Permissive", "explain", "192.0.2.7", "web.shop.svc")
	w.expect(1, "StrictPlaintext", "explain", "192.0.2.7", "shop/db:3306")
	w.expect(2, "NAMESPACE/NAME", "explain", "web", "shop/db:3306")
	w.Put(w.t, "{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: nobody}, spec: {selector: {matchLabels: {app: db}}}}")
	out := w.expect(1, "PolicyNoMatch", "explain", "shop/web-1", "shop/db-1:3306", "-o", "json")
	if !json.Valid([]byte(out)) || !strings.Contains(out, `"ALLOW shop/nobody"`) {
		w.t.Errorf("got %s", out)
	}
}

func (w *onCluster) analyzed() {
	t := w.t
	t.Helper()
	w.expect(0, "Nothing is cut off.", "analyze")
	w.Put(t, "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: db}, spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 3306}]}]}}")
	w.expect(1, "admits ingress to port 3306", "analyze")
	w.Put(t, "{apiVersion: v1, kind: Namespace, metadata: {name: other}}")
	w.expect(0, "Nothing is cut off.", "analyze", "-n", "other")
	w.expect(2, "there is no namespace none", "analyze", "-n", "none")
	w.expect(1, "NetworkPolicy shop/db: it admits ingress", "check")
	w.Put(t, strings.TrimPrefix(w.expect(0, "name: db-heddle-tunnel", "analyze", "--fixes"), "---\n"))
	w.expect(0, "Nothing is cut off.", "analyze", "-n", "shop")
}

func (w *onCluster) unenrolled() {
	t := w.t
	t.Helper()
	w.expect(0, "would be taken out", "unenroll", "shop", "--dry-run")
	if w.label() != "enabled" {
		t.Error("a dry run took the label away")
	}
	start := time.Now()
	w.expect(0, "2 of 2 pods are out of the mesh", "unenroll", "shop", "--wait=20s")
	t.Logf("out of the mesh in %v", time.Since(start))
	if w.label() != "" || w.Get(t, "heddle.dev/v1alpha1", "PeerAuthentication", "shop", "heddle-strict") != nil {
		t.Error("what enroll made is still there")
	}
	if w.Get(t, "heddle.dev/v1alpha1", "PeerAuthentication", "shop", "web-plaintext-8443") == nil {
		t.Error("a policy that was not enroll's own is gone")
	}
	w.expect(2, "there is no namespace none: `kubectl get namespaces`", "unenroll", "none")
	w.expect(2, "there is no namespace none among the objects", "suggest", "none")
}
