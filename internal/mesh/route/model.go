package route

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
)

// Kind is the kind of a Route.
type Kind uint8

// The kinds of routes.
const (
	HTTP Kind = iota
	GRPC
	TLS
	TCP
)

// String returns the kind of the object: "HTTPRoute", "GRPCRoute", "TLSRoute" or "TCPRoute".
func (k Kind) String() string {
	return [...]string{HTTP: "HTTPRoute", GRPC: "GRPCRoute", TLS: "TLSRoute", TCP: "TCPRoute"}[k]
}

// Requests reports whether routes of the kind are about requests: the others are about connections, as a whole.
func (k Kind) Requests() bool { return k == HTTP || k == GRPC }

// ID names a Route. It is comparable.
type ID struct {
	Kind Kind
	keyed.Key
}

// String returns "HTTPRoute shop/web".
func (id ID) String() string { return fmt.Sprintf("%s %s", id.Kind, id.Key) }

// Parent is where requests arrive that a Route is about: a port of a service.
type Parent struct {
	Service keyed.Key
	Port    uint16
}

// String returns "shop/web:80".
func (p Parent) String() string { return fmt.Sprintf("%s:%d", p.Service, p.Port) }

// Route is one HTTPRoute, GRPCRoute, TLSRoute or TCPRoute, as far as it is in force.
//
// A Route in the namespace of its parent is a producer's: it is for all clients that
// have no consumer's. One in another namespace is a consumer's: it is for clients in
// its own namespace, and takes the place of all producers' routes for them
// (GEP-1426, "Namespace boundaries" and "Multiple routes for a Service").
type Route struct {
	ID
	// Created is when the object was: of two routes that match equally well, the older wins.
	Created time.Time
	// Parents are each named once.
	Parents []Parent
	// Hostnames are in lower case, the first label may be "*"; without any, the Route is
	// for every host. Those of a TLSRoute are compared with the server's name in the ClientHello. Other
	// routes that were attached to services have none: see GEP-1426.
	Hostnames []string
	Rules     []Rule
}

// Rule says what to do with the requests that one of its matches is for. Those of routes that are about connections have
// a Name and Backends alone, which share connections.
type Rule struct {
	// Name says which rule of its object it is: its name, or its place, rules[2].
	Name string
	// Matches are alternatives; without any, the Rule is for every request.
	Matches []Match
	// Filters are carried out in their order.
	Filters []Filter
	// Backends share the requests by weight, those that cannot be had included: theirs
	// are answered with 500, or UNAVAILABLE. Without any, all are, unless a filter redirects.
	Backends []Backend
	// RequestTimeout bounds a request with all of its retries, BackendTimeout each try; 0
	// is no bound, and has no bound been said as well.
	RequestTimeout, BackendTimeout time.Duration
	// Retry is nil when nothing is said of retries.
	Retry *Retry
	// Session is nil when requests of one client may go to different backends.
	Session *Session
}

// Match is a set of conditions that must all hold.
type Match struct {
	// Path is that of an HTTP request; the zero PathMatch is for all.
	Path PathMatch
	// Method is an HTTP method; "" is any.
	Method string
	// Call is that of a gRPC request; the zero CallMatch is for all.
	Call CallMatch
	// Headers and Params (of the query) must all match. Of those with one name, the first
	// counts.
	Headers, Params []ValueMatch
}

// Template is what a Match says of paths, as people write it: /cart for one path, /cart/* for
// all below it, ~ and an expression, or /SERVICE/METHOD of gRPC with * for any. There are as
// many as there are matches, whatever clients ask for.
func (m *Match) Template(kind Kind) string {
	if kind == GRPC {
		text := "/" + cmp.Or(m.Call.Service, "*") + "/" + cmp.Or(m.Call.Method, "*")
		if m.Call.Expression {
			return "~" + text
		}
		return text
	}
	switch m.Path.Type {
	case PathExact:
		return m.Path.Value
	case PathExpression:
		return "~" + m.Path.Value
	}
	return strings.TrimSuffix(m.Path.Value, "/") + "/*"
}

