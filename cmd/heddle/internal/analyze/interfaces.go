package analyze

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
)

// KindInterfaces is the kind of findings about pods with further interfaces.
const KindInterfaces = "interfaces"

// networksAnnotation has the networks that Multus puts a pod on beside the cluster's, by
// their names or as a list of JSON: the multi-network de-facto standard of the Network
// Plumbing Working Group, section 4.1.
const networksAnnotation = "k8s.v1.cni.cncf.io/networks"

// interfaces finds the pods that would be enrolled and have, or get, an interface beside
// the one that the gate watches: the agent refuses them.
func (o *Objects) interfaces(enrolled []member) []Finding {
	var all []Finding
	for _, m := range enrolled {
		networks := furtherNetworks(m.pod.Annotations[networksAnnotation])
		if networks == "" {
			continue
		}
		all = append(all, Finding{
			Kind: KindInterfaces, Namespace: m.pod.Namespace, Object: "Pod " + nameOf(m.pod.Namespace, familyOf(m.pod)),
			Detail: fmt.Sprintf("pods %s are on further networks (%s, by %s): with a second way out they cannot be enrolled; those that run are then reached by nobody in the mesh, and STRICT ports refuse what they call; new ones do not start", alike(m.pod), networks, networksAnnotation),
			Remedy: "take the annotation out; or label the pods, in the template of their workload, " + v1alpha1.LabelMesh + ": " + v1alpha1.MeshDisabled +
				", and let the ports that they call be PERMISSIVE",
		})
	}
	return all
}

// furtherNetworks returns the names in a value of the annotation, "" for none. What is
// neither names nor a list is Multus' to refuse, and stands for itself.
func furtherNetworks(value string) string {
	value = strings.TrimSpace(value)
	if !strings.HasPrefix(value, "[") {
		return value
	}
	var list []struct{ Namespace, Name string }
	if err := json.Unmarshal([]byte(value), &list); err != nil {
		return value
	}
	names := make([]string, len(list))
	for i, network := range list {
		names[i] = nameOf(network.Namespace, cmp.Or(network.Name, "?"))
	}
	return strings.Join(names, ", ")
}
