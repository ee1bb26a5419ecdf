package route_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

const many = 5000

// shape is a way in which 5,000 routes may differ, with the requests for them.
type shape struct {
	name    string
	route   func(i int) route.Route
	request func(i int) route.Request
}

func shapes() []shape {
	// A request of a browser: its headers are looked through.
	headers := func(more ...route.Header) []route.Header {
		var all []route.Header
		for _, name := range []string{"user-agent", "accept", "accept-language", "accept-encoding", "referer", "x-request-id", "x-forwarded-for", "x-forwarded-proto",
			"cookie", "cache-control", "traceparent", "authorization"} {
			all = append(all, route.Header{Name: name, Value: "some value of " + name})
		}
		return append(all, more...)
	}
	plain := func(path string, more ...route.Header) route.Request {
		return route.Request{To: web(), From: "clients", Host: "web.shop.svc.cluster.local:80", Method: "GET", Path: path, Query: "page=2&size=100", Headers: headers(more...)}
	}
	one := func(i int, m route.Match) route.Route { return routeOf(fmt.Sprintf("r%05d", i), []route.Match{m}) }
	service := func(i int) route.Parent {
		return route.Parent{Service: keyed.Key{Namespace: "shop", Name: fmt.Sprintf("service-%d", i)}, Port: 80}
	}
	path := func(i int) string { return fmt.Sprintf("/api/v1/tenants/t%d", i) }
	return []shape{
		{"by service", func(i int) route.Route {
			r := one(i, route.Match{})
			r.Parents = []route.Parent{service(i)}
			return r
		}, func(i int) route.Request { r := plain("/items/7"); r.To = service(i); return r }},
		{"by prefix", func(i int) route.Route { return one(i, route.Match{Path: route.PathMatch{Value: path(i)}}) },
			func(i int) route.Request { return plain(path(i) + "/orders/17") }},
		{"by exact path", func(i int) route.Route {
			return one(i, route.Match{Path: route.PathMatch{Type: route.PathExact, Value: path(i)}})
		}, func(i int) route.Request { return plain(path(i)) }},
		{"by hostname", func(i int) route.Route {
			r := one(i, route.Match{})
			r.Hostnames = []string{fmt.Sprintf("*.shop%d.example.com", i)}
			return r
		}, func(i int) route.Request {
			r := plain("/items/7")
			r.Host = fmt.Sprintf("www.Shop%d.example.com", i)
			return r
		}},
		{"by header", func(i int) route.Route {
			return one(i, route.Match{Headers: []route.ValueMatch{{Name: "X-Tenant", Value: fmt.Sprintf("t%d", i)}}})
		}, func(i int) route.Request {
			return plain("/items/7", route.Header{Name: "x-tenant", Value: fmt.Sprintf("t%d", i)})
		}},
		{"by two headers and a method", func(i int) route.Route {
			return one(i, route.Match{Method: "GET", Headers: []route.ValueMatch{
				{Name: "x-version", Value: fmt.Sprint(i % 70)}, {Name: "x-tenant", Value: fmt.Sprint(i / 70)}}})
		}, func(i int) route.Request {
			return plain("/", route.Header{Name: "x-version", Value: fmt.Sprint(i % 70)}, route.Header{Name: "x-tenant", Value: fmt.Sprint(i / 70)})
		}},
		{"by parameter", func(i int) route.Route {
			return one(i, route.Match{Params: []route.ValueMatch{{Name: "tenant", Value: fmt.Sprintf("t%d", i)}}})
		}, func(i int) route.Request { r := plain("/"); r.Query += fmt.Sprintf("&tenant=t%d", i); return r }},
		{"by gRPC method", func(i int) route.Route {
			r := one(i, route.Match{Call: route.CallMatch{Service: fmt.Sprintf("shop.v1.Service%d", i), Method: "Get"}})
			r.Kind = route.GRPC
			return r
		}, func(i int) route.Request {
			r := plain(fmt.Sprintf("/shop.v1.Service%d/Get", i), route.Header{Name: "content-type", Value: "application/grpc"})
			r.Method = "POST"
			return r
		}},
		{"no match", func(i int) route.Route { return one(i, route.Match{Path: route.PathMatch{Value: path(i)}}) },
			func(i int) route.Request { return plain("/api/v2/tenants/x") }},
	}
}

func (s *shape) table(t testing.TB) (*route.Table, []route.Request) {
	var routes []route.Route
	for i := range many {
		routes = append(routes, s.route(i))
	}
	var requests []route.Request
	for i := range 512 {
		requests = append(requests, s.request(i*many/512))
	}
	table := mustTable(t, routes...)
	for i := range requests {
		want := fmt.Sprintf("%s rules[0]", s.route(i*many/512).ID)
		if s.name == "no match" {
			want = "NotFound"
		}
		if got := said(table.Match(&requests[i])); got != want {
			t.Fatalf("%s: request %d goes to %s, want %s", s.name, i, got, want)
		}
	}
	return table, requests
}

// TestMatchCost holds the median among 5,000 routes to less than 2 µs, whatever
// they differ by, and to no allocation.
func TestMatchCost(t *testing.T) {
	for _, s := range shapes() {
		table, requests := s.table(t)
		if n := testing.AllocsPerRun(100, func() { table.Match(&requests[7]) }); n != 0 {
			t.Errorf("%s: Match allocates %v times", s.name, n)
		}
		// A few at a time: what other processes take of this core then falls on some of
		// the samples, and not on the median.
		var times []time.Duration
		for range 41 {
			for few := range slices.Chunk(requests, 16) {
				start := time.Now()
				for i := range few {
					table.Match(&few[i])
				}
				times = append(times, time.Since(start)/time.Duration(len(few)))
			}
		}
		slices.Sort(times)
		median := times[len(times)/2]
		t.Logf("%-28s %v", s.name, median)
		if limit := 2 * time.Microsecond * slower; median >= limit {
			t.Errorf("%s: the median is %v among %d routes, want less than %v", s.name, median, many, limit)
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	for _, s := range shapes() {
		b.Run(s.name, func(b *testing.B) {
			table, requests := s.table(b)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				table.Match(&requests[i%len(requests)])
				i++
			}
		})
	}
}

func BenchmarkNewTable(b *testing.B) {
	for _, s := range shapes() {
		b.Run(s.name, func(b *testing.B) {
			routes := make([]route.Route, many)
			for i := range routes {
				routes[i] = s.route(i)
			}
			b.ReportAllocs()
			for b.Loop() {
				mustTable(b, routes...)
			}
		})
	}
}
