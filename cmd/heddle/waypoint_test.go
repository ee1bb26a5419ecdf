package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// programmed says of a waypoint what an operator would, and what a controller would say of
// its Deployment.
func (w *onCluster) programmed(name, status, reason, message string) {
	w.t.Helper()
	gateways := w.API.Resource(schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gateways"}).Namespace("shop")
	g, err := gateways.Get(w.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	condition := func(kind, status, reason, message string) string {
		return fmt.Sprintf(`{"type":%q,"status":%q,"reason":%q,"message":%q,"observedGeneration":%d,"lastTransitionTime":"2026-01-01T00:00:00Z"}`, kind, status, reason, message, g.GetGeneration())
	}
	patch := fmt.Sprintf(`{"status":{"addresses":[{"type":"IPAddress","value":"10.96.0.9"}],"conditions":[%s,%s]}}`, condition("Accepted", "True", "Accepted", "the operator runs it"), condition("Programmed", status, reason, message))
	if _, err := gateways.Patch(w.t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
		w.t.Fatal(err)
	}
	w.Put(w.t, `apiVersion: apps/v1
kind: Deployment
metadata: {namespace: shop, name: `+name+`}
spec: {replicas: 2, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: w, image: x}]}}}
status: {observedGeneration: 1, replicas: 2, readyReplicas: 1}`)
}

// TestWaypoints asks for a waypoint, looks at it, and takes it away.
func TestWaypoints(t *testing.T) {
	w := newShop(t)
	w.Put(t, `apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: db, labels: {heddle.dev/waypoint: none}}
spec: {selector: {app: db}, ports: [{port: 3306}]}`)
	w.expect(1, "heddle install --gateway-api", "waypoint", "apply", "-n", "shop")
	w.expect(1, "heddle install --gateway-api", "waypoint", "list")
	w.healthy()
	w.expect(0, "needed for waypoints", "check", "--cluster", "--timeout", "1s", "-o", "json")
	w.expect(0, "Heddle", "install", "--wait", "0", "--gateway-api")
	w.expect(2, "there is no namespace none", "waypoint", "apply", "-n", "none")
	w.expect(1, "there is no waypoint shop/waypoint", "waypoint", "status", "-n", "shop")
	w.expect(0, "No waypoints", "waypoint", "list", "-A")
	w.expect(2, "use table, json or yaml", "waypoint", "apply", "-n", "shop", "-o", "xml")
	w.expect(2, "use table, json", "waypoint", "list", "-o", "yaml")
	w.expect(0, "protocol: heddle.dev/mesh", "waypoint", "apply", "-n", "shop", "--dry-run")
	if w.waypoint("waypoint") {
		t.Fatal("a dry run makes something")
	}
	w.expect(1, "ask an administrator", "waypoint", "apply", "-n", "shop", "--context", "guest")
	out := w.expect(0, `"heddle.dev/autoscale": "2-10"`, "waypoint", "apply", "-n", "shop", "--autoscale", "2-10", "--enroll-namespace", "-o", "json")
	if !json.Valid([]byte(out)) {
		t.Errorf("no JSON:\n%s", out)
	}
	if got := w.Get(t, "v1", "Namespace", "", "shop").GetLabels()["heddle.dev/waypoint"]; got != "waypoint" {
		t.Errorf("the namespace's label is %q", got)
	}
	w.expect(1, "not in time", "waypoint", "apply", "-n", "shop", "--wait=1s")
	w.expect(0, `"heddle.dev/autoscale": "2-10"`, "waypoint", "apply", "-n", "shop", "-o", "json")
	if out := w.expect(0, `"heddle.dev/replicas": "5"`, "waypoint", "apply", "-n", "shop", "--replicas", "5", "-o", "json"); strings.Contains(out, "autoscale") {
		t.Errorf("with a number of replicas it still scales:\n%s", out)
	}
	if out := w.expect(0, `"heddle.dev/replicas": "5"`, "waypoint", "apply", "-n", "shop", "-o", "json"); strings.Contains(out, "autoscale") {
		t.Errorf("it scales again:\n%s", out)
	}
	w.programmed("waypoint", "False", "Pending", "no replica is ready")
	w.expect(1, "It takes no requests: no replica is ready", "waypoint", "status", "-n", "shop")
	w.programmed("waypoint", "True", "Programmed", "takes requests")
	w.expect(0, "takes requests", "waypoint", "apply", "-n", "shop", "--wait=20s")
	w.expect(0, "waypoint  yes         1/2       10.96.0.9  1", "waypoint", "list", "-n", "shop")
	out = w.expect(0, `"web"`, "waypoint", "status", "-n", "shop", "-o", "json")
	var status struct {
		Programmed bool
		Services   []string
		Replicas   struct{ Ready, Wanted int }
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil || !status.Programmed || fmt.Sprint(status.Services) != "[web]" || status.Replicas.Wanted != 2 {
		t.Errorf("%v: %s", err, out)
	}
	if _, out, _ := heddle(t, "--kubeconfig", w.Kubeconfig, "__complete", "waypoint", "status", "-n", "shop", "--name", ""); !strings.Contains(out, "waypoint") {
		t.Errorf("completion of a name: %s", out)
	}
	w.expect(2, "from 0, for no access log, to 1", "waypoint", "apply", "-n", "shop", "--access-log", "on")
	w.expect(0, `"heddle.dev/access-log": "0.5"`, "waypoint", "apply", "-n", "shop", "--access-log", "0.5", "-o", "json")
	w.expect(0, `"heddle.dev/access-log": "0.5"`, "waypoint", "apply", "-n", "shop", "-o", "json") // it stays
	w.expect(0, `"heddle.dev/access-log": "0"`, "waypoint", "apply", "-n", "shop", "--access-log", "0", "-o", "json")
	// Changes of the Gateway are of another generation, of which nothing is said yet.
	w.expect(0, "is asked for", "waypoint", "apply", "-n", "shop", "--replicas", "3")
	w.expect(1, "connections to web would be refused", "waypoint", "delete", "-n", "shop")
	w.expect(0, "would be deleted", "waypoint", "delete", "-n", "shop", "--unenroll-namespace", "--dry-run")
	if !w.waypoint("waypoint") {
		t.Fatal("a dry run deletes something")
	}
	w.expect(0, "is deleted", "waypoint", "delete", "-n", "shop", "--unenroll-namespace")
	if _, labelled := w.Get(t, "v1", "Namespace", "", "shop").GetLabels()["heddle.dev/waypoint"]; labelled || w.waypoint("waypoint") {
		t.Error("the label, or the Gateway, is there still")
	}
	w.expect(0, "is asked for", "waypoint", "apply", "-n", "shop", "--enroll-namespace")
	out = w.expect(0, `"cutOff"`, "waypoint", "delete", "-n", "shop", "--force", "-o", "json")
	if !strings.Contains(out, `"web"`) || w.waypoint("waypoint") {
		t.Errorf("by force: %s", out)
	}
}

// TestAWaypointThatPoliciesBlock: who puts a namespace behind a waypoint is told which
// NetworkPolicies are to admit its pods.
func TestAWaypointThatPoliciesBlock(t *testing.T) {
	w := newShop(t)
	w.expect(0, "Heddle", "install", "--wait", "0", "--gateway-api")
	w.Put(t, `apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: front, labels: {app: front}}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: served, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: web}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: front}}}]}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: till, labels: {heddle.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {namespace: till, name: client, labels: {app: client}}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: till, name: out}
spec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}]}]}`)
	const warning = "NetworkPolicy shop/web: it admits clients of service web, which goes through waypoint shop/waypoint, and not the waypoint's pods"
	if _, out, log := heddle(t, "--kubeconfig", w.Kubeconfig, "waypoint", "apply", "-n", "shop"); strings.Contains(out+log, warning) {
		t.Errorf("no service goes through it yet: %s", log)
	}
	_, _, log := heddle(t, "--kubeconfig", w.Kubeconfig, "waypoint", "apply", "-n", "shop", "--enroll-namespace")
	for _, says := range []string{warning, "NetworkPolicy till/out: it lets its pods out to workloads of service web, which goes through waypoint shop/waypoint", "`heddle analyze -n till --fixes`"} {
		if !strings.Contains(log, says) {
			t.Errorf("%q does not say %q", log, says)
		}
	}
	w.expect(0, "name: out-heddle-to-waypoint", "analyze", "-n", "till", "--fixes")
	w.expect(0, "name: web-heddle-waypoint", "analyze", "-n", "shop", "--fixes")
}

func (w *onCluster) waypoint(name string) bool {
	return w.Get(w.t, "gateway.networking.k8s.io/v1", "Gateway", "shop", name) != nil
}
