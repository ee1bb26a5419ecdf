package kube

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// readers is a service behind a waypoint, and a policy about requests to all of its namespace.
const readers = `---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: db, labels: {heddle.dev/waypoint: waypoint}}
spec: {selector: {app: db}, clusterIP: 10.96.0.1, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: waypoint}
spec: {selector: {app: w1}, clusterIP: 10.96.0.5, ports: [{port: 15009}]}
---
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: readers}
spec: {action: ACTION, rules: [{to: [{methods: [GET]}]}]}
`

// TestPoliciesAboutRequestsFailClosed: where no waypoint sees what a policy is about, its
// status says so, and what it is about is refused; where one does, it is judged.
func TestPoliciesAboutRequestsFailClosed(t *testing.T) {
	peer, err := mesh.IdentityFor(spiffeid.RequireTrustDomainFromString("example.org"), "plain", "web")
	if err != nil {
		t.Fatal(err)
	}
	none := func(o *Objects) { o.Services[0].Value.Labels = nil }
	pod := func(change func(*Pod)) func(*Objects) { return func(o *Objects) { change(o.Pods[1]) } }
	for what, c := range map[string]struct {
		change func(*Objects)
		want   string // the problem
	}{
		"seen":               {func(*Objects) {}, ""},
		"not ready":          {pod(func(p *Pod) { p.Ready = false }), ""},
		"leaving":            {pod(func(p *Pod) { p.Terminating = true }), ""},
		"waypoint not ready": {func(o *Objects) { o.Pods[2].Ready = false }, ""},
		"waypoint of none":   {func(o *Objects) { o.Pods = o.Pods[:2] }, ""},
		"by the namespace": {func(o *Objects) {
			none(o)
			o.Namespaces[0].Value.Labels[v1alpha1.LabelWaypoint] = "waypoint"
		}, ""},
		"label removed":   {none, "spec.rules[0].to[0]: is about requests to workload shop/"},
		"of another app":  {pod(func(p *Pod) { p.Labels = map[string]string{"app": "other"} }), "spec.rules[0].to[0]: is about requests to workload shop/db"},
		"service deleted": {func(o *Objects) { o.Services = o.Services[1:] }, "spec.rules[0].to[0]: is about requests to workload shop/"},
		"no name":         {func(o *Objects) { o.Services[0].Value.Labels[v1alpha1.LabelWaypoint] = "No_name" }, "spec.rules[0].to[0]: is about requests to workload shop/"},
		"over TLS":        {func(o *Objects) { o.Services[0].Value.Spec.Ports[0].Name = "https" }, "spec.rules[0].to[0]: is about requests to workload shop/db"},
	} {
		for _, action := range []mesh.Action{mesh.ActionAllow, mesh.ActionDeny} {
			web := podOf("web", "10.1.0.1", func(p *Pod) { p.Namespace = "plain" })
			objs := clusterOf(t, strings.Replace(readers, "ACTION", action.String(), 1), web, podOf("db", "10.1.0.2"), podOf("w1", "10.1.0.3"))
			c.change(objs)
			compiled := compileEach(t, objs)
			said := ""
			for _, p := range compiled.Refused {
				if p.Ref.Kind == "AuthorizationPolicy" {
					said += p.Error()
				}
			}
			if c.want == "" && said != "" || c.want != "" && (!strings.Contains(said, c.want) || !strings.Contains(said, "the label heddle.dev/waypoint")) {
				t.Errorf("%s, %v: said is %q, want %q", what, action, said, c.want)
			}
			view, err := compiled.View("r")
			if err != nil {
				t.Fatal(err)
			}
			db, ok := view.Workload(mesh.Key{Namespace: "shop", Name: "db"})
			if !ok || !view.AboutRequests(db) {
				t.Fatalf("%s, %v: nothing is said of requests to shop/db", what, action)
			}
			for method, request := range map[string]*mesh.Request{"": nil, "GET": {Method: "GET"}, "POST": {Method: "POST"}} {
				_, d := view.Authorize(mesh.Connection{Source: web.Addresses[0], Peer: peer, Destination: db, Port: 8080, Request: request})
				want := map[bool]string{true: "allow", false: "deny"}[method != "" && (method == "GET") == (action == mesh.ActionAllow)]
				if d.Verdict.String() != want || method == "" && d.Reason != mesh.ReasonRequestUnseen {
					t.Errorf("%s, %v, request %q: %v, %v; want %s", what, action, method, d.Verdict, d.Reason, want)
				}
			}
		}
	}
}

// TestUnseenNamesTheEntry: what is refused of a policy is named as its author has numbered it,
// whatever else of it is about datagrams, or refused.
func TestUnseenNamesTheEntry(t *testing.T) {
	objs := clusterOf(t, strings.Replace(readers, "{action: ACTION, rules: [{to: [{methods: [GET]}]}]}",
		"{rules: [{to: [{methods: [get]}]}, {to: [{protocol: UDP, ports: [53]}, {ports: [8080], methods: [GET]}, {ports: [9], methods: [GET]}]}]}", 1),
		podOf("db", "10.1.0.2"), podOf("w1", "10.1.0.3"))
	objs.UDPByIdentity = true
	refused := problemLines(compileEach(t, objs).Refused)
	for _, want := range []string{"spec.rules[0].to[0].methods[0]", "spec.rules[1].to[2]: is about requests to port 9 of workload shop/db"} {
		if !strings.Contains(refused, want) {
			t.Errorf("refused\n%s\nwant %s", refused, want)
		}
	}
}
