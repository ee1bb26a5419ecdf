package route_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// connections returns a route about connections to the service web.
func connections(kind route.Kind, namespace, name string, hosts ...string) route.Route {
	return route.Route{ID: route.ID{Kind: kind, Key: keyed.Key{Namespace: namespace, Name: name}}, Created: time.Unix(1, 0), Parents: []route.Parent{web()}, Hostnames: hosts,
		Rules: []route.Rule{{Name: "rules[0]", Backends: []route.Backend{{Service: web().Service, Port: 80, Weight: 1}}}}}
}

// TestConnections: whose routes a connection goes by, and by which of them.
func TestConnections(t *testing.T) {
	older := connections(route.TLS, "shop", "older", "twice.example.com")
	older.Created = time.Unix(0, 0)
	tls := []route.Route{connections(route.TLS, "shop", "one", "a.example.com"), connections(route.TLS, "shop", "wild", "*.example.com", "a.example.com"),
		connections(route.TLS, "shop", "wilder", "*.b.example.com"), connections(route.TLS, "shop", "younger", "twice.example.com"), older,
		connections(route.TCP, "bank", "theirs")}
	table := mustTable(t, tls...)
	for _, c := range []struct{ from, name, want string }{
		{"", "a.example.com", "TLSRoute shop/one rules[0]"}, // it is as old as wild, and the first by name
		{"shop", "c.example.com", "TLSRoute shop/wild rules[0]"},
		{"shop", "c.d.example.com", "TLSRoute shop/wild rules[0]"},
		{"shop", "c.b.example.com", "TLSRoute shop/wilder rules[0]"},
		{"shop", "b.example.com", "TLSRoute shop/wild rules[0]"},
		{"shop", "twice.example.com", "TLSRoute shop/older rules[0]"},
		{"shop", "example.com", "NotFound"},
		{"shop", "a.example.org", "NotFound"},
		{"shop", "", "NotFound"},
		{"bank", "", "TCPRoute bank/theirs rules[0]"},
		{"bank", "a.example.com", "TCPRoute bank/theirs rules[0]"},
	} {
		if got := said(table.Connect(web(), c.from, c.name)); got != c.want {
			t.Errorf("from %q to %q: %s, want %s", c.from, c.name, got, c.want)
		}
	}
	for from, want := range map[string]route.Kind{"": route.TLS, "shop": route.TLS, "bank": route.TCP} {
		if kind, ok := table.Kind(web(), from); !ok || kind != want {
			t.Errorf("connections from %q go by %s, %v", from, kind, ok)
		}
	}
	if table.About(web()) {
		t.Error("routes about connections are said to be about requests")
	}
	r := route.Request{To: web(), Method: "GET", Path: "/"}
	if got := table.Match(&r).Outcome; got != route.Unrouted {
		t.Errorf("a request on a connection from before: %s", got)
	}
	if got := table.Connect(route.Parent{Service: web().Service, Port: 81}, "", "a.example.com").Outcome; got != route.Unrouted {
		t.Errorf("at another port: %s", got)
	}
}

// TestConsumersConnections: a consumer's route about connections leaves those of other clients alone.
func TestConsumersConnections(t *testing.T) {
	table := mustTable(t, connections(route.TCP, "bank", "theirs"))
	if _, ok := table.Kind(web(), "shop"); ok || table.Connect(web(), "shop", "").Outcome != route.Unrouted {
		t.Error("another namespace's clients go by it")
	}
	theirs := routeOf("requests")
	theirs.Namespace, theirs.Rules = "bank", []route.Rule{{}}
	table = mustTable(t, theirs, connections(route.TCP, "shop", "ours"))
	if kind, ok := table.Kind(web(), "bank"); !ok || kind != route.HTTP || !table.About(web()) {
		t.Errorf("%s, %v, %v", kind, ok, table.About(web()))
	}
	if got := said(table.Connect(web(), "shop", "")); got != "TCPRoute shop/ours rules[0]" {
		t.Error(got)
	}
	if got := table.Connect(web(), "bank", "").Outcome; got != route.Unrouted {
		t.Error(got)
	}
}

// TestNamesLikeTheText compares the choice among hostnames with one that tries them all.
func TestNamesLikeTheText(t *testing.T) {
	label := rapid.SampledFrom([]string{"a", "b", "c"})
	name := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(label, 1, 4).Draw(t, "labels"), ".")
	})
	rapid.Check(t, func(t *rapid.T) {
		var routes []route.Route
		for i := range rapid.IntRange(1, 6).Draw(t, "routes") {
			r := connections(route.TLS, "shop", string(rune('a'+i)))
			r.Created = time.Unix(rapid.Int64Range(0, 2).Draw(t, "created"), 0)
			for range rapid.IntRange(1, 3).Draw(t, "names") {
				h := name.Draw(t, "hostname")
				if rapid.Bool().Draw(t, "wild") {
					h = "*." + h
				}
				r.Hostnames = append(r.Hostnames, h)
			}
			routes = append(routes, r)
		}
		table, err := route.NewTable(slices.Clone(routes))
		if err != nil {
			t.Fatal(err)
		}
		asked := name.Draw(t, "asked")
		best, rank := -1, -1
		for i, r := range routes {
			for _, h := range r.Hostnames {
				is := -1
				if h == asked {
					is = 1000
				} else if suffix, wild := strings.CutPrefix(h, "*"); wild && strings.HasSuffix(asked, suffix) {
					is = len(suffix)
				}
				if is < 0 || is < rank || is == rank && !r.Created.Before(routes[best].Created) {
					continue // they are in the order of their names
				}
				best, rank = i, is
			}
		}
		want := "NotFound"
		if best >= 0 {
			want = routes[best].ID.String() + " rules[0]"
		}
		if got := said(table.Connect(web(), "", asked)); got != want {
			t.Fatalf("%q: %s, want %s", asked, got, want)
		}
	})
}

// TestConnectionsAreNoRequests: what only requests have is refused of routes about connections.
func TestConnectionsAreNoRequests(t *testing.T) {
	for name, change := range map[string]func(*route.Route){
		"matches": func(r *route.Route) { r.Rules[0].Matches = []route.Match{{Method: "GET"}} },
		"filters": func(r *route.Route) { r.Rules[0].Filters = []route.Filter{{Broken: "why"}} },
		"timeout": func(r *route.Route) { r.Rules[0].BackendTimeout = 1 },
		"retry":   func(r *route.Route) { r.Rules[0].Retry = &route.Retry{} },
		"session": func(r *route.Route) { r.Rules[0].Session = &route.Session{} },
		"names":   func(r *route.Route) { r.Hostnames = []string{"a"} },
	} {
		r := connections(route.TCP, "shop", "a")
		change(&r)
		if _, err := route.NewTable([]route.Route{r}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := route.NewTable([]route.Route{connections(route.TCP, "shop", "a"), connections(route.TLS, "shop", "b", "x")}); err == nil {
		t.Error("two kinds at one parent are accepted")
	}
}
