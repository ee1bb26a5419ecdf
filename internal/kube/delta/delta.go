// Package delta compiles what has changed in a cluster, by compiling the objects that
// a change concerns, and no others, with package kube: for a pod, itself and the
// services that select it. It keeps no second set of rules: what it cannot tell apart
// from the rest it leaves to a compilation of everything, which is the measure of what
// it does.
//
// Left to that are changes of anything but pods, services and AuthorizationPolicies;
// addresses that two objects claim, or that lead to a service from outside, endpoints that are written by hand; pods in
// their nodes' networks; namespaces that have Workloads; and, where a change is of more
// than a pod's readiness, a cluster that has NetworkPolicies, and a namespace that has
// several PeerAuthentications; policies of a namespace in which some let datagrams in,
// and its pods where these say more than agents are told of them;
// and all of a namespace whose policies are about requests, but a pod's readiness.
//
// A Compiler belongs to one goroutine.
package delta

import (
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/problem"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Change is one object as it was and as it is, of one name: pointers, as in
// kube.Objects; nil where there is none.
type Change struct{ Was, Is any }

// Result is what changes mean.
type Result struct {
	Change mesh.Change
	// Refused and Warnings are about all objects, as those of kube.Compiled are.
	Refused, Warnings []*kube.Problem
	// Objects are those of the last compilation of everything, with the policies of
	// now, and without what there is much of: pods and services.
	Objects *kube.Objects
}

// Compiler knows of all objects what it takes to tell which ones a change concerns.
type Compiler struct {
	objects         *kube.Objects // but for pods, services and policies
	authentications map[string][]kube.Sourced[v1alpha1.PeerAuthentication]
	workloads       map[string]bool // namespaces that have a Workload
	services        map[string]map[string]*corev1.Service
	policies        map[string]map[string]*v1alpha1.AuthorizationPolicy
	// pods has the pods that may be selected, by namespace and label, then by value.
	pods map[group]map[string][]*kube.Pod
	// disputed are addresses that more than one object speaks of.
	disputed map[netip.Addr]bool
	// foreign are the slices of others, by their services: see ADR 90. A service with a selector
	// is warned of them.
	foreign           map[mesh.Key][]*kube.EndpointSlice
	datagrams         datagrams
	refused, warnings map[kube.Ref][]*kube.Problem
	result            Result
}

// group is one label of a namespace's pods.
type group struct{ namespace, label string }

// Compile compiles everything, with kube.CompileEach. After an error, Apply knows
// nothing.
func (c *Compiler) Compile(objs *kube.Objects) (*kube.Compiled, error) {
	*c = Compiler{}
	compiled, err := kube.CompileEach(objs)
	if err != nil {
		return nil, err
	}
	c.remember(objs, compiled)
	return compiled, nil
}

func (c *Compiler) remember(objs *kube.Objects, compiled *kube.Compiled) {
	small := *objs
	small.Pods, small.Services, small.Slices = nil, nil, nil
	*c = Compiler{objects: &small, authentications: map[string][]kube.Sourced[v1alpha1.PeerAuthentication]{}, workloads: map[string]bool{},
		services: map[string]map[string]*corev1.Service{}, policies: map[string]map[string]*v1alpha1.AuthorizationPolicy{},
		pods: map[group]map[string][]*kube.Pod{}, disputed: map[netip.Addr]bool{}, foreign: map[mesh.Key][]*kube.EndpointSlice{}, datagrams: rememberDatagrams(compiled),
		refused: problem.ByObject(compiled.Refused), warnings: problem.ByObject(compiled.Warnings)}
	c.result = Result{Refused: compiled.Refused, Warnings: compiled.Warnings, Objects: &small}
	for _, pa := range objs.PeerAuthentications {
		c.authentications[pa.Value.Namespace] = append(c.authentications[pa.Value.Namespace], pa)
	}
	for _, w := range objs.Workloads {
		c.workloads[w.Value.Namespace] = true
	}
	for _, s := range objs.Services {
		put(c.services, s.Value.Namespace, s.Value.Name, s.Value)
		c.know(s.Value.Namespace, s.Value.Spec.Selector)
	}
	for _, p := range objs.AuthorizationPolicies {
		put(c.policies, p.Value.Namespace, p.Value.Name, p.Value)
		c.know(p.Value.Namespace, selectorOf(p.Value))
	}
	for _, p := range objs.Pods {
		c.group(p, func(list []*kube.Pod) []*kube.Pod { return append(list, p) })
	}
	c.dispute(objs)
}

// know begins the group that a selector looks into.
func (c *Compiler) know(namespace string, selector map[string]string) {
	if at := (group{namespace, first(selector)}); len(selector) > 0 && c.pods[at] == nil {
		c.pods[at] = map[string][]*kube.Pod{}
	}
}

// group changes the lists that a pod belongs to.
func (c *Compiler) group(p *kube.Pod, change func([]*kube.Pod) []*kube.Pod) {
	for label, value := range p.Labels {
		if byValue := c.pods[group{p.Namespace, label}]; byValue != nil {
			if list := change(byValue[value]); len(list) > 0 {
				byValue[value] = list
			} else {
				delete(byValue, value)
			}
		}
	}
}

// selected returns the pods that a selector picks; false when that is not known.
func (c *Compiler) selected(namespace string, selector map[string]string) (picked []*kube.Pod, known bool) {
	byValue := c.pods[group{namespace, first(selector)}]
	for _, p := range byValue[selector[first(selector)]] {
		if mesh.Selects(selector, p.Labels) {
			picked = append(picked, p)
		}
	}
	return picked, byValue != nil
}

// dispute finds the addresses that more than one object speaks of.
func (c *Compiler) dispute(objs *kube.Objects) {
	claimed := make(map[netip.Addr]bool, len(objs.Pods)+len(objs.Services))
	claim := func(addr netip.Addr) {
		if claimed[addr] {
			c.disputed[addr] = true
		}
		claimed[addr] = true
	}
	for _, p := range objs.Pods {
		for _, addr := range p.Addresses {
			if p.HostNetwork {
				c.disputed[addr] = true
			} else if !p.Finished {
				claim(addr)
			}
		}
		c.disputeRefused("Pod", p.Namespace, p.Name, p.Addresses)
	}
	for _, s := range objs.Services {
		for _, addr := range addressesOf(s.Value) {
			claim(addr)
		}
		for _, addr := range externalOf(s.Value) { // a service that has lost one is refused something
			c.disputed[addr] = true
		}
		c.disputeRefused("Service", s.Value.Namespace, s.Value.Name, addressesOf(s.Value))
	}
	disputeAll := func(addresses []string) {
		for _, text := range addresses {
			if addr, err := netip.ParseAddr(text); err == nil {
				c.disputed[addr.Unmap()] = true
			}
		}
	}
	for _, w := range objs.Workloads {
		disputeAll(w.Value.Spec.Addresses)
	}
	for _, m := range objs.Meshes {
		for i := range m.Value.Spec.Federation {
			for _, w := range m.Value.Spec.Federation[i].Workloads {
				disputeAll(w.Addresses)
			}
		}
	}
	for _, s := range objs.Slices {
		of := mesh.Key{Namespace: s.Namespace, Name: s.Service}
		c.foreign[of] = append(c.foreign[of], s)
		for _, e := range s.Endpoints {
			c.disputed[e.Addr] = true
		}
	}
}

// disputeRefused leaves the addresses of an object of which something is refused to a
// compilation of everything: they may be claimed without being had.
func (c *Compiler) disputeRefused(kind, namespace, name string, addrs []netip.Addr) {
	if len(c.refused) == 0 || len(c.refused[kube.Ref{Kind: kind, Namespace: namespace, Name: name}]) == 0 {
		return
	}
	for _, addr := range addrs {
		c.disputed[addr] = true
	}
}

func put[T any](into map[string]map[string]*T, namespace, name string, object *T) {
	if into[namespace] == nil {
		into[namespace] = map[string]*T{}
	}
	into[namespace][name] = object
}

func selectorOf(p *v1alpha1.AuthorizationPolicy) map[string]string {
	if p.Spec.Selector == nil {
		return nil
	}
	return p.Spec.Selector.Labels()
}

// addressesOf returns those that a service says it has, as far as they can be read.
func addressesOf(s *corev1.Service) (addrs []netip.Addr) {
	for _, text := range append(slices.Clone(s.Spec.ClusterIPs), s.Spec.ClusterIP) {
		if addr, err := netip.ParseAddr(text); err == nil && !slices.Contains(addrs, addr.Unmap()) {
			addrs = append(addrs, addr.Unmap())
		}
	}
	return addrs
}

// externalOf returns the addresses of others that may lead to a service, each once: of
// those that are looked at.
func externalOf(s *corev1.Service) (addrs []netip.Addr) {
	look := func(text string) {
		if addr, err := netip.ParseAddr(text); err == nil && !slices.Contains(addrs, addr.Unmap()) {
			addrs = append(addrs, addr.Unmap())
		}
	}
	balanced := s.Status.LoadBalancer.Ingress
	for i := range min(len(balanced), kube.MaxOutside) {
		look(balanced[i].IP)
	}
	for i := range min(len(s.Spec.ExternalIPs), max(0, kube.MaxOutside-len(balanced))) {
		look(s.Spec.ExternalIPs[i])
	}
	return addrs
}

// first returns the first label of a selector.
func first(selector map[string]string) string {
	if len(selector) == 0 {
		return ""
	}
	return slices.Min(slices.Collect(maps.Keys(selector)))
}

// replace puts what is wrong with some objects in the place of what was.
func replace(all map[kube.Ref][]*kube.Problem, list []*kube.Problem, refs map[kube.Ref]bool, now []*kube.Problem) []*kube.Problem {
	is := problem.ByObject(now)
	same := true
	for ref := range refs {
		if len(all[ref]) == 0 && len(is[ref]) == 0 {
			continue
		}
		same = false
		if delete(all, ref); len(is[ref]) > 0 {
			all[ref] = is[ref]
		}
	}
	if same {
		return list
	}
	list = nil
	for _, of := range all {
		list = append(list, of...)
	}
	problem.Sort(list)
	return list
}
