package replay

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain"
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
		after, err := Apply(base, objects(t, text), nil)
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