// PathMatch is a condition on the path of a request.
type PathMatch struct {
	Type PathType
	// Value begins with "/", unless it is an expression, or empty: every path.
	Value string
}

// PathType says how a path is compared.
type PathType uint8

// The kinds of comparison, of which the zero value is Kubernetes' default.
const (
	// PathPrefix compares whole segments; a slash at the end of the value does not count.
	PathPrefix PathType = iota
	PathExact
	// PathExpression matches the whole path by a regular expression of RE2.
	PathExpression
)

// CallMatch is a condition on the service and the method of a gRPC request.
type CallMatch struct {
	// Service and Method are compared whole; "" is any.
	Service, Method string
	// Expression is set when the two are regular expressions of RE2, for the whole of each.
	Expression bool
}

// ValueMatch is a condition on one header, or one parameter of the query.
//
// A header has a value when it is there; one that is repeated has all values, joined
// by ", " (RFC 9110, section 5.2), Cookie by "; " (RFC 9113, section 8.2.3). The header
// "host" is the authority of the request, as it was sent.
//
// Of a parameter that is repeated the first value counts. Names and values are compared
// as they are after escapes are decoded, "+" as a space; what looks like an escape and is none stands for
// itself.
type ValueMatch struct {
	// Name of a header is compared without regard to case.
	Name string
	// Value is compared whole.
	Value string
	// Expression is set when Value is a regular expression of RE2, for the whole value.
	Expression bool
}

// Backend is where requests go, and how many.
type Backend struct {
	Service keyed.Key
	Port    uint16
	// Weight is the share of requests, of the sum of all weights of the Rule.
	Weight uint32
	// Broken says why requests cannot be sent there; "" when they can.
	Broken string
	// Filters are for requests that go to this backend, after the Rule's.
	Filters []Filter
}

// Filter is one step. Exactly one of its fields is set.
type Filter struct {
	RequestHeaders, ResponseHeaders *Headers
	Redirect                        *Redirect
	Rewrite                         *Rewrite
	Mirror                          *Mirror
	CORS                            *CORS
	// Broken says why the step cannot be taken: the request is answered with 500.
	Broken string
}

// Headers changes headers: Remove, then Set, then Add.
type Headers struct {
	Set, Add []Header
	Remove   []string
}

// Header is a name, in lower case, and a value.
type Header struct{ Name, Value string }

// Redirect answers a request with another place to ask.
type Redirect struct {
	// Scheme, Hostname and Port are those of the request when empty, or 0; see Location.
	Scheme, Hostname string
	Port             uint16
	// Path is nil when it stays.
	Path *PathChange
	// Status is 301, 302, 303, 307 or 308.
	Status int
}

// Rewrite changes where a request goes to.
type Rewrite struct {
	// Hostname is the new authority; "" leaves it.
	Hostname string
	// Path is nil when it stays.
	Path *PathChange
}

// PathChange replaces a path, or the prefix of it that was matched.
type PathChange struct {
	Prefix bool
	Value  string
}

// Mirror sends a copy of a request to a backend too, and forgets the answer.
type Mirror struct {
	Service keyed.Key
	Port    uint16
	// Broken says why copies cannot be sent; then there are none.
	Broken string
	// Numerator of Denominator requests are copied.
	Numerator, Denominator uint32
}

// Retry says when a request is tried again.
type Retry struct {
	// Codes are the statuses that are tried again, besides connections that fail.
	Codes []uint16
	// Attempts is the number of tries after the first one; negative when nothing is said of it.
	Attempts int
	// Backoff is the pause before the first of them; 0 when nothing is said of it.
	Backoff time.Duration
}

// Session keeps the requests of one client at one backend, and with one of its workloads, by a token: see Splits.Session.
type Session struct {
	// Name is that of a cookie, or of a header if Header is set. No two rules that answer one
	// client may have the same.
	Name   string
	Header bool
	// Permanent cookies outlive the client's process, until AbsoluteTimeout.
	Permanent bool
	// AbsoluteTimeout ends a session; 0 is never.
	AbsoluteTimeout time.Duration
}
