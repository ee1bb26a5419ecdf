package check

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	labelField  = "metadata.labels[" + v1alpha1.LabelWaypoint + "]"
	bypassField = "metadata.labels[" + v1alpha1.LabelWaypointBypass + "]"
)

// Waypoint is what the labels of a Service or a namespace say of which waypoint takes
// connections.
type Waypoint struct {
	// Name is the waypoint's Service; "" for none.
	Name string
	// Bypass lets connections past a waypoint that does not answer.
	Bypass bool
	// named and bypassing are set where the labels say something of each.
	named, bypassing bool
}

// WaypointOf returns what labels say, and reports what in them cannot be meant. A name that
// cannot be a Service's is nobody's, so that nothing passes by a waypoint that somebody
// wanted; a bypass is only what says so.
func WaypointOf(s Subject, labels map[string]string) (c Waypoint) {
	c.Name, c.named = labels[v1alpha1.LabelWaypoint]
	switch {
	case c.Name == v1alpha1.WaypointNone:
		c.Name = ""
	case c.named && len(validation.IsDNS1035Label(c.Name)) > 0:
		s.Problem(labelField, "write the name of the waypoint's Service, or none", "%q is not the name of a Service", c.Name)
		c.named = c.Name != ""
	}
	var text string
	if text, c.bypassing = labels[v1alpha1.LabelWaypointBypass]; !c.bypassing {
		return c
	}
	if c.Bypass = text == "true"; !c.Bypass && text != "false" {
		s.Problem(bypassField, `write "true" or "false"`, "%q is not a value of this label", text)
	}
	return c
}

// In returns what holds for a Service whose own labels say c, in a namespace whose labels
// say the other. The waypoint of a namespace is not behind itself.
func (c Waypoint) In(namespace Waypoint, service mesh.Key) (waypoint mesh.Key, bypass bool) {
	bypass = namespace.Bypass
	if c.bypassing {
		bypass = c.Bypass
	}
	name := c.Name
	if !c.named {
		if name = namespace.Name; name == service.Name {
			name = ""
		}
	}
	if name == "" {
		return mesh.Key{}, false
	}
	return mesh.Key{Namespace: service.Namespace, Name: name}, bypass
}

// Check reports a waypoint that a Service or a namespace names itself, and that is not
// among the services, or is the Service itself.
func (c Waypoint) Check(s Subject, namespace, service string, known func(mesh.Key) bool) {
	switch waypoint := (mesh.Key{Namespace: namespace, Name: c.Name}); {
	case c.Name == "":
	case c.Name == service:
		s.Problem(labelField, "label the Service none", "names the Service itself: its connections would run in circles")
	case !known(waypoint):
		s.Warn(labelField, "make the waypoint with its Service, or correct the name", "Service %s is not defined: connections are refused until it is, unless %s is \"true\"; in a cluster they go direct until the waypoint was ready for the first time",
			waypoint, v1alpha1.LabelWaypointBypass)
	}
}

// Front reports, at whoever is to have a waypoint, why it cannot have this one, and returns
// whether it is in force; front is the waypoint's Service, nil where it is not there.
func (c Waypoint) Front(s Subject, service *mesh.Service, front *corev1.Service) bool {
	report := s.Problem
	if !c.named {
		report = s.Warn // the label is the namespace's, and good for other Services
	}
	foreign := func(k mesh.Key) bool {
		return k.Namespace != service.Namespace && k.Namespace != mesh.ExternalNamespace
	}
	if i := slices.IndexFunc(service.Endpoints, foreign); i >= 0 {
		report(labelField, "take the endpoint out of the Service's EndpointSlices, or label the Service none",
			"has endpoint %s, of another namespace: the Service gets no waypoint", service.Endpoints[i])
		return false
	}
	switch {
	case front == nil: // said by Check
	case len(front.Spec.Selector) == 0:
		report(labelField, "give the waypoint's Service a selector, or name another",
			"Service %s/%s has no selector: its endpoints may be anybody's, and it is no waypoint", front.Namespace, front.Name)
		return false
	case !slices.ContainsFunc(front.Spec.Ports, mayLeadToWaypoint):
		report(labelField, fmt.Sprintf("name the Service of a waypoint, one of whose ports has targetPort %d", mesh.WaypointPort),
			"no port of Service %s/%s leads to port %d: it is no waypoint", front.Namespace, front.Name, mesh.WaypointPort)
		return false
	}
	return true
}

// mayLeadToWaypoint reports whether a port leads to that of waypoints; a name may be any.
func mayLeadToWaypoint(p corev1.ServicePort) bool {
	if p.TargetPort == (intstr.IntOrString{}) {
		return p.Port == int32(mesh.WaypointPort)
	}
	return p.TargetPort.Type == intstr.String || p.TargetPort.IntVal == int32(mesh.WaypointPort)
}
