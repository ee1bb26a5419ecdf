// Package plan says what a waypoint does with a request that it has read: where it goes, what is
// changed of it and of its response, or what it is answered. It goes by a snapshot.Snapshot, and
// is the same for every version of HTTP.
//
// It opens no connection and picks no workload. A Planner belongs to one event loop: nothing here
// is safe for use by another goroutine. In steady state planning allocates nothing.
package plan

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/waypoint/retry"
	"github.com/heddle-mesh/heddle/waypoint/snapshot"
	"github.com/heddle-mesh/heddle/waypoint/stay"
	"github.com/heddle-mesh/heddle/waypoint/telemetry"
)

// Client is who is at the other end of a connection, as its agent says.
type Client struct {
	// Addr is its address, To the service's that it dialled.
	Addr, To netip.AddrPort
	// ID is what mutual TLS proved; the zero ID when nothing was.
	ID spiffeid.ID
	// Namespace is that of ID; "" without one.
	Namespace string
	// Workload has Addr; the zero Key when it is none's.
	Workload mesh.Key

	stays stay.Client
}

// with is the workload of a service that keeps each client with one of its own; nil where any will do.
func (c *Client) with(to *mesh.Route) *mesh.Workload {
	if to.Service == nil || !to.Service.Sticky {
		return nil
	}
	return c.stays.With(c.Addr.Addr(), to.Candidates)
}

// Plan is what is done with one request. It is used for one after the other.
type Plan struct {
	// Reply is the answer, if Way is nil.
	Reply Reply
	// Way is where the request goes, To the workloads that it may go to, Stay which of them it stays with.
	Way  *Way
	To   mesh.Route
	Stay stay.Stay
	// Path takes the place of the request's, with its query; "" leaves it.
	Path string
	// Mirrors get a copy.
	Mirrors []*Way
	// Series counts the request, whatever becomes of it.
	Series *telemetry.Series
	// Route is what decided, "" when no rule did, Service the name and port that were dialled.
	Route, Service string
	// Template is what the rule's match says of paths; see route.Match. "" when no rule decided.
	Template string
}

// Planner plans the requests of one loop.
type Planner struct {
	metrics *telemetry.Metrics
	snap    *snapshot.Snapshot
	ways    map[*route.Backend]*Way
	direct  map[route.Parent]*Way
	mirrors map[*route.Mirror]*Way
	names   map[*route.Target]string
	paths   map[*route.Match]string
	dialled map[route.Parent]string
	budgets map[destination]*retry.Budget
	self    string
	unknown *telemetry.Series
	origin  origin
	sent    mesh.Request // that is judged
}

type destination struct {
	service mesh.Key
	port    uint16
}

// New makes a Planner that counts in metrics.
func New(metrics *telemetry.Metrics) *Planner {
	p := &Planner{metrics: metrics, budgets: map[destination]*retry.Budget{}, unknown: metrics.Series(none, none), origin: newOrigin()}
	p.forget()
	return p
}

// none stands for no route, or no backend, in metrics.
const none = "none"

func (p *Planner) forget() {
	p.ways, p.direct, p.mirrors, p.names = map[*route.Backend]*Way{}, map[route.Parent]*Way{}, map[*route.Mirror]*Way{}, map[*route.Target]string{}
	p.paths = map[*route.Match]string{}
	p.dialled = map[route.Parent]string{}
}

// Use says which Snapshot requests are planned by from now on.
func (p *Planner) Use(s *snapshot.Snapshot) {
	if p.snap == s {
		return
	}
	if p.snap == nil || p.snap.Table != s.Table {
		p.metrics.Use(s.Table)
		p.forget()
	}
	for to := range p.budgets {
		if _, ok := s.View.Service(to.service); !ok {
			delete(p.budgets, to)
		}
	}
	p.snap, p.self = s, ""
	if service, ok := s.View.Service(s.Waypoint); ok {
		for _, key := range service.Endpoints {
			if w, ok := s.View.Workload(key); ok {
				p.self = w.Identity.String()
				break
			}
		}
	}
}

// Self is the waypoint's own identity; "" when it is not known.
func (p *Planner) Self() string { return p.self }

