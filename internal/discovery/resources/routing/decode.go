package routing

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/discovery/resources/field"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// Decode makes a route of the body of a resource. What it returns encodes to the same
// bytes again, if the body was deterministic.
func Decode(body []byte) (*route.Route, error) {
	m := &meshpb.Route{}
	if err := field.UnmarshalKnown(body, m); err != nil {
		return nil, err
	}
	r := &route.Route{Hostnames: m.GetHostnames(), Created: time.Unix(m.GetCreatedSeconds(), int64(m.GetCreatedNanos())).UTC()}
	switch m.GetKind() {
	case meshpb.RouteKind_ROUTE_KIND_HTTP:
		r.Kind = route.HTTP
	case meshpb.RouteKind_ROUTE_KIND_GRPC:
		r.Kind = route.GRPC
	case meshpb.RouteKind_ROUTE_KIND_TLS:
		r.Kind = route.TLS
	case meshpb.RouteKind_ROUTE_KIND_TCP:
		r.Kind = route.TCP
	default:
		return nil, fmt.Errorf("kind %v is unknown", m.GetKind())
	}
	r.Key = field.Key(m.GetKey())
	if m.GetCreatedNanos() >= uint32(time.Second) {
		return nil, fmt.Errorf("%d nanoseconds are more than a second", m.GetCreatedNanos())
	}
	for _, p := range m.GetParents() {
		port, err := field.Port(p.GetPort())
		if err != nil {
			return nil, fmt.Errorf("parent: %w", err)
		}
		r.Parents = append(r.Parents, route.Parent{Service: field.Key(p.GetService()), Port: port})
	}
	for i, rule := range m.GetRules() {
		decoded, err := ruleOf(rule)
		if err != nil {
			return nil, fmt.Errorf("rule %d: %w", i, err)
		}
		r.Rules = append(r.Rules, decoded)
	}
	return r, nil
}

func ruleOf(m *meshpb.RouteRule) (r route.Rule, err error) {
	r = route.Rule{Name: m.GetName(), RequestTimeout: time.Duration(m.GetRequestTimeoutNs()), BackendTimeout: time.Duration(m.GetBackendTimeoutNs())}
	if min(r.RequestTimeout, r.BackendTimeout) < 0 {
		return r, errors.New("a timeout is negative")
	}
	for i, match := range m.GetMatches() {
		decoded, err := matchOf(match)
		if err != nil {
			return r, fmt.Errorf("match %d: %w", i, err)
		}
		r.Matches = append(r.Matches, decoded)
	}
	if r.Filters, err = filtersOf(m.GetFilters()); err != nil {
		return r, err
	}
	for i, b := range m.GetBackends() {
		backend := route.Backend{Service: field.Key(b.GetService()), Weight: b.GetWeight(), Broken: b.GetBroken()}
		if backend.Port, err = small(b.GetPort()); err == nil {
			backend.Filters, err = filtersOf(b.GetFilters())
		}
		if err != nil {
			return r, fmt.Errorf("backend %d: %w", i, err)
		}
		r.Backends = append(r.Backends, backend)
	}
	if m.GetRetry() != nil {
		if r.Retry, err = retryOf(m.GetRetry()); err != nil {
			return r, fmt.Errorf("retry: %w", err)
		}
	}
	if s := m.GetSession(); s != nil {
		r.Session = &route.Session{Name: s.GetName(), Header: s.GetHeader(), Permanent: s.GetPermanent(), AbsoluteTimeout: time.Duration(s.GetAbsoluteTimeoutNs())}
		if r.Session.AbsoluteTimeout < 0 {
			return r, errors.New("the timeout of a session is negative")
		}
	}
	return r, nil
}

// small decodes a number of 16 bits, 0 included.
func small(n uint32) (uint16, error) {
	if n > math.MaxUint16 {
		return 0, fmt.Errorf("%d is more than %d", n, math.MaxUint16)
	}
	return uint16(n), nil
}

func retryOf(m *meshpb.RouteRetry) (*route.Retry, error) {
	r := &route.Retry{Attempts: int(m.GetAttempts()), Backoff: time.Duration(m.GetBackoffNs())}
	if r.Backoff < 0 {
		return nil, errors.New("the pause is negative")
	}
	for _, code := range m.GetCodes() {
		decoded, err := small(code)
		if err != nil {
			return nil, err
		}
		r.Codes = append(r.Codes, decoded)
	}
	return r, nil
}

