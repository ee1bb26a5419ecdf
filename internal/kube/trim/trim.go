// Package trim reduces objects of a Kubernetes API server to what the model
// needs: a pod of some ten kilobytes to some three hundred bytes, so that an
// operator can know tens of thousands of them. Equal texts and label sets are
// kept once. It watches nothing and compiles nothing.
//
// A Trimmer may be used from one goroutine at a time; what it returns is
// immutable and may be shared.
package trim

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/internal/kube"
)

// maxKept bounds what is kept to be shared. Beyond it, sharing begins anew: what
// was shared stays as it is.
const maxKept = 1 << 16

// maxStatic bounds the UID of a static pod, which is a hash of its text.
const maxStatic = 128

// Trimmer keeps texts and label sets that many objects have in common.
type Trimmer struct {
	texts  map[string]string
	labels map[string]map[string]string // by canonical text
}

// New returns a Trimmer that shares nothing yet.
func New() *Trimmer {
	return &Trimmer{texts: map[string]string{}, labels: map[string]map[string]string{}}
}

func (t *Trimmer) text(s string) string {
	if kept, ok := t.texts[s]; ok {
		return kept
	}
	if len(t.texts) >= maxKept {
		clear(t.texts)
	}
	// A decoded object's texts may share one large array, which this would keep.
	s = strings.Clone(s)
	t.texts[s] = s
	return s
}

func (t *Trimmer) labelSet(labels map[string]string) map[string]string {
	if len(labels) == 0 {
		return nil
	}
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		b.WriteString(key)
		b.WriteByte('=') // neither has one
		b.WriteString(labels[key])
		b.WriteByte(',')
	}
	if kept, ok := t.labels[b.String()]; ok {
		return kept
	}
	if len(t.labels) >= maxKept {
		clear(t.labels)
	}
	kept := make(map[string]string, len(labels))
	for key, value := range labels {
		kept[t.text(key)] = t.text(value)
	}
	t.labels[b.String()] = kept
	return kept
}

// Pod trims a pod.
func (t *Trimmer) Pod(p *corev1.Pod) *kube.Pod {
	out := &kube.Pod{
		Namespace: t.text(p.Namespace), Name: strings.Clone(p.Name), UID: strings.Clone(string(p.UID)),
		Node: t.text(p.Spec.NodeName), ServiceAccount: t.text(p.Spec.ServiceAccountName), Labels: t.labelSet(p.Labels),
		Created: p.CreationTimestamp.Unix(), Terminating: p.DeletionTimestamp != nil, HostNetwork: p.Spec.HostNetwork,
		Finished: p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
	}
	if static := p.Annotations[corev1.MirrorPodAnnotationKey]; static != "" && len(static) <= maxStatic {
		out.StaticUID = strings.Clone(static)
	}
	if out.ServiceAccount == "" {
		out.ServiceAccount = "default"
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			if out.Ready = c.Status == corev1.ConditionTrue; out.Ready {
				out.ReadySince = max(0, c.LastTransitionTime.Unix())
			}
		}
	}
	texts := make([]string, 0, 2)
	for _, ip := range p.Status.PodIPs {
		texts = append(texts, ip.IP)
	}
	if len(texts) == 0 && p.Status.PodIP != "" {
		texts = append(texts, p.Status.PodIP)
	}
	out.Addresses = addresses(texts)
	// A port's name that both have is a container's, as the endpoints of Kubernetes have it
	// (FindPort in k8s.io/endpointslice).
	for i := range p.Spec.Containers {
		t.container(out, &p.Spec.Containers[i])
	}
	for i := range p.Spec.InitContainers {
		// Only sidecars live on, and only they are probed.
		if policy := p.Spec.InitContainers[i].RestartPolicy; policy != nil && *policy == corev1.ContainerRestartPolicyAlways {
			t.container(out, &p.Spec.InitContainers[i])
		}
	}
	slices.Sort(out.ProbePorts)
	out.ProbePorts = slices.Clip(slices.Compact(out.ProbePorts))
	return out
}

func addresses(texts []string) []netip.Addr {
	var all []netip.Addr
	for _, text := range texts {
		if addr, err := netip.ParseAddr(text); err == nil {
			all = append(all, addr.Unmap())
		}
	}
	return slices.Clip(all)
}

func (t *Trimmer) container(out *kube.Pod, c *corev1.Container) {
	for _, port := range c.Ports {
		if port.Name != "" && (port.Protocol == "" || port.Protocol == corev1.ProtocolTCP) && valid(port.ContainerPort) {
			out.Ports = append(out.Ports, kube.NamedPort{Name: t.text(port.Name), Port: uint16(port.ContainerPort)})
		}
	}
	hooks(out, c)
	for _, probe := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if probe == nil {
			continue
		}
		switch {
		case probe.HTTPGet != nil:
			out.ProbePorts = append(out.ProbePorts, portOf(probe.HTTPGet.Port, c)...)
		case probe.TCPSocket != nil:
			out.ProbePorts = append(out.ProbePorts, portOf(probe.TCPSocket.Port, c)...)
		case probe.GRPC != nil && valid(probe.GRPC.Port):
			out.ProbePorts = append(out.ProbePorts, uint16(probe.GRPC.Port))
		}
	}
}

