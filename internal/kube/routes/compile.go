package routes

import (
	"cmp"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// Objects are what routes are compiled from. No two of one kind have the same namespace
// and name.
type Objects struct {
	HTTPRoutes []*gatewayv1.HTTPRoute
	GRPCRoutes []*gatewayv1.GRPCRoute
	TLSRoutes  []*gatewayv1.TLSRoute
	TCPRoutes  []*gatewayv1.TCPRoute
	Services   []*corev1.Service
	Grants     []*gatewayv1.ReferenceGrant
	// Untold says of routes that were compiled before why they cannot be told to waypoints: they
	// are refused for it, whole. It may be nil.
	Untold map[route.ID]string
}

// Good are the routes as they were when all of their rules could be served, by name.
// Exactly one field of each is set.
type Good map[route.ID]GoodRoute

// GoodRoute is one of them. It is kept as an object, so that what it refers to is
// looked up anew: a grant that is taken back ends what it allowed.
type GoodRoute struct {
	HTTP *gatewayv1.HTTPRoute `json:"http,omitempty"`
	GRPC *gatewayv1.GRPCRoute `json:"grpc,omitempty"`
	TLS  *gatewayv1.TLSRoute  `json:"tls,omitempty"`
	TCP  *gatewayv1.TCPRoute  `json:"tcp,omitempty"`
}

// Compiled is what Objects mean.
type Compiled struct {
	// Routes are in force, sorted by kind and name: route.NewTable takes them.
	Routes []route.Route
	// Statuses are those of all routes that have a Service for a parent, in the same order. A
	// route that has none any more is not among them: whoever wrote a status for it before has
	// to write Merge(have, nil).
	Statuses []Status
	// Good is for the next Compile.
	Good Good
}

// Status is what is to be said of one route.
type Status struct {
	ID  route.ID
	UID types.UID
	// Generation is the object's, whatever is in force of it.
	Generation int64
	// Parents are those that are Services, in the order of the object's parentRefs. The times of
	// the conditions are left for who writes them.
	Parents []gatewayv1.RouteParentStatus
}

// Compile compiles routes. It is pure: equal objects, in any order, with equal Good, give equal
// results. Good is what the last Compile returned, or nil.
//
// A route whose rules can all be served is in force. If some cannot, the route as it was last
// good goes on, whole ("Fall Back"), for the parents that it had then and has still; if it is not known as good, those of its rules
// are in force that can be ("Dropped Rule"). If none can, it is not accepted, and what was last good of it goes on. References that lead nowhere are no
// such fault: their share of the requests is answered with 500, as the API wants it.
func Compile(objs *Objects, good Good) *Compiled {
	c := &compiler{untold: objs.Untold, services: map[keyed.Key]*corev1.Service{}, grants: map[string][]*gatewayv1.ReferenceGrant{}, out: Compiled{Good: Good{}}}
	for _, s := range objs.Services {
		c.services[keyed.Key{Namespace: s.Namespace, Name: s.Name}] = s
	}
	for _, g := range objs.Grants {
		c.grants[g.Namespace] = append(c.grants[g.Namespace], g)
	}
	var all []*attached
	for _, s := range sources(objs) {
		if a := c.attach(s, good[s.id].source()); a != nil {
			all = append(all, a)
		}
	}
	settle(all)
	for _, a := range all {
		c.finish(a)
	}
	return &c.out
}

type compiler struct {
	services map[keyed.Key]*corev1.Service
	grants   map[string][]*gatewayv1.ReferenceGrant // by namespace
	untold   map[route.ID]string
	out      Compiled
}

// source is a route, as far as those of all kinds are alike.
type source struct {
	id        route.ID
	meta      *metav1.ObjectMeta
	object    GoodRoute
	parents   []gatewayv1.ParentReference
	hostnames []gatewayv1.Hostname
	rules     []ruleSource
}

// ruleSource is a rule of any kind; those fields are nil that its kind has not.
type ruleSource struct {
	name     *gatewayv1.SectionName
	http     []gatewayv1.HTTPRouteMatch
	grpc     []gatewayv1.GRPCRouteMatch
	filters  []gatewayv1.HTTPRouteFilter
	backends []gatewayv1.HTTPBackendRef
	timeouts *gatewayv1.HTTPRouteTimeouts
	retry    *gatewayv1.HTTPRouteRetry
	session  *gatewayv1.SessionPersistence
}

// sources returns all routes, sorted.
func sources(objs *Objects) []*source {
	var all []*source
	for _, r := range objs.HTTPRoutes {
		all = append(all, httpSource(r))
	}
	for _, r := range objs.GRPCRoutes {
		all = append(all, grpcSource(r))
	}
	for _, r := range objs.TLSRoutes {
		all = append(all, tlsSource(r))
	}
	for _, r := range objs.TCPRoutes {
		all = append(all, tcpSource(r))
	}
	slices.SortFunc(all, func(a, b *source) int {
		return cmp.Or(cmp.Compare(a.id.Kind, b.id.Kind), a.id.Compare(b.id.Key))
	})
	return all
}

func (g GoodRoute) source() *source {
	switch {
	case g.HTTP != nil:
		return httpSource(g.HTTP)
	case g.GRPC != nil:
		return grpcSource(g.GRPC)
	case g.TLS != nil:
		return tlsSource(g.TLS)
	case g.TCP != nil:
		return tcpSource(g.TCP)
	}
	return nil
}

func httpSource(r *gatewayv1.HTTPRoute) *source {
	s := &source{id: idOf(route.HTTP, &r.ObjectMeta), meta: &r.ObjectMeta, object: GoodRoute{HTTP: r}, parents: r.Spec.ParentRefs, hostnames: r.Spec.Hostnames}
	for i := range r.Spec.Rules {
		rule := &r.Spec.Rules[i]
		s.rules = append(s.rules, ruleSource{name: rule.Name, http: rule.Matches, filters: rule.Filters, backends: rule.BackendRefs,
			timeouts: rule.Timeouts, retry: rule.Retry, session: rule.SessionPersistence})
	}
	if len(s.rules) == 0 {
		s.rules = []ruleSource{{}} // the API's default: a rule for every request
	}
	return s
}

func grpcSource(r *gatewayv1.GRPCRoute) *source {
	s := &source{id: idOf(route.GRPC, &r.ObjectMeta), meta: &r.ObjectMeta, object: GoodRoute{GRPC: r}, parents: r.Spec.ParentRefs, hostnames: r.Spec.Hostnames}
	for i := range r.Spec.Rules {
		rule := &r.Spec.Rules[i]
		out := ruleSource{name: rule.Name, grpc: rule.Matches, filters: grpcFilters(rule.Filters), session: rule.SessionPersistence}
		for _, b := range rule.BackendRefs {
			out.backends = append(out.backends, gatewayv1.HTTPBackendRef{BackendRef: b.BackendRef, Filters: grpcFilters(b.Filters)})
		}
		s.rules = append(s.rules, out)
	}
	return s
}

// grpcFilters returns filters of a GRPCRoute as those of an HTTPRoute, which has them all.
func grpcFilters(filters []gatewayv1.GRPCRouteFilter) (all []gatewayv1.HTTPRouteFilter) {
	for _, f := range filters {
		all = append(all, gatewayv1.HTTPRouteFilter{Type: gatewayv1.HTTPRouteFilterType(f.Type), RequestHeaderModifier: f.RequestHeaderModifier,
			ResponseHeaderModifier: f.ResponseHeaderModifier, RequestMirror: f.RequestMirror, ExtensionRef: f.ExtensionRef})
	}
	return all
}

func idOf(kind route.Kind, meta *metav1.ObjectMeta) route.ID {
	return route.ID{Kind: kind, Key: keyed.Key{Namespace: meta.Namespace, Name: meta.Name}}
}

// attached is a route on its way into force.
type attached struct {
	source *source
	// served is the route that is in force: source, or the one that was last good; nil when
	// there is none.
	served *source
	rules  []compiledRule // of served
	faults []fault        // of source
	refs   []refProblem   // of what is served, or else of source
	links  []link         // to the parents of source that are Services
}

// link is one parentRef.
type link struct {
	ref   gatewayv1.ParentReference
	ports []route.Parent
	// reason and message say why it has no ports; without a reason, the message says which it
	// has not.
	reason  gatewayv1.RouteConditionReason
	message string
	// idle is set when the parent is new since the route was last good, which is what is served.
	idle bool
}

// compiledRule is a rule and its place in the object.
type compiledRule struct {
	index int
	rule  route.Rule
}

// attach compiles a route, and finds its parents; nil when none is a Service.
func (c *compiler) attach(s, good *source) *attached {
	a := &attached{source: s, links: c.links(s)}
	if len(a.links) == 0 {
		return nil
	}
	rules, faults := compileRules(s)
	if why := c.untold[s.id]; why != "" {
		if len(faults) > 0 {
			good = nil // it is what could not be told
		}
		rules, faults = nil, slices.Repeat([]fault{*unsupported("spec", "%s", why)}, len(s.rules))
	}
	a.faults = faults
	switch {
	case len(faults) == 0:
		c.out.Good[s.id] = s.object
		a.served = s
	case good != nil && good.meta.UID == s.meta.UID:
		if before, wrong := compileRules(good); len(wrong) == 0 {
			c.out.Good[s.id] = good.object
			a.served, rules = good, before
			c.keepParents(a, good)
		}
	}
	if a.served == nil && len(rules) > 0 {
		a.served = s
	}
	a.rules = rules
	return a
}

// keepParents takes the ports that the last good route had not from its links.
func (c *compiler) keepParents(a *attached, good *source) {
	had := map[route.Parent]bool{}
	for _, l := range c.links(good) {
		for _, p := range l.ports {
			had[p] = true
		}
	}
	for i := range a.links {
		l := &a.links[i]
		before := len(l.ports)
		l.ports = slices.DeleteFunc(l.ports, func(p route.Parent) bool { return !had[p] })
		l.idle = before > 0 && len(l.ports) == 0
	}
}

// finish looks up what a route refers to, puts it into force and says so.
func (c *compiler) finish(a *attached) {
	parents := map[route.Parent]bool{}
	for _, l := range a.links {
		for _, p := range l.ports {
			parents[p] = true
		}
	}
	from := a.source
	if a.served != nil {
		from = a.served
	}
	for i := range a.rules {
		a.refs = append(a.refs, c.resolve(from, parents, &a.rules[i])...)
	}
	if a.served != nil && len(parents) > 0 {
		r := route.Route{ID: a.source.id, Created: a.source.meta.CreationTimestamp.Time, Parents: slices.SortedFunc(maps.Keys(parents), compareParents)}
		if a.source.id.Kind == route.TLS {
			r.Hostnames = serverNames(a.served.hostnames)
		}
		for _, rule := range a.rules {
			r.Rules = append(r.Rules, rule.rule)
		}
		c.out.Routes = append(c.out.Routes, r)
	}
	c.out.Statuses = append(c.out.Statuses, a.status())
}

func compareParents(a, b route.Parent) int {
	return cmp.Or(a.Service.Compare(b.Service), cmp.Compare(a.Port, b.Port))
}
