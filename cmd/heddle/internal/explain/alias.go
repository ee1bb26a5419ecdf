package explain

import (
	"cmp"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// aliasesOf returns the Services that are names for other names, with these: DNS answers
// them, and the mesh has nothing to say of them.
func aliasesOf(objects *kube.Objects) map[mesh.Key]string {
	found := map[mesh.Key]string{}
	for _, s := range objects.Services {
		if s.Value.Spec.Type == corev1.ServiceTypeExternalName {
			found[mesh.Key{Namespace: s.Value.Namespace, Name: s.Value.Name}] = s.Value.Spec.ExternalName
		}
	}
	return found
}

// aliased says what to ask for in place of a Service that is a name for another name;
// port is 0 when none was given.
func aliased(view *mesh.View, key mesh.Key, to string, port uint16) error {
	ask := "write one of the addresses that this resolves to, as " + addressed(port)
	if there, err := destinationKey(to); err == nil {
		if _, ok := view.Service(there); ok {
			ask = "write " + strings.TrimSuffix(there.String()+":"+number(port), ":")
		}
	}
	return fmt.Errorf("destination %s is an ExternalName, another name for %s, which DNS resolves: %s", key, cmp.Or(to, "nothing"), ask)
}

// looksOutside reports whether a name is rather that of a host outside the mesh than
// NAME.NAMESPACE, of which there is nothing.
func looksOutside(view *mesh.View, name string, key mesh.Key) bool {
	if strings.Contains(name, "/") || strings.Contains(name, ".svc") {
		return false
	}
	for _, s := range view.Services() {
		if s.Namespace == key.Namespace {
			return false
		}
	}
	for _, w := range view.Workloads() {
		if w.Namespace == key.Namespace {
			return false
		}
	}
	return true
}

func addressed(port uint16) string { return "ADDRESS:" + cmp.Or(number(port), "PORT") }

// number is a port that was given, or "".
func number(port uint16) string {
	if port == 0 {
		return ""
	}
	return fmt.Sprint(port)
}
