package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Group is the API group of Heddle's kinds, Version the version that this
// package has.
const (
	Group   = "heddle.dev"
	Version = "v1alpha1"
)

// GroupVersion returns the group and version of the kinds in this package.
func GroupVersion() schema.GroupVersion { return schema.GroupVersion{Group: Group, Version: Version} }

// AddToScheme adds the kinds of this package to a scheme.
func AddToScheme(scheme *runtime.Scheme) error {
	builder := runtime.NewSchemeBuilder(func(s *runtime.Scheme) error {
		s.AddKnownTypes(GroupVersion(),
			&Mesh{}, &MeshList{},
			&Workload{}, &WorkloadList{},
			&PeerAuthentication{}, &PeerAuthenticationList{},
			&AuthorizationPolicy{}, &AuthorizationPolicyList{},
		)
		metav1.AddToGroupVersion(s, GroupVersion())
		return nil
	})
	return builder.AddToScheme(scheme)
}
