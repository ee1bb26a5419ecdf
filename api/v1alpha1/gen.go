package v1alpha1

//go:generate go tool controller-gen object crd paths=. output:crd:dir=../../manifests/heddle/crds
