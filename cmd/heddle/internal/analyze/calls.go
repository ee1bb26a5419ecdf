package analyze

import (
	"cmp"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/analyze/judge"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// The kinds of findings.
const (
	KindWebhook       = "webhook"
	KindAPIService    = "api-service"
	KindScrape        = "scrape"
	KindOutside       = "outside-client"
	KindHostNetwork   = "host-network"
	KindDatagrams     = "datagrams"
	KindHook          = "lifecycle-hook"
	KindProbe         = "probe"
	KindNetworkPolicy = "network-policy"
	KindOtherMesh     = "other-mesh"
)

// call is somebody without an identity of the mesh who connects to a service.
type call struct {
	kind   string
	object string // who is configured to call, as "ValidatingWebhookConfiguration x"
	what   string // "the API server calls it for webhook y"
	lost   string // what does not work when it is refused
	host   string // who is called, as long as nobody has looked who that is
	// service is what is called, at a port of its, or directly at a port of the
	// pods behind it.
	service  mesh.Key
	port     int32
	podPort  bool
	target   intstr.IntOrString // the port of the pods, when it is known beforehand
	selector map[string]string  // of the pods, when there is no service
	pod      *corev1.Pod        // the one that is called, when no selector has it
	from     judge.Callers
	peers    []networkingv1.NetworkPolicyPeer // the same, for NetworkPolicies; none when they cannot name them
}

// distinctCalls leaves out those that differ from one before them only in the object that
// says so, such as the pods of a workload: their findings would be one.
func distinctCalls(all []call) []call {
	seen := map[string]bool{}
	return slices.DeleteFunc(all, func(c call) bool {
		c.object = ""
		id := fmt.Sprintf("%+v", c)
		known := seen[id]
		seen[id] = true
		return known
	})
}

// called are the calls of API servers, whose addresses are known as far as their pods are
// seen: those of kubeadm are in their nodes' networks.
func (o *Objects) called() []call {
	all, from := slices.Clone(o.calls), judge.Callers{Every: true}
	for i := range o.pods {
		if p := &o.pods[i]; p.Labels["component"] == "kube-apiserver" && p.Namespace == "kube-system" {
			from.Known = append(from.Known, sourceOf(p)...)
		}
	}
	for i := range all {
		all[i].from = from
	}
	return all
}

func sourceOf(p *corev1.Pod) []judge.Source {
	if s, ok := judge.SourceOf(p); ok {
		return []judge.Source{s}
	}
	return nil
}

// callsOf finds services that the API server calls.
func callsOf(kind string, u *unstructured.Unstructured) []call {
	object := kind + " " + u.GetName()
	switch kind {
	case "ValidatingWebhookConfiguration", "MutatingWebhookConfiguration":
		var all []call
		webhooks, _, _ := unstructured.NestedSlice(u.Object, "webhooks") // the API server's schema knows better
		for _, w := range webhooks {
			webhook, ok := w.(map[string]any)
			if !ok {
				continue
			}
			policy, _, _ := unstructured.NestedString(webhook, "failurePolicy")
			lost := "what the webhook looks at is then refused (failurePolicy Fail)"
			if policy == "Ignore" {
				lost = "the webhook is then passed over (failurePolicy Ignore)"
			}
			all = append(all, client(call{kind: KindWebhook, object: object, what: fmt.Sprintf("the API server calls it for webhook %v", webhook["name"]), lost: lost}, webhook, "clientConfig")...)
		}
		return all
	case "CustomResourceDefinition":
		c := call{kind: KindWebhook, object: object, what: "the API server calls it to convert objects", lost: "objects of the kind can then be neither read nor written"}
		return client(c, u.Object, "spec", "conversion", "webhook", "clientConfig")
	case "APIService":
		c := call{kind: KindAPIService, object: object, what: "the API server passes requests on to it", lost: "the API is then unavailable"}
		if u.GetName() == "v1beta1.metrics.k8s.io" {
			c.lost = "`kubectl top` and autoscalers then have no metrics"
		}
		return reference(c, u.Object, "spec", "service")
	}
	return nil
}

// client completes a call by a webhook's clientConfig: a reference to a service, or the URL
// of a host; none when there is neither.
func client(c call, object map[string]any, path ...string) []call {
	config, _, _ := unstructured.NestedMap(object, path...) // the API server's schema knows better
	if at, err := url.Parse(fmt.Sprint(config["url"])); err == nil && at.Host != "" {
		c.host, c.port = at.Hostname(), 443
		if port, err := strconv.ParseUint(at.Port(), 10, 16); err == nil {
			c.port = int32(port)
		}
		return []call{c}
	}
	return reference(c, config, "service")
}

// reference completes a call by a reference to a service; none when there is no
// such reference.
func reference(c call, object map[string]any, path ...string) []call {
	service, found, err := unstructured.NestedMap(object, path...)
	if err != nil || !found {
		return nil
	}
	c.service = mesh.Key{Namespace: fmt.Sprint(service["namespace"]), Name: fmt.Sprint(service["name"])}
	c.port = 443
	if port, err := strconv.Atoi(fmt.Sprint(service["port"])); err == nil { // an integer or a float, as it was read
		c.port = int32(port)
	}
	return []call{c}
}

// The annotations by which Prometheus is told what to scrape.
const (
	scrapeAnnotation = "prometheus.io/scrape"
	portAnnotation   = "prometheus.io/port"
)

// scrapes are the calls of a Prometheus that is outside the mesh; none when every
// one that can be seen is in it.
func (o *Objects) scrapes(enrolled []member) []call {
	inside, outside := o.scrapers(enrolled)
	if inside && len(outside) == 0 {
		return nil
	}
	from, peers := judge.Callers{Pods: true}, peersOf(outside)
	for _, p := range outside {
		from.Known = append(from.Known, sourceOf(p)...)
	}
	made := call{kind: KindScrape, what: "Prometheus scrapes it, by its annotation " + scrapeAnnotation, lost: "its metrics are then missing, unless Prometheus is in the mesh, too"}
	var all []call
	for i := range o.services {
		if s := &o.services[i]; s.Annotations[scrapeAnnotation] == "true" {
			c := made
			c.object, c.service = "Service "+nameOf(s.Namespace, s.Name), mesh.Key{Namespace: s.Namespace, Name: s.Name}
			if c.port, c.podPort = annotated(s.Annotations), true; c.port == 0 && len(s.Spec.Ports) > 0 {
				c.port, c.podPort = s.Spec.Ports[0].Port, false
			}
			all = append(all, c)
		}
	}
	for _, m := range enrolled {
		if p := m.pod; p.Annotations[scrapeAnnotation] == "true" {
			c := made
			c.object = "Pod " + nameOf(p.Namespace, p.Name)
			c.direct(p)
			if c.port = annotated(p.Annotations); c.port == 0 {
				c.port = firstPort(p)
			}
			all = append(all, c)
		}
	}
	all = append(all, o.monitored(enrolled)...)
	for i := range all {
		all[i].from, all[i].peers = from, peers
	}
	return all
}

// The labels by which a Prometheus is known.
const (
	nameLabel = "app.kubernetes.io/name"
	appLabel  = "app"
	scraper   = "prometheus"
)

// scrapers are the pods of Prometheus: whether some are in the mesh, and those that are not.
func (o *Objects) scrapers(enrolled []member) (inside bool, outside []*corev1.Pod) {
	for i := range o.pods {
		p := &o.pods[i]
		switch {
		case p.Labels[nameLabel] != scraper && p.Labels[appLabel] != scraper:
		case slices.ContainsFunc(enrolled, func(m member) bool { return m.pod == p }):
			inside = true
		default:
			outside = append(outside, p)
		}
	}
	return inside, outside
}

// peersOf are pods of Prometheus as a NetworkPolicy of any namespace names them; none where
// one is in its node's network, which no selector names.
func peersOf(scrapers []*corev1.Pod) (all []networkingv1.NetworkPolicyPeer) {
	seen := map[string]bool{}
	for _, p := range scrapers {
		if p.Spec.HostNetwork {
			return nil
		}
		label := nameLabel
		if p.Labels[nameLabel] != scraper {
			label = appLabel
		}
		if id := p.Namespace + "/" + label; !seen[id] {
			seen[id] = true
			all = append(all, networkingv1.NetworkPolicyPeer{
				NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: p.Namespace}},
				PodSelector:       &metav1.LabelSelector{MatchLabels: map[string]string{label: scraper}},
			})
		}
	}
	return all
}

