package request_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/internal/mesh/request"
	"github.com/heddle-mesh/heddle/internal/mesh/route/uri"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

type patterns = []request.Pattern

func make1(t testing.TB, host, method, path string, lines ...string) *request.Request {
	t.Helper()
	r := &request.Request{Host: host, Method: method}
	if !r.SetPath(path) {
		t.Fatalf("%q is no path", path)
	}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		r.Headers = append(r.Headers, request.Header{Name: name, Value: value})
	}
	return r
}

// TestMatch has for each request whether a policy that lets in takes it for one that is named, and
// whether one that refuses does: where they differ, readers of the request might.
func TestMatch(t *testing.T) {
	paths := func(p ...request.Pattern) request.Match { return request.Match{Paths: p} }
	header := func(values ...request.Pattern) request.Match {
		return request.Match{Headers: []request.HeaderMatch{{Name: "x-role", Values: values}}}
	}
	get := func(path string, lines ...string) *request.Request {
		return make1(t, "shop.example", "GET", path, lines...)
	}
	for _, test := range []struct {
		name          string
		match         request.Match
		request       *request.Request
		lets, refuses bool
	}{
		{"a path", paths("/admin"), get("/admin"), true, true},
		{"another path", paths("/admin"), get("/admin/x"), false, false},
		{"the case of a path", paths("/admin"), get("/Admin"), false, false},
		{"a prefix", paths("/admin*"), get("/admin/x"), true, true},
		{"a suffix", paths("*.css"), get("/a/b.css"), true, true},
		{"any", paths("*"), get("/a"), true, true},
		{"escaped letters", paths("/admin"), get("/%61dmin"), true, true},
		{"escaped dots", paths("/admin"), get("/x/%2e%2E/admin"), true, true},
		{"dots out of what is let in", paths("/public/*"), get("/public/../admin"), false, false},
		{"an escaped slash", paths("/admin/x"), get("/admin%2Fx"), false, true},
		{"an escaped slash in lower case", paths("/admin/*"), get("/admin%2fx"), false, true},
		{"an escaped slash and dots", paths("/public/*"), get("/public/..%2fadmin"), false, true},
		{"two slashes", paths("/admin"), get("//admin"), false, true},
		{"two slashes inside", paths("/a/b"), get("/a//b"), false, true},
		{"a parameter", paths("/admin"), get("/admin;x=1"), false, true},
		{"a parameter in the way", paths("/admin/x"), get("/admin;v=1/x"), false, true},
		{"an escaped parameter", paths("/admin"), get("/admin%3bx"), false, true},
		{"dots with a parameter", paths("/public/*"), get("/public/..;/admin"), false, true},
		{"what all readers let in", paths("/public/*"), get("/public//a"), true, true},
		{"what all readers let in, with a parameter", paths("/public/*"), get("/public/a;b"), true, true},
		{"not a path", request.Match{NotPaths: patterns{"/admin*"}}, get("/shop"), true, true},
		{"not a path that it is to some", request.Match{NotPaths: patterns{"/admin*"}}, get("//admin"), false, true},
		{"CONNECT", paths("*"), make1(t, "a:1", "CONNECT", ""), false, true},
		{"CONNECT and not a path", request.Match{NotPaths: patterns{"/x"}}, make1(t, "a:1", "CONNECT", ""), false, true},
		{"CONNECT by its method", request.Match{Methods: []string{"CONNECT"}}, make1(t, "a:1", "CONNECT", ""), true, true},
		{"CONNECT and another method", request.Match{Methods: []string{"DELETE"}}, make1(t, "a:1", "CONNECT", ""), false, true},
		{"CONNECT and not a method", request.Match{NotMethods: []string{"DELETE"}}, make1(t, "a:1", "CONNECT", ""), false, true},
		{"CONNECT and another host", request.Match{Hosts: patterns{"admin.shop"}}, make1(t, "a:1", "CONNECT", ""), false, true},
		{"CONNECT by its method, to another host", request.Match{Methods: []string{"CONNECT"}, Hosts: patterns{"b"}}, make1(t, "a:1", "CONNECT", ""), false, true},
		{"CONNECT without a header", header("admin"), make1(t, "a:1", "CONNECT", ""), false, true},
		{"OPTIONS *", paths("/*"), make1(t, "a", "OPTIONS", "*"), false, true},
		{"OPTIONS * and any path", paths("*"), make1(t, "a", "OPTIONS", "*"), true, true},
		{"OPTIONS * and not a path", request.Match{NotPaths: patterns{"/admin"}}, make1(t, "a", "OPTIONS", "*"), false, true},
		{"a slash behind a parameter", paths("/public/*"), get("/public/..;%2Fpublic/admin"), false, true},
		{"a slash behind a parameter, in the middle", paths("/admin/users"), get("/admin;%2Fx/users"), false, true},
		{"a slash behind a parameter, and dots", paths("/admin/users"), get("/admin;%2F../users"), false, true},
		{"a slash behind a parameter, and an end", paths("*.png"), get("/admin;%2Fx.png"), false, true},
		{"an escaped slash, dots behind it", paths("/a/secret"), get("/a/%2F../secret"), false, true},
		{"a form between the two", request.Match{Paths: patterns{"/a/*"}, NotPaths: patterns{"/a/b"}}, get("/a%2F%2Fb"), false, true},
		{"a part of an escape", paths("*Fb"), get("/a%2Fb"), false, false},
		{"what nobody is sure of, and any path", paths("*"), get("/admin;%2Fx"), true, true},

		{"a method", request.Match{Methods: []string{"GET", "POST"}}, get("/"), true, true},
		{"another method", request.Match{Methods: []string{"POST"}}, get("/"), false, false},
		{"the case of a method", request.Match{Methods: []string{"GET"}}, make1(t, "a", "get", "/"), false, true},
		{"not a method", request.Match{NotMethods: []string{"DELETE"}}, get("/"), true, true},
		{"not a method, by its case", request.Match{NotMethods: []string{"DELETE"}}, make1(t, "a", "Delete", "/"), false, true},

		{"a host", request.Match{Hosts: patterns{"shop.example"}}, get("/"), true, true},
		{"the case of a host", request.Match{Hosts: patterns{"shop.example"}}, make1(t, "SHOP.Example", "GET", "/"), true, true},
		{"its port and dot", request.Match{Hosts: patterns{"shop.example"}}, make1(t, "shop.example.:8080", "GET", "/"), true, true},
		{"a host's end", request.Match{Hosts: patterns{"*.example"}}, make1(t, "shop.EXAMPLE:80", "GET", "/"), true, true},
		{"a host's beginning", request.Match{Hosts: patterns{"shop.*"}}, make1(t, "Shop.other", "GET", "/"), true, true},
		{"another host", request.Match{Hosts: patterns{"*.example"}}, make1(t, "example", "GET", "/"), false, false},
		{"not a host", request.Match{NotHosts: patterns{"*.example"}}, get("/"), false, false},
		{"an address", request.Match{Hosts: patterns{"[fd00::1]"}}, make1(t, "[FD00::1]:80", "GET", "/"), true, true},

		{"dots of a host", request.Match{Hosts: patterns{"admin"}}, make1(t, "admin..", "GET", "/"), true, true},
		{"not a host, with dots", request.Match{NotHosts: patterns{"admin"}}, make1(t, "admin..:80", "GET", "/"), false, false},
		{"an address, written out", request.Match{Hosts: patterns{"[fd00::1]"}}, make1(t, "[fd00:0:0:0:0:0:0:01]", "GET", "/"), true, true},
		{"not an address, written out", request.Match{NotHosts: patterns{"[fd00::a01:203]"}}, make1(t, "[FD00::10.1.2.3]:80", "GET", "/"), false, false},
		{"another address", request.Match{Hosts: patterns{"[fd00::1]"}}, make1(t, "[fd00::2]", "GET", "/"), false, false},

		{"CGI's other name of a header", header("admin"), get("/", "X_Role: admin"), false, true},
		{"CGI's other name, another value", header("admin"), get("/", "x_role: user"), false, false},
		{"both names", header("user"), get("/", "x_role: admin", "x-role: user"), false, true},
		{"both names, both named", header("user"), get("/", "x_role: user", "x-role: user"), true, true},
		{"both names, in the other order", header("admin"), get("/", "x-role: user", "x.role: admin"), false, true},
		{"the other name is there", header(), get("/", "x_role: a"), false, true},
		{"both names are there", header(), get("/", "x_role: a", "x-role: a"), true, true},
		{"a name that is no other name", header("admin"), get("/", "x-rolf: admin"), false, false},
		{"as many values as are compared", header("a"), get("/", "x-role: a"+strings.Repeat(",a", 63)), true, true},
		{"more values than are compared", header("a"), get("/", "x-role: a"+strings.Repeat(",a", 64)), false, true},
		{"more values, of which none is named", header("b"), get("/", "x-role: a"+strings.Repeat(",a", 64)), false, true},
		{"more values in several lines", header("b"), get("/", "x-role: a"+strings.Repeat(",a", 32), "x-role: a"+strings.Repeat(",a", 32)), false, true},
		{"an upgrade", request.Match{Headers: []request.HeaderMatch{{Name: "upgrade", Values: patterns{"web*"}}}}, get("/", "Upgrade: websocket"), true, true},
		{"a header", header("admin"), get("/", "X-Role: admin"), true, true},
		{"without it", header("admin"), get("/", "x-other: admin"), false, false},
		{"another value", header("admin"), get("/", "x-role: user"), false, false},
		{"it is there", header(), get("/", "x-role: "), true, true},
		{"it is not there", header(), get("/"), false, false},
		{"two lines, both named", header("admin", "user"), get("/", "x-role: admin", "x-role: user"), true, true},
		{"two lines, one named", header("admin"), get("/", "x-role: admin", "X-Role: user"), false, true},
		{"two lines, the other named", header("admin"), get("/", "x-role: user", "x-role: admin"), false, true},
		{"a list, one named", header("admin"), get("/", "x-role: user, admin"), false, true},
		{"a list, all named", header("admin", "user"), get("/", "x-role: user , admin"), true, true},
		{"a list by a pattern of its end", header("*admin"), get("/", "x-role: user,admin"), false, true},
		{"a list by a pattern of its beginning", header("user*"), get("/", "x-role: user,admin"), false, true},
		{"a list as a whole", header("user, admin"), get("/", "x-role: user, admin"), true, true},
		{"one of two conditions", request.Match{Methods: []string{"POST"}, Paths: patterns{"/a"}}, get("/a"), false, false},
		{"both", request.Match{Methods: []string{"GET"}, Paths: patterns{"/a"}}, get("/a?"[:2]), true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := test.match.Validate(); err != nil {
				t.Fatal(err)
			}
			if lets, refuses := test.match.Match(test.request, true), test.match.Match(test.request, false); lets != test.lets || refuses != test.refuses {
				t.Errorf("lets %v, refuses %v; want %v, %v", lets, refuses, test.lets, test.refuses)
			}
			kept := request.Request{Headers: make([]request.Header, 0, 1)}
			test.request.Keep(&kept, nil)
			if lets, refuses := test.match.Match(&kept, true), test.match.Match(&kept, false); lets != test.lets || refuses != test.refuses {
				t.Errorf("kept: lets %v, refuses %v; want %v, %v", lets, refuses, test.lets, test.refuses)
			}
		})
	}
}

