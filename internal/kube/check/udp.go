package check

import (
	"fmt"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/datagram"
)

// maxUDPNamespaces is as many as the schema allows.
const maxUDPNamespaces = 1024

// udpEgress reads what may leave the mesh over UDP; what is wrong lets nothing out. The
// result is nil where nothing is said, so that agents which know nothing of it are told
// nothing.
func udpEgress(s Subject, spec *v1alpha1.UDPEgress) map[string]mesh.UDPEgress {
	if spec == nil {
		return nil
	}
	const list = "spec.egress.udp.namespaces"
	if n := len(spec.Namespaces); n > maxUDPNamespaces {
		s.Problem(list, fmt.Sprintf("name %d at most, and say with mode what holds for the others", maxUDPNamespaces), "has %d entries", n)
		return nil
	}
	all := map[string]mesh.UDPEgress{"": udpMode(s, "spec.egress.udp", spec.Mode, spec.Ports)}
	for i, ns := range spec.Namespaces {
		at := fmt.Sprintf("%s[%d]", list, i)
		_, twice := all[ns.Namespace]
		switch {
		case ns.Namespace == "":
			s.Problem(at+".namespace", "write the name of a namespace", "is empty")
			continue
		case twice:
			s.Problem(at+".namespace", "keep one of them", "namespace %q is given twice", ns.Namespace)
			continue
		case ns.Mode == "":
			s.Problem(at+".mode", "write ALLOW or DENY", "is missing")
		}
		all[ns.Namespace] = udpMode(s, at, ns.Mode, ns.Ports)
	}
	if !datagram.LeavesMesh(&mesh.Settings{UDPEgress: all}) {
		return nil // as where nothing is said
	}
	return all
}

// udpMode reads a mode with its ports.
func udpMode(s Subject, at string, mode v1alpha1.EgressMode, ports []v1alpha1.Port) (e mesh.UDPEgress) {
	read := s.Ports(at+".ports", ports)
	sound := len(read) == len(ports) && (ports == nil || len(ports) > 0)
	switch mode {
	case v1alpha1.EgressAllow:
		e.Allow = true
	case "", v1alpha1.EgressDeny:
		if len(ports) > 0 {
			s.Problem(at+".ports", "write mode ALLOW to let out what goes to these ports, or take them out", "has ports, and mode lets nothing out")
		}
	default:
		s.Problem(at+".mode", "write ALLOW or DENY", "%q is not an egress mode", string(mode))
	}
	if len(read) > datagram.MaxPorts {
		s.Problem(at+".ports", fmt.Sprintf("name %d at most, or none for all", datagram.MaxPorts), "has %d ports", len(read))
		sound = false
	}
	for i, port := range ports {
		switch at := fmt.Sprintf("%s.ports[%d]", at, i); {
		case port == 53:
			s.Problem(at, "take it out; spec.dns says who answers name queries, which leave without this", "port 53 is as DNS is")
			sound = false
		case port > 0 && port <= 65535 && datagram.ClosedPort(uint16(port)):
			s.Problem(at, "take it out; a pod that makes tunnels of its own cannot be in the mesh", "port %d is of tunnels, by which a pod could send as somebody else, and stays closed", port)
			sound = false
		}
	}
	if !e.Allow || !sound {
		return mesh.UDPEgress{}
	}
	e.Ports = read
	return e
}
