package waypoints

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// TestOthersConditionsStay: who attaches something to a Gateway says so in a condition of its
// own. Taking that away would be done and undone for ever.
func TestOthersConditionsStay(t *testing.T) {
	theirs := metav1.Condition{Type: "example.com/Attached", Status: metav1.ConditionTrue, Reason: "Attached", ObservedGeneration: 3}
	g := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "waypoint", Generation: 4}}
	g.Spec.Listeners = []gatewayv1.Listener{{Name: "mesh", Port: meshPort, Protocol: "heddle.dev/mesh"}}
	g.Status.Conditions = []metav1.Condition{{Type: "Accepted", Status: metav1.ConditionUnknown, Reason: "Pending"}, theirs}
	g.Status.Listeners = []gatewayv1.ListenerStatus{{Name: "mesh", Conditions: []metav1.Condition{theirs}}}
	s := &state{addresses: []string{"10.96.0.7"}, ready: 1}
	first := statusOf(g, s, time.Unix(1, 0))
	has := func(all []metav1.Condition, kind string) bool {
		for _, c := range all {
			if c.Type == kind {
				return kind == theirs.Type && cmp.Equal(c, theirs) || kind != theirs.Type && c.Status == metav1.ConditionTrue && c.ObservedGeneration == 4
			}
		}
		return false
	}
	for _, kind := range []string{"Accepted", "Programmed", theirs.Type} {
		if !has(first.Conditions, kind) {
			t.Errorf("the Gateway's conditions are %v: %s is missing, or not as it should be", first.Conditions, kind)
		}
		if !has(first.Listeners[0].Conditions, kind) {
			t.Errorf("the listener's conditions are %v: %s is missing, or not as it should be", first.Listeners[0].Conditions, kind)
		}
	}
	g.Status = first
	if diff := cmp.Diff(first, statusOf(g, s, time.Unix(2, 0))); diff != "" {
		t.Errorf("what was written is written again:\n%s", diff)
	}
}
