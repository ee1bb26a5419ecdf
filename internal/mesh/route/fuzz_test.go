package route_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/mesh/route/uri"
)

// FuzzMatch: whatever a request says, the Table decides as the oracle does.
func FuzzMatch(f *testing.F) {
	header := func(name, value string, expression bool) route.Match {
		return route.Match{Headers: []route.ValueMatch{{Name: name, Value: value, Expression: expression}}}
	}
	param := func(name, value string, expression bool) route.Match {
		return route.Match{Params: []route.ValueMatch{{Name: name, Value: value, Expression: expression}}}
	}
	hosted := routeOf("hosted", []route.Match{{Path: route.PathMatch{Value: "/a"}}}, []route.Match{header("host", "b.example:80", false)})
	hosted.Hostnames = []string{"*.example", "b.example"}
	looked := routeOf("looked up") // more than are tried one after the other
	for i := range 12 {
		looked.Rules = append(looked.Rules, route.Rule{Matches: []route.Match{header("x-v", fmt.Sprint(i), false), param("p", fmt.Sprint(i), false)}})
	}
	routes := []route.Route{hosted, looked, routeOf("plain",
		[]route.Match{{Path: route.PathMatch{Type: route.PathExact, Value: "/a/b"}, Method: "GET"}, {Path: route.PathMatch{Value: "/a/b/"}}},
		[]route.Match{{Path: route.PathMatch{Type: route.PathExpression, Value: "/[0-9]+"}}},
		[]route.Match{header("x-v", "[a-z]*", true), param("p q", "[a-z ]*", true), header("cookie", "a=1; b=2", false)})}
	table := mustTable(f, slices.Clone(routes)...)
	f.Add("b.example:80", "/a/b", "p=1&p+q=a%20b", "x-v", "7", "X-V", "8")
	f.Add("B.EXAMPLE.", "/a//b", "%70=3&&=", "Cookie", "a=1", "cookie", "b=2")
	f.Add("[::1]:80", "*", "p%", "host", "x", "x-v", "")
	f.Fuzz(func(t *testing.T, host, path, query, name, value, name2, value2 string) {
		normal, ok := uri.NormalPath(path)
		if !ok {
			return
		}
		for _, text := range []string{host, name, name2} {
			for i := range len(text) {
				if text[i] >= 0x80 || text[i] < ' ' {
					return // the oracle folds case beyond ASCII, and no parser lets this through
				}
			}
		}
		r := route.Request{To: web(), Host: host, Method: "GET", Path: normal, Query: query, Headers: []route.Header{{Name: name, Value: value}, {Name: name2, Value: value2}}}
		outcome, id, rule := naive(routes, &r)
		want := outcome.String()
		if outcome == route.Routed {
			want = fmt.Sprintf("%s rules[%d]", id, rule)
		}
		// Five expressions of less than 40 steps: short requests are never too costly.
		costly := len(host)+len(normal)+len(query)+len(name)+len(value)+len(name2)+len(value2) > 4096
		if got := said(table.Match(&r)); got != want && (got != "TooCostly" || !costly) {
			t.Errorf("%+v goes to %s, want %s", r, got, want)
		}
	})
}
