package delta

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/policies"
	"github.com/heddle-mesh/heddle/internal/kube/problem"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
)

// concern is what some changes concern, by namespace and name.
type concern struct {
	*Compiler
	view     *mesh.View
	pods     map[mesh.Key]*kube.Pod // that changed; nil for one that is gone
	services map[mesh.Key]*corev1.Service
	policies map[mesh.Key]*v1alpha1.AuthorizationPolicy
	// policiesChanged is set when a policy is among the changes.
	policiesChanged bool
}

// Apply compiles changes of what was compiled last: view is what it was compiled to.
// It returns false when that takes a compilation of everything, and then needs one.
func (c *Compiler) Apply(view *mesh.View, changes []Change) (Result, bool) {
	if c.objects == nil {
		return Result{}, false
	}
	about := &concern{Compiler: c, view: view, pods: map[mesh.Key]*kube.Pod{}, services: map[mesh.Key]*corev1.Service{}, policies: map[mesh.Key]*v1alpha1.AuthorizationPolicy{}}
	if !about.note(changes) {
		*c = Compiler{}
		return Result{}, false
	}
	result, ok := about.compile()
	if !ok {
		*c = Compiler{}
	}
	return result, ok
}

// note finds what changes concern. It returns false when it cannot.
func (a *concern) note(changes []Change) bool {
	for _, c := range changes {
		ok := false
		switch object := either(c).(type) {
		case *kube.Pod:
			was, _ := c.Was.(*kube.Pod)
			is, _ := c.Is.(*kube.Pod)
			ok = !a.datagrams.tooMany(object.Namespace) && (!a.aboutRequests(object.Namespace) || was != nil && is != nil && alike(was, is)) && a.pod(was, is, object.Key())
		case *corev1.Service:
			was, _ := c.Was.(*corev1.Service)
			is, _ := c.Is.(*corev1.Service)
			ok = !a.aboutRequests(object.Namespace) && a.service(was, is, mesh.Key{Namespace: object.Namespace, Name: object.Name})
		case *v1alpha1.AuthorizationPolicy:
			was, _ := c.Was.(*v1alpha1.AuthorizationPolicy)
			is, _ := c.Is.(*v1alpha1.AuthorizationPolicy)
			// What is said about UDP is part of the workloads that it is said of.
			ok = !a.opensDatagrams(object.Namespace) && !policies.AboutRequests(was) && !policies.AboutRequests(is) && !(a.objects.UDPByIdentity && (policies.OpensUDP(was) || policies.OpensUDP(is))) &&
				a.policy(is, mesh.Key{Namespace: object.Namespace, Name: object.Name})
		}
		if !ok {
			return false
		}
	}
	return true
}

func either(c Change) any {
	if v := reflect.ValueOf(c.Is); v.IsValid() && !v.IsNil() {
		return c.Is
	}
	return c.Was
}

func (a *concern) pod(was, is *kube.Pod, key mesh.Key) bool {
	if a.workloads[key.Namespace] { // one may have the pod's name
		return false
	}
	a.pods[key] = is
	for _, p := range []*kube.Pod{was, is} {
		if p == nil {
			continue
		}
		if p.HostNetwork || !a.free(p.Addresses, key, mesh.Key{}) {
			return false
		}
	}
	if was != nil && is != nil && alike(was, is) {
		a.regroup(was, is)
		return true
	}
	all := a.authentications[key.Namespace]
	if len(a.objects.NetworkPolicies) > 0 || len(all) > 1 || len(all) == 1 && all[0].Value.Spec.Selector != nil {
		return false
	}
	a.regroup(was, is)
	labels := func(p *kube.Pod, selector map[string]string) bool {
		return p != nil && mesh.Selects(selector, p.Labels)
	}
	for name, s := range a.Compiler.services[key.Namespace] {
		if len(s.Spec.Selector) > 0 && (labels(was, s.Spec.Selector) || labels(is, s.Spec.Selector)) {
			a.services[mesh.Key{Namespace: key.Namespace, Name: name}] = s
		}
	}
	for name, p := range a.Compiler.policies[key.Namespace] { // there are warnings of those that pick nobody
		if selector := selectorOf(p); len(selector) > 0 && (labels(was, selector) || labels(is, selector)) {
			a.policies[mesh.Key{Namespace: key.Namespace, Name: name}] = p
		}
	}
	return true
}

