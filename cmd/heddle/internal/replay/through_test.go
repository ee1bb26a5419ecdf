package replay

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain/asked"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/draft"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/edit"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/past"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// twoBehind are two services behind one waypoint, at one port.
const twoBehind = behindWaypoint + `---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: api, labels: {heddle.dev/waypoint: waypoint}}
spec: {selector: {app: api}, clusterIP: 10.96.0.3, ports: [{port: 80, targetPort: 8080}]}
`

// viaWaypoint is a connection to a service behind a waypoint, as the agents of the client and of the
// waypoint have it.
func viaWaypoint(from, service string, count uint64) []past.Summary {
	server := carried(from, "shop/waypoint", 80, count)
	server.Reason, server.Service = "Waypoint", service
	client := server
	client.Direction, client.Reason = "outbound", "NoPolicy"
	return []past.Summary{client, server}
}

func waypointed(t *testing.T, more string) explain.Written {
	t.Helper()
	return written(t, shop(pod("shop", "waypoint", "waypoint", "10.1.0.9", "app: waypoint", "")+more))
}

// refusing are those of the workloads behind a service that refuse a client, as its waypoint asks: from
// is the client, of the namespace shop.
func refusing(t *testing.T, m *explain.Model, from string, service netip.AddrPort) (names []string) {
	t.Helper()
	src, ok := m.Workload(mesh.Key{Namespace: "shop", Name: from})
	if !ok {
		t.Fatalf("no workload %s", from)
	}
	past := m.Past(src, service)
	if len(past.Candidates) == 0 {
		t.Fatalf("nobody is behind %s", service)
	}
	for _, w := range past.Candidates {
		if _, d := m.Authorize(mesh.Connection{Peer: src.Identity, Source: src.Addresses[0], Destination: w, Port: past.PortOf(w)}); d.Verdict == mesh.VerdictDeny {
			names = append(names, fmt.Sprintf("%s: %s", w.Key, d.Reason))
		}
	}
	return names
}

// TestTwoServicesBehindOneWaypoint: connections to one of them are none to the other, so that
// who came to either is let in where that is closed, and each is judged by its own policies; in any
// order of what was recorded, and when the waypoint's agent was not asked.
func TestTwoServicesBehindOneWaypoint(t *testing.T) {
	base := waypointed(t, twoBehind)
	toDB, toAPI := viaWaypoint("shop/web", "shop/db", 5), viaWaypoint("shop/web", "shop/api", 7)
	sentOn := carried("shop/waypoint", "shop/db", 3306, 5)
	sentOn.Reason = "Waypoint"
	for what, summaries := range map[string][]past.Summary{
		"both agents": slices.Concat(toDB, toAPI, []past.Summary{sentOn}), "the other order": slices.Concat(toAPI, toDB),
		"the client's agent": {toDB[0], toAPI[0]}, "the waypoint's agent": {toAPI[1], toDB[1]},
	} {
		h := &past.History{Summaries: summaries}
		s, err := Suggest(model(t, base), h, "shop", false)
		if err != nil {
			t.Fatal(err)
		}
		text := yamlOf(t, s, h)
		after, err := edit.Apply(base, objects(t, text), nil)
		if err != nil {
			t.Fatal(err)
		}
		m := model(t, after)
		for name, service := range map[string]string{"db": "10.96.0.1:80", "api": "10.96.0.3:80"} {
			if refused := refusing(t, m, "web", netip.MustParseAddrPort(service)); len(refused) > 0 {
				t.Errorf("%s: web does not reach %s any more: %q\n%s", what, name, refused, text)
			}
		}
		if refused := refusing(t, m, "db", netip.MustParseAddrPort("10.96.0.3:80")); len(refused) == 0 {
			t.Errorf("%s: who has not come is let in\n%s", what, text)
		}
		if !strings.Contains(text, "# rules[0]: 5 connections") || !strings.Contains(text, "# rules[0]: 7 connections") || len(s.Policies) != 3 {
			t.Errorf("%s: not 5 and 7 connections\n%s", what, text)
		}
		r := simulate(t, base, h, `apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: readers}
spec: {selector: {matchLabels: {app: api}}, rules: [{to: [{methods: [GET]}]}]}
`)
		if len(r.Unjudged) != 1 || r.Unjudged[0].Count != 7 || r.Unjudged[0].Why != string(byRequest) || len(r.Breaks) > 0 {
			t.Errorf("%s: a policy about requests to api: not judged are %+v, breaks %q", what, r.Unjudged, names(r.Breaks))
		}
	}
}

// toBackends are a service behind a waypoint, and others to which routes may lead from it.
const toBackends = behindWaypoint + `---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: canary}
spec: {selector: {app: api}, clusterIP: 10.96.0.3, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: bank, name: till}
spec: {selector: {app: till}, clusterIP: 10.96.0.4, ports: [{port: 80, targetPort: 8081}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {namespace: bank, name: shop}
spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: "", kind: Service}]}
`

func routeOf(kind, namespace, rules string) string {
	return fmt.Sprintf(`---
apiVersion: gateway.networking.k8s.io/v1
kind: %s
metadata: {namespace: %s, name: split}
spec:
  parentRefs: [{kind: Service, group: "", namespace: shop, name: db, port: 80}]
  rules: %s
`, kind, namespace, rules)
}

