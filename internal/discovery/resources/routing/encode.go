// Package routing makes messages of routes, and routes of messages, which anybody may have
// written. What a program does not know is refused: a condition or a step that got lost would
// send requests where they were not meant to go. Whether a route can be served is not asked
// here: package route does, when it makes a Table.
//
// All of it is pure.
package routing

import (
	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/discovery/resources/field"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// Name returns the name that a route has as a resource.
func Name(id route.ID) string { return id.Kind.String() + "/" + id.Key.String() }

// Encode makes a message of a route.
func Encode(r *route.Route) *meshpb.Route {
	m := &meshpb.Route{Kind: meshpb.RouteKind(r.Kind) + meshpb.RouteKind_ROUTE_KIND_HTTP, Key: field.FromKey(r.Key),
		CreatedSeconds: r.Created.Unix(), CreatedNanos: uint32(r.Created.Nanosecond()), Hostnames: r.Hostnames}
	for _, p := range r.Parents {
		m.Parents = append(m.Parents, &meshpb.RouteParent{Service: field.FromKey(p.Service), Port: uint32(p.Port)})
	}
	for i := range r.Rules {
		m.Rules = append(m.Rules, ruleTo(&r.Rules[i]))
	}
	return m
}

func ruleTo(r *route.Rule) *meshpb.RouteRule {
	m := &meshpb.RouteRule{Name: r.Name, Filters: filtersTo(r.Filters), RequestTimeoutNs: int64(r.RequestTimeout), BackendTimeoutNs: int64(r.BackendTimeout)}
	for i := range r.Matches {
		m.Matches = append(m.Matches, matchTo(&r.Matches[i]))
	}
	for _, b := range r.Backends {
		m.Backends = append(m.Backends, &meshpb.RouteBackend{Service: field.FromKey(b.Service), Port: uint32(b.Port), Weight: b.Weight, Broken: b.Broken,
			Filters: filtersTo(b.Filters)})
	}
	if r.Retry != nil {
		m.Retry = &meshpb.RouteRetry{Codes: field.FromPorts(r.Retry.Codes), Attempts: int32(r.Retry.Attempts), BackoffNs: int64(r.Retry.Backoff)}
	}
	if s := r.Session; s != nil {
		m.Session = &meshpb.RouteSession{Name: s.Name, Header: s.Header, Permanent: s.Permanent, AbsoluteTimeoutNs: int64(s.AbsoluteTimeout)}
	}
	return m
}

func matchTo(m *route.Match) *meshpb.RouteMatch {
	return &meshpb.RouteMatch{PathType: meshpb.PathType(m.Path.Type), Path: m.Path.Value, Method: m.Method,
		CallService: m.Call.Service, CallMethod: m.Call.Method, CallExpression: m.Call.Expression, Headers: valuesTo(m.Headers), Params: valuesTo(m.Params)}
}

func valuesTo(values []route.ValueMatch) (all []*meshpb.ValueMatch) {
	for _, v := range values {
		all = append(all, &meshpb.ValueMatch{Name: v.Name, Value: v.Value, Expression: v.Expression})
	}
	return all
}

func filtersTo(filters []route.Filter) (all []*meshpb.RouteFilter) {
	for i := range filters {
		all = append(all, filterTo(&filters[i]))
	}
	return all
}

func filterTo(f *route.Filter) *meshpb.RouteFilter {
	m := &meshpb.RouteFilter{}
	switch {
	case f.RequestHeaders != nil:
		m.Step = &meshpb.RouteFilter_RequestHeaders{RequestHeaders: headersTo(f.RequestHeaders)}
	case f.ResponseHeaders != nil:
		m.Step = &meshpb.RouteFilter_ResponseHeaders{ResponseHeaders: headersTo(f.ResponseHeaders)}
	case f.Redirect != nil:
		r := f.Redirect
		m.Step = &meshpb.RouteFilter_Redirect{Redirect: &meshpb.Redirect{Scheme: r.Scheme, Hostname: r.Hostname, Port: uint32(r.Port), Path: pathTo(r.Path), Status: uint32(r.Status)}}
	case f.Rewrite != nil:
		m.Step = &meshpb.RouteFilter_Rewrite{Rewrite: &meshpb.Rewrite{Hostname: f.Rewrite.Hostname, Path: pathTo(f.Rewrite.Path)}}
	case f.Mirror != nil:
		r := f.Mirror
		m.Step = &meshpb.RouteFilter_Mirror{Mirror: &meshpb.Mirror{Service: field.FromKey(r.Service), Port: uint32(r.Port), Broken: r.Broken,
			Numerator: r.Numerator, Denominator: r.Denominator}}
	case f.CORS != nil:
		c := f.CORS
		m.Step = &meshpb.RouteFilter_Cors{Cors: &meshpb.CORS{Origins: c.Origins, Credentials: c.Credentials, Methods: c.Methods, Headers: c.Headers,
			Expose: c.Expose, MaxAge: int64(c.MaxAge)}}
	default:
		m.Step = &meshpb.RouteFilter_Broken{Broken: f.Broken}
	}
	return m
}

func pathTo(p *route.PathChange) *meshpb.PathChange {
	if p == nil {
		return nil
	}
	return &meshpb.PathChange{Prefix: p.Prefix, Value: p.Value}
}

func headersTo(h *route.Headers) *meshpb.HeaderChange {
	return &meshpb.HeaderChange{Set: listTo(h.Set), Add: listTo(h.Add), Remove: h.Remove}
}

func listTo(headers []route.Header) (all []*meshpb.HeaderValue) {
	for _, h := range headers {
		all = append(all, &meshpb.HeaderValue{Name: h.Name, Value: h.Value})
	}
	return all
}
