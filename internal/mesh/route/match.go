package route

import "strings"

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
	// Path is in the form of NormalPath, without the query.
	Path string
	// Query is what follows "?", as it was sent.
	Query string
	// Headers are in their order, without HTTP/2's pseudo-headers.
	Headers []Header
}

// Outcome says what became of a request.
type Outcome uint8

// The outcomes. The zero value refuses.
const (
	// NotFound: there are routes, and none has a rule for it. It is to be answered with 404, or
	// UNIMPLEMENTED.
	NotFound Outcome = iota
	// Unrouted: no route is about it. It goes to the service, as if there were no waypoint.
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
}

// MaxWork is what the regular expressions of one Match may cost: for each that is
// tried, its instructions times the length of what it is matched with.
const MaxWork = 1 << 20

const (
	maxHost  = 253 // RFC 1035
	maxName  = 256 // the Gateway API's longest name of a header
	maxParam = 1024
)

// search is one Match.
type search struct {
	req  *Request
	work int // that is left
	// service and call are the two parts of a gRPC path.
	service, call string
}

// Match decides about a request. It allocates only to join a header that the request
// repeats, and to decode a parameter for a regular expression.
func (t *Table) Match(r *Request) Decision {
	at := t.parents[r.To]
	if at == nil {
		return Decision{Outcome: Unrouted}
	}
	from := at.producers
	if r.From != "" && len(at.consumers) > 0 {
		if s := at.consumers[r.From]; s != nil {
			from = s
		}
	}
	if from == nil {
		return Decision{Outcome: Unrouted}
	}
	s := search{req: r, work: MaxWork}
	e := from.find(&s)
	switch {
	case s.work < 0:
		return Decision{Outcome: TooCostly}
	case e == nil:
		return Decision{Outcome: NotFound}
	}
	return Decision{Outcome: Routed, Target: e.target, Prefix: e.prefix}
}

// find asks the routes of the request's host, then those of "*." names that it is under,
// the longest first, then those for any host.
func (s *site) find(q *search) *entry {
	if s.kind == GRPC && !q.splitCall() {
		return nil
	}
	if len(s.hosts) > 0 || len(s.wild) > 0 {
		var buf [maxHost]byte
		if name := hostOf(q.req.Host); len(name) <= maxHost {
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
		for n := s.root.deepest(q.req.Path); n != nil && e == nil; n = n.up {
			e = n.bucket.find(q)
		}
	}
	return e
}

// deepest returns the node of the longest prefix of a path, with a bucket or without.
func (n *node) deepest(path string) *node {
	if n == nil || path == "" || path[0] != '/' {
		return n
	}
	for rest := path[1:]; ; {
		end := strings.IndexByte(rest, '/')
		segment := rest
		if end >= 0 {
			segment = rest[:end]
		}
		below := n.next[segment]
		if below == nil {
			return n
		}
		n = below
		if end < 0 {
			return n
		}
		rest = rest[end+1:]
	}
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
	if e.method != "" && e.method != s.req.Method {
		return false
	}
	for i := range e.headers {
		if !s.header(&e.headers[i]) {
			return false
		}
	}
	for i := range e.params {
		if !s.param(&e.params[i]) {
			return false
		}
	}
	path := s.req.Path
	if s.service != "" {
		path = s.service
	}
	return (e.path == nil || s.try(e.path, path)) && (e.call == nil || s.try(e.call, s.call))
}

// try matches a value by an expression, as long as there is work left.
func (s *search) try(e *expression, value string) bool {
	if s.work < 0 {
		return false
	}
	if s.work -= e.size * (len(value) + 1); s.work < 0 {
		return false
	}
	return e.MatchString(value)
}

// header compares a header with a condition.
func (s *search) header(c *condition) bool {
	if c.name == "host" {
		return s.value(c, s.req.Host)
	}
	at, again := s.req.field(c.name)
	switch {
	case at < 0 || s.work < 0:
		return false
	case again:
		return s.value(c, s.joined(at))
	}
	return s.value(c, s.req.Headers[at].Value)
}

func (s *search) value(c *condition, value string) bool {
	if c.expression != nil {
		return s.try(c.expression, value)
	}
	return value == c.value
}

// param compares the first parameter of a name with a condition.
func (s *search) param(c *condition) bool {
	query := s.req.Query
	for at := 0; at < len(query); {
		p := nextParam(query, &at)
		if !equalsUnescaped(p.name, c.name) {
			continue
		}
		if c.expression == nil {
			return equalsUnescaped(p.value, c.value)
		}
		if strings.IndexByte(p.value, '%') >= 0 || strings.IndexByte(p.value, '+') >= 0 {
			return s.try(c.expression, string(unescape(nil, p.value)))
		}
		return s.try(c.expression, p.value)
	}
	return false
}