// TestSuggestBehindRoutes: who came to a service of which routes lead elsewhere is let in there, where the
// waypoint asks about it, and nowhere else; and is let in still when all that is suggested is applied.
func TestSuggestBehindRoutes(t *testing.T) {
	for _, tc := range []struct {
		name, route string
		// admitted are the workloads, NAMESPACE/NAME:PORT, whose suggested policies name the client.
		admitted []string
	}{
		{"no route", "", []string{"shop/db:3306"}},
		{"a backend", routeOf("HTTPRoute", "shop", `[{backendRefs: [{name: canary, port: 80}]}]`), []string{"shop/api:8080"}},
		{"several rules", routeOf("HTTPRoute", "shop", `[{matches: [{path: {value: /new}}], backendRefs: [{name: canary, port: 80}]}, {backendRefs: [{name: db, port: 80}]}]`), []string{"shop/api:8080", "shop/db:3306"}},
		{"a share of none", routeOf("HTTPRoute", "shop", `[{backendRefs: [{name: db, port: 80, weight: 0}, {name: canary, port: 80, weight: 9}]}]`), []string{"shop/api:8080"}},
		{"a mirror", routeOf("HTTPRoute", "shop", `[{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: canary, port: 80}}}], backendRefs: [{name: db, port: 80}]}]`), []string{"shop/api:8080", "shop/db:3306"}},
		{"a redirect", routeOf("HTTPRoute", "shop", `[{filters: [{type: RequestRedirect, requestRedirect: {hostname: b.test}}]}]`), nil},
		{"another's consumer", routeOf("HTTPRoute", "bank", `[{backendRefs: [{name: till, port: 80}]}]`), []string{"shop/db:3306"}},
		{"another namespace", routeOf("HTTPRoute", "shop", `[{backendRefs: [{name: till, namespace: bank, port: 80}, {name: db, port: 80}]}]`), []string{"bank/till:8081", "shop/db:3306"}},
		{"connections", routeOf("TCPRoute", "shop", `[{backendRefs: [{name: canary, port: 80}]}]`), []string{"shop/api:8080"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			base := waypointed(t, toBackends+tc.route)
			h := &past.History{Summaries: append(viaWaypoint("shop/web", "shop/db", 5), carried("shop/waypoint", "shop/api", 8080, 5), carried("shop/waypoint", "bank/till", 8081, 5))}
			routes := draft.RoutesOf(base.Objects, base.Routing)
			var text string
			for _, namespace := range []string{"shop", "bank"} {
				s, err := Suggest(model(t, base), h, namespace, false, routes...)
				if err != nil {
					t.Fatal(err)
				}
				text += yamlOf(t, s, h)
			}
			if r := simulate(t, base, h, text); len(r.Breaks) > 0 {
				t.Errorf("breaks %q\n%s", names(r.Breaks), text)
			}
			after, err := edit.Apply(base, objects(t, text), nil)
			if err != nil {
				t.Fatal(err)
			}
			m := model(t, after)
			web, _ := m.Workload(mesh.Key{Namespace: "shop", Name: "web"})
			waypoint, _ := m.Workload(mesh.Key{Namespace: "shop", Name: "waypoint"})
			var admitted []string
			for _, at := range []struct {
				name mesh.Key
				port uint16
			}{{mesh.Key{Namespace: "bank", Name: "till"}, 8081}, {mesh.Key{Namespace: "shop", Name: "api"}, 8080}, {mesh.Key{Namespace: "shop", Name: "db"}, 3306}, {mesh.Key{Namespace: "shop", Name: "web"}, 80}} {
				w, _ := m.Workload(at.name)
				if _, d := m.Authorize(mesh.Connection{Peer: web.Identity, Source: web.Addresses[0], Destination: w, Port: at.port}); d.Verdict != mesh.VerdictDeny {
					admitted = append(admitted, fmt.Sprintf("%s:%d", at.name, at.port))
				}
			}
			if !slices.Equal(admitted, tc.admitted) {
				t.Errorf("web is let in by %q, want %q\n%s", admitted, tc.admitted, text)
			}
			till, _ := m.Workload(mesh.Key{Namespace: "bank", Name: "till"})
			if _, d := m.Authorize(mesh.Connection{Peer: waypoint.Identity, Source: waypoint.Addresses[0], Destination: till, Port: 8081}); d.Verdict == mesh.VerdictDeny {
				t.Errorf("the waypoint does not reach its backend of another namespace: %s\n%s", d.Reason, text)
			}
			if strings.Contains(tc.route, "TCPRoute") {
				return // of which no request is seen
			}
			for _, path := range []string{"/", "/new"} {
				a, err := explain.ExplainRequest(m, "shop/web", "db.shop:80", &asked.Request{Method: "GET", Path: path})
				if err != nil {
					t.Fatal(err)
				}
				if a.Request.Verdict != "allow" {
					t.Errorf("GET %s: %s %s\n%s", path, a.Request.Verdict, a.Request.Reason, text)
				}
			}
		})
	}
}

// TestSuggestBehindRoutesOpensNothing: a backend that refuses the client now gets no rule for it, and neither does one with
// policies about requests, of which a note says so.
func TestSuggestBehindRoutesOpensNothing(t *testing.T) {
	base := waypointed(t, toBackends+routeOf("HTTPRoute", "shop", `[{backendRefs: [{name: canary, port: 80}, {name: db, port: 80}]}]`)+"---\n"+`apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: nobody}
spec: {selector: {matchLabels: {app: api}}}
---
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: readers}
spec: {selector: {matchLabels: {app: db}}, rules: [{to: [{methods: [GET]}]}]}
`)
	h := &past.History{Summaries: viaWaypoint("shop/web", "shop/db", 5)}
	s, err := Suggest(model(t, base), h, "shop", false, draft.RoutesOf(base.Objects, base.Routing)...)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Policies) != 1 || s.Policies[0].Policy.Name != DefaultDeny || !slices.ContainsFunc(s.Notes, func(note string) bool {
		return strings.Contains(note, "5 connections of shop/web to shop/waypoint:80 not considered: "+string(byRequest))
	}) {
		t.Errorf("suggested\n%s", yamlOf(t, s, h))
	}
}
