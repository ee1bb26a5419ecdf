package routes

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/mesh/route/split"
)

// fault is why a rule cannot be served: the first thing that is wrong with it.
type fault struct {
	reason gatewayv1.RouteConditionReason
	text   string
}

// Error returns the text.
func (f *fault) Error() string { return f.text }

// unsupported returns a fault of a field, and what to do about it.
func unsupported(field, format string, args ...any) *fault {
	return &fault{gatewayv1.RouteReasonUnsupportedValue, field + ": " + fmt.Sprintf(format, args...)}
}

// The API's own patterns.
var (
	methodPattern   = regexp.MustCompile(`^[A-Z]{1,16}$`)
	durationPattern = regexp.MustCompile(`^([0-9]{1,5}(h|m|s|ms)){1,4}$`)
	hostnamePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	originPattern   = regexp.MustCompile(`^https?://((\*\.)?([a-z0-9-]+\.)*[a-z0-9-]+|\*)(:[0-9]{1,5})?$`)
	tokenPattern    = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}$")
)

// maxWeight is the API's own bound of a weight.
const maxWeight = 1_000_000

// compileRules compiles what rules say, but for what they refer to. Each rule is compiled or
// has a fault.
func compileRules(s *source) (rules []compiledRule, faults []fault) {
	var room route.Room
	sessions := map[route.Session]string{} // whose each name is
	if f := checkConnections(s); f != nil {
		return nil, slices.Repeat([]fault{*f}, max(1, len(s.rules)))
	}
	if len(s.rules) == 0 {
		faults = append(faults, *unsupported("spec.rules", "is empty, so that it routes nothing; write a rule"))
	}
	for i := range s.rules {
		field := fmt.Sprintf("spec.rules[%d]", i)
		rule, f := compileRule(s.id.Kind, field, &s.rules[i])
		if f == nil && rule.Session != nil && rule.Session.Name != "" {
			name := route.Session{Name: strings.ToLower(rule.Session.Name), Header: rule.Session.Header}
			if other, taken := sessions[name]; taken {
				f = unsupported(field+".sessionPersistence.sessionName", "%q is that of %s already, and rules do not share sessions; write another one, or none", rule.Session.Name, other)
			}
			sessions[name] = field
		}
		if f == nil {
			if err := room.Take(&rule); err != nil {
				f = &fault{gatewayv1.RouteReasonUnsupportedValue, field + "." + err.Error()}
			}
		}
		if f != nil {
			faults = append(faults, *f)
			continue
		}
		if rule.Name == "" {
			rule.Name = fmt.Sprintf("rules[%d]", i)
		}
		if rule.Session != nil && rule.Session.Name == "" {
			rule.Session.Name = rule.DefaultSessionName(s.id)
		}
		rules = append(rules, compiledRule{i, rule})
	}
	return rules, faults
}

func compileRule(kind route.Kind, field string, from *ruleSource) (rule route.Rule, f *fault) {
	rule.Name = string(valueOr(from.name, ""))
	for i := range from.http {
		m, f := httpMatch(fmt.Sprintf("%s.matches[%d]", field, i), &from.http[i])
		if f != nil {
			return rule, f
		}
		rule.Matches = append(rule.Matches, m)
	}
	for i := range from.grpc {
		m, f := grpcMatch(fmt.Sprintf("%s.matches[%d]", field, i), &from.grpc[i])
		if f != nil {
			return rule, f
		}
		rule.Matches = append(rule.Matches, m)
	}
	if err := rule.Check(kind); err != nil {
		return rule, &fault{gatewayv1.RouteReasonUnsupportedValue, field + "." + err.Error()}
	}
	if rule.Filters, f = compileFilters(field+".filters", from.filters, rule.Matches); f != nil {
		return rule, f
	}
	if rule.Backends, f = compileBackends(field+".backendRefs", from, rule.Matches); f != nil {
		return rule, f
	}
	if rule.RequestTimeout, rule.BackendTimeout, f = timeouts(field+".timeouts", from.timeouts); f != nil {
		return rule, f
	}
	if rule.Retry, f = retry(field+".retry", from.retry); f != nil {
		return rule, f
	}
	rule.Session, f = session(field+".sessionPersistence", from.session)
	return rule, f
}

