package route_test

import (
	"fmt"
	"time"

	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// What routes and requests are drawn from: little, so that they meet.
func web() route.Parent {
	return route.Parent{Service: keyed.Key{Namespace: "shop", Name: "web"}, Port: 80}
}

func drawValues(t *rapid.T, label string, names []string) (all []route.ValueMatch) {
	values := []string{"1", "2", "a b", "1, 2"}
	for range rapid.IntRange(0, 2).Draw(t, label) {
		name := rapid.SampledFrom(names).Draw(t, label+" name")
		taken := false
		for _, v := range all {
			taken = taken || v.Name == name
		}
		if taken {
			continue // what comes after the first of a name does not count
		}
		v := route.ValueMatch{Name: name, Value: rapid.SampledFrom(values).Draw(t, label+" value")}
		if rapid.IntRange(0, 3).Draw(t, label+" kind") == 0 {
			v.Value, v.Expression = rapid.SampledFrom([]string{"[12]", ".*", "1|a.b", "1.*2"}).Draw(t, label+" expression"), true
		}
		all = append(all, v)
	}
	return all
}

func drawMatch(t *rapid.T, kind route.Kind) (m route.Match) {
	m.Headers = drawValues(t, "headers", []string{"x-v", "x-w", "host", "cookie"})
	if kind == route.GRPC {
		names := []string{"", "a", "b", "a.B"}
		m.Call = route.CallMatch{Service: rapid.SampledFrom(names).Draw(t, "service"), Method: rapid.SampledFrom(names).Draw(t, "call")}
		if rapid.IntRange(0, 2).Draw(t, "call kind") == 0 {
			m.Call = route.CallMatch{Service: rapid.SampledFrom([]string{"", "a.*", "[ab]"}).Draw(t, "service expression"),
				Method: rapid.SampledFrom([]string{"", ".", "a|b"}).Draw(t, "call expression"), Expression: true}
		}
		return m
	}
	m.Params = drawValues(t, "params", []string{"p", "q r"})
	m.Method = rapid.SampledFrom([]string{"", "", "GET", "POST"}).Draw(t, "method")
	m.Path.Type = rapid.SampledFrom([]route.PathType{route.PathPrefix, route.PathPrefix, route.PathExact, route.PathExpression}).Draw(t, "path type")
	if m.Path.Type == route.PathExpression {
		m.Path.Value = rapid.SampledFrom([]string{"/a.*", "/[ab]/?", "/.", ".*"}).Draw(t, "path expression")
	} else {
		m.Path.Value = rapid.SampledFrom([]string{"/", "/a", "/a/", "/a/b", "/ab", "/b", "/a/b/c"}).Draw(t, "path")
	}
	return m
}

func drawRoutes(t *rapid.T, kind route.Kind) []route.Route {
	routes := make([]route.Route, rapid.IntRange(0, 6).Draw(t, "routes"))
	for i := range routes {
		r := &routes[i]
		r.ID = route.ID{Kind: kind, Key: keyed.Key{
			Namespace: rapid.SampledFrom([]string{"shop", "shop", "shop", "shop2", "other"}).Draw(t, "namespace"),
			Name:      fmt.Sprintf("%s%d", rapid.SampledFrom([]string{"a", "b"}).Draw(t, "name"), i)}}
		r.Created = time.Unix(int64(rapid.IntRange(0, 2).Draw(t, "created")), 0)
		r.Parents = []route.Parent{web()}
		if rapid.Bool().Draw(t, "both ports") {
			r.Parents = append(r.Parents, route.Parent{Service: web().Service, Port: 81})
		}
		hosts := []string{"a.example", "b.a.example", "*.example", "*.a.example", "web"}
		r.Hostnames = rapid.SliceOfNDistinct(rapid.SampledFrom(hosts), 0, 2, rapid.ID).Draw(t, "hostnames")
		for range rapid.IntRange(0, 3).Draw(t, "rules") {
			rule := route.Rule{}
			// More than the eight from which matches are looked up, now and then.
			most := rapid.SampledFrom([]int{2, 2, 16}).Draw(t, "most")
			for range rapid.IntRange(0, most).Draw(t, "matches") {
				rule.Matches = append(rule.Matches, drawMatch(t, kind))
			}
			r.Rules = append(r.Rules, rule)
		}
	}
	return routes
}

func drawRequest(t *rapid.T, kind route.Kind) route.Request {
	r := route.Request{
		To:     route.Parent{Service: web().Service, Port: rapid.SampledFrom([]uint16{80, 80, 81, 82}).Draw(t, "port")},
		From:   rapid.SampledFrom([]string{"", "shop", "shop2", "other", "none"}).Draw(t, "from"),
		Host:   rapid.SampledFrom([]string{"a.example", "A.Example:8080", "b.a.example", "c.b.a.example.", "example", "web", "1", ""}).Draw(t, "host"),
		Method: rapid.SampledFrom([]string{"GET", "POST", "PUT"}).Draw(t, "method"),
		Path:   rapid.SampledFrom([]string{"/", "/a", "/a/", "/a/b", "/ab", "/b", "/b/", "/a/b/c/d", "/a//b", "*"}).Draw(t, "path"),
		Query:  rapid.SampledFrom([]string{"", "p=1", "p=2&p=1", "q+r=a%20b&p=1", "%70=1&x", "p=%zz&q%20r=2", "&&p=1", "p"}).Draw(t, "query"),
	}
	if kind == route.GRPC && rapid.IntRange(0, 9).Draw(t, "gRPC") > 0 {
		r.Method, r.Path = "POST", rapid.SampledFrom([]string{"/a/a", "/a/b", "/b/a", "/a.B/a", "/c/c", "/a"}).Draw(t, "call")
		r.Headers = append(r.Headers, route.Header{Name: "Content-Type", Value: rapid.SampledFrom([]string{"application/grpc", "application/grpc+proto", "application/grpcx"}).Draw(t, "content type")})
	}
	for range rapid.IntRange(0, 3).Draw(t, "headers") {
		r.Headers = append(r.Headers, route.Header{
			Name:  rapid.SampledFrom([]string{"x-v", "X-V", "x-w", "cookie", "x-z"}).Draw(t, "header"),
			Value: rapid.SampledFrom([]string{"1", "2", "a b", ""}).Draw(t, "value")})
	}
	return r
}
