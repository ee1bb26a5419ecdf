package flow

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Request is the flow of a request that a waypoint has carried, or has refused. It is a value; what is
// in it is never changed.
type Request struct {
	Start    time.Time
	Duration time.Duration
	// Source is the client, Destination the workload that was asked last; zero without one.
	Source, Destination Endpoint
	// Service is what was dialled, a service and a port, such as shop/cart:80.
	Service string
	Verdict mesh.Verdict
	// Reason is a word: of mesh.Reason, or one of a waypoint's own.
	Reason string
	// Policy and Rule (from 0) decided; the zero Key and -1 when none did.
	Policy mesh.Key
	Rule   int
	// Audited are the AUDIT policies that matched, whatever was decided.
	Audited Names
	// BytesSent came from the client, BytesReceived went to it.
	BytesSent, BytesReceived int64
	HTTP
}

// HTTP is what is told of a request itself. Path is what the route's match says of paths, not the
// request's own.
type HTTP struct {
	Method, Path string
	Status       int // 0 without an answer
	// Own says that the answer, or that there is none, is the waypoint's own: Reason is why.
	Own            bool
	Route, Backend string
	// Tries is how often it was sent to a workload, First why the first try failed.
	Tries int
	First string
}

// The words that stand for a method of a connection that a waypoint has passed on as it is, by a route about connections.
const (
	MethodTLS = "TLS"
	MethodTCP = "TCP"
)

// IsConnection says whether a method stands for a connection, which has no status.
func IsConnection(method string) bool { return method == MethodTLS || method == MethodTCP }

// ToProto returns the flow as the admin socket sends it. Replica and waypoint say where it was made.
func (r *Request) ToProto(id uint64, replica string, waypoint mesh.Key) *meshpb.Flow {
	service, _ := r.dialled()
	p := &meshpb.Flow{
		Id: id, StartNs: meshpb.Nanos(r.Start), DurationNs: int64(r.Duration), Direction: DirectionRequest.String(),
		Source: r.Source.toProto(), Destination: r.Destination.toProto(), Service: service, Waypoint: KeyWord(waypoint), Node: replica,
		Verdict: r.Verdict.String(), Reason: r.Reason, Policy: KeyWord(r.Policy), Audited: r.Audited.List(),
		BytesSent: uint64(max(r.BytesSent, 0)), BytesReceived: uint64(max(r.BytesReceived, 0)),
		// Its connections have flows of their own, at the agents that carry them.
		Transport: TransportNone.String(),
		Request: &meshpb.FlowRequest{Method: r.Method, Path: r.Path, Status: uint32(max(r.Status, 0)), Route: r.Route, Backend: r.Backend,
			Tries: uint32(max(r.Tries, 0)), FirstError: r.First},
	}
	if r.Policy != (mesh.Key{}) && r.Rule >= 0 {
		rule := int32(r.Rule)
		p.Rule = &rule
	}
	return p
}

// dialled is the service that was dialled, and its port.
func (r *Request) dialled() (service string, port uint16) {
	service, text, _ := strings.Cut(r.Service, ":")
	n, _ := strconv.ParseUint(text, 10, 16) // it is not known where it is 0
	return service, uint16(n)
}

// MatchRequest says whether the filter selects a request. Its port is the one that was dialled, or
// the workload's.
func (f *Filter) MatchRequest(r *Request) bool {
	rec := Record{Start: r.Start, Direction: DirectionRequest, Source: r.Source, Destination: r.Destination, Verdict: r.Verdict}
	reason, err := mesh.ParseReason(r.Reason)
	if rec.Reason = reason; err != nil && len(f.Reasons) > 0 {
		return false // one of the waypoint's own
	}
	rest := *f
	if _, port := r.dialled(); has(f.Ports, port) {
		rest.Ports = nil
	}
	return rest.match(&rec) && f.matchHTTP(&r.HTTP)
}

func (f *Filter) matchHTTP(h *HTTP) bool {
	return has(f.Methods, h.Method) &&
		anyOf(f.Statuses, func(s Statuses) bool { return s.Has(h.Status) }) &&
		anyOf(f.Routes, func(k mesh.Key) bool { return isRoute(h.Route, k) })
}

func anyOf[T any](wanted []T, match func(T) bool) bool {
	for _, w := range wanted {
		if match(w) {
			return true
		}
	}
	return len(wanted) == 0
}

// isRoute says whether a rule, such as "HTTPRoute shop/cart rules[0]", is of a route.
func isRoute(rule string, k mesh.Key) bool {
	_, rest, _ := strings.Cut(rule, " ")
	of, _, _ := strings.Cut(rest, " ")
	namespace, name, _ := strings.Cut(of, "/")
	return name != "" && name == k.Name && (k.Namespace == "" || k.Namespace == namespace)
}

// Statuses is one status of HTTP, or a class of them: "404", "5xx".
type Statuses struct{ from, to int }

// Has says whether a status is one of them.
func (s Statuses) Has(status int) bool { return s.from <= status && status <= s.to }

// String is the inverse of what a Filter reads.
func (s Statuses) String() string {
	if s.from == s.to {
		return strconv.Itoa(s.from)
	}
	return fmt.Sprintf("%dxx", s.from/100)
}

func parseStatuses(value string) (Statuses, error) {
	if class, ok := strings.CutSuffix(strings.ToLower(value), "xx"); ok && len(class) == 1 && '1' <= class[0] && class[0] <= '5' {
		from := int(class[0]-'0') * 100
		return Statuses{from, from + 99}, nil
	}
	n, err := strconv.Atoi(value)
	if err != nil || n != 0 && (n < 100 || n > 999) {
		return Statuses{}, fmt.Errorf("%q is neither a status, such as 404, nor a class of them, such as 5xx; 0 is no answer", value)
	}
	return Statuses{n, n}, nil
}
