package kube

import (
	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// selector checks a selector and returns its labels; nil picks everything.
func (s subject) selector(selector *v1alpha1.Selector) map[string]string {
	if selector == nil {
		return nil
	}
	if len(selector.MatchLabels) == 0 {
		s.Problem("spec.selector.matchLabels", "write at least one label, or leave the selector out to pick every workload of the namespace", "is empty")
	}
	labels := selector.Labels()
	s.Labels("spec.selector.matchLabels", labels)
	return labels
}

// groupKey names the workloads of a namespace, told apart by one label.
type groupKey struct{ namespace, label string }

// candidates returns the workloads of a namespace that a selector may select,
// sorted by key: those that have one of its labels. Looking at all of them for
// each selector would be most of the work of compiling a large cluster.
func (c *compiler) candidates(namespace string, selector map[string]string) []*mesh.Workload {
	label := ""
	for key := range selector {
		if label == "" || key < label {
			label = key
		}
	}
	if label == "" {
		return c.members[namespace]
	}
	at := groupKey{namespace, label}
	group, known := c.groups[at]
	if !known {
		group = map[string][]*mesh.Workload{}
		for _, w := range c.members[namespace] {
			if value, has := w.Labels[label]; has {
				group[value] = append(group[value], w)
			}
		}
		c.groups[at] = group
	}
	return group[selector[label]]
}
