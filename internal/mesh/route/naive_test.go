package route_test

import (
	"net/url"
	"regexp"
	"strings"

	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// naive is the Gateway API's text, sentence by sentence, in the plainest code: the
// oracle of the Table. It returns the target as ID and index of its rule.
func naive(routes []route.Route, r *route.Request) (route.Outcome, route.ID, int) {
	// GEP-1426: "Requests from a namespace with consumer routes will utilize the (possibly merged)
	// set of routes in the consumer namespace. Requests from other namespaces will utilize the
	// (possibly merged) set of routes in the producer namespace."
	var producers, consumers []route.Route
	for _, each := range routes {
		for _, p := range each.Parents {
			if p != r.To {
				continue
			}
			if each.Namespace == p.Service.Namespace {
				producers = append(producers, each)
			} else if each.Namespace == r.From {
				consumers = append(consumers, each)
			}
		}
	}
	applicable := producers
	if len(consumers) > 0 {
		applicable = consumers
	}
	if len(applicable) == 0 {
		return route.Unrouted, route.ID{}, 0
	}
	best, found := naiveMatch{}, false
	for _, each := range applicable {
		exact, all, ok := naiveHost(each.Hostnames, r.Host)
		if !ok {
			continue
		}
		for i := range each.Rules {
			matches := each.Rules[i].Matches
			if len(matches) == 0 {
				matches = []route.Match{{}}
			}
			for j := range matches {
				if !naiveMatches(each.Kind, &matches[j], r) {
					continue
				}
				m := naiveMatch{exact, all, each, i, &matches[j]}
				if !found || m.before(&best) {
					best, found = m, true
				}
			}
		}
	}
	// "When no rules matching a request have been successfully attached to the parent a request is
	// coming from, a HTTP 404 status code MUST be returned."
	if !found {
		return route.NotFound, route.ID{}, 0
	}
	return route.Routed, best.route.ID, best.rule
}

type naiveMatch struct {
	exactHost, host int // characters in a matching non-wildcard hostname, in a matching hostname
	route           route.Route
	rule            int
	match           *route.Match
}

// naiveHost: "precedence must be given to rules from the HTTPRoute with the largest number of:
// Characters in a matching non-wildcard hostname. Characters in a matching hostname."
func naiveHost(hostnames []string, authority string) (exact, all int, ok bool) {
	if len(hostnames) == 0 {
		return 0, 0, true
	}
	// "Implementations MUST ignore any port value specified in the HTTP Host header"
	host := strings.ToLower(regexp.MustCompile(`:[0-9]*$`).ReplaceAllString(authority, ""))
	if host = strings.TrimSuffix(host, "."); len(host) > 253 {
		return 0, 0, false
	}
	for _, h := range hostnames {
		// "Hostnames that are prefixed with a wildcard label (*.) are interpreted as a suffix match."
		if suffix, wild := strings.CutPrefix(h, "*"); wild && strings.HasSuffix(host, suffix) && host != suffix {
			all, ok = max(all, len(h)), true
		} else if h == host {
			exact, all, ok = len(h), max(all, len(h)), true
		}
	}
	return exact, all, ok
}

// before: "MUST prioritize matches based on the following criteria, continuing on ties."
func (a *naiveMatch) before(b *naiveMatch) bool {
	for _, criterion := range []func(*naiveMatch) int{
		func(m *naiveMatch) int { return m.exactHost },
		func(m *naiveMatch) int { return m.host },
	} {
		if x, y := criterion(a), criterion(b); x != y {
			return x > y
		}
	}
	criteria := []func(*naiveMatch) int{
		func(m *naiveMatch) int { return one(m.match.Path.Type == route.PathExact) }, // "Exact" path match.
		// Ours: "The precedence of RegularExpression path matches are implementation-specific."
		func(m *naiveMatch) int { return one(m.match.Path.Type == route.PathExpression) },
		func(m *naiveMatch) int { // "Prefix" path match with largest number of characters.
			if m.match.Path.Type == route.PathPrefix {
				return len(strings.TrimSuffix(m.match.Path.Value, "/"))
			}
			return len(m.match.Path.Value)
		},
		func(m *naiveMatch) int { return one(m.match.Method != "") }, // Method match.
		func(m *naiveMatch) int { return len(m.match.Headers) },      // Largest number of header matches.
		func(m *naiveMatch) int { return len(m.match.Params) },       // Largest number of query param matches.
	}
	if a.route.Kind == route.GRPC {
		class := func(m *naiveMatch, value string) int { // ours: exact before expressions before none
			switch {
			case value == "":
				return 0
			case m.match.Call.Expression:
				return 1
			}
			return 2
		}
		criteria = []func(*naiveMatch) int{
			func(m *naiveMatch) int { return class(m, m.match.Call.Service) },
			func(m *naiveMatch) int { return len(m.match.Call.Service) }, // Characters in a matching service.
			func(m *naiveMatch) int { return class(m, m.match.Call.Method) },
			func(m *naiveMatch) int { return len(m.match.Call.Method) }, // Characters in a matching method.
			func(m *naiveMatch) int { return len(m.match.Headers) },     // Header matches.
		}
	}
	for _, criterion := range criteria {
		if x, y := criterion(a), criterion(b); x != y {
			return x > y
		}
	}
	// "The oldest Route based on creation timestamp."
	if !a.route.Created.Equal(b.route.Created) {
		return a.route.Created.Before(b.route.Created)
	}
	// "The Route appearing first in alphabetical order by {namespace}/{name}."
	if a.route.Namespace != b.route.Namespace {
		return a.route.Namespace < b.route.Namespace
	}
	if a.route.Name != b.route.Name {
		return a.route.Name < b.route.Name
	}
	// "If ties still exist within an HTTPRoute, matching precedence MUST be granted to the FIRST
	// matching rule (in list order)"
	return a.rule < b.rule
}

func one(b bool) int {
	if b {
		return 1
	}
	return 0
}

func naiveMatches(kind route.Kind, m *route.Match, r *route.Request) bool {
	if kind == route.GRPC {
		if !naiveCall(&m.Call, r) {
			return false
		}
	} else if !naivePath(&m.Path, r.Path) || m.Method != "" && m.Method != r.Method {
		return false
	}
	// "Multiple match values are ANDed together"
	for i := range m.Headers {
		if value, ok := naiveHeader(r, m.Headers[i].Name); !ok || !naiveValue(&m.Headers[i], value) {
			return false
		}
	}
	for i := range m.Params {
		if value, ok := naiveParam(r.Query, m.Params[i].Name); !ok || !naiveValue(&m.Params[i], value) {
			return false
		}
	}
	return true
}

func naivePath(p *route.PathMatch, path string) bool {
	switch p.Type {
	case route.PathExact: // "Matches the URL path exactly and with case sensitivity."
		return path == p.Value
	case route.PathExpression:
		return regexp.MustCompile(`^(?:` + p.Value + `)$`).MatchString(path)
	}
	// "Matching is case-sensitive and done on a path element by element basis. When specified, a
	// trailing / is ignored." The default "has the effect of matching every HTTP request".
	prefix := strings.TrimSuffix(p.Value, "/")
	if prefix == "" {
		return true
	}
	want, have := strings.Split(prefix, "/"), strings.Split(path, "/")
	if len(have) < len(want) {
		return false
	}
	for i := range want {
		if want[i] != have[i] {
			return false
		}
	}
	return true
}

func naiveCall(c *route.CallMatch, r *route.Request) bool {
	kind, _ := naiveHeader(r, "content-type")
	parts := regexp.MustCompile(`^/(.+)/([^/]+)$`).FindStringSubmatch(r.Path)
	if r.Method != "POST" || !regexp.MustCompile(`^(?i:application/grpc)([+; ].*)?$`).MatchString(kind) || parts == nil {
		return false
	}
	for i, want := range []string{c.Service, c.Method} {
		have := parts[i+1]
		switch {
		case want == "": // "If left empty or omitted, will match any service."
		case c.Expression && !regexp.MustCompile(`^(?:`+want+`)$`).MatchString(have):
			return false
		case !c.Expression && want != have:
			return false
		}
	}
	return true
}

func naiveHeader(r *route.Request, name string) (string, bool) {
	if strings.EqualFold(name, "host") {
		return r.Host, true
	}
	var values []string
	for _, h := range r.Headers {
		if strings.EqualFold(h.Name, name) { // "Name matching MUST be case-insensitive."
			values = append(values, h.Value)
		}
	}
	if strings.EqualFold(name, "cookie") {
		return strings.Join(values, "; "), len(values) > 0
	}
	return strings.Join(values, ", "), len(values) > 0
}

// naiveParam: "it is recommended that implementations should match against the first value of the param".
func naiveParam(query, name string) (string, bool) {
	for pair := range strings.SplitSeq(query, "&") {
		k, v, _ := strings.Cut(pair, "=")
		if naiveUnescape(k) == name && pair != "" {
			return naiveUnescape(v), true
		}
	}
	return "", false
}

func naiveUnescape(s string) string {
	// What is no escape stands for itself.
	s = regexp.MustCompile(`%([^0-9a-fA-F]|.?$|.[^0-9a-fA-F])`).ReplaceAllString(s, "%25$1")
	if text, err := url.QueryUnescape(s); err == nil {
		return text
	}
	return s
}

func naiveValue(v *route.ValueMatch, value string) bool {
	if v.Expression {
		return regexp.MustCompile(`^(?:` + v.Value + `)$`).MatchString(value)
	}
	return value == v.Value
}
