package kube

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/heddle-mesh/heddle/internal/kube/check"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Pod is what the mesh needs to know of a pod, and no more: there are many. It
// must not be changed. Package trim makes one.
type Pod struct {
	Namespace, Name, UID string
	// StaticUID is the UID by which kubelet, and the runtime, know a static pod: what
	// the API server has is its mirror, of another UID. "" of other pods.
	StaticUID string
	// Node is "" until the pod is scheduled; ServiceAccount is never empty.
	Node, ServiceAccount string
	Labels               map[string]string
	// Addresses are unmapped; none until the pod has its network.
	Addresses []netip.Addr
	// ProbePorts are TCP ports that the kubelet probes, or calls as lifecycle hooks.
	ProbePorts []uint16
	// Ports are the container ports that have a name.
	Ports []NamedPort
	// Created is in seconds of Unix time.
	Created int64
	Ready   bool
	// ReadySince is when it became ready, in seconds of Unix time; 0 while it is not.
	ReadySince int64
	// Terminating pods have a deletion timestamp: they get no new connections while
	// others are ready.
	Terminating bool
	// HostNetwork pods are in their node's network namespace.
	HostNetwork bool
	// Finished pods have ended: their addresses may be others' by now.
	Finished bool
}

// NamedPort is a TCP port with a name.
type NamedPort struct {
	Name string
	Port uint16
}

// Key returns the pod's namespace and name.
func (p *Pod) Key() mesh.Key { return mesh.Key{Namespace: p.Namespace, Name: p.Name} }

// maxLabelBytes bounds what a pod, or a Workload, may say in labels, which every agent is told.
const maxLabelBytes = 16 << 10

// labelsFit refuses labels of which there are too many.
func (s subject) labelsFit(labels map[string]string) bool {
	size := 0
	for key, value := range labels {
		size += len(key) + len(value)
	}
	if size > maxLabelBytes {
		s.Problem("metadata.labels", "keep what no selector needs in annotations", "have %d bytes, more than the %d that agents take", size, maxLabelBytes)
	}
	return size <= maxLabelBytes
}

// before reports whether a pod is the one of two that has an address which both
// say is theirs, as is so for moments when it is used again: the one that lives,
// then the newer one.
func (p *Pod) before(other *Pod) bool {
	return cmp.Or(compareBools(p.Terminating, other.Terminating), cmp.Compare(other.Created, p.Created), p.Key().Compare(other.Key())) < 0
}

// isWorkload leaves out pods that are not there yet, or no more, and those in
// their nodes' networks.
func (c *compiler) isWorkload(p *Pod) bool {
	_, known := c.namespaces[p.Namespace]
	return known && !p.Finished && p.Node != "" && !p.HostNetwork
}

// compilePods adds the cluster's pods.
func (c *compiler) compilePods(authentications map[string][]check.Authentication) {
	pods := slices.Clone(c.objs.Pods)
	slices.SortFunc(pods, func(a, b *Pod) int { return a.Key().Compare(b.Key()) })
	has := make(map[netip.Addr]*Pod, len(pods))
	for _, p := range pods {
		for _, addr := range p.Addresses {
			if first := has[addr]; c.isWorkload(p) && (first == nil || p.before(first)) {
				has[addr] = p
			}
		}
	}
	c.out.Workloads = make([]mesh.Workload, 0, len(pods)+len(c.objs.Workloads))
	for _, p := range pods {
		space, known := c.namespaces[p.Namespace]
		if !known || p.Finished || p.Node == "" {
			continue // not yet, or no more
		}
		s := c.subjectOf(Ref{Kind: "Pod", Namespace: p.Namespace, Name: p.Name}, Origin{})
		enrolled, given := s.enrolled(p.Labels)
		enrolled = enrolled || !given && space.enrolled
		if p.HostNetwork {
			c.hosts[p.Namespace] = append(c.hosts[p.Namespace], p)
			if enrolled {
				s.Problem("spec.hostNetwork", "take hostNetwork out, or label the pod heddle.dev/mesh: disabled",
					"is set: in the network of its node a pod cannot be told from the node itself, so it goes on outside the mesh")
			}
			continue
		}
		w, ok := s.podWorkload(p, enrolled, authentications[p.Namespace], has)
		if ok {
			c.pods[p.Key()] = p
			c.out.Workloads = append(c.out.Workloads, w)
		}
		if len(w.Addresses) < len(p.Addresses) {
			c.left[p.Namespace] = append(c.left[p.Namespace], p)
		}
	}
}

// podWorkload returns false when no connection could have to do with the pod.
func (s subject) podWorkload(p *Pod, enrolled bool, authentications []check.Authentication, has map[netip.Addr]*Pod) (mesh.Workload, bool) {
	c := s.compiler
	out := mesh.Workload{
		Key: p.Key(), ServiceAccount: p.ServiceAccount, Node: p.Node, UID: cmp.Or(p.StaticUID, p.UID), Zone: c.objs.Zones[p.Node], Labels: p.Labels,
		Enrolled: enrolled, Ready: p.Ready && !p.Terminating,
		Leaving: p.Ready && p.Terminating,
	}
	if !s.labelsFit(p.Labels) {
		return out, false
	}
	account := mesh.Key{Namespace: p.Namespace, Name: p.ServiceAccount}
	id, known := c.identities[account] // one text for all pods that share it
	if !known {
		var err error
		if id, err = mesh.IdentityFor(c.out.Settings.TrustDomain, p.Namespace, p.ServiceAccount); err != nil {
			s.Problem("spec.serviceAccountName", "rename the service account", "%v", err)
			return out, false
		}
		c.identities[account] = id
	}
	out.Identity = id
	for _, addr := range p.Addresses {
		if first := has[addr]; first != p {
			s.Conflict("status.podIPs", "give every workload and service addresses of its own", "address %s is used twice: it is also that of Pod %s", addr, first.Key())
			continue
		}
		if s.claim("status.podIPs", addr) {
			out.Addresses = append(out.Addresses, addr)
		}
	}
	slices.SortFunc(out.Addresses, netipCompare)
	for _, port := range p.ProbePorts {
		if enrolled && mesh.ReservedPort(port) {
			s.Problem("spec.containers", "let the container listen elsewhere", "probes port %d, which is the agent's own in an enrolled pod", port)
			continue
		}
		out.ProbePorts = append(out.ProbePorts, port)
	}
	out.Mode, out.PortModes = check.Resolve(authentications, p.Labels, c.settings.Mode)
	out.DNS = c.settings.DNS.Of(p.Namespace)
	if len(out.Addresses) == 0 {
		out.Ready, out.Leaving = false, false
		// One that is being set up is told to its node, enrolled or not: until it is,
		// heddle-cni does not know that a namespace's first pod may start outside the
		// mesh. One whose addresses are all refused must not be taken for that.
		if len(p.Addresses) > 0 {
			return out, false
		}
	}
	s.addDatagrams(&out)
	return out, true
}

func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
