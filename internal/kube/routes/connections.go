package routes

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// maxServerName is the length of a host name (RFC 1035), maxServerNames how many the API lets a TLSRoute have.
const maxServerName, maxServerNames = 253, 1024

func tlsSource(r *gatewayv1.TLSRoute) *source {
	s := connectionSource(route.TLS, &r.ObjectMeta, &r.Spec.CommonRouteSpec, GoodRoute{TLS: r})
	s.hostnames = r.Spec.Hostnames
	for i := range r.Spec.Rules {
		s.rules = append(s.rules, connectionRule(r.Spec.Rules[i].Name, r.Spec.Rules[i].BackendRefs))
	}
	return s
}

func tcpSource(r *gatewayv1.TCPRoute) *source {
	s := connectionSource(route.TCP, &r.ObjectMeta, &r.Spec.CommonRouteSpec, GoodRoute{TCP: r})
	for i := range r.Spec.Rules {
		s.rules = append(s.rules, connectionRule(r.Spec.Rules[i].Name, r.Spec.Rules[i].BackendRefs))
	}
	return s
}

func connectionSource(kind route.Kind, meta *metav1.ObjectMeta, spec *gatewayv1.CommonRouteSpec, object GoodRoute) *source {
	return &source{id: idOf(kind, meta), meta: meta, object: object, parents: spec.ParentRefs}
}

func connectionRule(name *gatewayv1.SectionName, backends []gatewayv1.BackendRef) ruleSource {
	out := ruleSource{name: name}
	for _, b := range backends {
		out.backends = append(out.backends, gatewayv1.HTTPBackendRef{BackendRef: b})
	}
	return out
}

// checkConnections returns what is wrong with a route about connections as a whole: nil of other kinds.
func checkConnections(s *source) *fault {
	if s.id.Kind.Requests() {
		return nil
	}
	if n := len(s.rules); n > 1 { // the API allows one: nothing would tell which of them is for a connection
		return unsupported("spec.rules", "are %d, and a %s has one; write a route for each", n, s.id.Kind)
	}
	if s.id.Kind == route.TCP {
		return nil
	}
	if n := len(s.hostnames); n == 0 || n > maxServerNames {
		return unsupported("spec.hostnames", "are %d; write from 1 to %d names of servers, as clients have them in the ClientHello", n, maxServerNames)
	}
	for i, h := range s.hostnames {
		field, text := fmt.Sprintf("spec.hostnames[%d]", i), string(h)
		if _, err := netip.ParseAddr(text); err == nil {
			return unsupported(field, "%q is an address, which no client has as a server's name (RFC 6066, section 3); write a name", text)
		}
		if len(text) > maxServerName || !hostnamePattern.MatchString(strings.TrimPrefix(text, "*.")) {
			return unsupported(field, "%q is no server's name; write one such as shop.example.com or *.example.com", text)
		}
	}
	return nil
}

// Relayed returns the ports of services, sorted, at which routes in force have connections
// passed on as they are, for all clients: those of another namespace than the service are for
// clients of that namespace alone.
func Relayed(all []route.Route) map[keyed.Key][]uint16 {
	ports := map[keyed.Key][]uint16{}
	for i := range all {
		for _, p := range all[i].Parents {
			if !all[i].Kind.Requests() && all[i].Namespace == p.Service.Namespace {
				ports[p.Service] = append(ports[p.Service], p.Port)
			}
		}
	}
	for service, some := range ports {
		slices.Sort(some)
		ports[service] = slices.Compact(some)
	}
	return ports
}

// serverNames returns the names that checkConnections has nothing against, each once.
func serverNames(hostnames []gatewayv1.Hostname) []string {
	names := make([]string, len(hostnames))
	for i, h := range hostnames {
		names[i] = string(h)
	}
	slices.Sort(names)
	return slices.Compact(names)
}