// Parent is the service and port that a client dialled, and what leads there past this
// waypoint, where the client is already; false when it is no service's.
func (p *Planner) Parent(c *Client) (at route.Parent, to mesh.Route, ok bool) {
	src, _ := p.snap.View.WorkloadAt(c.Addr.Addr())
	to = p.snap.View.Past(src, c.To)
	if to.Service == nil {
		return at, to, false
	}
	return route.Parent{Service: to.Service.Key, Port: c.To.Port()}, to, true
}

// Workload is who has a client's address; the zero Key when nobody has.
func (p *Planner) Workload(c *Client) mesh.Key {
	if w, ok := p.snap.View.WorkloadAt(c.Addr.Addr()); ok {
		return w.Key
	}
	return mesh.Key{}
}

// Request is one whose head was read. Path and To of what is in it are set by Plan.
type Request struct {
	route.Request
	// Target is the path with the query, as it came; "" of a CONNECT.
	Target string
	// GRPC says that the client wants answers as gRPC has them.
	GRPC bool
}

// Plan decides about a request, and writes it to out.
func (p *Planner) Plan(out *Plan, c *Client, r *Request, now time.Time) {
	*out = Plan{Series: p.unknown, Mirrors: out.Mirrors[:0]}
	if !p.snap.Synced() {
		out.refuse(r, 503, mesh.ReasonNotSynced.String())
		return
	}
	at, to, ok := p.Parent(c)
	if !ok {
		out.refuse(r, 404, to.Reason.String())
		return
	}
	if reason := p.stranger(c, to); reason != "" {
		out.refuse(r, 403, reason)
		return
	}
	r.To, r.From = at, c.Namespace
	out.Service = p.service(at)
	if r.Method == "CONNECT" {
		out.refuse(r, 405, ConnectRefused) // what is inside would be requests that nobody judges, with fields that nobody takes away
		return
	}
	if !r.SetTarget(r.Target) {
		out.refuse(r, 400, BadPath)
		return
	}
	d := p.snap.Table.Match(&r.Request)
	switch d.Outcome {
	case route.Routed:
		p.routed(out, c, r, d, now)
	case route.Unrouted:
		p.unrouted(out, at, to)
	case route.TooCostly:
		out.refuse(r, 500, TooCostly)
	default:
		out.refuse(r, 404, NoRoute)
	}
	if out.Way == nil {
		return
	}
	raw, _, asks := strings.Cut(r.Target, "?")
	if path := out.Way.path(r.Path, d.Prefix); path != raw {
		if out.Path = path; asks {
			out.Path += r.Target[len(raw):]
		}
	}
	p.lead(out, c, r)
}

// stranger says why a client of another trust domain is answered nothing at all: no policy lets it
// reach any workload of the service that it dialled. "" is for all others.
func (p *Planner) stranger(c *Client, to mesh.Route) string {
	if !p.snap.View.Foreign(c.ID) {
		return ""
	}
	reason := mesh.ReasonForeignIdentity
	for _, w := range to.Candidates {
		d := Authorize(p.snap.View, c, w, to.PortOf(w), nil)
		if d.Verdict != mesh.VerdictDeny || d.Reason == mesh.ReasonRequestUnseen { // which requests, is asked when it is sent
			return ""
		}
		reason = d.Reason
	}
	return reason.String()
}

// lead refuses what leads to nobody; Series and Route stay.
func (p *Planner) lead(out *Plan, c *Client, r *Request) {
	switch {
	case out.To.Kind != mesh.RouteWorkload:
		out.refuse(r, 503, out.To.Reason.String())
	case out.Stay.With == nil:
		out.Stay.With = c.with(&out.To)
	}
}

// unrouted sends a request to the service itself, as if there were no waypoint.
func (p *Planner) unrouted(out *Plan, at route.Parent, to mesh.Route) {
	w := p.direct[at]
	if w == nil {
		w = p.way(none, at.Service, at.Port)
		p.direct[at] = w
	}
	out.Way, out.To, out.Series = w, to, w.Series
}

// routed is what a rule says.
func (p *Planner) routed(out *Plan, c *Client, r *Request, d route.Decision, now time.Time) {
	rule := d.Target.Rule
	out.Route, out.Template = p.name(d.Target), p.path(d)
	if p.ends(out, r, rule.Filters, d.Prefix) {
		out.Series = p.metrics.Series(out.Route, none)
		return
	}
	src, _ := p.snap.View.WorkloadAt(c.Addr.Addr())
	b := p.resumes(out, r, d.Target, src, now)
	if b == nil {
		b = p.begins(out, d.Target, src)
	}
	if b == nil || b.Broken != "" {
		out.Series = p.metrics.Series(out.Route, none)
		out.refuse(r, 500, BackendBroken)
		return
	}
	w := p.through(out.Route, rule, b)
	out.Series = w.Series
	if p.ends(out, r, b.Filters, d.Prefix) {
		return
	}
	out.Way = w
	for _, m := range w.mirrors {
		if p.snap.Splits.Mirrored(m) {
			out.Mirrors = append(out.Mirrors, p.mirror(m))
		}
	}
}

