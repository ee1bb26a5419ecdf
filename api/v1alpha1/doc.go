// Package v1alpha1 has the types of Heddle's own API, heddle.dev/v1alpha1. They
// hold what people write: nothing here is defaulted or resolved, and nothing
// here decides anything. internal/kube turns them into the model that does.
//
// The same objects come from a Kubernetes API server, whose schemas
// (manifests/heddle/crds) are generated from the markers in this package, and from a
// folder of YAML. internal/kube checks again what the schemas check (but for how
// long lists may be, which is about the memory of an API server), since a
// folder has no API server in front of it.
//
// Every kind is namespaced and acts in its own namespace only, except Mesh, of
// which there is one.
//
// +kubebuilder:object:generate=true
// +groupName=heddle.dev
package v1alpha1