// alike reports whether only a pod's readiness, or that it leaves, is different.
func alike(was, is *kube.Pod) bool {
	as := *was
	as.Ready, as.ReadySince, as.Terminating = is.Ready, is.ReadySince, is.Terminating
	return reflect.DeepEqual(&as, is)
}

func (a *concern) regroup(was, is *kube.Pod) {
	if was != nil {
		a.group(was, func(list []*kube.Pod) []*kube.Pod {
			return slices.DeleteFunc(list, func(p *kube.Pod) bool { return p.Name == was.Name })
		})
	}
	if is != nil {
		a.group(is, func(list []*kube.Pod) []*kube.Pod { return append(list, is) })
	}
}

// free reports whether nobody else speaks of addresses.
func (a *concern) free(addrs []netip.Addr, workload, service mesh.Key) bool {
	for _, addr := range addrs {
		if a.disputed[addr] {
			return false
		}
		if w, taken := a.view.WorkloadAt(addr); taken && w.Key != workload {
			return false
		}
		if s, taken := a.view.ServiceAt(addr); taken && s.Key != service {
			return false
		}
	}
	return true
}

func (a *concern) service(was, is *corev1.Service, key mesh.Key) bool {
	// Endpoints that are no pods are there as long as any service has them.
	if s, ok := a.view.Service(key); ok && slices.ContainsFunc(s.Endpoints, func(k mesh.Key) bool { return k.Namespace == kube.ExternalNamespace }) {
		return false
	}
	for _, s := range []*corev1.Service{was, is} {
		if s != nil && (len(s.Spec.Selector) == 0 || len(externalOf(s)) > 0 || !a.free(addressesOf(s), mesh.Key{}, key)) {
			return false
		}
	}
	if (was == nil || is == nil || was.Spec.Type != is.Spec.Type || !slices.Equal(was.Spec.Ports, is.Spec.Ports)) && a.isWaypoint(key) {
		return false // others' problems are of a waypoint that is not there, or is none
	}
	if a.services[key] = is; is != nil {
		put(a.Compiler.services, key.Namespace, key.Name, is)
	} else {
		delete(a.Compiler.services[key.Namespace], key.Name)
	}
	return true
}

// isWaypoint reports whether services, or a namespace, have a service as their waypoint.
func (a *concern) isWaypoint(key mesh.Key) bool {
	for _, ns := range a.objects.Namespaces {
		if ns.Value.Name == key.Namespace && ns.Value.Labels[v1alpha1.LabelWaypoint] == key.Name {
			return true
		}
	}
	for _, s := range a.Compiler.services[key.Namespace] {
		if s.Labels[v1alpha1.LabelWaypoint] == key.Name {
			return true
		}
	}
	return false
}

// waypointOf returns the name of the waypoint that a service or its namespace names.
func (a *concern) waypointOf(s *corev1.Service) string {
	if name, named := s.Labels[v1alpha1.LabelWaypoint]; named {
		return name
	}
	for _, ns := range a.objects.Namespaces {
		if ns.Value.Name == s.Namespace {
			return ns.Value.Labels[v1alpha1.LabelWaypoint]
		}
	}
	return ""
}

func (a *concern) policy(is *v1alpha1.AuthorizationPolicy, key mesh.Key) bool {
	a.policiesChanged = true
	if a.policies[key] = is; is != nil {
		put(a.Compiler.policies, key.Namespace, key.Name, is)
	} else {
		delete(a.Compiler.policies[key.Namespace], key.Name)
	}
	return true
}