// TestReadersNeverGain: what a policy that lets in names, one that refuses names as well, and both
// conditions and their opposites never let the same request in.
func TestReadersNeverGain(t *testing.T) {
	path := rapid.Custom(func(t *rapid.T) string {
		parts := rapid.SliceOfN(rapid.SampledFrom([]string{"/", "/a", "/b", "..", ".", "%2F", "%2f", "%2e", ";", "%3B", "x", "//", "%41"}), 1, 8)
		return "/" + strings.Join(parts.Draw(t, "path"), "")
	})
	pattern := rapid.SampledFrom(patterns{"/a", "/a/*", "*a", "*", "/b*", "/", "/x/b"})
	rapid.Check(t, func(t *rapid.T) {
		r := request.Request{Host: "h", Method: rapid.SampledFrom([]string{"GET", "get"}).Draw(t, "method")}
		for range rapid.IntRange(0, 2).Draw(t, "lines") {
			r.Headers = append(r.Headers, request.Header{Name: "x-a", Value: rapid.SampledFrom([]string{"1", "2", "1,2", "1, 2", ",", ""}).Draw(t, "value")})
		}
		raw := path.Draw(t, "path")
		if !r.SetPath(raw) {
			return
		}
		paths := rapid.SliceOfN(pattern, 1, 2).Draw(t, "paths")
		for _, pair := range [][2]request.Match{
			{{Paths: paths}, {NotPaths: paths}},
			{{Methods: []string{"GET"}}, {NotMethods: []string{"GET"}}},
		} {
			for _, m := range pair {
				if m.Match(&r, true) && !m.Match(&r, false) {
					t.Fatalf("%+v lets %q in, and would not refuse it", m, raw)
				}
			}
			if pair[0].Match(&r, true) && pair[1].Match(&r, true) {
				t.Fatalf("%+v and the opposite both let %q in", pair[0], raw)
			}
			if !pair[0].Match(&r, false) && !pair[1].Match(&r, false) {
				t.Fatalf("neither %+v nor the opposite refuses %q", pair[0], raw)
			}
		}
		h := request.Match{Headers: []request.HeaderMatch{{Name: "x-a", Values: rapid.SliceOfN(rapid.SampledFrom(patterns{"1", "2*", "*2", "1, 2"}), 1, 2).Draw(t, "values")}}}
		if h.Match(&r, true) && !h.Match(&r, false) {
			t.Fatalf("%+v lets %v in, and would not refuse it", h, r.Headers)
		}
	})
}

