package route_test

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/mesh/route/uri"
)

func param(name, value string) []route.Match {
	return []route.Match{{Params: []route.ValueMatch{{Name: name, Value: value}}}}
}

func header(name, value string, expression bool) []route.Match {
	return []route.Match{{Headers: []route.ValueMatch{{Name: name, Value: value, Expression: expression}}}}
}

// costs returns how long something takes, and how many octets it allocates.
func costs(of func()) (time.Duration, uint64) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	of()
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	return took, after.TotalAlloc - before.TotalAlloc
}

// processorTime is what this thread has of the processors for something: not what others take of them meanwhile.
func processorTime(t *testing.T, of func()) time.Duration {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	now := func() time.Duration {
		var at unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &at); err != nil {
			t.Fatal(err)
		}
		return time.Duration(at.Nano())
	}
	began := now()
	of()
	return now() - began
}

// TestRepeatedNamesTakeLinearTime: of parameters, of which the rules ask for the last of
// the query or for none, and of headers. Four times as many take four times as long, where
// comparing each with each would take sixteen times.
func TestRepeatedNamesTakeLinearTime(t *testing.T) {
	const most = 10
	var byParam, byHeader route.Route = routeOf("p"), routeOf("h")
	for i := range 9 {
		byParam.Rules = append(byParam.Rules, route.Rule{Matches: param("a", fmt.Sprint(i))})
		byHeader.Rules = append(byHeader.Rules, route.Rule{Matches: header("a", fmt.Sprint(i), false)})
	}
	params, headers := mustTable(t, byParam), mustTable(t, byHeader)
	query := func(n int) *route.Request {
		return &route.Request{To: web(), Path: "/", Query: strings.Repeat("b&", n) + strings.Repeat("a&", n)}
	}
	fieldsOf := func(n int) *route.Request {
		return &route.Request{To: web(), Path: "/", Headers: append(slices.Repeat(fields("b", ""), n), slices.Repeat(fields("a", ""), n)...)}
	}
	for _, test := range []struct {
		name  string
		table *route.Table
		of    func(n int) *route.Request
		n     int
	}{
		{"parameters", params, query, route.MaxQuery / 16}, // four times as many are as long as may be
		{"headers", headers, fieldsOf, route.MaxQuery / 4},
	} {
		takes := func(request *route.Request) time.Duration {
			return processorTime(t, func() {
				if got := test.table.Match(request).Outcome; got != route.NotFound {
					t.Errorf("%s: the request is %s, want NotFound", test.name, got)
				}
			})
		}
		few, many := test.of(test.n), test.of(4*test.n)
		base, took := min(takes(few), takes(few), takes(few)), time.Hour
		for n := 0; n < 5 && took > most*base; n++ {
			took = min(took, takes(many))
		}
		if t.Logf("%s: %v, four times as many %v", test.name, base, took); took > most*base {
			t.Errorf("%s: a match takes %v, of four times as many %v", test.name, base, took)
		}
	}
	longer := query(route.MaxQuery / 4)
	longer.Query += "a&"
	var got route.Outcome
	if took := processorTime(t, func() { got = params.Match(longer).Outcome }); got != route.TooCostly || took > 10*time.Millisecond*slower { // it takes some µs
		t.Errorf("a query that is too long: the request is %s after %v, want TooCostly", got, took)
	}
}