// begins sends a request to the backend whose turn it is.
func (p *Planner) begins(out *Plan, target *route.Target, src *mesh.Workload) *route.Backend {
	b, name := p.snap.Splits.Backend(target)
	if b == nil || b.Broken != "" {
		return b
	}
	out.To, out.Stay = p.snap.View.RouteTo(src, b.Service, b.Port), stay.Begin(target.Rule.Session, name)
	return b
}

// resumes sends a request to the backend of its session, if that goes on: nil when it has none, or the workload is not there, or
// not ready. That others are nearer to the client does not end it, unless the service is only for clients on its nodes.
func (p *Planner) resumes(out *Plan, r *Request, target *route.Target, src *mesh.Workload, now time.Time) *route.Backend {
	b, token := p.snap.Splits.Session(target, &r.Request, now)
	if b == nil {
		return nil
	}
	to := p.snap.View.RouteTo(nil, b.Service, b.Port)
	with := p.through(out.Route, target.Rule, b).names.Find(to.Candidates, token)
	if with == nil {
		return nil
	}
	if prefer := to.Service.Prefer; prefer != mesh.AnyDistance {
		near := p.snap.View.RouteTo(src, b.Service, b.Port)
		switch {
		case slices.Contains(near.Candidates, with):
			to = near
		case prefer == mesh.OnlyNode:
			return nil
		}
	}
	out.To, out.Stay = to, stay.On(target.Rule.Session, token.Backend(), with)
	return b
}

// through is the Way of a rule's backend.
func (p *Planner) through(routeName string, rule *route.Rule, b *route.Backend) *Way {
	w := p.ways[b]
	if w == nil {
		w = p.backend(routeName, rule, b)
		p.ways[b] = w
	}
	return w
}

// ends carries out those filters that answer a request, and reports whether one did.
func (p *Planner) ends(out *Plan, r *Request, filters []route.Filter, prefix string) bool {
	for i := range filters {
		switch f := &filters[i]; {
		case f.Broken != "":
			out.refuse(r, 500, FilterBroken)
			return true
		case f.Redirect != nil:
			out.Reply = Reply{Status: f.Redirect.Status, Fields: fields([]route.Header{{Name: "location", Value: f.Redirect.Location(&r.Request, "http", prefix)}})}
			return true
		case f.CORS != nil:
			if answer, ok := f.CORS.Preflight(&r.Request); ok {
				out.Reply = Reply{Status: 204, Fields: fields(answer)}
				return true
			}
		}
	}
	return false
}

// Unknown counts requests of which nobody knows where they were to go.
func (p *Planner) Unknown() *telemetry.Series { return p.unknown }

func (p *Planner) service(at route.Parent) string {
	name, ok := p.dialled[at]
	if !ok {
		name = at.String()
		p.dialled[at] = name
	}
	return name
}

// name is a rule's, as metrics and the log have it.
func (p *Planner) name(t *route.Target) string {
	name, ok := p.names[t]
	if !ok {
		name = t.Route.String() + " " + t.Rule.Name
		p.names[t] = name
	}
	return name
}

// path is what a match says of paths.
func (p *Planner) path(d route.Decision) string {
	text, ok := p.paths[d.Match]
	if !ok {
		text = d.Match.Template(d.Target.Route.Kind)
		p.paths[d.Match] = text
	}
	return text
}

// Mirror is where the copies of a mirror go.
func (p *Planner) mirror(m *route.Mirror) *Way {
	w := p.mirrors[m]
	if w == nil {
		w = p.way(none, m.Service, m.Port)
		p.mirrors[m] = w
	}
	return w
}

// Lead is which workloads a Way leads to, for a client.
func (p *Planner) Lead(w *Way, c *Client) mesh.Route {
	src, _ := p.snap.View.WorkloadAt(c.Addr.Addr())
	return p.snap.View.RouteTo(src, w.Service, w.Port)
}