func httpMatch(field string, from *gatewayv1.HTTPRouteMatch) (m route.Match, f *fault) {
	if p := from.Path; p != nil {
		m.Path.Value = valueOr(p.Value, "/")
		switch kind := valueOr(p.Type, gatewayv1.PathMatchPathPrefix); kind {
		case gatewayv1.PathMatchPathPrefix:
			m.Path.Type = route.PathPrefix
		case gatewayv1.PathMatchExact:
			m.Path.Type = route.PathExact
		case gatewayv1.PathMatchRegularExpression:
			m.Path.Type = route.PathExpression
		default:
			return m, unsupported(field+".path.type", "%q is not known; write Exact, PathPrefix or RegularExpression", kind)
		}
		if m.Path.Value == "" && m.Path.Type == route.PathPrefix {
			return m, unsupported(field+".path.value", "is empty; write / for every path")
		}
	}
	if from.Method != nil {
		m.Method = string(*from.Method)
		if !methodPattern.MatchString(m.Method) {
			return m, unsupported(field+".method", "%q is not a method; write one such as GET", m.Method)
		}
	}
	for i, h := range from.Headers {
		v, f := value(fmt.Sprintf("%s.headers[%d]", field, i), string(h.Name), h.Value, string(valueOr(h.Type, gatewayv1.HeaderMatchExact)))
		if f != nil {
			return m, f
		}
		m.Headers = append(m.Headers, v)
	}
	for i, q := range from.QueryParams {
		v, f := value(fmt.Sprintf("%s.queryParams[%d]", field, i), string(q.Name), q.Value, string(valueOr(q.Type, gatewayv1.QueryParamMatchExact)))
		if f != nil {
			return m, f
		}
		m.Params = append(m.Params, v)
	}
	return m, nil
}

func grpcMatch(field string, from *gatewayv1.GRPCRouteMatch) (m route.Match, f *fault) {
	if c := from.Method; c != nil {
		m.Call = route.CallMatch{Service: valueOr(c.Service, ""), Method: valueOr(c.Method, "")}
		switch kind := valueOr(c.Type, gatewayv1.GRPCMethodMatchExact); kind {
		case gatewayv1.GRPCMethodMatchExact:
		case gatewayv1.GRPCMethodMatchRegularExpression:
			m.Call.Expression = true
		default:
			return m, unsupported(field+".method.type", "%q is not known; write Exact or RegularExpression", kind)
		}
		if m.Call.Service == "" && m.Call.Method == "" {
			return m, unsupported(field+".method", "is empty; write a service, a method or both, or leave it out for every call")
		}
	}
	for i, h := range from.Headers {
		v, f := value(fmt.Sprintf("%s.headers[%d]", field, i), string(h.Name), h.Value, string(valueOr(h.Type, gatewayv1.GRPCHeaderMatchExact)))
		if f != nil {
			return m, f
		}
		m.Headers = append(m.Headers, v)
	}
	return m, nil
}

func value(field, name, text, kind string) (v route.ValueMatch, f *fault) {
	v = route.ValueMatch{Name: name, Value: text}
	switch kind {
	case "Exact":
	case "RegularExpression":
		v.Expression = true
	default:
		return v, unsupported(field+".type", "%q is not known; write Exact or RegularExpression", kind)
	}
	return v, nil
}

func compileBackends(field string, from *ruleSource, matches []route.Match) (all []route.Backend, f *fault) {
	if len(from.backends) > split.MaxBackends {
		return nil, unsupported(field, "are %d; write at most %d", len(from.backends), split.MaxBackends)
	}
	for i := range from.backends {
		at := fmt.Sprintf("%s[%d]", field, i)
		weight := valueOr(from.backends[i].Weight, 1)
		if weight < 0 || weight > maxWeight {
			return nil, unsupported(at+".weight", "%d is not a weight; write one from 0 to %d", weight, maxWeight)
		}
		filters, f := compileFilters(at+".filters", from.backends[i].Filters, matches)
		if f != nil {
			return nil, f
		}
		all = append(all, route.Backend{Weight: uint32(weight), Filters: filters})
	}
	for _, filter := range from.filters {
		if filter.Type == gatewayv1.HTTPRouteFilterRequestRedirect && len(all) > 0 {
			return nil, &fault{gatewayv1.RouteReasonIncompatibleFilters, field + ": would get no request, as a filter redirects them all; take out one of the two"}
		}
	}
	return all, nil
}