// compile compiles what the changes concern.
func (a *concern) compile() (Result, bool) {
	objs, ok := a.subset()
	if !ok {
		return Result{}, false
	}
	compiled, err := kube.CompileEach(objs)
	if err != nil || slices.ContainsFunc(compiled.Refused, func(p *kube.Problem) bool { return p.Reason == problem.Conflict }) {
		return Result{}, false
	}
	if !a.datagrams.follow(a, compiled) {
		return Result{}, false
	}
	r := Result{Objects: a.result.Objects, Change: a.difference(compiled)}
	refs := map[kube.Ref]bool{}
	for key := range a.pods {
		refs[kube.Ref{Kind: "Pod", Namespace: key.Namespace, Name: key.Name}] = true
	}
	for key := range a.services {
		refs[kube.Ref{Kind: "Service", Namespace: key.Namespace, Name: key.Name}] = true
	}
	for key := range a.policies {
		refs[kube.Ref{Kind: "AuthorizationPolicy", Namespace: key.Namespace, Name: key.Name}] = true
	}
	r.Refused = replace(a.refused, a.result.Refused, refs, compiled.Refused)
	r.Warnings = replace(a.warnings, a.result.Warnings, refs, compiled.Warnings)
	for _, p := range objs.Pods {
		a.disputeRefused("Pod", p.Namespace, p.Name, p.Addresses)
	}
	for _, svc := range objs.Services {
		a.disputeRefused("Service", svc.Value.Namespace, svc.Value.Name, addressesOf(svc.Value))
	}
	if a.policiesChanged {
		now := *r.Objects
		now.AuthorizationPolicies = nil
		for _, byName := range a.Compiler.policies {
			for _, p := range byName {
				now.AuthorizationPolicies = append(now.AuthorizationPolicies, kube.Sourced[v1alpha1.AuthorizationPolicy]{Value: p})
			}
		}
		r.Objects = &now
	}
	a.result = r
	a.result.Change = mesh.Change{}
	return r, true
}

// subset returns the objects to compile: those that are concerned, and what they refer
// to.
func (a *concern) subset() (*kube.Objects, bool) {
	pods, spaces, beside := map[mesh.Key]*kube.Pod{}, map[string]bool{}, map[mesh.Key]bool{}
	for key, p := range a.pods {
		if p != nil {
			pods[key], spaces[key.Namespace] = p, true
		}
	}
	objs := &kube.Objects{Meshes: a.objects.Meshes, Zones: a.objects.Zones, UDPByIdentity: a.objects.UDPByIdentity, Relayed: a.objects.Relayed}
	for key, s := range a.services {
		if s == nil {
			continue
		}
		spaces[key.Namespace] = true
		picked, known := a.selected(key.Namespace, s.Spec.Selector)
		if !known || a.workloads[key.Namespace] || a.objects.UDPByIdentity && len(a.foreign[key]) > 0 || a.anyDisputed(addressesOf(s)) || slices.ContainsFunc(picked, a.entangled) {
			return nil, false
		}
		for _, p := range picked {
			pods[p.Key()] = p
		}
		objs.Services = append(objs.Services, kube.Sourced[corev1.Service]{Value: s})
		objs.Slices = append(objs.Slices, a.foreign[key]...)
		waypoint := mesh.Key{Namespace: key.Namespace, Name: a.waypointOf(s)}
		if w := a.Compiler.services[waypoint.Namespace][waypoint.Name]; w != nil && a.services[waypoint] == nil && !beside[waypoint] {
			beside[waypoint] = true // it is there, whatever it comes to
			objs.Services = append(objs.Services, kube.Sourced[corev1.Service]{Value: w})
		}
	}
	for key, p := range a.policies {
		if p == nil {
			continue
		}
		if !a.addPicked(pods, key.Namespace, selectorOf(p)) {
			return nil, false
		}
		objs.AuthorizationPolicies = append(objs.AuthorizationPolicies, kube.Sourced[v1alpha1.AuthorizationPolicy]{Value: p})
	}
	objs.AuthorizationPolicies = append(objs.AuthorizationPolicies, a.aboutDatagrams()...)
	objs.Pods = slices.Collect(maps.Values(pods))
	for _, ns := range a.objects.Namespaces { // policies may speak of any
		if spaces[ns.Value.Name] || len(objs.AuthorizationPolicies) > 0 {
			objs.Namespaces = append(objs.Namespaces, ns)
		}
	}
	for namespace := range spaces {
		objs.PeerAuthentications = append(objs.PeerAuthentications, a.authentications[namespace]...)
	}
	return objs, true
}