// TestWorkEndsAMatch: when there is none left, nothing is tried, joined or decoded any more.
func TestWorkEndsAMatch(t *testing.T) {
	var routes, params []route.Route
	for i := range 40 {
		r, p := routeOf(fmt.Sprintf("r%d", i)), routeOf(fmt.Sprintf("p%d", i))
		for j := range route.MaxMatches {
			r.Rules = append(r.Rules, route.Rule{Matches: header("x-long", fmt.Sprintf("(.*a){3}(%d|c)x?", j), true)})
			p.Rules = append(p.Rules, route.Rule{Matches: []route.Match{{Params: []route.ValueMatch{{Name: "p", Value: fmt.Sprintf("(.*a){3}(%d|c)x?", j), Expression: true}}}}})
		}
		routes, params = append(routes, r), append(params, p)
	}
	long := strings.Repeat("a", 16<<10)
	for _, test := range []struct {
		name    string
		table   *route.Table
		request route.Request
	}{
		{"a header that is repeated", mustTable(t, routes...), route.Request{To: web(), Path: "/", Headers: fields("x-long", long, "x-long", long)}},
		{"a parameter that has escapes", mustTable(t, params...), route.Request{To: web(), Path: "/", Query: "p=%61" + long}},
	} {
		took, allocated := costs(func() {
			if got := test.table.Match(&test.request).Outcome; got != route.TooCostly {
				t.Errorf("%s: the request is %s, want TooCostly", test.name, got)
			}
		})
		t.Logf("%s: %v, %d KiB", test.name, took, allocated>>10)
		if allocated > 1<<20 || took > 100*time.Millisecond*slower {
			t.Errorf("%s: a match takes %v and %d KiB", test.name, took, allocated>>10)
		}
	}
}

// TestRoutesHoldLittle: prefixes of as many segments as may be.
func TestRoutesHoldLittle(t *testing.T) {
	var routes []route.Route
	for i := range 10 {
		r := routeOf(fmt.Sprintf("r%d", i))
		for j := range route.MaxMatches {
			prefix := fmt.Sprintf("/%d-%d", i, j) + strings.Repeat("/a-long-segment", route.MaxSegments-1)
			r.Rules = append(r.Rules, route.Rule{Matches: []route.Match{{Path: route.PathMatch{Value: prefix}}}})
		}
		routes = append(routes, r)
	}
	var table *route.Table
	_, allocated := costs(func() { table = mustTable(t, routes...) })
	t.Logf("a table of 1,280 prefixes takes %d KiB", allocated>>10)
	if allocated > 16<<20 {
		t.Errorf("a table of 1,280 prefixes takes %d KiB, want less than 16 MiB", allocated>>10)
	}
	r := route.Request{To: web(), Path: "/9-127" + strings.Repeat("/a-long-segment", route.MaxSegments+10)}
	if got := said(table.Match(&r)); got != "HTTPRoute shop/r9 rules[127]" {
		t.Errorf("a long path goes to %s, want shop/r9 rules[127]", got)
	}
}

// TestRouteBounds: what one route may hold, with field and remedy.
func TestRouteBounds(t *testing.T) {
	var steps, ranges [][]route.Match
	for i := range 100 {
		steps = append(steps, header("x", fmt.Sprintf("a{900}%d", i), true))
		ranges = append(ranges, header("x", fmt.Sprintf(`\pL{4}%d`, i), true))
	}
	for _, test := range []struct {
		says  string
		rules [][]route.Match
	}{
		{"path.value: has 65 segments; write a prefix of at most 64", [][]route.Match{{{Path: route.PathMatch{Value: strings.Repeat("/a", 65)}}}}},
		{"rules[70].matches: the regular expressions of the route have ", steps},
		{"rules[12].matches: the regular expressions of the route have ", ranges},
		{"queryParams[0]: is too long; write a name of at most 1024", [][]route.Match{param(strings.Repeat("a", 1025), "")}},
	} {
		_, err := route.NewTable([]route.Route{routeOf("a", test.rules...)})
		if err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("error is %v, want one that says %s", err, test.says)
		}
	}
}

// TestLookedUpBeforeTried: a rule that is looked up wins, without the expressions of the
// rules after it.
func TestLookedUpBeforeTried(t *testing.T) {
	first, after := routeOf("a"), routeOf("b")
	for i := range 120 {
		first.Rules = append(first.Rules, route.Rule{Matches: header("x-k", fmt.Sprint(i), false)})
		after.Rules = append(after.Rules, route.Rule{Matches: header("x-v", fmt.Sprintf("(.*a){40}(%d|b)", i), true)})
	}
	table := mustTable(t, first, after)
	r := route.Request{To: web(), Path: "/", Headers: fields("x-k", "7", "x-v", strings.Repeat("a", 4000))}
	if got := said(table.Match(&r)); got != "HTTPRoute shop/a rules[7]" {
		t.Errorf("the request goes to %s, want HTTPRoute shop/a rules[7]", got)
	}
}