// readers are what servers do to a path, each of them or not, in whatever order.
var readers = []func(string) string{
	func(p string) string { return strings.ReplaceAll(p, "%2F", "/") },
	func(p string) string { return strings.ReplaceAll(p, "%3B", ";") },
	func(p string) string { return parameters.ReplaceAllString(p, "") },
	func(p string) string { return escapedParameters.ReplaceAllString(p, "") },
	func(p string) string { return slashes.ReplaceAllString(p, "/") },
	func(p string) string {
		normal, _ := uri.NormalPath(p)
		return normal
	},
}

var parameters, escapedParameters, slashes = regexp.MustCompile(";[^/]*"), regexp.MustCompile("(;|%3B)[^/]*"), regexp.MustCompile("//+")

// readings adds to all what servers make of a path.
func readings(path string, left []func(string) string, all map[string]bool) {
	all[path] = true
	for i, read := range left {
		if got := read(path); got != path {
			readings(got, slices.Delete(slices.Clone(left), i, i+1), all)
		}
	}
}

// names is what patterns say of one reading of a path.
func names(patterns patterns, path string) bool {
	return slices.ContainsFunc(patterns, func(p request.Pattern) bool {
		if text, prefix := strings.CutSuffix(string(p), "*"); prefix {
			return strings.HasPrefix(path, text)
		} else if text, suffix := strings.CutPrefix(string(p), "*"); suffix {
			return strings.HasSuffix(path, text)
		}
		return path == string(p)
	})
}

