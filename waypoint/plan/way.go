package plan

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/retry"
	"github.com/heddle-mesh/heddle/waypoint/stay"
	"github.com/heddle-mesh/heddle/waypoint/telemetry"
)

// Way is one way through the waypoint: a rule and one of its backends, or a service without
// rules. It is shared by the requests that take it, and read only to them.
type Way struct {
	// Service and Port are the backend, Backend the two as a text.
	Service mesh.Key
	Port    uint16
	Backend string
	// Host takes the place of the request's; "" leaves it.
	Host string
	// Request is changed before it is sent, Response before it is answered; see Answer.
	Request, Response Edit
	// RequestTimeout bounds a request with its retries, BackendTimeout each try; 0 is no bound.
	RequestTimeout, BackendTimeout time.Duration
	// Retry is nil when nothing is said of retries.
	Retry *route.Retry
	// CORS says that Answer has to be asked, with the request's origin.
	CORS   bool
	Series *telemetry.Series
	// Budget is what the backend's retries come out of.
	Budget *retry.Budget

	filters []route.Filter // the rule's, then the backend's
	paths   []*route.PathChange
	mirrors []*route.Mirror
	names   stay.Names
}

// Edit is what filters change in a head.
type Edit struct {
	Remove []string
	Add    []http1.Field
}

func (p *Planner) way(routeName string, service mesh.Key, port uint16) *Way {
	w := &Way{Service: service, Port: port, Backend: fmt.Sprintf("%s:%d", service, port)}
	w.Series = p.metrics.Series(routeName, w.Backend)
	to := destination{service, port}
	if p.budgets[to] == nil {
		p.budgets[to] = retry.NewBudget()
	}
	w.Budget = p.budgets[to]
	return w
}

// backend makes the Way of a rule's backend.
func (p *Planner) backend(routeName string, rule *route.Rule, b *route.Backend) *Way {
	w := p.way(routeName, b.Service, b.Port)
	w.RequestTimeout, w.BackendTimeout, w.Retry = rule.RequestTimeout, rule.BackendTimeout, rule.Retry
	w.filters = slices.Concat(rule.Filters, b.Filters)
	for i := range w.filters {
		switch f := &w.filters[i]; {
		case f.RequestHeaders != nil:
			w.Request.apply(f.RequestHeaders)
		case f.ResponseHeaders != nil:
			w.Response.apply(f.ResponseHeaders)
		case f.Rewrite != nil:
			if f.Rewrite.Hostname != "" {
				w.Host = f.Rewrite.Hostname
			}
			if f.Rewrite.Path != nil {
				w.paths = append(w.paths, f.Rewrite.Path)
			}
		case f.Mirror != nil:
			w.mirrors = append(w.mirrors, f.Mirror)
		case f.CORS != nil:
			w.CORS = true
		}
	}
	return w
}

// path is a path after all rewrites. Each goes by what was matched.
func (w *Way) path(path, prefix string) string {
	for _, c := range w.paths {
		path = c.Apply(path, prefix)
	}
	return path
}

// apply is route.Headers.Apply on a head that is not there yet: what it takes away of what was
// added before is gone, the rest of the names is for the head.
func (e *Edit) apply(h *route.Headers) {
	for _, name := range h.Remove {
		e.remove(name)
	}
	for _, set := range h.Set {
		e.remove(set.Name)
		e.Add = append(e.Add, http1.NewField(set.Name, set.Value))
	}
	e.Add = append(e.Add, fields(h.Add)...)
}

func (e *Edit) remove(name string) {
	e.Add = slices.DeleteFunc(e.Add, func(f http1.Field) bool { return strings.EqualFold(string(f.Name), name) })
	if !slices.ContainsFunc(e.Remove, func(have string) bool { return strings.EqualFold(have, name) }) {
		e.Remove = append(e.Remove, name)
	}
}

// Answer is how a response of a Way with CORS is changed, for a request of an origin: the
// filters in their order, of which CORS takes away what the backend says of origins.
func (w *Way) Answer(origin string, head *http1.Head) Edit {
	var e Edit
	asked := route.Request{Headers: []route.Header{{Name: "origin", Value: origin}}}
	if origin == "" {
		asked.Headers = nil
	}
	for i := range w.filters {
		switch f := &w.filters[i]; {
		case f.ResponseHeaders != nil:
			e.apply(f.ResponseHeaders)
		case f.CORS != nil:
			const theirs = "access-control-"
			for _, line := range head.Fields {
				if name := string(line.Name); len(name) > len(theirs) && strings.EqualFold(name[:len(theirs)], theirs) {
					e.remove(name)
				}
			}
			e.Add = slices.DeleteFunc(e.Add, func(f http1.Field) bool { return strings.HasPrefix(strings.ToLower(string(f.Name)), theirs) })
			e.Add = append(e.Add, fields(f.CORS.Apply(&asked, nil))...)
		}
	}
	return e
}

func fields(headers []route.Header) (all []http1.Field) {
	for _, h := range headers {
		all = append(all, http1.NewField(h.Name, h.Value))
	}
	return all
}
