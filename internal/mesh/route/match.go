package route

import (
	"strings"

	"github.com/heddle-mesh/heddle/internal/mesh/route/pattern"
	"github.com/heddle-mesh/heddle/internal/mesh/route/uri"
)

// Request is what is known of a request. Match does not change it.
type Request struct {
	// To is the port of the service that the client asked for.
	To Parent
	// From is the namespace of the client; "" when it is in none.
	From string
	// Host is the authority of the request, with its port if there is one.
	Host string
	// Method is the HTTP method.
	Method string
	// Path is in the form of uri.NormalPath, without the query.
	Path string
	// Query is what follows "?", as it was sent.
	Query string
	// Headers are in their order, without HTTP/2's pseudo-headers.
	Headers []Header
}

// SetTarget sets Path and Query by a request's target, as it came; false when it has no path that is one.
func (r *Request) SetTarget(target string) (ok bool) {
	raw, query, _ := strings.Cut(target, "?")
	r.Query = query
	r.Path, ok = uri.NormalPath(raw)
	return ok
}

// Outcome says what became of a request.
type Outcome uint8

// The outcomes. The zero value refuses.
const (
	// NotFound: there are routes, and none has a rule for it. It is to be answered with 404, or
	// UNIMPLEMENTED.
	NotFound Outcome = iota
	// Unrouted: no route is about it. It goes to the service, as if there were no waypoint. So do requests on
	// connections that were there before routes about connections were.
	Unrouted
	// Routed: a rule says what is to be done.
	Routed
	// TooCostly: finding out would cost more than MaxWork. It is to be answered with 500.
	TooCostly
)

// String returns the name of an Outcome.
func (o Outcome) String() string {
	return [...]string{NotFound: "NotFound", Unrouted: "Unrouted", Routed: "Routed", TooCostly: "TooCostly"}[o]
}

// Decision is what is to be done with a request.
type Decision struct {
	Outcome Outcome
	// Target is nil unless Outcome is Routed.
	Target *Target
	// Prefix is the part of the path that was matched by a PathPrefix, without a slash at its
	// end; see PathChange.
	Prefix string
	// Match is the one that the request is as; nil unless Outcome is Routed.
	Match *Match
}

// MaxWork is what one Match may cost, in steps: for each regular expression that is
// tried its instructions times the length of what it is matched with, and less for each
// match, header and octet of a query that is looked at.
const MaxWork = 1 << 20

// MaxQuery is the length of the longest query that rules look for parameters in, in octets.
const MaxQuery = 64 << 10

const (
	maxHost  = 253  // RFC 1035
	maxName  = 256  // the Gateway API's longest name of a header
	maxParam = 1024 // of its name
)

// search is one Match.
type search struct {
	req  *Request
	work int // that is left
	// service and call are the two parts of a gRPC path.
	service, call string
	// found are the headers and parameters that were looked up last, and how many ever were.
	found [8]found
	asked int
}

// found is what a request has by one name.
type found struct {
	name, value  string
	param, there bool
}

// spend takes from the work that is left, and reports whether that was enough.
func (s *search) spend(n int) bool {
	s.work -= n
	return s.work >= 0
}

// Match decides about a request. It allocates only to join a header that the request
// repeats, to decode a parameter that has escapes, and where rules of one path look for
// parameters of more than 1,024 names.
func (t *Table) Match(r *Request) Decision {
	from := t.parents[r.To].of(r.From)
	if from == nil || !from.kind.Requests() {
		return Decision{Outcome: Unrouted}
	}
	return from.decide(r)
}

// decide finds the rule for a request, or for a connection.
func (from *site) decide(r *Request) Decision {
	s := search{req: r, work: MaxWork}
	e := from.find(&s)
	switch {
	case s.work < 0:
		return Decision{Outcome: TooCostly}
	case e == nil:
		return Decision{Outcome: NotFound}
	}
	return Decision{Outcome: Routed, Target: e.target, Prefix: e.prefix, Match: e.match}
}

// find asks the routes of the request's host, then those of "*." names that it is under,
// the longest first, then those for any host.
func (s *site) find(q *search) *entry {
	if s.kind == GRPC && !q.splitCall() {
		return nil
	}
	if len(s.hosts) > 0 || len(s.wild) > 0 {
		var buf [maxHost]byte
		if name := uri.Host(q.req.Host); len(name) <= maxHost {
			host := lower(buf[:0], name)
			if e := s.hosts[string(host)].find(q, s.kind); e != nil {
				return e
			}
			for i := 1; i < len(host) && len(s.wild) > 0; i++ {
				if host[i] == '.' {
					if e := s.wild[string(host[i:])].find(q, s.kind); e != nil {
						return e
					}
				}
			}
		}
	}
	return s.any.find(q, s.kind)
}