// entangled reports whether what a pod comes to may depend on others than are compiled
// with it.
func (c *Compiler) entangled(p *kube.Pod) bool {
	return p.HostNetwork || c.anyDisputed(p.Addresses)
}

func (c *Compiler) anyDisputed(addrs []netip.Addr) bool {
	return slices.ContainsFunc(addrs, func(addr netip.Addr) bool { return c.disputed[addr] })
}

// aboutRequests reports whether a policy of a namespace is about requests: whether it can be
// depends on which services lead to all of its workloads.
func (c *Compiler) aboutRequests(namespace string) bool {
	for _, p := range c.policies[namespace] {
		if policies.AboutRequests(p) {
			return true
		}
	}
	return false
}

// addPicked adds one workload that a policy's selector picks, if there is one: it is
// warned of those that pick nobody.
func (a *concern) addPicked(pods map[mesh.Key]*kube.Pod, namespace string, selector map[string]string) bool {
	if len(selector) == 0 {
		return true
	}
	picked, known := a.selected(namespace, selector)
	if !known || a.workloads[namespace] {
		return false
	}
	for _, p := range picked {
		if _, is := a.pods[p.Key()]; is {
			continue // in any case
		}
		if w, ok := a.view.Workload(p.Key()); ok && mesh.Selects(selector, w.Labels) {
			pods[p.Key()] = p
			break
		}
	}
	return true
}

// difference returns what is other than in the View.
func (a *concern) difference(compiled *kube.Compiled) (c mesh.Change) {
	workloads, services, policies := map[mesh.Key]*mesh.Workload{}, map[mesh.Key]*mesh.Service{}, map[mesh.Key]*mesh.Policy{}
	for i := range compiled.Workloads {
		workloads[compiled.Workloads[i].Key] = &compiled.Workloads[i]
	}
	for i := range compiled.Services {
		services[compiled.Services[i].Key] = &compiled.Services[i]
	}
	for i := range compiled.Policies {
		policies[compiled.Policies[i].Key] = &compiled.Policies[i]
	}
	for key := range a.pods {
		was, had := a.view.Workload(key)
		switch is := workloads[key]; {
		case is == nil && had:
			c.GoneWorkloads = append(c.GoneWorkloads, key)
		case is != nil && (!had || !reflect.DeepEqual(was, is)):
			own := *is // not the others that were compiled beside it
			if had && was.Identity == own.Identity {
				own.Identity = was.Identity // a text that others have, too
			}
			c.Workloads = append(c.Workloads, &own)
		}
	}
	for key := range a.services {
		was, had := a.view.Service(key)
		switch is := services[key]; {
		case is == nil && had:
			c.GoneServices = append(c.GoneServices, key)
		case is != nil && (!had || !reflect.DeepEqual(was, is)):
			c.Services = append(c.Services, is)
		}
	}
	for key := range a.policies {
		was := keyed.Find(a.view.Policies(), key)
		switch is := policies[key]; {
		case is == nil && was != nil:
			c.GonePolicies = append(c.GonePolicies, key)
		case is != nil && !reflect.DeepEqual(was, is):
			c.Policies = append(c.Policies, is)
		}
	}
	return c
}