// TestWhoeverReads: what is let in, is let in by each reading of the path; what any reading has refused, is refused.
func TestWhoeverReads(t *testing.T) {
	parts := rapid.SliceOfN(rapid.SampledFrom([]string{"/", "/", "/a", "/b", "..", ".", "%2F", "%2F", "%2e", ";", "%3B", "x", "//", ".png"}), 1, 8)
	pattern := rapid.SampledFrom(patterns{"/a", "/a/*", "*a", "/b*", "/", "/x/b", "*.png", "/a/b", "*/b", "/b/*", "*b", "/a/b/*"})
	unsure := 0
	check := func(t *rapid.T) {
		raw := "/" + strings.Join(parts.Draw(t, "path"), "")
		normal, ok := uri.NormalPath(raw)
		r := request.Request{Host: "h", Method: "GET"}
		if !ok || !r.SetPath(raw) {
			return
		}
		if r.Path() == "" {
			unsure++
		}
		all := map[string]bool{}
		readings(normal, readers, all)
		m := request.Match{Paths: rapid.SliceOfN(pattern, 0, 3).Draw(t, "paths"), NotPaths: rapid.SliceOfN(pattern, 0, 3).Draw(t, "not")}
		for one := range all {
			named := (len(m.Paths) == 0 || names(m.Paths, one)) && !names(m.NotPaths, one)
			if !named && m.Match(&r, true) {
				t.Fatalf("%+v lets %q in, which a server may read as %q", m, raw, one)
			}
			if named && !m.Match(&r, false) {
				t.Fatalf("%+v does not refuse %q, which a server may read as %q", m, raw, one)
			}
		}
	}
	for range 15 { // of a hundred each
		rapid.Check(t, check)
	}
	if unsure == 0 {
		t.Error("no path is one that nobody is sure of")
	}
}

