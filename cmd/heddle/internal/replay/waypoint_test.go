package replay

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain/routed"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/edit"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/past"
	"github.com/heddle-mesh/heddle/internal/mesh"
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

// TestWaypoints: what went through a waypoint is judged as agents and waypoint judge it, by the policies of
// the workloads behind it and about the client; and what is suggested names who was behind it.
func TestWaypoints(t *testing.T) {
	through := carried("shop/web", "shop/waypoint", 80, 5)
	through.Reason, through.Service = "Waypoint", "shop/db"
	h := &past.History{Summaries: []past.Summary{through, carried("shop/waypoint", "shop/db", 3306, 5)}}
	const second = `---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: db-1, labels: {app: db, second: "true"}}
spec: {node: n1, serviceAccount: db, addresses: ["10.1.0.8"], networkNamespace: /run/netns/db-1}
`
	policy := func(spec string) string {
		return "---\napiVersion: heddle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: p}\nspec: " + spec + "\n"
	}
	without := []string{"AuthorizationPolicy/shop/p"}
	const hop, nothing = "shop/web>shop/waypoint:80*5 ", "# nothing\n"
	for name, c := range map[string]struct {
		have, change  string
		deleted       []string
		breaks, opens string
		why           why
	}{
		"a default deny":                    {change: policy(`{}`), breaks: hop + "allow Waypoint|deny PolicyNoMatch at its endpoint shop/db"},
		"a default deny of it":              {change: policy(`{selector: {matchLabels: {app: db}}}`), breaks: hop + "allow Waypoint|deny PolicyNoMatch at its endpoint shop/db"},
		"a DENY":                            {change: policy(`{action: DENY, selector: {matchLabels: {app: db}}, rules: [{to: [{ports: [3306]}]}]}`), breaks: hop + "allow Waypoint|deny PolicyDeny shop/p[0] at its endpoint shop/db"},
		"of the service's port":             {change: policy(`{action: DENY, rules: [{to: [{ports: [80, 15009]}]}]}`)},
		"of the waypoint's pods":            {change: policy(`{selector: {matchLabels: {app: waypoint}}}`)},
		"a rule for the client":             {change: policy(`{rules: [{from: [{serviceAccounts: [web]}], to: [{ports: [3306]}]}]}`)},
		"a rule for others":                 {change: policy(`{rules: [{from: [{serviceAccounts: [waypoint, api]}]}]}`), breaks: hop + "allow Waypoint|deny PolicyNoMatch at its endpoint shop/db"},
		"taken back":                        {have: policy(`{}`), change: nothing, deleted: without, opens: hop + "deny PolicyNoMatch at its endpoint shop/db|allow Waypoint"},
		"one of two":                        {have: second, change: policy(`{action: DENY, selector: {matchLabels: {second: "true"}}, rules: [{}]}`), breaks: hop + "allow Waypoint|mixed PolicyDeny shop/p[0] at its endpoint shop/db"},
		"the other, too":                    {have: second + policy(`{action: DENY, selector: {matchLabels: {second: "true"}}, rules: [{}]}`), change: policy(`{action: DENY, rules: [{}]}`), breaks: hop + "mixed PolicyDeny shop/p[0] at its endpoint shop/db|deny PolicyDeny shop/p[0] at its endpoint shop/db"},
		"neither of two":                    {have: second + policy(`{action: DENY, selector: {matchLabels: {second: "true"}}, rules: [{}]}`), change: nothing, deleted: without, opens: hop + "mixed PolicyDeny shop/p[0] at its endpoint shop/db|allow Waypoint"},
		"about requests, and of the client": {change: policy(`{selector: {matchLabels: {app: db}}, rules: [{to: [{methods: [GET]}]}, {from: [{serviceAccounts: [web]}]}]}`)},
		"about requests of others":          {change: policy(`{selector: {matchLabels: {app: db}}, rules: [{from: [{serviceAccounts: [api]}], to: [{methods: [GET]}]}]}`), breaks: hop + "allow Waypoint|deny PolicyNoMatch at its endpoint shop/db"},
		"about requests":                    {change: policy(`{selector: {matchLabels: {app: db}}, rules: [{to: [{methods: [GET]}]}]}`), why: byRequest},
		"routed to api":                     {have: routedTo("api"), change: policy(`{selector: {matchLabels: {app: db}}}`)},
		"of api, routed there":              {have: routedTo("api"), change: policy(`{selector: {matchLabels: {app: api}}}`), breaks: hop + "allow Waypoint|deny PolicyNoMatch at its endpoint shop/api"},
		"of one of two routes":              {have: routedTo("api", "db"), change: policy(`{selector: {matchLabels: {app: api}}}`), why: byRouting},
		"nobody is ready":                   {have: "---\napiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: db, labels: {heddle.dev/waypoint: waypoint}}\nspec: {selector: {app: none}, clusterIP: 10.96.0.1, ports: [{port: 80, targetPort: 3306}]}\n", change: policy(`{selector: {matchLabels: {app: web}}}`), why: nobodyBehind},
	} {
		text := behindWaypoint
		if name == "nobody is ready" {
			text = text[strings.LastIndex(text, "---"):]
		}
		base := written(t, shop(pod("shop", "waypoint", "waypoint", "10.1.0.9", "app: waypoint", "")+text+c.have))
		r := simulate(t, base, h, c.change, c.deleted...)
		var unjudged why
		if len(r.Unjudged) > 0 {
			unjudged = why(r.Unjudged[0].Why)
		}
		if breaks, opens := strings.Join(names(r.Breaks), ","), strings.Join(names(r.Opens), ","); breaks != c.breaks || opens != c.opens || unjudged != c.why {
			t.Errorf("%s: breaks %q, opens %q, not judged %+v", name, breaks, opens, r.Unjudged)
		}
	}
	base := written(t, shop(pod("shop", "waypoint", "waypoint", "10.1.0.9", "app: waypoint", "")+behindWaypoint))
	s, err := Suggest(model(t, base), h, "shop", true)
	if err != nil {
		t.Fatal(err)
	}
	text := yamlOf(t, s, h)
	if len(s.Policies) != 1 || s.Policies[0].Policy.Name != "db-clients" || !strings.Contains(text, "- web\n") || !strings.Contains(text, "- 3306\n") || strings.Contains(text, "- waypoint") {
		t.Errorf("suggested\n%s", text)
	}
}