// duration parses a Duration of GEP-2257.
func duration(field string, text *gatewayv1.Duration) (time.Duration, *fault) {
	if text == nil {
		return 0, nil
	}
	d, err := time.ParseDuration(string(*text))
	if err != nil || !durationPattern.MatchString(string(*text)) {
		return 0, unsupported(field, "%q is not a duration; write one such as 10s or 1m30s", *text)
	}
	return d, nil
}

func timeouts(field string, from *gatewayv1.HTTPRouteTimeouts) (request, backend time.Duration, f *fault) {
	if from == nil {
		return 0, 0, nil
	}
	if request, f = duration(field+".request", from.Request); f != nil {
		return 0, 0, f
	}
	if backend, f = duration(field+".backendRequest", from.BackendRequest); f != nil {
		return 0, 0, f
	}
	if request > 0 && backend > request {
		return 0, 0, unsupported(field+".backendRequest", "%v is longer than the %v that the request has; make it shorter", backend, request)
	}
	return request, backend, nil
}

// maxAttempts bounds how often one request is tried again.
const maxAttempts = 10

func retry(field string, from *gatewayv1.HTTPRouteRetry) (r *route.Retry, f *fault) {
	if from == nil {
		return nil, nil
	}
	r = &route.Retry{Attempts: valueOr(from.Attempts, -1)}
	if from.Attempts != nil && (r.Attempts < 0 || r.Attempts > maxAttempts) {
		return nil, unsupported(field+".attempts", "%d is not a number of attempts; write one from 0 to %d", r.Attempts, maxAttempts)
	}
	for i, code := range from.Codes {
		if code < 400 || code > 599 {
			return nil, unsupported(fmt.Sprintf("%s.codes[%d]", field, i), "%d is not the status of an error; write one from 400 to 599", code)
		}
		r.Codes = append(r.Codes, uint16(code))
	}
	r.Backoff, f = duration(field+".backoff", from.Backoff)
	return r, f
}

func session(field string, from *gatewayv1.SessionPersistence) (s *route.Session, f *fault) {
	if from == nil {
		return nil, nil
	}
	s = &route.Session{Name: valueOr(from.SessionName, "")}
	switch kind := valueOr(from.Type, gatewayv1.CookieBasedSessionPersistence); kind {
	case gatewayv1.CookieBasedSessionPersistence:
	case gatewayv1.HeaderBasedSessionPersistence:
		s.Header = true
	default:
		return nil, unsupported(field+".type", "%q is not known; write Cookie or Header", kind)
	}
	if s.Name != "" && !isToken(s.Name) {
		return nil, unsupported(field+".sessionName", "%q is not a name of a header or a cookie; write one such as session", s.Name)
	}
	if why := reserved(strings.ToLower(s.Name)); s.Header && why != "" {
		return nil, unsupported(field+".sessionName", "%s %s; write another name", s.Name, why)
	}
	if s.AbsoluteTimeout, f = duration(field+".absoluteTimeout", from.AbsoluteTimeout); f != nil {
		return nil, f
	}
	if c := from.CookieConfig; c != nil {
		switch kind := valueOr(c.LifetimeType, gatewayv1.SessionCookieLifetimeType); kind {
		case gatewayv1.SessionCookieLifetimeType:
		case gatewayv1.PermanentCookieLifetimeType:
			s.Permanent = true
		default:
			return nil, unsupported(field+".cookieConfig.lifetimeType", "%q is not known; write Session or Permanent", kind)
		}
	}
	if s.Permanent && s.AbsoluteTimeout == 0 {
		return nil, unsupported(field+".absoluteTimeout", "is what a permanent cookie lives for; write one such as 24h")
	}
	return s, nil
}

// isToken reports whether a text may be the name of a header (RFC 9110, section 5.6.2), or
// of a cookie.
func isToken(text string) bool {
	return tokenPattern.MatchString(text)
}

// isValue reports whether a text may be the value of a header (RFC 9110, section 5.5).
func isValue(text string) bool {
	return len(text) <= 4096 && strings.TrimSpace(text) == text && !strings.ContainsFunc(text, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f })
}
