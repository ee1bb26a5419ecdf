package routes

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// refProblem is a reference that leads nowhere.
type refProblem struct {
	reason gatewayv1.RouteConditionReason
	text   string
}

// target is a Service that a backendRef leads to.
type target struct {
	service keyed.Key
	port    uint16
}

// referrer is a route that refers to Services.
type referrer struct {
	*source
	// at are the ports where it is in force.
	at map[route.Parent]bool
}

// resolve looks up what a rule refers to, and marks as broken what cannot be had.
func (c *compiler) resolve(of *source, at map[route.Parent]bool, r *compiledRule) (problems []refProblem) {
	s := &referrer{of, at}
	from := &s.rules[r.index]
	field := fmt.Sprintf("spec.rules[%d]", r.index)
	filters := func(field string, from []gatewayv1.HTTPRouteFilter, to []route.Filter) {
		for i := range from {
			problems = append(problems, c.resolveFilter(s, fmt.Sprintf("%s.filters[%d]", field, i), &from[i], &to[i])...)
		}
	}
	filters(field, from.filters, r.rule.Filters)
	for i := range from.backends {
		b, at := &r.rule.Backends[i], fmt.Sprintf("%s.backendRefs[%d]", field, i)
		to, p := c.lookUp(s, at, &from.backends[i].BackendObjectReference)
		b.Service, b.Port = to.service, to.port
		if p != nil {
			b.Broken = p.text
			problems = append(problems, *p)
		}
		filters(at, from.backends[i].Filters, b.Filters)
	}
	return problems
}

func (c *compiler) resolveFilter(s *referrer, field string, from *gatewayv1.HTTPRouteFilter, to *route.Filter) []refProblem {
	switch {
	case to.Mirror != nil:
		at, p := c.lookUp(s, field+".requestMirror.backendRef", &from.RequestMirror.BackendRef)
		to.Mirror.Service, to.Mirror.Port = at.service, at.port
		if p != nil {
			to.Mirror.Broken = p.text
			return []refProblem{*p}
		}
	case to.Broken != "": // an extension: there is none that we know
		return []refProblem{{gatewayv1.RouteReasonInvalidKind, field + ".extensionRef: " + to.Broken}}
	}
	return nil
}

// lookUp returns what a reference leads to, as far as it says, and what is wrong with it.
func (c *compiler) lookUp(s *referrer, field string, ref *gatewayv1.BackendObjectReference) (target, *refProblem) {
	key := keyed.Key{Namespace: namespaceOf(ref.Namespace, s.id.Namespace), Name: string(ref.Name)}
	to := target{key, 0}
	wrong := func(reason gatewayv1.RouteConditionReason, format string, args ...any) (target, *refProblem) {
		return to, &refProblem{reason, field + ": " + fmt.Sprintf(format, args...)}
	}
	if !isService(ref.Group, ref.Kind, "", "Service") {
		return wrong(gatewayv1.RouteReasonInvalidKind, "%s %q is not a kind that requests can be sent to; refer to a Service",
			valueOr(ref.Kind, "Service"), valueOr(ref.Group, ""))
	}
	// Before existence, which is the other namespace's own affair.
	if key.Namespace != s.id.Namespace && !s.isOwnParent(key, ref.Port) && !c.granted(s, key) {
		return wrong(gatewayv1.RouteReasonRefNotPermitted, "no ReferenceGrant in namespace %s lets a %s of namespace %s refer to Service %s; add one there",
			key.Namespace, s.id.Kind, s.id.Namespace, key.Name)
	}
	svc := c.services[key]
	switch {
	case svc == nil:
		return wrong(gatewayv1.RouteReasonBackendNotFound, "there is no Service %s; create it, or correct name and namespace", key)
	case svc.Spec.Type == corev1.ServiceTypeExternalName:
		return wrong(gatewayv1.RouteReasonInvalidKind, "Service %s is an ExternalName, which may lead anywhere; refer to one of type ClusterIP", key)
	case ref.Port == nil:
		return wrong(gatewayv1.RouteReasonBackendNotFound, "has no port; write one of Service %s", key)
	}
	i := slices.IndexFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return isTCP(&p) && p.Port == int32(*ref.Port) })
	if i < 0 {
		return wrong(gatewayv1.RouteReasonBackendNotFound, "Service %s has no TCP port %d; correct the port", key, *ref.Port)
	}
	to.port = uint16(*ref.Port)
	if p := svc.Spec.Ports[i].AppProtocol; p != nil && s.id.Kind.Requests() && isTLS(*p) {
		return wrong(gatewayv1.RouteReasonUnsupportedProtocol, "port %d of Service %s says appProtocol %q, and waypoints speak HTTP to workloads without TLS of its own; refer to a port without it",
			*ref.Port, key, *p)
	}
	return to, nil
}

// isTLS reports whether an appProtocol is one in TLS, which a request cannot be sent on in (GEP-1911): the
// mesh encrypts what waypoints send, and a workload that expects TLS within would read a request as none.
func isTLS(appProtocol string) bool {
	switch strings.ToLower(appProtocol) {
	case "https", "tls", "kubernetes.io/wss":
		return true
	}
	return false
}

// isOwnParent reports whether the route is about one service only, this one, and in force at
// this port of it: its clients dial that anyhow, so that the consumer's route needs no grant
// to lead them there (GEP-1426, "Namespace boundaries"). They may not dial other ports.
func (s *referrer) isOwnParent(key keyed.Key, port *gatewayv1.PortNumber) bool {
	for _, ref := range s.parents {
		same := isService(ref.Group, ref.Kind, gatewayv1.GroupName, "Gateway") &&
			namespaceOf(ref.Namespace, s.id.Namespace) == key.Namespace && string(ref.Name) == key.Name
		if !same {
			return false
		}
	}
	return port != nil && 0 < *port && *port <= 65535 && s.at[route.Parent{Service: key, Port: uint16(*port)}]
}

// granted reports whether a ReferenceGrant of a service's namespace lets a route refer to it.
func (c *compiler) granted(s *referrer, to keyed.Key) bool {
	return slices.ContainsFunc(c.grants[to.Namespace], func(g *gatewayv1.ReferenceGrant) bool {
		return slices.ContainsFunc(g.Spec.From, func(f gatewayv1.ReferenceGrantFrom) bool {
			return f.Group == gatewayv1.GroupName && string(f.Kind) == s.id.Kind.String() && string(f.Namespace) == s.id.Namespace
		}) &&
			slices.ContainsFunc(g.Spec.To, func(t gatewayv1.ReferenceGrantTo) bool {
				return t.Group == "" && t.Kind == "Service" && (t.Name == nil || *t.Name == "" || string(*t.Name) == to.Name)
			})
	})
}