func matchOf(m *meshpb.RouteMatch) (route.Match, error) {
	kind := m.GetPathType()
	if kind < 0 || kind > meshpb.PathType(route.PathExpression) {
		return route.Match{}, fmt.Errorf("type %v of a path is unknown", kind)
	}
	return route.Match{Path: route.PathMatch{Type: route.PathType(kind), Value: m.GetPath()}, Method: m.GetMethod(),
		Call:    route.CallMatch{Service: m.GetCallService(), Method: m.GetCallMethod(), Expression: m.GetCallExpression()},
		Headers: valuesOf(m.GetHeaders()), Params: valuesOf(m.GetParams())}, nil
}

func valuesOf(values []*meshpb.ValueMatch) (all []route.ValueMatch) {
	for _, v := range values {
		all = append(all, route.ValueMatch{Name: v.GetName(), Value: v.GetValue(), Expression: v.GetExpression()})
	}
	return all
}

func filtersOf(filters []*meshpb.RouteFilter) (all []route.Filter, err error) {
	for i, m := range filters {
		f, err := filterOf(m)
		if err != nil {
			return nil, fmt.Errorf("filter %d: %w", i, err)
		}
		all = append(all, f)
	}
	return all, nil
}

func filterOf(m *meshpb.RouteFilter) (f route.Filter, err error) {
	switch step := m.GetStep().(type) {
	case *meshpb.RouteFilter_RequestHeaders:
		f.RequestHeaders = headersOf(step.RequestHeaders)
	case *meshpb.RouteFilter_ResponseHeaders:
		f.ResponseHeaders = headersOf(step.ResponseHeaders)
	case *meshpb.RouteFilter_Redirect:
		f.Redirect, err = redirectOf(step.Redirect)
	case *meshpb.RouteFilter_Rewrite:
		f.Rewrite = &route.Rewrite{Hostname: step.Rewrite.GetHostname(), Path: pathOf(step.Rewrite.GetPath())}
	case *meshpb.RouteFilter_Mirror:
		f.Mirror, err = mirrorOf(step.Mirror)
	case *meshpb.RouteFilter_Cors:
		f.CORS, err = corsOf(step.Cors)
	case *meshpb.RouteFilter_Broken:
		if f.Broken = step.Broken; f.Broken == "" {
			err = errors.New("is broken without a reason")
		}
	default:
		err = errors.New("the step is unknown")
	}
	return f, err
}

func redirectOf(m *meshpb.Redirect) (*route.Redirect, error) {
	if !slices.Contains([]uint32{301, 302, 303, 307, 308}, m.GetStatus()) {
		return nil, fmt.Errorf("%d is no status of a redirect", m.GetStatus())
	}
	port, err := small(m.GetPort())
	return &route.Redirect{Scheme: m.GetScheme(), Hostname: m.GetHostname(), Port: port, Path: pathOf(m.GetPath()), Status: int(m.GetStatus())}, err
}

func mirrorOf(m *meshpb.Mirror) (*route.Mirror, error) {
	port, err := small(m.GetPort())
	return &route.Mirror{Service: field.Key(m.GetService()), Port: port, Broken: m.GetBroken(), Numerator: m.GetNumerator(), Denominator: m.GetDenominator()}, err
}

func corsOf(m *meshpb.CORS) (*route.CORS, error) {
	age := m.GetMaxAge()
	if age < math.MinInt32 || age > math.MaxInt32 {
		return nil, fmt.Errorf("%d seconds are no time that an answer is kept", age)
	}
	return &route.CORS{Origins: m.GetOrigins(), Credentials: m.GetCredentials(), Methods: m.GetMethods(), Headers: m.GetHeaders(), Expose: m.GetExpose(), MaxAge: int(age)}, nil
}

func pathOf(m *meshpb.PathChange) *route.PathChange {
	if m == nil {
		return nil
	}
	return &route.PathChange{Prefix: m.GetPrefix(), Value: m.GetValue()}
}

func headersOf(m *meshpb.HeaderChange) *route.Headers {
	return &route.Headers{Set: listOf(m.GetSet()), Add: listOf(m.GetAdd()), Remove: m.GetRemove()}
}

func listOf(headers []*meshpb.HeaderValue) (all []route.Header) {
	for _, h := range headers {
		all = append(all, route.Header{Name: h.GetName(), Value: h.GetValue()})
	}
	return all
}