func (s *shelves) find(q *search, kind Kind) *entry {
	if s == nil {
		return nil
	}
	e := s.exact[q.req.Path].find(q)
	if e == nil && kind == GRPC {
		e = s.services[q.service].find(q)
	}
	if e == nil {
		e = s.expressions.find(q)
	}
	switch {
	case e != nil:
	case kind == GRPC:
		if e = s.methods[q.call].find(q); e != nil {
			return e
		}
		if e = s.methodMatch.find(q); e == nil {
			e = s.anyCall.find(q)
		}
	default:
		e = s.prefixes.find(q)
	}
	return e
}

// splitCall takes a path apart into a gRPC service and a method, and reports whether the
// request is a gRPC call (gRPC over HTTP2, "Requests").
func (s *search) splitCall() bool {
	path := s.req.Path
	if s.req.Method != "POST" || path == "" || path[0] != '/' {
		return false
	}
	at, _ := s.req.field("content-type")
	const grpc = "application/grpc"
	if at < 0 || len(s.req.Headers[at].Value) < len(grpc) || !fold(s.req.Headers[at].Value[:len(grpc)], grpc) {
		return false
	}
	if rest := s.req.Headers[at].Value[len(grpc):]; rest != "" && rest[0] != '+' && rest[0] != ';' && rest[0] != ' ' {
		return false
	}
	slash := strings.LastIndexByte(path, '/')
	s.service, s.call = path[1:max(1, slash)], path[slash+1:]
	return slash > 1 && s.call != ""
}

func (s *search) matches(e *entry) bool {
	if !s.spend(2) || e.method != "" && e.method != s.req.Method {
		return false
	}
	for i := range e.headers {
		if !s.holds(&e.headers[i], false) {
			return false
		}
	}
	for i := range e.params {
		if !s.holds(&e.params[i], true) {
			return false
		}
	}
	path := s.req.Path
	if s.service != "" {
		path = s.service
	}
	return (e.path == nil || s.try(e.path, path)) && (e.call == nil || s.try(e.call, s.call))
}

// holds reports whether a header or a parameter is as a condition has it.
func (s *search) holds(c *condition, param bool) bool {
	value, there := s.lookUp(c.name, param)
	switch {
	case !there || s.work < 0:
		return false
	case c.expression != nil:
		return s.try(c.expression, value)
	}
	return value == c.value
}

// try matches a value by an expression, as long as there is work left.
func (s *search) try(e *pattern.Pattern, value string) bool {
	return s.spend(1+len(value)/32) && !e.Excludes(value) && s.spend(e.Cost(value)) && e.Match(value)
}

// lookUp returns the value of a header, or of a parameter, and whether there is one. It
// looks for each name once, as long as few are asked for.
func (s *search) lookUp(name string, param bool) (string, bool) {
	for i := range min(s.asked, len(s.found)) {
		if f := &s.found[i]; f.param == param && f.name == name {
			return f.value, f.there
		}
	}
	f := &s.found[s.asked%len(s.found)]
	s.asked++
	f.name, f.param = name, param
	if param {
		f.value, f.there = s.param(name)
	} else {
		f.value, f.there = s.header(name)
	}
	return f.value, f.there
}

func (s *search) header(name string) (string, bool) {
	if name == "host" {
		return s.req.Host, true
	}
	if !s.spend(1 + len(s.req.Headers)/2) {
		return "", false
	}
	at, again := s.req.field(name)
	switch {
	case at < 0:
		return "", false
	case again:
		return s.joined(at), true
	}
	return s.req.Headers[at].Value, true
}

func (s *search) param(name string) (string, bool) {
	query := s.query()
	for at := 0; at < len(query); {
		if p := uri.NextParam(query, &at); uri.EqualsUnescaped(p.Name, name) {
			return s.decoded(p.Value), true
		}
	}
	return "", false
}

// query returns the query, to be looked through once; nothing when that costs too much.
func (s *search) query() string {
	query := s.req.Query
	if len(query) > MaxQuery {
		s.work = -1
	}
	if !s.spend(len(query) / 4) {
		return ""
	}
	return query
}
