package kube

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// TestWaypointsOfACluster: a label that cannot be meant closes the service that has it, and
// no other, and says so at the object; one that is a label of the namespace counts less.
func TestWaypointsOfACluster(t *testing.T) {
	compiled := compileEach(t, clusterOf(t, `---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: good, labels: {heddle.dev/waypoint: waypoint}}
spec: {selector: {app: db}, clusterIP: 10.96.0.1, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: bad, labels: {heddle.dev/waypoint: "No_name"}}
spec: {selector: {app: db}, clusterIP: 10.96.0.2, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: lost, labels: {heddle.dev/waypoint: lost-waypoint, heddle.dev/waypoint-bypass: "yes"}}
spec: {selector: {app: db}, clusterIP: 10.96.0.3, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: plain}
spec: {selector: {app: db}, clusterIP: 10.96.0.4, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: waypoint}
spec: {selector: {app: w1}, clusterIP: 10.96.0.5, ports: [{port: 15009}]}
`, podOf("web", "10.1.0.1"), podOf("db", "10.1.0.2"), podOf("w1", "10.1.0.3")))
	view, err := compiled.View("r")
	if err != nil {
		t.Fatal(err)
	}
	web, _ := view.Workload(mesh.Key{Namespace: "shop", Name: "web"})
	for to, want := range map[string]string{"10.96.0.1:80": "w1", "10.96.0.2:80": "NoEndpoint", "10.96.0.3:80": "NoEndpoint", "10.96.0.4:80": "db"} {
		r := view.Route(web, netip.MustParseAddrPort(to))
		got := r.Reason.String()
		if len(r.Candidates) > 0 {
			got = r.Candidates[0].Name
		}
		if got != want {
			t.Errorf("%s: %s, want %s", to, got, want)
		}
	}
	refused, warned := problemLines(compiled.Refused), problemLines(compiled.Warnings)
	for _, want := range []string{`Service shop/bad: metadata.labels[heddle.dev/waypoint]: "No_name" is not the name of a Service`, `Service shop/lost: metadata.labels[heddle.dev/waypoint-bypass]: "yes" is not a value`} {
		if !strings.Contains(refused, want) {
			t.Errorf("refused\n%s\nwant %q", refused, want)
		}
	}
	if !strings.Contains(warned, "Service shop/lost: metadata.labels[heddle.dev/waypoint]: Service shop/lost-waypoint is not defined") || strings.Contains(warned, "shop/good") {
		t.Errorf("warned of\n%s", warned)
	}
}

// TestServicesThatAreNoWaypoints: a Service without a selector, one that leads elsewhere, and
// the label on a Service with endpoints of another namespace are problems, and not in force.
func TestServicesThatAreNoWaypoints(t *testing.T) {
	objs := clusterOf(t, `---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: one, labels: {heddle.dev/waypoint: bare}}
spec: {selector: {app: db}, clusterIP: 10.96.0.1, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: two, labels: {heddle.dev/waypoint: plain}}
spec: {selector: {app: db}, clusterIP: 10.96.0.2, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: bare}
spec: {clusterIP: 10.96.0.3, ports: [{port: 15009}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: plain}
spec: {selector: {app: db}, clusterIP: 10.96.0.4, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: bank, name: three, labels: {heddle.dev/waypoint: gate}}
spec: {clusterIP: 10.96.0.5, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: bank, name: gate}
spec: {selector: {app: gate}, clusterIP: 10.96.0.6, ports: [{port: 15009}]}
`, podOf("db", "10.1.0.2"))
	objs.Slices = []*EndpointSlice{{Namespace: "bank", Name: "three", Service: "three", Ports: []NamedPort{{"", 8080}}, Endpoints: []Endpoint{{Addr: netip.MustParseAddr("10.1.0.2")}}}}
	compiled := compileEach(t, objs)
	for _, s := range compiled.Services {
		if s.Waypoint != (mesh.Key{}) {
			t.Errorf("%v has waypoint %v", s.Key, s.Waypoint)
		}
	}
	refused := problemLines(compiled.Refused)
	for _, want := range []string{"Service bank/three: metadata.labels[heddle.dev/waypoint]: has endpoint shop/db, of another namespace", "Service shop/one: metadata.labels[heddle.dev/waypoint]: Service shop/bare has no selector", "Service shop/two: metadata.labels[heddle.dev/waypoint]: no port of Service shop/plain leads to port 15009"} {
		if !strings.Contains(refused, want) {
			t.Errorf("refused\n%s\nwant %q", refused, want)
		}
	}
}