// TestOrdinaryExpressionsFit: what people write is not TooCostly.
func TestOrdinaryExpressionsFit(t *testing.T) {
	var paths []route.Route
	for i := range 12 {
		r := routeOf(fmt.Sprintf("r%02d", i))
		for j := range route.MaxMatches {
			r.Rules = append(r.Rules, route.Rule{Matches: []route.Match{{Path: route.PathMatch{Type: route.PathExpression, Value: fmt.Sprintf("/api/v[0-9]+/r%d", i*route.MaxMatches+j)}}}})
		}
		paths = append(paths, r)
	}
	cookies := routeOf("c")
	for i := range 6 {
		cookies.Rules = append(cookies.Rules, route.Rule{Matches: header("cookie", fmt.Sprintf("(.*; )?group=[a-z]+%d(;.*)?", i), true)})
	}
	half := "group=beta5; " + strings.Repeat("x=y; ", 400)
	for _, test := range []struct {
		name, want string
		table      *route.Table
		request    route.Request
	}{
		{"1,536 paths", "HTTPRoute shop/r11 rules[127]", mustTable(t, paths...), route.Request{To: web(), Path: "/api/v1234567890123456789012/r1535"}},
		{"all that may be", "NotFound", mustTable(t, routeOf("a", []route.Match{{Path: route.PathMatch{Type: route.PathExpression, Value: "/(.*a){20}(1|b)"}}})),
			route.Request{To: web(), Path: "/" + strings.Repeat("a", 6500)}},
		{"6 for a long cookie", "HTTPRoute shop/c rules[5]", mustTable(t, cookies), route.Request{To: web(), Path: "/", Headers: fields("cookie", half, "cookie", half)}},
	} {
		if got := said(test.table.Match(&test.request)); got != test.want {
			t.Errorf("%s: the request goes to %s, want %s", test.name, got, test.want)
		}
		var times []time.Duration
		for range 41 {
			took, _ := costs(func() { test.table.Match(&test.request) })
			times = append(times, took)
		}
		slices.Sort(times)
		t.Logf("%s: %v", test.name, times[len(times)/2])
	}
}

// TestEscapesDoNotMatter: a parameter is found whether it is looked up or tried, escaped
// or not.
func TestEscapesDoNotMatter(t *testing.T) {
	value := strings.Repeat("v", 400)
	escaped := strings.Repeat("%76", 400)
	few, many := routeOf("a", param("tenant", value)), routeOf("a", param("tenant", value))
	for i := range 12 {
		many.Rules = append(many.Rules, route.Rule{Matches: param("tenant", fmt.Sprint(i))})
	}
	for name, table := range map[string]*route.Table{"tried": mustTable(t, few), "looked up": mustTable(t, many)} {
		for _, query := range []string{"tenant=" + value, "tenant=" + escaped, strings.Repeat("&", 6) + "%74enant=" + escaped} {
			r := route.Request{To: web(), Path: "/", Query: query}
			if got := said(table.Match(&r)); got != "HTTPRoute shop/a rules[0]" {
				t.Errorf("%s: %.20s... goes to %s, want rules[0]", name, query, got)
			}
		}
	}
}

// TestPathsAreOne: a rule and a request may each write a path in another way.
func TestPathsAreOne(t *testing.T) {
	for rule, path := range map[string]string{"/v1/x:admin": "/v1/x%3Aadmin", "/@admin": "/%40admin", "/a%40b": "/a@b", "/$x": "/%24x", "/{x}": "/%7Bx%7d", "/a%7Cb": "/a|b", "/(a),!'*": "/%28a%29%2c%21%27%2A"} {
		table := mustTable(t, routeOf("a", []route.Match{{Path: route.PathMatch{Value: rule}}}), routeOf("b", []route.Match{{Path: route.PathMatch{Type: route.PathExact, Value: rule + "/x"}}}))
		for suffix, want := range map[string]string{"": "HTTPRoute shop/a rules[0]", "/x": "HTTPRoute shop/b rules[0]"} {
			normal, _ := uri.NormalPath(path + suffix)
			r := route.Request{To: web(), Path: normal}
			if got := said(table.Match(&r)); got != want {
				t.Errorf("%s goes to %s, want %s, as %s is %s", path+suffix, got, want, rule, normal)
			}
		}
	}
}

