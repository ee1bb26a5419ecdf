package asked

import (
	"slices"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/mesh/spoken"
	"github.com/heddle-mesh/heddle/waypoint/plan"
)

// The verdicts about what a waypoint sends on for a client. ByRequest is where one request may be let in, and another not.
const (
	Allow     = "allow"
	Deny      = "deny"
	Mixed     = "mixed"
	ByRequest = "request"
)

// Behind is what a waypoint decides for a client at the workloads to which it may send what the client asks for, as far as
// that is so whatever the requests are.
type Behind struct {
	// Verdict is Allow or Deny when every workload lets in, or refuses, whatever is asked for; Mixed when some let in and
	// others refuse, and ByRequest when the request decides. Reason is that of the first which refuses, if one does.
	Verdict string `json:"verdict"`
	Reason  string `json:"reason"`
	// Routed says that routes decide to which of the workloads a request goes.
	Routed    bool       `json:"routed,omitempty"`
	Endpoints []Endpoint `json:"endpoints,omitempty"`
}

// Refusing is the first workload that refuses for the Reason; nil when none does.
func (b *Behind) Refusing() *Endpoint {
	if i := slices.IndexFunc(b.Endpoints, func(e Endpoint) bool { return e.Verdict == Deny && e.Reason == b.Reason }); i >= 0 {
		return &b.Endpoints[i]
	}
	return nil
}

// AllRefusing are all workloads that refuse, each with a blank behind it.
func (b *Behind) AllRefusing() (all string) {
	for _, e := range b.Endpoints {
		if e.Verdict == Deny {
			all += e.Workload + " "
		}
	}
	return all
}

// Behind asks the policies of the workloads behind the waypoint about a client, of whose requests nothing is known.
func (w *Waypoint) Behind(c *Client) *Behind {
	from, _ := w.View.WorkloadAt(c.Addr.Addr())
	to := w.View.Past(from, c.To)
	if to.Service == nil {
		return &Behind{Verdict: Deny, Reason: to.Reason.String()}
	}
	at := route.Parent{Service: to.Service.Key, Port: c.To.Port()}
	routes := route.At(w.Routes, at, c.Namespace)
	passed := opaque(to.Service, at.Port) && !w.seen(at)
	if len(routes) > 0 && !routes[0].Kind.Requests() { // all of them are of one kind
		passed = true
	}
	l := leads{view: w.View, client: c, from: from, passed: passed, nobody: plan.NoRoute}
	if len(routes) == 0 {
		l.ask(&to)
	}
	for _, r := range routes {
		for i := range r.Rules {
			l.rule(&r.Rules[i])
		}
	}
	b := &l.Behind
	if b.Routed = len(routes) > 0; b.Routed && b.Verdict == Mixed && !passed {
		b.Verdict = ByRequest
	}
	if b.Verdict == "" {
		b.Verdict, b.Reason = Deny, l.nobody
	}
	return b
}

// leads gathers what workloads' policies say of one client.
type leads struct {
	Behind
	view   *mesh.View
	client *Client
	from   *mesh.Workload
	// passed says that the waypoint passes the connection on as it is, so that nobody sees a request.
	passed bool
	// nobody is why there is no workload, as long as there is none.
	nobody string
}

// seen reports whether routes are about requests to a port, of whatever client: it is HTTP then, whatever its name says.
func (w *Waypoint) seen(at route.Parent) bool {
	return slices.ContainsFunc(w.Routes, func(r route.Route) bool { return r.Kind.Requests() && slices.Contains(r.Parents, at) })
}

// opaque reports whether a service says that what is spoken at its port is no HTTP.
func opaque(s *mesh.Service, port uint16) bool {
	return slices.ContainsFunc(s.Ports, func(p mesh.ServicePort) bool {
		is, _ := spoken.Port(p.Name, p.AppProtocol)
		return p.Port == port && is == spoken.Opaque
	})
}

// rule asks about a rule's backends. A redirect is the waypoint's own answer, which no policy refuses.
func (l *leads) rule(rule *route.Rule) {
	if redirects(rule.Filters) {
		l.note(Allow, "")
		return
	}
	for i := range rule.Backends {
		switch to := &rule.Backends[i]; {
		case to.Weight == 0:
		case to.Broken != "":
			l.nobody = plan.BackendBroken
		case redirects(to.Filters):
			l.note(Allow, "")
		default:
			lead := l.view.RouteTo(l.from, to.Service, to.Port)
			l.ask(&lead)
		}
	}
}

func redirects(filters []route.Filter) bool {
	return slices.ContainsFunc(filters, func(f route.Filter) bool { return f.Redirect != nil })
}

// ask asks the policies of each workload that a service leads to, once.
func (l *leads) ask(to *mesh.Route) {
	if to.Kind != mesh.RouteWorkload {
		l.nobody = to.Reason.String()
		return
	}
	for _, at := range to.Candidates {
		e := endpoint(at, to.PortOf(at), plan.Authorize(l.view, l.client, at, to.PortOf(at), nil))
		if e.Reason == mesh.ReasonRequestUnseen.String() && !l.passed {
			e.Verdict = ByRequest
		}
		e.Selecting = Selecting(l.view, at)
		l.note(e.Verdict, e.Reason)
		if !slices.ContainsFunc(l.Endpoints, func(o Endpoint) bool { return o.Workload == e.Workload && o.Port == e.Port }) {
			l.Endpoints = append(l.Endpoints, e)
		}
	}
}

// note sums the verdicts up.
func (l *leads) note(verdict, reason string) {
	switch {
	case l.Verdict == "":
		l.Verdict, l.Reason = verdict, reason
	case l.Verdict == verdict || l.Verdict == ByRequest:
	case verdict == ByRequest:
		l.Verdict, l.Reason = verdict, reason
	default:
		if l.Verdict == Allow {
			l.Reason = reason
		}
		l.Verdict = Mixed
	}
}

// Selecting are all policies that a workload is selected by, as "ALLOW shop/web".
func Selecting(v *mesh.View, w *mesh.Workload) (all []string) {
	for _, p := range v.Policies() {
		if p.Selects(w.Namespace, w.Labels) {
			all = append(all, p.Action.String()+" "+p.Key.String())
		}
	}
	return all
}
