package analyze

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
)

// datagrams finds services over UDP of enrolled pods, the cluster's own DNS among
// them: the gate lets no datagrams in but answers, and what a policy about UDP names.
func (o *Objects) datagrams(enrolled []member) []Finding {
	var all []Finding
	for i := range o.services {
		s := &o.services[i]
		ports := datagramPorts(s)
		serves := func(m member) bool { return m.pod.Namespace == s.Namespace && contains(m.pod.Labels, s.Spec.Selector) }
		if len(ports) == 0 || len(s.Spec.Selector) == 0 || !slices.ContainsFunc(enrolled, serves) {
			continue
		}
		all = append(all, Finding{
			Kind: KindDatagrams, Namespace: s.Namespace, Object: "Service " + nameOf(s.Namespace, s.Name),
			Detail: fmt.Sprintf("clients call it over UDP, at port %s, and enrolled pods, %s, take no datagrams but answers, and, where policies about UDP are switched on, those of workloads in the mesh that one names: others are then dropped", join(ports), labels(s.Spec.Selector)),
			Remedy: "label the pods, in the template of their workload, " + v1alpha1.LabelMesh + ": " + v1alpha1.MeshDisabled + "; leave a namespace with the cluster's DNS out of the mesh",
		})
	}
	return all
}

// datagramPorts are the ports that a service has over UDP.
func datagramPorts(s *corev1.Service) []uint16 {
	var ports []uint16
	for _, port := range s.Spec.Ports {
		if port.Protocol == corev1.ProtocolUDP && port.Port > 0 && port.Port <= 65535 {
			ports = append(ports, uint16(port.Port))
		}
	}
	return ports
}