func annotated(annotations map[string]string) int32 {
	port, err := strconv.ParseUint(annotations[portAnnotation], 10, 16)
	if err != nil {
		return 0
	}
	return int32(port)
}

func firstPort(p *corev1.Pod) int32 {
	for _, c := range serving(p) {
		for _, port := range c.Ports {
			return port.ContainerPort
		}
	}
	return 0
}

// serving are the containers of a pod that live on: all but the init containers that end.
func serving(p *corev1.Pod) []corev1.Container {
	ends := func(c corev1.Container) bool {
		return c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways
	}
	return slices.Concat(p.Spec.Containers, slices.DeleteFunc(slices.Clone(p.Spec.InitContainers), ends))
}

func stable(labels map[string]string) map[string]string { return judge.Stable(labels) }

// familyOf names the workload that a pod is of.
func familyOf(p *corev1.Pod) string {
	return cmp.Or(p.Labels["app.kubernetes.io/name"], p.Labels["app"], p.Labels["k8s-app"], judge.JobOf(p.Labels), p.Name)
}

// alike shows which pods are a pod's workload's: by a selector, or by its name where none has them.
func alike(p *corev1.Pod) string {
	if selector := stable(p.Labels); len(selector) > 0 {
		return labels(selector)
	}
	return "of " + familyOf(p)
}

