package product

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// testRouteRefused writes a route that cannot be served: its status and an event say why, and which generation goes on, and requests go
// by that one.
func (w *world) testRouteRefused(t *testing.T) {
	w.kubectl(t, "-n", "shop", "patch", "httproute", "site", "--type=json", "-p",
		`[{"op":"replace","path":"/spec/rules","value":[{"matches":[{"path":{"type":"RegularExpression","value":"/(a"}}],"backendRefs":[{"name":"site-1","port":80}]}]}]`)
	eventually(t, 20*time.Second, "the route's status says why", func() error {
		said := w.kubectl(t, "-n", "shop", "get", "httproute", "site", "-o",
			`jsonpath={range .status.parents[0].conditions[?(@.type=="Accepted")]}{.status} {.reason} {.observedGeneration} {.message}{end}`)
		if !strings.HasPrefix(said, "False UnsupportedValue 4 ") || !strings.Contains(said, "spec.rules[0]") || !strings.Contains(said, "Generation 3, which was last good, goes on") {
			return errors.New(said)
		}
		return nil
	})
	all, err := w.fetch(t, "client", 20, site)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if p.Status != 200 || p.Server != "site-2" {
			t.Fatalf("by what was last good, a request goes to site-2: %+v", p)
		}
	}
	eventually(t, 20*time.Second, "an event says why", func() error {
		if said := w.events(t, "site"); !strings.Contains(said, "RouteRefused") {
			return errors.New(said)
		}
		return nil
	})
	w.apply(t, routeYAML(0))
	w.routeIsTold(t, 5)
	w.visits(t, 5)
}

// testNodesDrained drains the waypoint's pods from one node, and then from the other, under requests of which none may be
// sent again: none is lost. Both of its replicas are on the second node by then, and its disruption budget lets them go one at a time.
func (w *world) testNodesDrained(t *testing.T) {
	w.apply(t, podYAML("poster", "n1", itsShare, "post", site+"/", "4", "20"))
	w.waitReady(t, "poster")
	w.posted(t, 5)
	for _, node := range []string{"n1", "n2"} {
		defer w.kubectl(t, "uncordon", node)
	}
	for _, node := range []string{"n1", "n2"} {
		started := time.Now()
		w.kubectl(t, "drain", node, "--pod-selector="+ofWaypoint, "--delete-emptydir-data", "--timeout="+patience.String())
		t.Logf("%s is drained of the waypoint after %.1f s", node, time.Since(started).Seconds())
		w.noneOn(t, node)
		w.kubectl(t, "-n", "shop", "rollout", "status", "deployment/waypoint", "--timeout="+patience.String())
		w.posted(t, 20)
		w.kubectl(t, "uncordon", node)
	}
	w.kubectl(t, "-n", "shop", "delete", "pod/poster", "--now")
}

// noneOn fails if one of the waypoint's pods is on a node that was drained of them, or if there are none.
func (w *world) noneOn(t *testing.T, node string) {
	t.Helper()
	var list struct{ Items []podObject }
	if err := json.Unmarshal([]byte(w.kubectl(t, "-n", "shop", "get", "pods", "-l", ofWaypoint, "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	var at []string
	for _, p := range list.Items {
		at = append(at, fmt.Sprint(p.Metadata.Name, " on ", p.Spec.NodeName))
		if p.Spec.NodeName == node {
			t.Errorf("%s is on %s, which is drained", p.Metadata.Name, node)
		}
	}
	if len(at) < 2 {
		t.Errorf("the waypoint has %v, want two pods", at)
	}
}
