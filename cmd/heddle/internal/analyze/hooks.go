package analyze

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/analyze/judge"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// hook is a lifecycle hook of a container that kubelet calls over the network, or a probe.
type hook struct {
	pod       *corev1.Pod
	container *corev1.Container
	name      string // as the API has it
	lost      string // what becomes of the container when it fails
	http      *corev1.HTTPGetAction
	tcp       *corev1.TCPSocketAction // where http is nil
	probe     bool
}

// hooks are those of all pods, probes among them: kubelet, which makes the call, is in no mesh.
func (o *Objects) hooks() []hook {
	var all []hook
	for i := range o.pods {
		p := &o.pods[i]
		for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
			for j := range list {
				all = append(all, hooksOf(p, &list[j])...)
			}
		}
	}
	return slices.DeleteFunc(all, func(h hook) bool { return h.http == nil && h.tcp == nil })
}

func hooksOf(p *corev1.Pod, c *corev1.Container) (all []hook) {
	const killed = "kubelet then kills the container, and starts it again and again"
	if l := c.Lifecycle; l != nil && l.PostStart != nil {
		all = append(all, hook{p, c, "postStart", killed + " (FailedPostStartHook)", l.PostStart.HTTPGet, l.PostStart.TCPSocket, false})
	}
	if l := c.Lifecycle; l != nil && l.PreStop != nil {
		all = append(all, hook{p, c, "preStop", "kubelet then goes on without it, and stops the container at once (FailedPreStopHook)", l.PreStop.HTTPGet, l.PreStop.TCPSocket, false})
	}
	for _, q := range []struct {
		*corev1.Probe
		name, lost string
	}{
		{c.LivenessProbe, "livenessProbe", killed}, {c.StartupProbe, "startupProbe", killed},
		{c.ReadinessProbe, "readinessProbe", "the pod is then never ready, and its services leave it out"},
	} {
		if q.Probe != nil {
			all = append(all, hook{p, c, q.name, q.lost, q.HTTPGet, q.TCPSocket, true})
		}
	}
	return all
}

func (h *hook) object() string { return "Pod " + nameOf(h.pod.Namespace, familyOf(h.pod)) }

// what names the hook and its target.
func (h *hook) what(target string) string {
	by, kind := "hook", "httpGet"
	if h.probe {
		by = "probe"
	}
	if h.http == nil {
		kind = "tcpSocket"
	}
	return fmt.Sprintf("%s %s (%s) of container %s goes to %s", by, h.name, kind, h.container.Name, target)
}

// target is where a hook goes, as it is written.
func (h *hook) target() (host string, port intstr.IntOrString) {
	if h.http == nil {
		return h.tcp.Host, h.tcp.Port
	}
	return h.http.Host, h.http.Port
}

// port is the number that a hook's port has; 0 when its container has no such port.
func (h *hook) port() int32 {
	_, port := h.target()
	if port.Type == intstr.Int {
		return port.IntVal
	}
	for _, p := range h.container.Ports {
		if p.Name == port.StrVal {
			return p.ContainerPort
		}
	}
	return 0
}

// ownHost reports whether a hook goes to its own pod. Kubelet takes the pod's address
// where no host is given.
func (h *hook) ownHost() bool {
	host, _ := h.target()
	return host == "" || slices.ContainsFunc(h.pod.Status.PodIPs, func(ip corev1.PodIP) bool { return ip.IP == host })
}

// hookCalls are the hooks and probes that go to others than their own pods: for the gate of
// those they are no probes.
func (o *Objects) hookCalls() []call {
	var all []call
	for _, h := range o.hooks() {
		if h.http == nil && !h.probe || h.ownHost() || h.port() == 0 {
			continue
		}
		host, _ := h.target()
		c := call{kind: KindHook, object: h.object(), host: host, lost: h.lost, port: h.port(), what: h.what(fmt.Sprintf("%s:%d", host, h.port())) + ": kubelet calls it"}
		if h.probe {
			c.kind = KindProbe
		}
		if node, err := netip.ParseAddr(h.pod.Status.HostIP); err == nil {
			c.from.Known = []judge.Source{{Addr: node.Unmap(), Node: h.pod.Spec.NodeName}}
		}
		all = append(all, c)
	}
	return all
}

// lifecycle finds the hooks of enrolled pods that cannot work, or that kubelet does not
// know how to call, mesh or not. All others to a pod's own ports pass as probes do.
func (o *Objects) lifecycle(enrolled []member) []Finding {
	var all []Finding
	for _, h := range o.hooks() {
		if h.probe || !slices.ContainsFunc(enrolled, func(m member) bool { return m.pod == h.pod }) {
			continue
		}
		f := Finding{Kind: KindHook, Namespace: h.pod.Namespace, Object: h.object()}
		switch {
		case h.http == nil:
			f.Detail = h.what("port "+h.tcp.Port.String()) + ": no kubelet runs hooks of tcpSocket, inside the mesh or outside, and nothing lets one in: " + h.lost
			f.Remedy = "write the hook as httpGet to a port of the pod, which enters under STRICT as kubelet's probes do; or as exec, which runs in the pod"
		case h.ownHost() && h.port() > 0 && h.port() <= 65535 && mesh.ReservedPort(uint16(h.port())):
			f.Detail = h.what(fmt.Sprintf("port %d", h.port())) + ", which is the agent's own in an enrolled pod, and refused under every mode: " + h.lost
			f.Remedy = "let the container listen elsewhere, and the hook go there; or write it as exec, which runs in the pod"
		case h.ownHost() && h.port() == 0:
			f.Detail = h.what("port "+h.http.Port.String()) + ", a name that no port of the container has, so that no port is let in for it: " + h.lost
			f.Remedy = "give a port of this container the name, or write the port's number"
		default:
			continue
		}
		all = append(all, f)
	}
	return all
}
