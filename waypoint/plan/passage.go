package plan

import (
	"fmt"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/waypoint/telemetry"
)

// Passage is where a connection goes that is passed on as it is.
type Passage struct {
	// Reason is why it is refused; "" when it is not.
	Reason string
	// To are the workloads that it may go to, With the one of them that is to be asked before others; nil for any.
	To   mesh.Route
	With *mesh.Workload
	// Route is what decided, Backend the service and port that it says; "" where there is none. Service is the name and port
	// that were dialled.
	Route, Backend, Service string
	// Port is the backend's.
	Port uint16
	// Kind is that of the routes for it, Routed says that there are any.
	Kind   route.Kind
	Routed bool
	// Foreign says that the backend is of another namespace than the route: whoever wrote it may not say that the
	// backend reads no HTTP.
	Foreign bool
	// Series counts it, where it is Routed.
	Series *telemetry.Passages
}

// IsTLS reports whether TLSRoutes are for it.
func (out *Passage) IsTLS() bool { return out.Kind == route.TLS }

// Kind is that of the routes that a client's connections go by; false without any.
func (p *Planner) Kind(c *Client) (route.Kind, bool) {
	at, _, ok := p.Parent(c)
	if !ok {
		return 0, false
	}
	return p.snap.Table.Kind(at, c.Namespace)
}

// Pass decides about a connection. Name is the server that it asks for in TLS, "" without one.
func (p *Planner) Pass(c *Client, name string) (out Passage) {
	at, to, ok := p.Parent(c)
	if !ok {
		out.Reason = to.Reason.String()
		return out
	}
	out.To, out.Service = to, p.service(at)
	d := p.snap.Table.Connect(at, c.Namespace, name)
	if d.Outcome == route.Unrouted {
		out.lead(c)
		return out
	}
	out.Kind, out.Routed = p.Kind(c)
	switch {
	case d.Outcome == route.Routed:
		out.Route = p.name(d.Target)
		p.pass(&out, c, d.Target)
	case name == "":
		out.Reason = NoServerName
	default:
		out.Reason = NoRoute
	}
	out.Series = p.metrics.Passages(orNone(out.Route), orNone(out.Backend))
	return out
}

// Unnamed is a connection that is refused before a route is looked for.
func (p *Planner) Unnamed(c *Client, reason string) Passage {
	out := Passage{Reason: reason, Series: p.metrics.Passages(none, none)}
	if at, _, ok := p.Parent(c); ok {
		out.Service = p.service(at)
	}
	out.Kind, out.Routed = p.Kind(c)
	return out
}

// pass takes the backend whose turn it is.
func (p *Planner) pass(out *Passage, c *Client, target *route.Target) {
	b, _ := p.snap.Splits.Backend(target)
	if b == nil || b.Broken != "" {
		out.Reason = BackendBroken
		return
	}
	out.Port = b.Port
	out.Backend, out.Foreign = fmt.Sprintf("%s:%d", b.Service, b.Port), b.Service.Namespace != target.Route.Namespace
	src, _ := p.snap.View.WorkloadAt(c.Addr.Addr())
	out.To = p.snap.View.RouteTo(src, b.Service, b.Port)
	out.lead(c)
}

// lead refuses what leads to nobody.
func (out *Passage) lead(c *Client) {
	if out.To.Kind != mesh.RouteWorkload {
		out.Reason = out.To.Reason.String()
		return
	}
	out.With = c.with(&out.To)
}

func orNone(text string) string {
	if text == "" {
		return none
	}
	return text
}
