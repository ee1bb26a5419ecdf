package route_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func mustTable(t testing.TB, routes ...route.Route) *route.Table {
	t.Helper()
	table, err := route.NewTable(routes)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// routeOf returns a producer's HTTPRoute of the service web with rules of these matches.
func routeOf(name string, rules ...[]route.Match) route.Route {
	r := route.Route{ID: route.ID{Key: keyed.Key{Namespace: "shop", Name: name}}, Created: time.Unix(1, 0), Parents: []route.Parent{web()}}
	for _, matches := range rules {
		r.Rules = append(r.Rules, route.Rule{Matches: matches})
	}
	return r
}

// said writes a decision as people would.
func said(d route.Decision) string {
	if d.Outcome != route.Routed {
		return d.Outcome.String()
	}
	return fmt.Sprintf("%s rules[%d]", d.Target.Route, d.Target.Index)
}

// TestLikeTheText compares the Table with the oracle.
func TestLikeTheText(t *testing.T) {
	outcomes := map[route.Outcome]int{}
	for _, kind := range []route.Kind{route.HTTP, route.GRPC} {
		rapid.Check(t, func(t *rapid.T) {
			routes := drawRoutes(t, kind)
			table, err := route.NewTable(slices.Clone(routes))
			if err != nil {
				t.Fatal(err)
			}
			for range 20 {
				r := drawRequest(t, kind)
				got := table.Match(&r)
				outcomes[got.Outcome]++
				outcome, id, rule := naive(routes, &r)
				want := outcome.String()
				if outcome == route.Routed {
					want = fmt.Sprintf("%s rules[%d]", id, rule)
				}
				if said(got) != want {
					t.Fatalf("request %+v\nof routes %+v\ngoes to %s, want %s", r, routes, said(got), want)
				}
			}
		})
	}
	for _, o := range []route.Outcome{route.NotFound, route.Unrouted, route.Routed} {
		if outcomes[o] == 0 {
			t.Errorf("no request was %s: nothing is compared", o)
		}
	}
}

// TestPrecedence has one pair for each criterion of the text, each way around.
func TestPrecedence(t *testing.T) {
	prefix := func(v string) route.Match { return route.Match{Path: route.PathMatch{Value: v}} }
	header := func(m route.Match, names ...string) route.Match {
		for _, n := range names {
			m.Headers = append(m.Headers, route.ValueMatch{Name: n, Value: "1"})
		}
		return m
	}
	param := func(m route.Match, names ...string) route.Match {
		for _, n := range names {
			m.Params = append(m.Params, route.ValueMatch{Name: n, Value: "1"})
		}
		return m
	}
	method := func(m route.Match) route.Match { m.Method = "GET"; return m }
	exact := route.Match{Path: route.PathMatch{Type: route.PathExact, Value: "/a/b"}}
	expression := route.Match{Path: route.PathMatch{Type: route.PathExpression, Value: "/a/[a-z]"}}
	request := route.Request{To: web(), Host: "web.shop", Method: "GET", Path: "/a/b", Query: "p=1&q=1",
		Headers: []route.Header{{Name: "x", Value: "1"}, {Name: "y", Value: "1"}}}
	for _, test := range []struct {
		name         string
		first, after route.Match
	}{
		{"exact before an expression", exact, header(method(expression), "x", "y")},
		{"an expression before a prefix", expression, header(method(prefix("/a/b")), "x")},
		{"exact before a prefix with everything", exact, param(header(method(prefix("/a/b")), "x", "y"), "p", "q")},
		{"the longer prefix", prefix("/a/b"), param(header(method(prefix("/a")), "x", "y"), "p", "q")},
		{"a method before headers", method(prefix("/a")), param(header(prefix("/a"), "x", "y"), "p", "q")},
		{"more headers before parameters", header(prefix("/a"), "x", "y"), param(header(prefix("/a"), "x"), "p", "q")},
		{"more parameters", param(prefix("/a"), "p", "q"), param(prefix("/a"), "p")},
	} {
		older, newer := routeOf("a", []route.Match{test.after}), routeOf("b", []route.Match{test.first})
		newer.Created = older.Created.Add(time.Hour)
		for _, routes := range [][]route.Route{{older, newer}, {newer, older}} {
			if got := said(mustTable(t, slices.Clone(routes)...).Match(&request)); got != "HTTPRoute shop/b rules[0]" {
				t.Errorf("%s: the request goes to %s, want HTTPRoute shop/b rules[0]", test.name, got)
			}
		}
	}
}

// TestTies: age, then names, then the place in the route.
func TestTies(t *testing.T) {
	request := route.Request{To: web(), Host: "web", Method: "GET", Path: "/"}
	any := []route.Match{{}}
	young, old := routeOf("a", any), routeOf("b", any, any)
	young.Created = old.Created.Add(time.Second)
	if got := said(mustTable(t, young, old).Match(&request)); got != "HTTPRoute shop/b rules[0]" {
		t.Errorf("of two routes %s wins, want the older, b", got)
	}
	young.Created = old.Created
	if got := said(mustTable(t, old, young).Match(&request)); got != "HTTPRoute shop/a rules[0]" {
		t.Errorf("of two routes of one age %s wins, want the first by name, a", got)
	}
}

// TestRepeatedNames: "only the first entry with an equivalent name MUST be considered".
func TestRepeatedNames(t *testing.T) {
	table := mustTable(t, routeOf("a", []route.Match{{Headers: []route.ValueMatch{{Name: "X-V", Value: "1"}, {Name: "x-v", Value: "2"}}}}))
	for value, want := range map[string]string{"1": "HTTPRoute shop/a rules[0]", "2": "NotFound"} {
		r := route.Request{To: web(), Path: "/", Headers: []route.Header{{Name: "x-V", Value: value}}}
		if got := said(table.Match(&r)); got != want {
			t.Errorf("x-v: %s goes to %s, want %s", value, got, want)
		}
	}
}

// TestRefusals: what no Table is made of, with field and remedy.
func TestRefusals(t *testing.T) {
	path := func(kind route.PathType, v string) route.Route {
		return routeOf("a", []route.Match{{Path: route.PathMatch{Type: kind, Value: v}}})
	}
	header := func(v route.ValueMatch) route.Route {
		return routeOf("a", []route.Match{{Headers: []route.ValueMatch{v}}})
	}
	grpc := routeOf("g")
	grpc.Kind = route.GRPC
	host := routeOf("h")
	host.Hostnames = []string{"*.*.example"}
	many := routeOf("a", make([]route.Match, route.MaxMatches), make([]route.Match, 1))
	for _, test := range []struct {
		says   string
		routes []route.Route
	}{
		{`HTTPRoute shop/a: rules[0].matches[0].path.value: "a" is not a path; write one`, []route.Route{path(route.PathExact, "a")}},
		{`"/a//b" has "//"; take it out`, []route.Route{path(route.PathPrefix, "/a//b")}},
		{`"/a/.." ends in a dot segment; write the path`, []route.Route{path(route.PathPrefix, "/a/..")}},
		{`"/%zz" is not a path`, []route.Route{path(route.PathPrefix, "/%zz")}},
		{"is not a regular expression", []route.Route{path(route.PathExpression, "a)(b")}},
		{"of 1025 characters is too long", []route.Route{path(route.PathExpression, strings.Repeat("a", 1025))}},
		{"is too large: it has", []route.Route{path(route.PathExpression, "(a{30}){30}b{200}")}},
		{`matches[0].headers[0].name: "a b" is not a name`, []route.Route{header(route.ValueMatch{Name: "a b"})}},
		{"headers[0].value: \"[\" is not a regular expression", []route.Route{header(route.ValueMatch{Name: "a", Value: "[", Expression: true})}},
		{"is given twice", []route.Route{routeOf("a"), routeOf("a")}},
		{"shop/web:80 has routes of another kind already; let", []route.Route{routeOf("a"), grpc}},
		{`hostnames: "*.*.example" is no host name; write`, []route.Route{host}},
		{"has more than 128 matches; split it", []route.Route{many}},
	} {
		_, err := route.NewTable(test.routes)
		if err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("error is %v, want one that says %s", err, test.says)
		}
	}
}

