package product

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// testWaypointMoved moves the service to another waypoint under requests, and back: none is lost.
func (w *world) testWaypointMoved(t *testing.T) {
	w.cli(t, "waypoint", "apply", "-n", "shop", "--name", "second", "--wait")
	w.underPosts(t, "second", "waypoint")
	w.cli(t, "waypoint", "delete", "-n", "shop", "--name", "second")
}

// testWaypointRemoved takes the service's label off under requests, while the waypoint runs on, and puts it on again: none
// is lost.
func (w *world) testWaypointRemoved(t *testing.T) { w.underPosts(t, "", "waypoint") }

// underPosts has the service go through one waypoint after the other, "" for none. Beside the visitor, which is a browser, a
// client asks that sends each request once, and a policy names the clients, and no waypoint.
func (w *world) underPosts(t *testing.T, waypoints ...string) {
	t.Helper()
	w.apply(t, `---
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: only-shop, namespace: shop}
spec:
  selector: {matchLabels: {tier: site}}
  action: ALLOW
  rules: [{from: [{identities: ["spiffe://cluster.local/ns/shop/sa/default"]}]}]
`)
	w.apply(t, podYAML("poster", "n1", itsShare, "post", site+"/", "4", "20"))
	w.waitReady(t, "poster")
	w.posted(t, 20)
	for _, waypoint := range waypoints {
		w.goesThrough(t, waypoint)
		w.posted(t, 40)
	}
	w.kubectl(t, "-n", "shop", "delete", "pod/poster", "authorizationpolicy/only-shop", "--now")
	w.visits(t, 5)
}

// goesThrough names the service's waypoint, "" for none, and waits until a new connection goes that way.
func (w *world) goesThrough(t *testing.T, waypoint string) {
	t.Helper()
	label := "heddle.dev/waypoint-"
	if waypoint != "" {
		label = "heddle.dev/waypoint=" + waypoint
	}
	w.kubectl(t, "-n", "shop", "label", "service", "site", label, "--overwrite")
	eventually(t, 20*time.Second, fmt.Sprintf("requests go through %q", waypoint), func() error {
		p := w.fetchOne(t, "client", site)
		said := strings.Join(p.Fields["X-Forwarded-Client-Cert"], " ")
		if p.Status != 200 || waypoint == "" && said != "" || waypoint != "" && !strings.HasPrefix(said, "By=spiffe://cluster.local/ns/shop/sa/"+waypoint+";") {
			return errors.New(fmt.Sprint(p.Status, " ", p.Reason, " ", said))
		}
		return nil
	})
}

// posted has the client that sends each request once make n of each kind, and the visitor some; none is lost, nor was one
// before.
func (w *world) posted(t *testing.T, n int) {
	t.Helper()
	began := w.asked(t, []string{"poster"})
	var now asked
	testenv.Eventually(t, patience, "requests that are sent once are answered", func() bool {
		now = w.asked(t, []string{"poster"})
		return now.own-began.own >= n && now.kept-began.kept >= n || now.lost > 0
	})
	if now.lost > 0 {
		for _, node := range []string{"n1", "n2"} {
			denied, err := w.node(t, node).Exec(t.Context(), onNode, "flows", "--verdict", "deny", "--last", "20", "--socket", agent)
			t.Logf("refused on %s: %v\n%s", node, err, denied)
		}
		testenv.ForGood(t, "%d of %d requests are lost:\n%s", now.lost, now.own+now.kept+now.lost, grep(w.logs(t, "poster"), "LOST"))
		t.FailNow()
	}
	w.visits(t, 5)
}
