package analyze

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/analyze/hosts"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// answered are the calls whose hosts are somebody's here, each with who that is.
func (o *Objects) answered(calls []call) (all []call) {
	known := &hosts.Objects{Services: o.services, Pods: o.pods}
	for _, c := range calls {
		if c.host != "" {
			at, ok := known.At(c.host)
			switch {
			case !ok:
				continue
			case at.Service != nil:
				c.service, c.podPort = mesh.Key{Namespace: at.Service.Namespace, Name: at.Service.Name}, at.Direct
			default:
				c.direct(at.Pod)
			}
			c.host = ""
		}
		all = append(all, c)
	}
	return all
}

// direct has a call go to a port of a pod's own.
func (c *call) direct(p *corev1.Pod) {
	c.service, c.selector, c.podPort = mesh.Key{Namespace: p.Namespace, Name: familyOf(p)}, stable(p.Labels), true
}