// TestExpressionsAreWhole: the rest of the text cannot get out of the anchors.
func TestExpressionsAreWhole(t *testing.T) {
	for _, test := range []struct {
		expression, path string
		matches          bool
	}{
		{"/a|/b", "/a", true}, {"/a|/b", "/b", true}, {"/a|/b", "/ac", false}, {"/a|/b", "/c/b", false},
		{"(?m)^/a$", "/a", true}, {"(?i)/a", "/A", true}, {"/a", "/A", false},
	} {
		table := mustTable(t, routeOf("a", []route.Match{{Path: route.PathMatch{Type: route.PathExpression, Value: test.expression}}}))
		r := route.Request{To: web(), Path: test.path}
		if got := table.Match(&r).Outcome == route.Routed; got != test.matches {
			t.Errorf("%s matches %s: %v, want %v", test.expression, test.path, got, test.matches)
		}
	}
}

// TestTooCostly: expressions that would take too long together refuse the request, and not
// the small one beside it.
func TestTooCostly(t *testing.T) {
	var rules [][]route.Match
	for i := range 120 {
		rules = append(rules, []route.Match{{Path: route.PathMatch{Type: route.PathExpression, Value: fmt.Sprintf("/(.*a){40}(%d|b)", i)}}})
	}
	table := mustTable(t, routeOf("a", append(rules, []route.Match{{}})...))
	r := route.Request{To: web(), Path: "/" + strings.Repeat("a", 4000)}
	start := time.Now()
	if got := table.Match(&r); got.Outcome != route.TooCostly {
		t.Errorf("a request of %d octets is %s, want TooCostly", len(r.Path), got.Outcome)
	}
	t.Logf("refused after %v", time.Since(start))
	r.Path = "/short"
	if got := said(table.Match(&r)); got != "HTTPRoute shop/a rules[120]" {
		t.Errorf("a short request goes to %s, want rules[120]", got)
	}
}

func TestConsumers(t *testing.T) {
	producer, consumer := routeOf("p", []route.Match{{}}), routeOf("c", []route.Match{{Path: route.PathMatch{Value: "/a"}}})
	consumer.Namespace = "other"
	table := mustTable(t, producer, consumer)
	for _, test := range []struct{ from, path, want string }{
		{"other", "/a", "HTTPRoute other/c rules[0]"},
		{"other", "/b", "NotFound"}, // its own routes take the place of the producer's
		{"shop", "/a", "HTTPRoute shop/p rules[0]"},
		{"third", "/a", "HTTPRoute shop/p rules[0]"},
		{"", "/a", "HTTPRoute shop/p rules[0]"},
	} {
		r := route.Request{To: web(), From: test.from, Path: test.path}
		if got := said(table.Match(&r)); got != test.want {
			t.Errorf("%s from %q goes to %s, want %s", test.path, test.from, got, test.want)
		}
	}
	alone := mustTable(t, consumer)
	r := route.Request{To: web(), From: "shop", Path: "/a"}
	if got := alone.Match(&r).Outcome; got != route.Unrouted {
		t.Errorf("another namespace's consumer route makes a request %s, want Unrouted", got)
	}
}
