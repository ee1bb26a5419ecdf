package explain

import (
	"fmt"
	"net/netip"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/datagram"
)

// dnsPort is as DNS is, over UDP, too.
const dnsPort = 53

// datagramsOutside says what becomes of UDP to an address and port of nobody in the mesh, as
// the source's gate decides it.
func (m *Model) datagramsOutside(src *mesh.Workload, to netip.AddrPort) string {
	if !src.Enrolled || to.Port() == dnsPort {
		return ""
	}
	d, _, _ := datagram.AuthorizeTo(m.View, src, to)
	note := fmt.Sprintf("over UDP, to port %d outside the mesh: %v, %v", to.Port(), d.Verdict, d.Reason)
	switch {
	case d.Reason == mesh.ReasonEgressDenied:
		note += fmt.Sprintf("; spec.egress.udp of the Mesh does not let namespace %s out to this port", src.Namespace)
	case d.Reason == mesh.ReasonKernelUDP && !datagram.IsOutside(m.View, to.Addr()):
		note += fmt.Sprintf("; no datagram leaves to %v, which is loopback, link-local, a group's or reserved", to.Addr())
	case d.Reason == mesh.ReasonKernelUDP && !datagram.ClosedPort(to.Port()):
		note += fmt.Sprintf("; more addresses of the mesh lie outside of spec.clusterRanges of the Mesh than the %d blocks that gates have room for, and nothing leaves it: extend that", datagram.MaxInside)
	case d.Reason == mesh.ReasonKernelUDP:
		note += "; this port stays closed"
	}
	return note
}