// outside are the calls of clients that are not in the cluster.
func (o *Objects) outside(enrolled []member) []call {
	var all []call
	for i := range o.services {
		s := &o.services[i]
		if s.Spec.Type != corev1.ServiceTypeNodePort && s.Spec.Type != corev1.ServiceTypeLoadBalancer && len(s.Spec.ExternalIPs) == 0 {
			continue
		}
		for _, port := range s.Spec.Ports {
			if port.Protocol == "" || port.Protocol == corev1.ProtocolTCP {
				all = append(all, call{
					kind: KindOutside, object: "Service " + nameOf(s.Namespace, s.Name), what: fmt.Sprintf("clients outside the cluster call it (%s)", cmp.Or(s.Spec.Type, "externalIPs")),
					lost: "they are then refused", service: mesh.Key{Namespace: s.Namespace, Name: s.Name}, port: port.Port,
				})
			}
		}
	}
	for _, m := range enrolled {
		for _, c := range serving(m.pod) {
			all = append(all, m.onHost(c.Ports)...)
		}
	}
	return all
}

// onHost are the calls that reach a pod by a port of its node.
func (m *member) onHost(ports []corev1.ContainerPort) (all []call) {
	p := m.pod
	for _, port := range ports {
		if port.HostPort == 0 || port.Protocol != "" && port.Protocol != corev1.ProtocolTCP {
			continue
		}
		c := call{
			kind: KindOutside, object: "Pod " + nameOf(p.Namespace, p.Name), what: fmt.Sprintf("clients outside the cluster call it (hostPort %d)", port.HostPort),
			lost: "they are then refused", port: port.ContainerPort,
		}
		c.direct(p)
		if at, err := netip.ParseAddr(port.HostIP); err == nil && at.IsLoopback() {
			c.what = fmt.Sprintf("programs of its node call it (hostPort %d at %s)", port.HostPort, at)
			c.from.Known = []judge.Source{{Addr: at, Node: m.judged.Workload.Node}}
		}
		all = append(all, c)
	}
	return all
}

// reached returns the selector of the pods that a call reaches, and calls f with those of
// them that are enrolled, and the port at which it reaches each.
func (o *Objects) reached(c *call, enrolled []member, f func(*member, uint16)) (selector map[string]string) {
	selector = c.selector
	target := intstr.FromInt32(c.port)
	if selector == nil {
		i := slices.IndexFunc(o.services, func(s corev1.Service) bool {
			return s.Namespace == c.service.Namespace && s.Name == c.service.Name
		})
		if i < 0 {
			return nil // nobody answers anyway
		}
		selector = o.services[i].Spec.Selector
		for _, port := range o.services[i].Spec.Ports {
			if !c.podPort && port.Port == c.port && port.TargetPort != (intstr.IntOrString{}) {
				target = port.TargetPort
			}
		}
	}
	if len(selector) == 0 && c.pod == nil {
		return nil
	}
	if c.target != (intstr.IntOrString{}) {
		target = c.target
	}
	for i := range enrolled {
		m := &enrolled[i]
		if m.pod.Namespace != c.service.Namespace || !contains(m.pod.Labels, selector) || c.pod != nil && c.pod != m.pod {
			continue
		}
		if port := podPort(m, target); port != 0 {
			f(m, port)
		}
	}
	return selector
}

func contains(labels, wanted map[string]string) bool {
	for key, value := range wanted {
		if got, ok := labels[key]; !ok || got != value {
			return false
		}
	}
	return true
}

// podPort is the number of a port by number or by the name that a container gives
// it, as the mesh has it for services; 0 when it has none.
func podPort(m *member, target intstr.IntOrString) uint16 {
	if target.Type == intstr.Int {
		return uint16(max(0, min(target.IntVal, 65535)))
	}
	return m.judged.Port(target.StrVal)
}
