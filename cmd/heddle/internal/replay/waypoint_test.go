package replay

import (
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/past"
)

const behindWaypoint = `---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: db, labels: {heddle.dev/waypoint: waypoint}}
spec: {selector: {app: db}, clusterIP: 10.96.0.1, ports: [{port: 80, targetPort: 3306}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: waypoint}
spec: {selector: {app: waypoint}, clusterIP: 10.96.0.2, ports: [{port: 15009}]}
`

// TestWaypoints: what went through a waypoint is allowed as agents and waypoint allow it,
// and what is suggested names who was behind it.
func TestWaypoints(t *testing.T) {
	through := carried("shop/web", "shop/waypoint", 80, 5)
	through.Reason, through.Service = "Waypoint", "shop/db"
	h := &past.History{Summaries: []past.Summary{through, carried("shop/waypoint", "shop/db", 3306, 5)}}
	base := written(t, shop(pod("shop", "waypoint", "waypoint", "10.1.0.9", "app: waypoint", "")+behindWaypoint))
	deny := `apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: nobody}
spec: {}
`
	if r := simulate(t, base, h, deny); len(r.Breaks) > 0 {
		t.Errorf("what the waypoint judges breaks at the agents: %q", names(r.Breaks))
	}
	s, err := Suggest(model(t, base), h, "shop", true)
	if err != nil {
		t.Fatal(err)
	}
	text := yamlOf(t, s, h)
	if len(s.Policies) != 1 || s.Policies[0].Policy.Name != "db-clients" || !strings.Contains(text, "- web\n") || !strings.Contains(text, "- 3306\n") || strings.Contains(text, "- waypoint") {
		t.Errorf("suggested\n%s", text)
	}
}

// TestRequestsAreNotKnown: where policies about requests are asked at a waypoint, connections do
// not tell what becomes of them, and nobody says that they do; past it, they break.
func TestRequestsAreNotKnown(t *testing.T) {
	through := carried("shop/web", "shop/waypoint", 80, 5)
	through.Reason, through.Service = "Waypoint", "shop/db"
	direct := carried("shop/api", "shop/db", 3306, 3)
	h := &past.History{Summaries: []past.Summary{through, carried("shop/waypoint", "shop/db", 3306, 5), direct}}
	base := written(t, shop(pod("shop", "waypoint", "waypoint", "10.1.0.9", "app: waypoint", "")+behindWaypoint))
	const readers = `apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: readers}
spec: {action: ACTION, selector: {matchLabels: {app: db}}, rules: [{to: [{methods: [GET]}]}]}
`
	for _, action := range []string{"ALLOW", "DENY"} {
		r := simulate(t, base, h, strings.Replace(readers, "ACTION", action, 1))
		if len(r.Unjudged) != 1 || r.Unjudged[0].Source.Name != "shop/web" || r.Unjudged[0].Why != string(byRequest) || len(r.Opens) > 0 {
			t.Errorf("%s: not judged are %+v, let in %q", action, r.Unjudged, names(r.Opens))
		}
		if len(r.Breaks) != 1 || r.Breaks[0].Source.Name != "shop/api" || r.Breaks[0].After.Reason != "RequestUnseen" || r.Breaks[0].After.Policy != "shop/readers" {
			t.Errorf("%s: breaks are %+v", action, r.Breaks)
		}
		only := &past.History{Summaries: h.Summaries[:2]}
		var text strings.Builder
		if err := simulate(t, base, only, strings.Replace(readers, "ACTION", action, 1)).Print(&text, false); err != nil || strings.Contains(text.String(), "Nothing would break") || !strings.Contains(text.String(), "depends on the request") {
			t.Errorf("%s: %v\n%s", action, err, &text)
		}
	}
	if r := simulate(t, base, h, strings.Replace(readers, "ACTION", "AUDIT", 1)); len(r.Unjudged) > 0 || len(r.Breaks) > 0 {
		t.Errorf("what is audited: not judged are %+v, breaks %q", r.Unjudged, names(r.Breaks))
	}
	with := written(t, shop(pod("shop", "waypoint", "waypoint", "10.1.0.9", "app: waypoint", "")+behindWaypoint+"---\n"+strings.Replace(readers, "ACTION", "ALLOW", 1)))
	s, err := Suggest(model(t, with), h, "shop", false)
	if err != nil {
		t.Fatal(err)
	}
	notes := strings.Join(s.Notes, "\n")
	for _, p := range s.Policies {
		if p.Policy.Name == "db-clients" {
			t.Errorf("what would let in more than the policy about requests is suggested:\n%s", yamlOf(t, s, h))
		}
	}
	if !strings.Contains(notes, "depends on the request") || !strings.Contains(notes, "AuthorizationPolicy shop/readers is about requests") || strings.Contains(notes, "nobody has reached db") || strings.Contains(notes, "--delete AuthorizationPolicy/shop/readers") {
		t.Errorf("notes are\n%s", notes)
	}
}

// TestUnseenRequestsAreRefused: a change by which no waypoint would see what a policy is about
// is turned down, of a folder and of a cluster.
func TestUnseenRequestsAreRefused(t *testing.T) {
	base := written(t, shop(pod("shop", "waypoint", "waypoint", "10.1.0.9", "app: waypoint", "")+behindWaypoint))
	after, err := Apply(base, objects(t, `apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: readers}
spec: {selector: {matchLabels: {app: api}}, rules: [{to: [{methods: [GET]}]}]}
`), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, folder := after.Model()
	base.Cluster, after.Cluster = true, true
	_, cluster := Simulate(model(t, base), model(t, after), &past.History{})
	for what, err := range map[string]error{"folder": folder, "cluster": cluster} {
		if err == nil || !strings.Contains(err.Error(), "AuthorizationPolicy shop/readers: spec.rules[0].to[0]: is about requests to workload shop/api, and no waypoint sees these") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
