package cluster

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
)

// TestAFieldThatComesLate: an object that an API server first told by a definition that is no more, without a field of the
// one that took its place, is another when it has the field, though its generation is the same.
func TestAFieldThatComesLate(t *testing.T) {
	meta := metav1.ObjectMeta{Name: "x", UID: "u", Generation: 1}
	route := &gatewayv1.HTTPRoute{ObjectMeta: meta, Spec: gatewayv1.HTTPRouteSpec{Rules: []gatewayv1.HTTPRouteRule{{}}}}
	kept := route.DeepCopy()
	kept.Spec.Rules[0].SessionPersistence = &gatewayv1.SessionPersistence{}
	calls := &gatewayv1.GRPCRoute{ObjectMeta: meta, Spec: gatewayv1.GRPCRouteSpec{Rules: []gatewayv1.GRPCRouteRule{{}}}}
	keptCalls := calls.DeepCopy()
	keptCalls.Spec.Rules[0].SessionPersistence = &gatewayv1.SessionPersistence{}
	policy := &v1alpha1.AuthorizationPolicy{ObjectMeta: meta, Spec: v1alpha1.AuthorizationPolicySpec{Rules: []v1alpha1.Rule{{}}}}
	narrower := policy.DeepCopy()
	narrower.Spec.Rules[0].From = []v1alpha1.Source{{Namespaces: []string{"shop"}}}
	for name, pair := range map[string][2]any{"httproutes": {route, kept}, "grpcroutes": {calls, keptCalls}, "authorizationpolicies": {policy, narrower}} {
		found := false
		for _, r := range append(heddleResources(), gatewayResources()...) {
			if r.name != name {
				continue
			}
			found = true
			if r.same(pair[0], pair[1]) || !r.same(pair[1], pair[1]) {
				t.Errorf("%s: what has one more field is said to be the same", name)
			}
		}
		if !found {
			t.Errorf("%s are not read", name)
		}
	}
}