// routedTo is a route of Service shop/db with a rule for each of these services: api is there for it.
func routedTo(services ...string) string {
	text := `---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: api}
spec: {selector: {app: api}, clusterIP: 10.96.0.4, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {namespace: shop, name: db}
spec:
  parentRefs: [{kind: Service, group: "", name: db, port: 80}]
  rules:
`
	for _, name := range services {
		text += "  - {matches: [{path: {value: /" + name + "}}], backendRefs: [{name: " + name + ", port: 80}]}\n"
	}
	return text
}

// TestRoutesOfAClusterStay: a change has the routes of the cluster that it is made to.
func TestRoutesOfAClusterStay(t *testing.T) {
	base := written(t, shop(""))
	base.Routing = &routed.Objects{}
	after, err := edit.Apply(base, objects(t, "# nothing\n"), nil)
	if err != nil || after.Routing != base.Routing {
		t.Errorf("%v, %v", err, after.Routing)
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
	if !strings.Contains(notes, "depends on the request") || !strings.Contains(notes, "AuthorizationPolicy shop/readers is about requests") || strings.Contains(notes, "nobody has reached db") || strings.Contains(notes, "nobody has reached waypoint") || strings.Contains(notes, "--delete AuthorizationPolicy/shop/readers") {
		t.Errorf("notes are\n%s", notes)
	}
}

// TestUnseenRequestsAreRefused: a change by which no waypoint would see what a policy is about
// is turned down, of a folder and of a cluster.
func TestUnseenRequestsAreRefused(t *testing.T) {
	base := written(t, shop(pod("shop", "waypoint", "waypoint", "10.1.0.9", "app: waypoint", "")+behindWaypoint))
	after, err := edit.Apply(base, objects(t, `apiVersion: heddle.dev/v1alpha1
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

// TestWaypointsAgree: of generated meshes and changes, a connection through a waypoint breaks, and is let in, exactly
// where the evaluator, asked as the waypoint asks it, refuses more or fewer of the workloads behind it.
func TestWaypointsAgree(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 2))
	seen := map[string]int{}
	for round := range 400 {
		base, h := generate(t, r)
		opaque, routed := r.IntN(2) == 0, r.IntN(2) == 0
		base = speaking(t, base, opaque, routed)
		http := !opaque || routed // what the name says counts while no route says otherwise
		change := ""
		for i := range 1 + r.IntN(3) {
			change += fmt.Sprintf("---\napiVersion: heddle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: c%d}\nspec: {action: %s, selector: {matchLabels: {%s}}, rules: [{from: [{serviceAccounts: [%s]}], to: [{ports: [%d]%s}]}]}\n", i,
				[]string{"ALLOW", "DENY"}[r.IntN(2)], []string{"app: same", "tier: pa", "tier: pb", "tier: pc"}[r.IntN(4)], []string{"pa", "pb", "pa, pb, pc, pd"}[r.IntN(3)], 80+r.IntN(3), []string{"", "", ", methods: [GET]"}[r.IntN(3)])
		}
		after, err := edit.Apply(base, objects(t, change), nil)
		if err != nil {
			t.Fatal(err)
		}
		was, is, ok := models(t, base, after)
		if !ok {
			continue // about requests that no waypoint sees
		}
		agree := func(was, is *explain.Model) {
			result, err := Simulate(was, is, h)
			if err != nil {
				t.Fatal(err)
			}
			told := map[string]string{}
			for what, changes := range map[string][]Change{"breaks": result.Breaks, "opens": result.Opens} {
				for _, c := range changes {
					if c.Destination.Service == "shop/behind" {
						told[c.Source.Workload] = what
					}
				}
			}
			for _, c := range result.Unjudged {
				if c.Destination.Service == "shop/behind" {
					told[c.Source.Workload] = "unjudged"
				}
			}
			for _, s := range h.Summaries {
				if s.Service != "shop/behind" {
					continue
				}
				want := ofEvaluator(t, was, is, s.Source.Workload)
				before, _ := byTheRequest(t, was, s.Source.Workload, routed)
				after, refused := byTheRequest(t, is, s.Source.Workload, routed)
				switch {
				case !http:
				case before && !after && refused: // whatever its requests are
					want = "breaks"
				case before || after:
					want = "unjudged"
				}
				if seen[want]++; told[s.Source.Workload] != want {
					t.Fatalf("seed %d, round %d: %s is told to be %q, the evaluator says %q of\n%s", seed, round, s.Source.Workload, told[s.Source.Workload], want, change)
				}
			}
		}
		agree(was, is)
		agree(is, was)
	}
	if seen["breaks"] < 10 || seen["opens"] < 10 || seen["unjudged"] == 0 || seen[""] < 10 {
		t.Errorf("seed %d: too few: %v", seed, seen)
	}
	t.Logf("seed %d: %v", seed, seen)
}

// speaking has Service shop/behind say of its port that it is no HTTP, and an HTTPRoute be about it.
func speaking(t *testing.T, base explain.Written, opaque, routed bool) explain.Written {
	t.Helper()
	m := model(t, base)
	if _, ok := m.Service(mesh.Key{Namespace: "shop", Name: "behind"}); !ok {
		return base
	}
	text := strings.Replace(generatedWaypoint, "[{port: 8,", "[{name: http, port: 9, targetPort: 81}, {name: any, port: 8,", 1)
	if opaque {
		text = strings.Replace(text, "name: any", "name: tcp", 1)
	}
	with, err := edit.Apply(base, objects(t, text), nil)
	if err != nil {
		t.Fatal(err)
	}
	if routed { // no change may have one
		with.Objects.HTTPRoutes = objects(t, "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {namespace: shop, name: behind}\nspec: {parentRefs: [{group: '', kind: Service, name: behind, port: 8}], rules: [{backendRefs: [{name: behind, port: 8}]}]}\n").HTTPRoutes
	}
	return with
}

// models are those of before and after a change; false where the change is turned down, as no waypoint would see the
// requests that it is about.
func models(t *testing.T, base, after explain.Written) (was, is *explain.Model, ok bool) {
	t.Helper()
	was = model(t, base)
	is, err := after.Model()
	if err != nil && strings.Contains(err.Error(), "no waypoint sees these") {
		return nil, nil, false
	}
	if err != nil {
		t.Fatal(err)
	}
	return was, is, true
}

// byTheRequest reports whether it depends on the request what becomes of a client's at Service shop/behind, or, of one
// that is routed, on where it goes; and whether every workload refuses it.
func byTheRequest(t *testing.T, m *explain.Model, client string, routed bool) (depends, refused bool) {
	t.Helper()
	all := m.Past(nil, behindAt).Candidates
	denied, unseen := 0, false
	for _, w := range all {
		_, d := m.Authorize(asWaypoint(t, m, client, w.Key))
		unseen = unseen || d.Reason == mesh.ReasonRequestUnseen
		if d.Verdict == mesh.VerdictDeny {
			denied++
		}
	}
	return unseen || routed && denied > 0 && denied < len(all), denied == len(all)
}

// ofEvaluator says what becomes of what a client asks a waypoint for, by the evaluator that this asks: one of
// the workloads behind Service shop/behind refuses it that did not, or else one does no more.
func ofEvaluator(t *testing.T, was, is *explain.Model, client string) string {
	t.Helper()
	denied := func(m *explain.Model, to mesh.Key) bool {
		_, d := m.Authorize(asWaypoint(t, m, client, to))
		return d.Verdict == mesh.VerdictDeny
	}
	more, fewer := 0, 0
	for _, w := range was.Past(nil, behindAt).Candidates {
		switch before, then := denied(was, w.Key), denied(is, w.Key); {
		case before && !then:
			fewer++
		case then && !before:
			more++
		}
	}
	switch {
	case more > 0:
		return "breaks"
	case fewer > 0:
		return "opens"
	}
	return ""
}

// asWaypoint is what a waypoint asks about a client, by NAMESPACE/NAME, and a workload behind Service shop/behind.
func asWaypoint(t *testing.T, m *explain.Model, client string, to mesh.Key) mesh.Connection {
	t.Helper()
	namespace, name, _ := strings.Cut(client, "/")
	src, ok := m.Workload(mesh.Key{Namespace: namespace, Name: name})
	w, there := m.Workload(to)
	if !ok || !there {
		t.Fatalf("no %s, or no %s", client, to)
	}
	return mesh.Connection{Peer: src.Identity, Source: src.Addresses[0], Destination: w, Port: behindPort}
}
