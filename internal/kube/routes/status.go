package routes

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// ControllerName is whose the statuses are.
const ControllerName gatewayv1.GatewayController = "heddle.dev/operator"

const (
	// maxParents is what the API lets a status have.
	maxParents = 32
	// maxSaid is how many problems a message has, maxMessage how many octets.
	maxSaid, maxMessage = 4, 2048
)

// Merge returns the parents of a status with ours in place of those that we wrote before.
// Other controllers' stay, and are first; there are at most as many as the API allows.
func Merge(have, ours []gatewayv1.RouteParentStatus) []gatewayv1.RouteParentStatus {
	all := slices.DeleteFunc(slices.Clone(have), func(p gatewayv1.RouteParentStatus) bool { return p.ControllerName == ControllerName })
	all = append(all, ours...)
	return all[:min(len(all), maxParents)]
}

// status says of every parent what became of the route.
func (a *attached) status() Status {
	s := Status{ID: a.source.id, UID: a.source.meta.UID, Generation: a.source.meta.Generation}
	for i := range a.links {
		l := &a.links[i]
		conditions := []metav1.Condition{a.accepted(l), a.resolved()}
		if partial, ok := a.partial(); ok && conditions[0].Status == metav1.ConditionTrue {
			conditions = append(conditions, partial)
		}
		s.Parents = append(s.Parents, gatewayv1.RouteParentStatus{ParentRef: l.ref, ControllerName: ControllerName, Conditions: conditions})
	}
	return s
}

func (a *attached) condition(kind gatewayv1.RouteConditionType, status metav1.ConditionStatus, reason gatewayv1.RouteConditionReason, message string) metav1.Condition {
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage], "") + "..."
	}
	return metav1.Condition{Type: string(kind), Status: status, Reason: string(reason), Message: message, ObservedGeneration: a.source.meta.Generation}
}

// accepted: "A Route MUST be considered Accepted if at least one of the Route's rules is
// implemented."
func (a *attached) accepted(l *link) metav1.Condition {
	refuse := func(reason gatewayv1.RouteConditionReason, message string) metav1.Condition {
		return a.condition(gatewayv1.RouteConditionAccepted, metav1.ConditionFalse, reason, message)
	}
	switch {
	case l.reason != "":
		return refuse(l.reason, l.message)
	case len(a.faults) > 0 && len(a.faults) >= len(a.source.rules):
		return refuse(a.faults[0].reason, a.said()+a.goesOn(l))
	case l.idle:
		return refuse(gatewayv1.RouteReasonUnsupportedValue, a.said()+a.goesOn(l))
	}
	c := a.condition(gatewayv1.RouteConditionAccepted, metav1.ConditionTrue, gatewayv1.RouteReasonAccepted, "in use")
	if l.message != "" {
		c.Message += ", but not everywhere: " + l.message
	}
	if a.source.id.Kind.Requests() && len(a.source.hostnames) > 0 {
		c.Message += ". spec.hostnames are not used for a Service: match the header Host instead"
	}
	if a.fellBack() {
		// "To represent this, the Accepted condition MUST be set to True with the generation of the
		// last known good state of the resource."
		c.ObservedGeneration = a.served.meta.Generation
	}
	return c
}

func (a *attached) fellBack() bool { return a.served != nil && a.served != a.source }

// goesOn says what is in force in place of a route that is refused.
func (a *attached) goesOn(l *link) string {
	switch {
	case l.idle:
		return fmt.Sprintf(". Generation %d, which was last good, was not for this parent", a.served.meta.Generation)
	case a.fellBack():
		return fmt.Sprintf(". Generation %d, which was last good, goes on", a.served.meta.Generation)
	}
	return ""
}

// resolved is about the references of what is in force, and has its generation.
func (a *attached) resolved() metav1.Condition {
	c := a.condition(gatewayv1.RouteConditionResolvedRefs, metav1.ConditionTrue, gatewayv1.RouteReasonResolvedRefs, "all references lead somewhere")
	if len(a.refs) > 0 {
		texts := make([]string, len(a.refs))
		for i, r := range a.refs {
			texts[i] = r.text
		}
		c = a.condition(gatewayv1.RouteConditionResolvedRefs, metav1.ConditionFalse, a.refs[0].reason, several(texts))
	}
	if a.fellBack() {
		c.ObservedGeneration = a.served.meta.Generation
		c.Message = fmt.Sprintf("of generation %d, which goes on: %s", c.ObservedGeneration, c.Message)
	}
	return c
}

// partial is set when some of the rules are good, and some are not.
func (a *attached) partial() (metav1.Condition, bool) {
	if len(a.faults) == 0 || len(a.faults) >= len(a.source.rules) {
		return metav1.Condition{}, false
	}
	message := "Dropped Rule: " + a.said()
	if a.fellBack() {
		message = fmt.Sprintf("Fall Back to generation %d: %s", a.served.meta.Generation, a.said())
	}
	return a.condition(gatewayv1.RouteConditionPartiallyInvalid, metav1.ConditionTrue, gatewayv1.RouteReasonUnsupportedValue, message), true
}

// said lists what is wrong with the rules.
func (a *attached) said() string {
	texts := make([]string, len(a.faults))
	for i, f := range a.faults {
		texts[i] = f.text
	}
	return several(slices.Compact(texts)) // of what is wrong with all of them, once
}

func several(texts []string) string {
	if more := len(texts) - maxSaid; more > 0 {
		texts = append(slices.Clone(texts[:maxSaid]), fmt.Sprintf("and %d more", more))
	}
	return strings.Join(texts, ". ")
}
