package kube

import (
	"maps"

	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/kube/network"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// compileNetworkPolicies compiles them while the only workloads are pods and
// Workloads: selectors pick nobody else.
func (c *compiler) compileNetworkPolicies() {
	if len(c.objs.NetworkPolicies) == 0 {
		return
	}
	in := &network.Input{Namespaces: map[string]map[string]string{}, Pods: map[string][]network.Pod{}, Named: c.each}
	for _, ns := range c.objs.Namespaces {
		labels := maps.Clone(ns.Value.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		labels[corev1.LabelMetadataName] = ns.Value.Name // an API server sees to that
		in.Namespaces[ns.Value.Name] = labels
	}
	for i := range c.out.Workloads {
		w := &c.out.Workloads[i]
		pod := network.Pod{Labels: w.Labels, Addresses: w.Addresses}
		if p := c.pods[w.Key]; p != nil {
			for _, port := range p.Ports {
				pod.Ports = append(pod.Ports, network.Port{Name: port.Name, Number: port.Port})
			}
		}
		in.Pods[w.Namespace] = append(in.Pods[w.Namespace], pod)
	}
	about := map[mesh.Key]subject{}
	for _, np := range sorted(c.objs.NetworkPolicies) {
		s := c.subject("NetworkPolicy", np.Value, np.Origin)
		s.place(np.Value)
		about[mesh.Key{Namespace: np.Value.Namespace, Name: np.Value.Name}] = s
		in.Policies = append(in.Policies, network.Policy{Object: np.Value, Report: func(field, remedy, text string) {
			s.Problem(field, remedy, "%s", text)
		}})
	}
	c.out.Network.Policies, c.out.Network.Sets = network.Compile(in)
	for i := 0; !c.each && i < len(c.out.Network.Policies); i++ { // in a cluster, nobody would read it
		p := &c.out.Network.Policies[i]
		about[mesh.Key(p.Name)].warnUnpicked(p.Namespace, len(p.Selector) == 0, p.Selector.Matches, in.Pods[p.Namespace])
	}
}

// warnUnpicked warns of a policy that is about nobody: a misspelt label looks just
// like that.
func (s subject) warnUnpicked(namespace string, everybody bool, picks func(labels map[string]string) bool, pods []network.Pod) {
	for i := range pods {
		if picks(pods[i].Labels) {
			return
		}
	}
	if !everybody {
		s.Warn("spec.podSelector", "compare with the labels of the workloads", "picks no workload of namespace %q", namespace)
	}
}
