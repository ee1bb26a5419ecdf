package waypoints

import (
	"fmt"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/flow/sample"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/tune"
)

// What a Gateway's annotations may say.
const (
	defaultReplicas = 2
	maxReplicas     = 100
	// autoscaleAt is the use of the CPU that was asked for, in percent, that more replicas
	// are started at.
	autoscaleAt = 80
)

// settings are what a Gateway says of its waypoint.
type settings struct {
	// least and most are the numbers of replicas; the two are equal where nothing scales.
	least, most int32
	// canary is how many run the image that is tried, besides.
	canary int32
	// flowSample and traceSample are rules of package sample; "" where nothing is said, as endpoint is nil.
	flowSample, traceSample string
	endpoint                *string
	// access is the share of requests in the access log, "" where nothing is said, as mask is nil. own are its bounds.
	access string
	mask   *string
	own    map[string]string
}

// traceEndpoint is where spans go, if those of all others go to an endpoint.
func (s *settings) traceEndpoint(others string) string {
	if s.endpoint != nil {
		return *s.endpoint
	}
	return others
}

func (s *settings) scales() bool { return s.least != s.most }

// fault is why a Gateway cannot be served.
type fault struct {
	reason  gatewayv1.GatewayConditionReason
	message string
}

// read reads a Gateway; the fault is nil when it can be served.
func read(g *gatewayv1.Gateway) (settings, *fault) {
	s := settings{least: defaultReplicas, most: defaultReplicas}
	invalid := func(format string, args ...any) (settings, *fault) {
		return s, &fault{gatewayv1.GatewayReasonInvalidParameters, fmt.Sprintf(format, args...)}
	}
	if errs := validation.IsDNS1035Label(g.Name); len(errs) > 0 {
		return invalid("metadata.name: %q is no name of a Service, which a waypoint has under the same name: %s; make a Gateway of another name", g.Name, strings.Join(errs, ", "))
	}
	if ref := infrastructure(g).ParametersRef; ref != nil {
		return invalid("spec.infrastructure.parametersRef: %s %s is not known; leave it out, and write annotations such as %s", ref.Kind, ref.Name, v1alpha1.AnnotationReplicas)
	}
	if len(g.Spec.Addresses) > 0 {
		return s, &fault{gatewayv1.GatewayReasonUnsupportedAddress, "spec.addresses: a waypoint has the address of its Service; leave them out"}
	}
	if text, given := g.Annotations[v1alpha1.AnnotationReplicas]; given {
		n, ok := number(text)
		if !ok {
			return invalid("metadata.annotations[%s]: %q is not a number of replicas; write one from 1 to %d", v1alpha1.AnnotationReplicas, text, maxReplicas)
		}
		s.least, s.most = n, n
	}
	if text, given := g.Annotations[v1alpha1.AnnotationAutoscale]; given {
		from, to, _ := strings.Cut(text, "-")
		least, ok := number(from)
		most, too := number(to)
		if !ok || !too || least >= most {
			return invalid("metadata.annotations[%s]: %q is not how many replicas there may be; write the least and the most, such as 2-10", v1alpha1.AnnotationAutoscale, text)
		}
		s.least, s.most = least, most
	}
	if text, given := g.Annotations[v1alpha1.AnnotationCanary]; given {
		n, ok := number(text)
		if !ok && text != "0" {
			return invalid("metadata.annotations[%s]: %q is not a number of replicas that try another image; write one from 0 to %d", v1alpha1.AnnotationCanary, text, maxReplicas)
		}
		s.canary = n
	}
	for _, read := range []func(map[string]string) (string, error){s.observe, s.tuned} {
		if annotation, err := read(g.Annotations); err != nil {
			return invalid("metadata.annotations[%s]: %v", annotation, err)
		}
	}
	for i, l := range g.Spec.Listeners {
		if why := unsupported(&l); why != "" {
			return s, &fault{gatewayv1.GatewayReasonListenersNotValid, fmt.Sprintf("spec.listeners[%d]%s", i, why)}
		}
	}
	if len(g.Spec.Listeners) != 1 {
		return s, &fault{gatewayv1.GatewayReasonListenersNotValid, fmt.Sprintf("spec.listeners: there are %d, and a waypoint has one: write {name: mesh, port: %d, protocol: %s}",
			len(g.Spec.Listeners), mesh.WaypointPort, v1alpha1.ProtocolMesh)}
	}
	return s, nil
}

// observe reads what annotations say of flows and traces. The error is about one of them.
func (s *settings) observe(annotations map[string]string) (annotation string, err error) {
	for name, to := range map[string]*string{v1alpha1.AnnotationFlowSample: &s.flowSample, v1alpha1.AnnotationTraceSample: &s.traceSample} {
		text, given := annotations[name]
		if !given {
			continue
		}
		if _, err := sample.Parse(strings.Split(text, ",")); err != nil {
			return name, err
		}
		*to = text
	}
	if text, given := annotations[v1alpha1.AnnotationTraceEndpoint]; given {
		if text != "" {
			if err := sample.CheckEndpoint(text); err != nil {
				return v1alpha1.AnnotationTraceEndpoint, err
			}
		}
		s.endpoint = &text
	}
	return "", nil
}

// tuned reads what annotations say of the access log and of bounds, likewise.
func (s *settings) tuned(annotations map[string]string) (annotation string, err error) {
	if text, given := annotations[v1alpha1.AnnotationAccessLog]; given {
		if err := tune.CheckAccess(text); err != nil {
			return v1alpha1.AnnotationAccessLog, err
		}
		s.access = text
	}
	if text, given := annotations[v1alpha1.AnnotationAccessLogMask]; given {
		if err := tune.CheckMask(tune.List(text)); err != nil {
			return v1alpha1.AnnotationAccessLogMask, err
		}
		s.mask = &text
	}
	s.own, err = tune.ParseBounds(tune.List(annotations[v1alpha1.AnnotationBounds]))
	return v1alpha1.AnnotationBounds, err
}

// unsupported says what of a listener cannot be served; "" for nothing.
func unsupported(l *gatewayv1.Listener) string {
	switch {
	case l.Protocol != v1alpha1.ProtocolMesh:
		return fmt.Sprintf(".protocol: %q is not what a waypoint takes, which has the mesh's connections only; write %s", l.Protocol, v1alpha1.ProtocolMesh)
	case l.Port != mesh.WaypointPort:
		return fmt.Sprintf(".port: %d is not where a waypoint listens; write %d", l.Port, mesh.WaypointPort)
	case l.Hostname != nil && *l.Hostname != "":
		return ".hostname: a waypoint takes requests for every host; leave it out"
	case l.TLS != nil:
		return ".tls: the mesh's own mutual TLS is all that there is at a waypoint; leave it out"
	}
	return ""
}

func number(text string) (int32, bool) {
	n, err := strconv.Atoi(text)
	return int32(n), err == nil && 0 < n && n <= maxReplicas
}

func infrastructure(g *gatewayv1.Gateway) *gatewayv1.GatewayInfrastructure {
	if g.Spec.Infrastructure == nil {
		return &gatewayv1.GatewayInfrastructure{}
	}
	return g.Spec.Infrastructure
}
