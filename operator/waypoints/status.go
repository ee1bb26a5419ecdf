package waypoints

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/operator/say"
)

// state is what there is to say of a Gateway.
type state struct {
	// fault is why it cannot be served; nil when it can.
	fault *fault
	// trouble is why its objects are not as they are to be; "" when they are.
	trouble string
	// note is what else there is to say of one that is accepted.
	note string
	// addresses are the Service's, ready how many replicas take requests.
	addresses []string
	ready     int
}

// statusOf says what a Gateway's status is to be. Conditions of others stay as they are.
func statusOf(g *gatewayv1.Gateway, s *state, now time.Time) gatewayv1.GatewayStatus {
	conditions := func(have []metav1.Condition, all ...metav1.Condition) []metav1.Condition {
		for i := range all {
			all[i].ObservedGeneration = g.Generation
		}
		merged := slices.Clone(have)
		for _, ours := range say.Since(all, have, now) {
			if i := slices.IndexFunc(merged, func(h metav1.Condition) bool { return h.Type == ours.Type }); i >= 0 {
				merged[i] = ours
			} else {
				merged = append(merged, ours)
			}
		}
		return merged
	}
	accepted := condition("Accepted", true, "Accepted", "the operator runs it"+s.note)
	programmed := condition("Programmed", true, "Programmed", "takes requests")
	switch {
	case s.fault != nil:
		accepted = condition("Accepted", false, string(s.fault.reason), s.fault.message)
		programmed = condition("Programmed", false, string(gatewayv1.GatewayReasonInvalid), "not accepted")
	case s.trouble != "":
		programmed = condition("Programmed", false, string(gatewayv1.GatewayReasonInvalid), s.trouble)
	case len(s.addresses) == 0:
		programmed = condition("Programmed", false, string(gatewayv1.GatewayReasonAddressNotAssigned), "its Service has no address yet")
	case s.ready == 0:
		programmed = condition("Programmed", false, string(gatewayv1.GatewayReasonPending), "no replica is ready: `kubectl -n "+g.Namespace+" describe deployment "+g.Name+"` and its pods say why")
	}
	out := gatewayv1.GatewayStatus{Conditions: conditions(g.Status.Conditions, accepted, programmed)}
	kind := gatewayv1.IPAddressType
	for _, address := range s.addresses {
		out.Addresses = append(out.Addresses, gatewayv1.GatewayStatusAddress{Type: &kind, Value: address})
	}
	for _, l := range g.Spec.Listeners {
		one := gatewayv1.ListenerStatus{Name: l.Name, SupportedKinds: []gatewayv1.RouteGroupKind{}}
		accepted := condition("Accepted", true, "Accepted", "takes the connections of services that name this waypoint")
		ready := condition("Programmed", programmed.Status == metav1.ConditionTrue, programmed.Reason, programmed.Message)
		if why := unsupported(&l); why != "" {
			accepted = condition("Accepted", false, reasonOf(&l), "spec.listeners[]"+why)
			ready = condition("Programmed", false, string(gatewayv1.ListenerReasonInvalid), "not accepted")
		}
		if ready.Status != metav1.ConditionTrue && ready.Reason != string(gatewayv1.ListenerReasonInvalid) {
			ready.Reason = string(gatewayv1.ListenerReasonPending)
		}
		var have []metav1.Condition
		if i := slices.IndexFunc(g.Status.Listeners, func(h gatewayv1.ListenerStatus) bool { return h.Name == l.Name }); i >= 0 {
			have = g.Status.Listeners[i].Conditions
		}
		one.Conditions = conditions(have, accepted, ready, condition("ResolvedRefs", true, "ResolvedRefs", "refers to nothing"))
		out.Listeners = append(out.Listeners, one)
	}
	return out
}

func reasonOf(l *gatewayv1.Listener) string {
	if l.Port != meshPort {
		return string(gatewayv1.ListenerReasonPortUnavailable)
	}
	return string(gatewayv1.ListenerReasonUnsupportedProtocol)
}

func condition(kind string, holds bool, reason, message string) metav1.Condition {
	c := metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: reason, Message: message}
	if holds {
		c.Status = metav1.ConditionTrue
	}
	return c
}

// writeGateway writes a Gateway's status, unless it is so already, and warns of what keeps
// it from being served.
func (r *Runner) writeGateway(ctx context.Context, g *gatewayv1.Gateway, s *state) error {
	want := statusOf(g, s, time.Now())
	about := corev1.ObjectReference{APIVersion: gatewayv1.GroupVersion.String(), Kind: "Gateway", Namespace: g.Namespace, Name: g.Name, UID: g.UID}
	why := s.trouble
	if s.fault != nil {
		why = s.fault.message
	}
	if why != "" {
		if err := r.teller.Warn(ctx, about, EventReason, why); err != nil {
			return err
		}
	}
	have := gatewayv1.GatewayStatus{Conditions: g.Status.Conditions, Addresses: g.Status.Addresses, Listeners: g.Status.Listeners}
	if equality.Semantic.DeepEqual(want, have) {
		return nil
	}
	return r.patchStatus(ctx, "gateways", &g.ObjectMeta, map[string]any{"conditions": want.Conditions, "addresses": want.Addresses, "listeners": want.Listeners})
}

// writeClass writes a GatewayClass's status, unless it is so already.
func (r *Runner) writeClass(ctx context.Context, c *gatewayv1.GatewayClass) error {
	accepted := condition("Accepted", true, string(gatewayv1.GatewayClassReasonAccepted), "its Gateways are waypoints")
	if c.Spec.ParametersRef != nil {
		accepted = condition("Accepted", false, string(gatewayv1.GatewayClassReasonInvalidParameters), "spec.parametersRef: there are no parameters; leave it out")
	}
	accepted.ObservedGeneration = c.Generation
	want := say.Since([]metav1.Condition{accepted}, c.Status.Conditions, time.Now())
	have := slices.DeleteFunc(slices.Clone(c.Status.Conditions), func(h metav1.Condition) bool { return h.Type != accepted.Type })
	if equality.Semantic.DeepEqual(want, have) {
		return nil
	}
	others := slices.DeleteFunc(slices.Clone(c.Status.Conditions), func(h metav1.Condition) bool { return h.Type == accepted.Type })
	return r.patchStatus(ctx, "gatewayclasses", &c.ObjectMeta, map[string]any{"conditions": append(want, others...)})
}

// patchStatus changes the status of the version that was read, or nothing.
func (r *Runner) patchStatus(ctx context.Context, resource string, m *metav1.ObjectMeta, status map[string]any) error {
	if err := r.limit.Wait(ctx); err != nil {
		return nil // ctx has ended
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": m.ResourceVersion, "uid": m.UID}, "status": status})
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	err = r.cfg.Gateway.Patch(types.MergePatchType).NamespaceIfScoped(m.Namespace, m.Namespace != "").Resource(resource).Name(m.Name).SubResource("status").
		VersionedParams(&metav1.PatchOptions{FieldManager: say.FieldManager}, metav1.ParameterCodec).Body(body).Do(ctx).Error()
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // deleted, or changed: that is seen in a moment, and looked at anew
	}
	return err
}
