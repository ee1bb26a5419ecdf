package analyze

import (
	"fmt"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/othermesh"
)

// otherMeshes finds what is, or would be, in two meshes, of which both take a pod's
// connections: pods that another one has captured, and namespaces whose pods one that
// runs will capture. A mark of a mesh that is not there is left over.
func (o *Objects) otherMeshes(enrolled []member) []Finding {
	var all []Finding
	for _, m := range enrolled {
		if mesh, by := othermesh.Captured(m.pod); mesh != "" {
			all = append(all, Finding{
				Kind: KindOtherMesh, Namespace: m.pod.Namespace, Object: "Pod " + nameOf(m.pod.Namespace, familyOf(m.pod)),
				Detail: fmt.Sprintf("pods %s are in %s (%s): both meshes would take their connections", labels(stable(m.pod.Labels)), mesh, by),
				Remedy: fmt.Sprintf("take them out of %s and have them made anew (`kubectl -n %s rollout restart`), or leave them there: label them heddle.dev/mesh: disabled", mesh, m.pod.Namespace),
			})
		}
	}
	runs := map[string]bool{}
	for i := range o.pods {
		runs[othermesh.Controls(&o.pods[i])] = true
	}
	for i := range o.namespaces {
		ns := &o.namespaces[i]
		mesh, key, value := othermesh.Mark(ns.Labels, ns.Annotations)
		if mesh == "" || !runs[mesh] || !o.enrolls(ns.Name) {
			continue
		}
		all = append(all, Finding{
			Kind: KindOtherMesh, Namespace: ns.Name, Object: ObjectNamespace + ns.Name,
			Detail: fmt.Sprintf("namespace %s is in %s, which runs, by %s=%s: both meshes would take its pods' connections", ns.Name, mesh, key, value),
			Remedy: fmt.Sprintf("take %s off, and have pods made anew that %s has captured; or leave the namespace there", key, mesh),
		})
	}
	return all
}

// ObjectNamespace begins the Object of a Finding about a namespace.
const ObjectNamespace = "Namespace "
