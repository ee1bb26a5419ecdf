package analyze

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// monitoring is the group of the Prometheus operator's kinds.
const monitoring = "monitoring.coreos.com"

// monitor is a ServiceMonitor or a PodMonitor: what Prometheus is told to scrape.
type monitor struct {
	kind, namespace, name string
	spec                  monitorSpec
}

// monitorSpec has those fields of both kinds that say what is called
// (monitoring.coreos.com/v1).
type monitorSpec struct {
	Selector          metav1.LabelSelector `json:"selector"`
	NamespaceSelector struct {
		Any        bool     `json:"any"`
		MatchNames []string `json:"matchNames"`
	} `json:"namespaceSelector"`
	Endpoints           []monitorEndpoint `json:"endpoints"`
	PodMetricsEndpoints []monitorEndpoint `json:"podMetricsEndpoints"`
}

// monitorEndpoint is a port: by its name, of the service or of the pod's container;
// or of the pod by its number, or either of them.
type monitorEndpoint struct {
	Port       string              `json:"port"`
	PortNumber int32               `json:"portNumber"`
	TargetPort *intstr.IntOrString `json:"targetPort"`
}

// monitorsOf are the resources of the kinds among custom resource definitions: a
// cluster without the Prometheus operator has none.
func monitorsOf(definitions []unstructured.Unstructured) (all []schema.GroupVersionResource) {
	for _, resource := range []string{"servicemonitors", "podmonitors"} {
		if slices.ContainsFunc(definitions, func(u unstructured.Unstructured) bool { return u.GetName() == resource+"."+monitoring }) {
			all = append(all, schema.GroupVersionResource{Group: monitoring, Version: "v1", Resource: resource})
		}
	}
	return all
}

// monitor adds one.
func (o *Objects) monitor(u *unstructured.Unstructured) error {
	var read struct {
		Spec monitorSpec `json:"spec"`
	}
	m := monitor{kind: u.GetKind(), namespace: u.GetNamespace(), name: u.GetName()}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &read); err != nil {
		return fmt.Errorf("%s %s: %w", m.kind, nameOf(m.namespace, m.name), err)
	}
	m.spec = read.Spec
	o.monitors = append(o.monitors, m)
	return nil
}

// isOf reports whether a monitor is about the objects of a namespace.
func (m *monitor) isOf(namespace string) bool {
	n := &m.spec.NamespaceSelector
	switch {
	case n.Any:
		return true
	case len(n.MatchNames) > 0:
		return slices.Contains(n.MatchNames, namespace)
	}
	return m.namespace == namespace
}

// monitored are the scrapes that monitors tell of.
func (o *Objects) monitored(enrolled []member) []call {
	var all []call
	for i := range o.monitors {
		m := &o.monitors[i]
		made := call{
			kind: KindScrape, object: m.kind + " " + nameOf(m.namespace, m.name), what: "Prometheus scrapes it, by " + m.kind + " " + nameOf(m.namespace, m.name),
			lost: "its metrics are then missing, unless Prometheus is in the mesh, too",
		}
		if m.kind == "PodMonitor" {
			all = append(all, m.ofPods(made, enrolled)...)
		} else {
			all = append(all, m.ofServices(made, o.services)...)
		}
	}
	return all
}

func (m *monitor) ofServices(made call, services []corev1.Service) []call {
	var all []call
	for i := range services {
		s := &services[i]
		if !m.isOf(s.Namespace) || !matches(&m.spec.Selector, s.Labels) {
			continue
		}
		for _, e := range m.spec.Endpoints {
			c := made
			c.service = mesh.Key{Namespace: s.Namespace, Name: s.Name}
			if e.TargetPort != nil {
				c.target = *e.TargetPort
				all = append(all, c)
				continue
			}
			for _, port := range s.Spec.Ports {
				if port.Name == e.Port {
					c.port = port.Port
					all = append(all, c)
				}
			}
		}
	}
	return all
}

func (m *monitor) ofPods(made call, enrolled []member) []call {
	var all []call
	for _, of := range enrolled {
		p := of.pod
		if !m.isOf(p.Namespace) || !matches(&m.spec.Selector, p.Labels) {
			continue
		}
		for _, e := range m.spec.PodMetricsEndpoints {
			c := made
			c.direct(p)
			switch {
			case e.Port != "":
				c.target = intstr.FromString(e.Port)
			case e.PortNumber != 0:
				c.target = intstr.FromInt32(e.PortNumber)
			case e.TargetPort != nil:
				c.target = *e.TargetPort
			default:
				continue
			}
			all = append(all, c)
		}
	}
	return all
}
