package routes

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// reasonConflicted is GEP-1426's for routes of two kinds at one port; the API's Go package
// does not have it.
const reasonConflicted gatewayv1.RouteConditionReason = "Conflicted"

// links returns the parents of a route that are Services.
func (c *compiler) links(s *source) (all []link) {
	for _, ref := range s.parents {
		if !isService(ref.Group, ref.Kind, gatewayv1.GroupName, "Gateway") {
			continue
		}
		l := link{ref: ref}
		key := keyed.Key{Namespace: namespaceOf(ref.Namespace, s.id.Namespace), Name: string(ref.Name)}
		if l.ports, l.message = c.ports(key, &ref); l.message != "" {
			l.reason = gatewayv1.RouteReasonNoMatchingParent
		}
		all = append(all, l)
	}
	return all
}

// isService reports whether a reference is to a Service, or what it is taken for when it does
// not say.
func isService(group *gatewayv1.Group, kind *gatewayv1.Kind, defaultGroup, defaultKind string) bool {
	return valueOr(group, gatewayv1.Group(defaultGroup)) == "" && valueOr(kind, gatewayv1.Kind(defaultKind)) == "Service"
}

func valueOr[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

func namespaceOf(given *gatewayv1.Namespace, own string) string {
	return string(valueOr(given, gatewayv1.Namespace(own)))
}

// ports returns the ports of a service that a parentRef is for, or why there is none.
func (c *compiler) ports(key keyed.Key, ref *gatewayv1.ParentReference) (ports []route.Parent, message string) {
	svc := c.services[key]
	switch {
	case svc == nil:
		return nil, fmt.Sprintf("there is no Service %s; create it, or correct parentRefs[].name and namespace", key)
	case svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.ClusterIP == corev1.ClusterIPNone:
		return nil, fmt.Sprintf("Service %s has no address of its own that requests could be sent to: it is headless or an ExternalName; refer to one of type ClusterIP", key)
	}
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		if !isTCP(p) || ref.Port != nil && int32(*ref.Port) != p.Port || ref.SectionName != nil && *ref.SectionName != "" && string(*ref.SectionName) != p.Name {
			continue
		}
		ports = append(ports, route.Parent{Service: key, Port: uint16(p.Port)})
	}
	if len(ports) == 0 {
		return nil, fmt.Sprintf("Service %s has no TCP port that parentRefs[].port and sectionName are for; correct them, or leave them out for all of its ports", key)
	}
	return ports, ""
}

func isTCP(p *corev1.ServicePort) bool {
	return (p.Protocol == "" || p.Protocol == corev1.ProtocolTCP) && 0 < p.Port && p.Port <= 65535
}