// hooks adds the ports of a container's lifecycle hooks: kubelet calls them as it probes.
func hooks(out *kube.Pod, c *corev1.Container) {
	if c.Lifecycle == nil {
		return
	}
	for _, hook := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
		if hook != nil && hook.HTTPGet != nil {
			out.ProbePorts = append(out.ProbePorts, portOf(hook.HTTPGet.Port, c)...)
		}
	}
}

func valid(port int32) bool { return port >= 1 && port <= 65535 }

// portOf returns the port that a probe goes to, by number or by the name that
// its container gives one; none when there is no such port.
func portOf(port intstr.IntOrString, c *corev1.Container) []uint16 {
	number := port.IntVal
	if port.Type == intstr.String {
		number = 0
		for _, p := range c.Ports {
			if p.Name == port.StrVal {
				number = p.ContainerPort
			}
		}
	}
	if !valid(number) {
		return nil
	}
	return []uint16{uint16(number)}
}

// EndpointSlice trims a slice; it returns nil for one that is of no service, or
// of names rather than addresses.
func (t *Trimmer) EndpointSlice(s *discoveryv1.EndpointSlice) *kube.EndpointSlice {
	service := s.Labels[discoveryv1.LabelServiceName]
	if service == "" || s.AddressType == discoveryv1.AddressTypeFQDN {
		return nil
	}
	out := &kube.EndpointSlice{Namespace: t.text(s.Namespace), Name: strings.Clone(s.Name), Service: t.text(service)}
	if s.Labels[discoveryv1.LabelManagedBy] == Controller {
		if ownSlice(s, service) {
			return nil
		}
		out.Claims = true
		return out
	}
	for _, port := range s.Ports {
		if port.Port == nil || !valid(*port.Port) || port.Protocol != nil && *port.Protocol != corev1.ProtocolTCP {
			continue
		}
		named := kube.NamedPort{Port: uint16(*port.Port)}
		if port.Name != nil {
			named.Name = t.text(*port.Name)
		}
		out.Ports = append(out.Ports, named)
	}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		takes, leaving := states(&e.Conditions)
		if !takes {
			continue
		}
		for _, addr := range addresses(e.Addresses) {
			at := kube.Endpoint{Addr: addr, Leaving: leaving}
			if e.NodeName != nil {
				at.Node = t.text(*e.NodeName)
			}
			if e.Zone != nil {
				at.Zone = t.text(*e.Zone)
			}
			out.Endpoints = append(out.Endpoints, at)
		}
	}
	return out
}

// Controller is the value of discoveryv1.LabelManagedBy of the slices that Kubernetes' own
// controller makes for services with a selector.
const Controller = "endpointslice-controller.k8s.io"

// ownSlice reports whether a slice is as that controller makes them: it belongs to the
// service, and each endpoint is a pod of the namespace (https://pkg.go.dev/k8s.io/endpointslice). Who may write slices can make one alike.
func ownSlice(s *discoveryv1.EndpointSlice, service string) bool {
	owner := func(o metav1.OwnerReference) bool {
		return o.APIVersion == "v1" && o.Kind == "Service" && o.Name == service && o.Controller != nil && *o.Controller
	}
	pod := func(e discoveryv1.Endpoint) bool {
		return e.TargetRef != nil && e.TargetRef.Kind == "Pod" && e.TargetRef.Namespace == s.Namespace
	}
	return len(s.OwnerReferences) == 1 && owner(s.OwnerReferences[0]) &&
		!slices.ContainsFunc(s.Endpoints, func(e discoveryv1.Endpoint) bool { return !pod(e) })
}

// states reports whether an endpoint takes connections, and whether it takes leave. One
// that terminates is not ready, whatever it says, and may serve still; nil is true of
// ready and serving (https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/#conditions).
func states(c *discoveryv1.EndpointConditions) (takes, leaving bool) {
	is := func(condition *bool, otherwise bool) bool {
		if condition == nil {
			return otherwise
		}
		return *condition
	}
	if is(c.Terminating, false) {
		return is(c.Serving, is(c.Ready, true)), true
	}
	return is(c.Ready, true), false
}

// Zone returns the zone of a node, "" when it has none.
func (t *Trimmer) Zone(n *corev1.Node) string { return t.text(n.Labels[corev1.LabelTopologyZone]) }
