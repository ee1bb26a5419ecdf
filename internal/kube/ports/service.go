package ports

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/internal/kube/check"
	"github.com/heddle-mesh/heddle/internal/kube/fit"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// MaxElsewhere bounds the endpoints that have ports of a service under other numbers than
// most.
const MaxElsewhere = 2 * fit.MaxEndpoints

// Fit leaves out the last ports of a service when they, with their endpoints, come to more
// than agents take.
func Fit(s check.Subject, out *mesh.Service) {
	if n := fit.Ports(out); n < len(out.Ports) {
		s.Problem("spec.ports", "let several services have the ports, or give the workloads of one service the same ports", "with the workloads of each, come to more than agents take: the first %d of %d are there", n, len(out.Ports))
		out.Ports = out.Ports[:n]
	}
}

// Full reports whether Few may have left some out.
func Full(keys []mesh.Key) bool { return len(keys) >= fit.MaxEndpoints }

// Few returns as many endpoints as agents take.
func Few(s check.Subject, field, remedy string, keys []mesh.Key) []mesh.Key {
	if len(keys) > fit.MaxEndpoints {
		s.Problem(field, remedy, "has %d endpoints: the first %d get connections", len(keys), fit.MaxEndpoints)
		keys = keys[:fit.MaxEndpoints]
	}
	return keys
}

// Beside warns of slices of endpoints that a service has beside the pods that its selector
// picks: kube-proxy takes both, and agents these pods. Of says a slice's name, and how many
// endpoints it has.
func Beside[S any](s check.Subject, spec *corev1.ServiceSpec, all []S, of func(S) (name string, endpoints int)) {
	if !slices.ContainsFunc(spec.Ports, func(p corev1.ServicePort) bool { return p.Protocol == "" || p.Protocol == corev1.ProtocolTCP }) {
		return
	}
	for _, slice := range all {
		if name, n := of(slice); n > 0 {
			s.Warn("spec.selector", "give them a Service of their own, or leave the selector out and write all endpoints",
				"picks the pods that clients in the mesh reach, and the %d endpoints of EndpointSlice %s are reached by others only", n, name)
			return
		}
	}
}

// maxUDPPorts bounds those of a service: there is room for them beside maxService.
const maxUDPPorts = 64

// UDP returns the ports of a service over UDP. Those that have no number at the workloads are left
// out: nothing is let through to them. Nor is anything to any of them when uncounted says who
// may be behind the service that nobody asks for.
func UDP(s check.Subject, spec *corev1.ServiceSpec, uncounted string) (ports []mesh.ServicePort) {
	numbers := map[int32]bool{}
	for i, p := range spec.Ports {
		if p.Protocol != corev1.ProtocolUDP || numbers[p.Port] {
			continue
		}
		numbers[p.Port] = true
		field, target := fmt.Sprintf("spec.ports[%d]", i), p.TargetPort.IntVal
		if p.TargetPort == (intstr.IntOrString{}) {
			target = p.Port
		}
		switch {
		case uncounted != "":
			s.Warn(field, "let clients use the endpoints' own addresses", "is not let through by any policy about UDP: %s", uncounted)
		case p.TargetPort.Type == intstr.String:
			s.Warn(field+".targetPort", "write the port's number", "%q is a name: no policy lets datagrams through to port %d of the service", p.TargetPort.StrVal, p.Port)
		case len(ports) == maxUDPPorts:
			s.Warn(field, "let several services have the ports", "is beyond the first %d over UDP: no policy lets datagrams through to it", maxUDPPorts)
		default:
			port, ok := s.Port(field+".port", p.Port)
			if to, targetOK := s.Port(field+".targetPort", target); ok && targetOK {
				ports = append(ports, mesh.ServicePort{Port: port, TargetPort: to})
			}
		}
	}
	return ports
}