// TestManyNames: more than one match keeps, and more than are marked without allocation.
func TestManyNames(t *testing.T) {
	var full route.Match
	r := route.Request{To: web(), Path: "/"}
	for i := range route.MaxValues {
		name := fmt.Sprintf("n%d", i)
		full.Headers = append(full.Headers, route.ValueMatch{Name: name, Value: "h[0-9]+", Expression: true})
		full.Params = append(full.Params, route.ValueMatch{Name: name, Value: fmt.Sprintf("p %d", i)})
		r.Headers = append(r.Headers, route.Header{Name: strings.ToUpper(name), Value: fmt.Sprintf("h%d", i)})
		r.Query += fmt.Sprintf("&%s=p+%d", name, i)
	}
	table := mustTable(t, routeOf("a", []route.Match{full}, []route.Match{full}))
	if got := said(table.Match(&r)); got != "HTTPRoute shop/a rules[0]" {
		t.Errorf("a request with all values goes to %s, want rules[0]", got)
	}
	r.Query = strings.Replace(r.Query, "p+15", "p+16", 1)
	if got := table.Match(&r).Outcome; got != route.NotFound {
		t.Errorf("a request with one other value is %s, want NotFound", got)
	}
	var routes []route.Route
	for i := range 12 {
		each := routeOf(fmt.Sprintf("r%02d", i))
		for j := range 100 {
			each.Rules = append(each.Rules, route.Rule{Matches: param(fmt.Sprint(i*100+j), "1")})
		}
		routes = append(routes, each)
	}
	table = mustTable(t, routes...)
	for query, want := range map[string]string{"1199=0&1199=1&1100=1": "HTTPRoute shop/r11 rules[0]", "1198=0&1199=1&1198=1": "HTTPRoute shop/r11 rules[99]", "5=1&1199=1": "HTTPRoute shop/r00 rules[5]", "1150=0&1150=1": "NotFound"} {
		r := route.Request{To: web(), Path: "/", Query: query}
		if got := said(table.Match(&r)); got != want {
			t.Errorf("%s goes to %s, want %s", query, got, want)
		}
	}
}

// TestLargestExpressionsHoldLittle: as many as one route may have.
func TestLargestExpressionsHoldLittle(t *testing.T) {
	for name, text := range map[string]string{"steps": "a{900}%d", "ranges": `\pL{6}%d`, "small ones": "a%d"} {
		r := routeOf("a")
		var room route.Room
		for i := 0; ; i++ {
			rule := route.Rule{Matches: []route.Match{{}}}
			for j := range route.MaxValues {
				v := route.ValueMatch{Name: fmt.Sprintf("n%d", j), Value: fmt.Sprintf(text, i), Expression: true}
				rule.Matches[0].Headers, rule.Matches[0].Params = append(rule.Matches[0].Headers, v), append(rule.Matches[0].Params, v)
				if name != "small ones" {
					break
				}
			}
			if room.Take(&rule) != nil {
				break
			}
			r.Rules = append(r.Rules, rule)
		}
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		table := mustTable(t, r)
		runtime.GC()
		runtime.ReadMemStats(&after)
		held := int64(after.HeapAlloc) - int64(before.HeapAlloc)
		t.Logf("%s: %d rules hold %d KiB", name, len(r.Rules), held>>10)
		if held > 16<<20 {
			t.Errorf("%s: the largest route holds %d KiB, want less than 16 MiB", name, held>>10)
		}
		runtime.KeepAlive(table)
	}
}
