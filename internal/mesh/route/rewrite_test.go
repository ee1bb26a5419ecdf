package route_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// TestReplacePrefixMatch is the table in the documentation of HTTPPathModifier, and what
// it leaves out.
func TestReplacePrefixMatch(t *testing.T) {
	for _, row := range []struct{ path, prefix, replace, want string }{
		{"/foo/bar", "/foo", "/xyz", "/xyz/bar"},
		{"/foo/bar", "/foo", "/xyz/", "/xyz/bar"},
		{"/foo/bar", "/foo/", "/xyz", "/xyz/bar"},
		{"/foo/bar", "/foo/", "/xyz/", "/xyz/bar"},
		{"/foo", "/foo", "/xyz", "/xyz"},
		{"/foo/", "/foo", "/xyz", "/xyz/"},
		{"/foo/bar", "/foo", "", "/bar"},
		{"/foo/", "/foo", "", "/"},
		{"/foo", "/foo", "", "/"},
		{"/foo/", "/foo", "/", "/"},
		{"/foo", "/foo", "/", "/"},
		{"/foo/bar", "/", "/xyz", "/xyz/foo/bar"},
		{"/", "/", "/xyz", "/xyz/"},
		{"/foo//bar", "/foo", "/xyz", "/xyz//bar"},
		{"*", "/", "/x", "*"},
	} {
		table := mustTable(t, routeOf("a", []route.Match{{Path: route.PathMatch{Value: row.prefix}}}))
		r := route.Request{To: web(), Path: row.path}
		d := table.Match(&r)
		if d.Outcome != route.Routed {
			t.Fatalf("%s is %s under %s", row.path, d.Outcome, row.prefix)
		}
		change := route.PathChange{Prefix: true, Value: row.replace}
		if got := change.Apply(row.path, d.Prefix); got != row.want {
			t.Errorf("%s under %s, replaced by %q, is %s, want %s", row.path, row.prefix, row.replace, got, row.want)
		}
	}
	full := route.PathChange{Value: "/new"}
	if got := full.Apply("/foo/bar", "/foo"); got != "/new" {
		t.Errorf("the whole path replaced is %s, want /new", got)
	}
}

func TestLocation(t *testing.T) {
	to := func(port uint16) route.Parent { p := web(); p.Port = port; return p }
	for _, test := range []struct {
		redirect route.Redirect
		request  route.Request
		want     string
	}{
		{route.Redirect{Hostname: "example.org"}, route.Request{To: to(80), Host: "web", Path: "/a", Query: "p=1"}, "http://example.org/a?p=1"},
		{route.Redirect{}, route.Request{To: to(8080), Host: "web.shop:8080", Path: "/"}, "http://web.shop:8080/"},
		{route.Redirect{Scheme: "https"}, route.Request{To: to(8080), Host: "web:8080", Path: "/"}, "https://web/"},
		{route.Redirect{Scheme: "http"}, route.Request{To: to(8080), Host: "web:8080", Path: "/"}, "http://web/"},
		{route.Redirect{Port: 8443, Scheme: "https"}, route.Request{To: to(80), Host: "web", Path: "/"}, "https://web:8443/"},
		{route.Redirect{Port: 443, Scheme: "https"}, route.Request{To: to(80), Host: "web", Path: "/"}, "https://web/"},
		{route.Redirect{Port: 80}, route.Request{To: to(8080), Host: "web:8080", Path: "/"}, "http://web/"},
		{route.Redirect{}, route.Request{To: to(8080), Host: "[fd00::1]:8080", Path: "/"}, "http://[fd00::1]:8080/"},
		{route.Redirect{}, route.Request{To: to(80), Host: "web", Method: "OPTIONS", Path: "*"}, "http://web"},
		{route.Redirect{Path: &route.PathChange{Prefix: true, Value: "/x"}}, route.Request{To: to(80), Host: "web", Method: "OPTIONS", Path: "*"}, "http://web"},
		{route.Redirect{Path: &route.PathChange{Value: "/b"}}, route.Request{To: to(80), Host: "web", Path: "/a"}, "http://web/b"},
		{route.Redirect{Path: &route.PathChange{Prefix: true, Value: "/b"}}, route.Request{To: to(80), Host: "web", Path: "/a/c"}, "http://web/b/c"},
	} {
		if got := test.redirect.Location(&test.request, "http", "/a"); got != test.want {
			t.Errorf("%+v of %+v leads to %s, want %s", test.redirect, test.request, got, test.want)
		}
	}
}

func TestHeaders(t *testing.T) {
	change := route.Headers{Remove: []string{"x-gone"}, Set: []route.Header{{Name: "x-set", Value: "new"}}, Add: []route.Header{{Name: "x-add", Value: "2"}}}
	fields := []route.Header{{Name: "X-Gone", Value: "1"}, {Name: "x-set", Value: "old"}, {Name: "X-Set", Value: "older"}, {Name: "x-add", Value: "1"}, {Name: "x-gone", Value: "2"}}
	want := []route.Header{{Name: "x-add", Value: "1"}, {Name: "x-set", Value: "new"}, {Name: "x-add", Value: "2"}}
	if diff := cmp.Diff(want, change.Apply(fields)); diff != "" {
		t.Errorf("headers -want +got:\n%s", diff)
	}
}

