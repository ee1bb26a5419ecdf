package main

import "testing"

// TestPoliciesOfTheNetwork: of policies that the cluster's network has of its own, and of
// those that nothing has held so far, whoever enrolls a namespace is told, and is not held up.
func TestPoliciesOfTheNetwork(t *testing.T) {
	w := newShop(t)
	w.Put(t, `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ciliumnetworkpolicies.cilium.io}
spec:
  group: cilium.io
  scope: Namespaced
  names: {kind: CiliumNetworkPolicy, plural: ciliumnetworkpolicies, singular: ciliumnetworkpolicy}
  versions: [{name: v2, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: web}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}]}]}`)
	w.Put(t, "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {namespace: shop, name: old}\nspec: {endpointSelector: {}}")
	w.expect(0, "warning CiliumNetworkPolicy.cilium.io old, in namespace shop", "enroll", "shop", "--dry-run")
	w.expect(0, "if nothing does, those of namespace shop (web) come into force with the label", "enroll", "shop", "--dry-run")
	w.expect(0, "Namespace shop is enrolled.", "enroll", "shop")
	w.expect(0, "warning CiliumNetworkPolicy.cilium.io old", "analyze")
	w.expect(0, `"warning": true`, "analyze", "-o", "json")
}