func TestValidate(t *testing.T) {
	long := strings.Repeat("a", 2000)
	for name, m := range map[string]request.Match{
		"nothing":                        {},
		"an empty path":                  {Paths: patterns{""}},
		"no slash":                       {Paths: patterns{"admin"}},
		"a query":                        {Paths: patterns{"/a?b=1"}},
		"a star in the middle":           {Paths: patterns{"/a*b"}},
		"two stars":                      {Paths: patterns{"*a*"}},
		"dots":                           {Paths: patterns{"/a/../b"}},
		"an escaped letter":              {Paths: patterns{"/%61*"}},
		"a lower-case escape":            {Paths: patterns{"/%c3*"}},
		"raw UTF-8":                      {Paths: patterns{"/ü"}},
		"two slashes":                    {Paths: patterns{"/a//b"}},
		"a parameter":                    {Paths: patterns{"/a;b"}},
		"an escaped slash":               {NotPaths: patterns{"/a%2Fb"}},
		"a part of an escape":            {Paths: patterns{"/a%2*"}},
		"a long path":                    {Paths: patterns{request.Pattern("/" + long)}},
		"a port":                         {Hosts: patterns{"shop:80"}},
		"a scheme":                       {Hosts: patterns{"http://shop"}},
		"capitals":                       {Hosts: patterns{"Shop"}},
		"a dot at the end":               {NotHosts: patterns{"shop."}},
		"a small method":                 {Methods: []string{"get"}},
		"a method's star":                {NotMethods: []string{"*"}},
		"no method":                      {Methods: []string{""}},
		"the header Host":                {Headers: []request.HeaderMatch{{Name: "host"}}},
		"an address in another way":      {Hosts: patterns{"[0:0:0:0:0:0:0:1]"}},
		"no address":                     {Hosts: patterns{"[zz]"}},
		"an address of IPv4 in brackets": {NotHosts: patterns{"[10.0.0.1]"}},
		"another upgrade":                {Headers: []request.HeaderMatch{{Name: "upgrade", Values: patterns{"h2c"}}}},
		"a pseudo-header":                {Headers: []request.HeaderMatch{{Name: ":path"}}},
		"capitals of a header":           {Headers: []request.HeaderMatch{{Name: "X-Role"}}},
		"a header without name":          {Headers: []request.HeaderMatch{{}}},
		"a value with a newline":         {Headers: []request.HeaderMatch{{Name: "a", Values: patterns{"a\n"}}}},
		"a value with a blank":           {Headers: []request.HeaderMatch{{Name: "a", Values: patterns{" a"}}}},
		"too many headers":               {Headers: slices.Repeat([]request.HeaderMatch{{Name: "a"}}, request.MaxHeaders+1)},
		"too many methods":               {Methods: slices.Repeat([]string{"GET"}, request.MaxEntries+1)},
	} {
		if m.Validate() == nil {
			t.Errorf("%s is good", name)
		}
	}
	for _, name := range []string{"connection", "content-length", "transfer-encoding", "te", "expect", "keep-alive", "proxy-connection", "http2-settings", "x-heddle-reason", "trailer",
		"sec-websocket-key", "sec-websocket-accept", "via", "content_length"} {
		if err := request.CheckHeader(name); err == nil || !strings.Contains(err.Error(), "no waypoint hands it on") {
			t.Errorf("header %s: %v", name, err)
		}
	}
	good := request.Match{Hosts: patterns{"*.shop.svc", "shop*", "*", "[::1]", "10.0.0.1"}, Methods: []string{"GET", "M-SEARCH"}, Paths: patterns{"/", "/*", "/a/.*", "*.css", "*/b", "/pkg.Service/Method", "/%C3%BC"},
		Headers: []request.HeaderMatch{{Name: "x-role"}, {Name: "upgrade"}, {Name: "user-agent", Values: patterns{"Mozilla/5.0 (a, b)*"}}}}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
}

func TestMatchAllocatesNothing(t *testing.T) {
	m := request.Match{Hosts: patterns{"*.shop"}, Methods: []string{"GET"}, Paths: patterns{"/b*", "/a/*"}, Headers: []request.HeaderMatch{{Name: "x-role", Values: patterns{"admin"}}}}
	six := request.Match{Hosts: patterns{"[fd00::1]"}, NotHosts: patterns{"[fd00::2]"}}
	r6 := make1(t, "[FD00:0::1]:80", "GET", "/")
	r := make1(t, "A.Shop:80", "GET", "/a/b", "Accept: */*", "X-Role: admin")
	var kept request.Request
	buf := r.Keep(&kept, nil)
	if n := testing.AllocsPerRun(100, func() {
		if !six.Match(r6, true) || !r.SetPath("/a/b") || !m.Match(r, true) || !m.Match(r, false) {
			t.Error("it does not match")
		}
		buf = r.Keep(&kept, buf)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