// split makes Splits of one route, whose rule has backends of these weights.
func splits(t *testing.T, before *route.Splits, rule route.Rule) (*route.Splits, *route.Target) {
	t.Helper()
	r := routeOf("a")
	r.Rules = []route.Rule{rule}
	table := mustTable(t, r)
	phase := uint64(0)
	s, err := route.NewSplits(table, before, func() uint64 { phase += 37; return phase })
	if err != nil {
		t.Fatal(err)
	}
	return s, table.Targets()[0]
}

// next returns the backend of a request without a session.
func next(s *route.Splits, target *route.Target) *route.Backend {
	b, _ := s.Backend(target)
	return b
}

func backends(weights ...uint32) (all []route.Backend) {
	for i, w := range weights {
		b := route.Backend{Service: web().Service, Port: 80, Weight: w}
		b.Service.Name = fmt.Sprintf("web-v%d", i+1)
		all = append(all, b)
	}
	return all
}

// TestSplitsGoOn: a table that is made anew does not begin a split from its start, a
// split that changed does.
func TestSplitsGoOn(t *testing.T) {
	rule := route.Rule{Backends: backends(99, 1)}
	counts := map[string]int{}
	s, target := splits(t, nil, rule)
	for range 2000 { // anew within each hundred
		for range 50 {
			counts[next(s, target).Service.Name]++
		}
		s, target = splits(t, s, rule)
	}
	if counts["web-v2"] != 1000 {
		t.Errorf("the canary of 1%% has %d of 100000 requests in 2000 tables, want 1000", counts["web-v2"])
	}
	s, target = splits(t, s, route.Rule{Backends: backends(1, 1)})
	if a, b := next(s, target), next(s, target); a.Service == b.Service {
		t.Errorf("of equal weights, two requests in a row go to %s", a.Service)
	}
}

// TestOtherRulesDoNotDisturb: a rule that comes, goes or changes leaves the order of the
// others as it was, whether they have names or not.
func TestOtherRulesDoNotDisturb(t *testing.T) {
	rule := func(name, path string, weights ...uint32) route.Rule {
		return route.Rule{Name: name, Matches: []route.Match{{Path: route.PathMatch{Value: path}}}, Backends: backends(weights...)}
	}
	for _, names := range [][2]string{{"rules[0]", "rules[1]"}, {"stable", "stable"}} {
		var before *route.Splits
		canary := 0
		for n := range 2000 { // anew within each hundred, now with a rule before it and now without
			r := routeOf("a")
			r.Rules = []route.Rule{rule(names[0], "/kept", 99, 1)}
			if n%2 == 1 {
				r.Rules = []route.Rule{rule("rules[0]", "/other", 99, 1), rule(names[1], "/kept", 99, 1)}
			}
			table := mustTable(t, r)
			s, err := route.NewSplits(table, before, func() uint64 { return 7 })
			if err != nil {
				t.Fatal(err)
			}
			for range 50 {
				if next(s, table.Targets()[n%2]).Service.Name == "web-v2" {
					canary++
				}
			}
			before = s
		}
		if canary != 1000 {
			t.Errorf("rules named %v: the canary of 1%% has %d of 100000 requests in 2000 tables, want 1000", names, canary)
		}
	}
}

func TestBrokenBackendsKeepTheirShare(t *testing.T) {
	all := backends(1, 1, 0)
	all[1].Broken = "is not there"
	s, target := splits(t, nil, route.Rule{Backends: all})
	broken := 0
	for range 100 {
		b := next(s, target)
		if b.Weight == 0 {
			t.Fatalf("a request goes to %s, whose weight is 0", b.Service)
		}
		if b.Broken != "" {
			broken++
		}
	}
	if broken != 50 {
		t.Errorf("%d of 100 requests go to the broken backend, want 50", broken)
	}
	for _, none := range [][]route.Backend{nil, backends(0, 0)} {
		s, target = splits(t, nil, route.Rule{Backends: none})
		if b := next(s, target); b != nil {
			t.Errorf("a request goes to %v, want no backend", b)
		}
	}
}

func TestMirrored(t *testing.T) {
	all := []*route.Mirror{
		{Service: web().Service, Numerator: 1, Denominator: 1}, {Service: web().Service, Numerator: 25, Denominator: 100},
		{Service: web().Service, Numerator: 0, Denominator: 100}, {Service: web().Service, Numerator: 1, Denominator: 1, Broken: "is not there"},
		{Service: web().Service, Numerator: 1, Denominator: 1000},
	}
	rule := route.Rule{Backends: backends(1)}
	for i, m := range all {
		if i%2 == 0 {
			rule.Filters = append(rule.Filters, route.Filter{Mirror: m})
		} else {
			rule.Backends[0].Filters = append(rule.Backends[0].Filters, route.Filter{Mirror: m})
		}
	}
	s, _ := splits(t, nil, rule)
	var got []int
	for _, m := range all {
		n := 0
		for range 1000 {
			if s.Mirrored(m) {
				n++
			}
		}
		got = append(got, n)
	}
	if want := []int{1000, 250, 0, 0, 1}; !slices.Equal(got, want) {
		t.Errorf("of 1000 requests %v are mirrored, want %v", got, want)
	}
}
