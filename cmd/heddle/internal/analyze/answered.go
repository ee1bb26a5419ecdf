package analyze

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/analyze/hosts"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// answered are the calls that somebody here may answer, each with who that is: a service with
// a selector, or pods.
func (o *Objects) answered(calls []call) (all []call) {
	known := hosts.New(&hosts.Objects{Services: o.services, Pods: o.pods, Slices: o.slices})
	for _, c := range calls {
		s := known.Service(c.service)
		if c.selector != nil {
			s = nil // a pod's workload may have the name of another's service
		}
		if s != nil && s.Spec.Type == corev1.ServiceTypeExternalName {
			c.host = s.Spec.ExternalName
		}
		if c.host != "" {
			at, ok := known.At(c.host)
			if !ok {
				continue
			}
			c.host = ""
			if s = at.Service; s == nil {
				c.direct(at.Pod)
			} else {
				c.service, c.podPort = mesh.Key{Namespace: s.Namespace, Name: s.Name}, at.Direct
			}
		}
		if s == nil || len(s.Spec.Selector) > 0 {
			all = append(all, c)
			continue
		}
		for _, e := range known.Behind(s) {
			if d := c; d.to(&e, s) {
				all = append(all, d)
			}
		}
	}
	return all
}

// direct has a call go to a port of a pod's own, and of all that are alike; of itself alone
// where no label that stays tells which these are.
func (c *call) direct(p *corev1.Pod) {
	c.service, c.selector, c.podPort = mesh.Key{Namespace: p.Namespace, Name: familyOf(p)}, stable(p.Labels), true
	if c.pod = nil; len(c.selector) == 0 {
		c.pod = p
	}
}

// to has a call to a service go to one of its endpoints; false when its port does not lead there.
func (c *call) to(e *hosts.Endpoint, s *corev1.Service) bool {
	if !c.podPort && c.target == (intstr.IntOrString{}) {
		name := ""
		for _, port := range s.Spec.Ports {
			if port.Port == c.port {
				name = port.Name
			}
		}
		c.port = e.Port(name)
	}
	c.direct(e.Pod)
	return c.port != 0 || c.target != (intstr.IntOrString{})
}
