package network

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
)

// selectorOf returns a selector in its one canonical form.
func selectorOf(s *metav1.LabelSelector) (netpolicy.Selector, error) {
	if _, err := metav1.LabelSelectorAsSelector(s); err != nil {
		return nil, err
	}
	var out netpolicy.Selector
	for key, value := range s.MatchLabels {
		out = append(out, netpolicy.Requirement{Key: key, Operator: netpolicy.In, Values: []string{value}})
	}
	for _, e := range s.MatchExpressions {
		r := netpolicy.Requirement{Key: e.Key}
		switch e.Operator {
		case metav1.LabelSelectorOpIn:
			r.Operator = netpolicy.In
		case metav1.LabelSelectorOpNotIn:
			r.Operator = netpolicy.NotIn
		case metav1.LabelSelectorOpExists:
			r.Operator = netpolicy.Exists
		case metav1.LabelSelectorOpDoesNotExist:
			r.Operator = netpolicy.DoesNotExist
		}
		r.Values = slices.Compact(slices.Sorted(slices.Values(e.Values)))
		out = append(out, r)
	}
	compare := func(a, b netpolicy.Requirement) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Operator, b.Operator), slices.Compare(a.Values, b.Values))
	}
	slices.SortFunc(out, compare)
	return slices.CompactFunc(out, func(a, b netpolicy.Requirement) bool { return compare(a, b) == 0 }), nil
}

// text returns a canonical selector as text; labels have none of its signs.
func text(s netpolicy.Selector) string {
	var b strings.Builder
	for i := range s {
		b.WriteString(s[i].Key + "?" + strconv.Itoa(int(s[i].Operator)) + "?" + strings.Join(s[i].Values, "|") + "\n")
	}
	return b.String()
}

// nameOf names a set by what its members are picked by: 128 bits of a hash.
func nameOf(parts ...string) string {
	h := sha256.New()
	for _, part := range parts {
		h.Write([]byte(strconv.Itoa(len(part)) + ":" + part))
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// groupKey names the pods of a namespace, told apart by one label.
type groupKey struct{ namespace, label string }

// each calls f for the pods that a selector picks: in one namespace, or, when it
// is "", in those that another selector picks.
func (c *compiler) each(namespace string, namespaces, pods netpolicy.Selector, f func(*Pod)) {
	if namespace != "" {
		c.eachIn(namespace, pods, f)
		return
	}
	for name, labels := range c.in.Namespaces {
		if namespaces.Matches(labels) {
			c.eachIn(name, pods, f)
		}
	}
}

func (c *compiler) eachIn(namespace string, pods netpolicy.Selector, f func(*Pod)) {
	// By one label's value, most selectors leave few to be looked at.
	for i := range pods {
		if r := &pods[i]; r.Operator == netpolicy.In {
			group := c.group(namespace, r.Key)
			for _, value := range r.Values {
				for _, pod := range group[value] {
					if pods.Matches(pod.Labels) {
						f(pod)
					}
				}
			}
			return
		}
	}
	all := c.in.Pods[namespace]
	for i := range all {
		if pods.Matches(all[i].Labels) {
			f(&all[i])
		}
	}
}

func (c *compiler) group(namespace, label string) map[string][]*Pod {
	at := groupKey{namespace, label}
	group, known := c.groups[at]
	if !known {
		group = map[string][]*Pod{}
		all := c.in.Pods[namespace]
		for i := range all {
			if value, has := all[i].Labels[label]; has {
				group[value] = append(group[value], &all[i])
			}
		}
		c.groups[at] = group
	}
	return group
}
