// Package network compiles NetworkPolicies (networking.k8s.io/v1) into the form
// that agents judge by: whom a peer's selectors pick becomes a set of addresses,
// and what a port's name means becomes a set of addresses and ports. A set is
// named by the selectors, and not by whom they pick: a pod that comes or goes
// changes a part of a set, and no policy.
//
// It reads no objects and keeps nothing: Compile is pure, and equal input, in any
// order, gives equal output.
package network

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
)

// Policy is a NetworkPolicy, and where to say what is wrong with it.
type Policy struct {
	Object *networkingv1.NetworkPolicy
	// Report takes the path of a field, what to do, and what is wrong.
	Report func(field, remedy, text string)
}

// Pod is whoever has addresses of its own in the cluster's network: a pod or a
// Workload.
type Pod struct {
	Labels    map[string]string
	Addresses []netip.Addr // unmapped
	Ports     []Port
}

// Port is a TCP port with a name.
type Port struct {
	Name   string
	Number uint16
}

// Input is what is compiled.
type Input struct {
	Policies []Policy
	// Namespaces has the labels of every namespace, Pods those who are in it.
	Namespaces map[string]map[string]string
	Pods       map[string][]Pod
	// Named is set when pods may have named ports at all.
	Named bool
}

// maxMembers bounds what the policies of one namespace, together, may add to the
// sets, and maxPolicy one policy, in peers, ports and address blocks: encoded, it
// must fit into one message to an agent, as must its selector, in bytes.
const (
	maxMembers  = 1 << 20
	maxPolicy   = 16 << 10
	maxSelector = 256 << 10
)

// Compile compiles policies. What is wrong with one is reported, and then it
// admits less than it says: a peer or a port that cannot be understood admits
// nobody, and a selector that cannot be, isolates every pod of the namespace.
func Compile(in *Input) ([]netpolicy.Policy, []netpolicy.Shard) {
	c := &compiler{in: in, sets: map[string][]netpolicy.Shard{}, members: map[string]int{}, groups: map[groupKey]map[string][]*Pod{}}
	sorted := slices.Clone(in.Policies)
	slices.SortFunc(sorted, func(a, b Policy) int {
		return cmp.Or(cmp.Compare(a.Object.Namespace, b.Object.Namespace), cmp.Compare(a.Object.Name, b.Object.Name))
	})
	var policies []netpolicy.Policy
	for i := range sorted {
		policies = append(policies, c.policy(&sorted[i]))
	}
	var shards []netpolicy.Shard
	for _, set := range c.sets {
		shards = append(shards, set...)
	}
	slices.SortFunc(shards, func(a, b netpolicy.Shard) int { return a.Compare(&b) })
	return policies, shards
}

type compiler struct {
	in *Input
	// sets has the shards of what is referred to, by name; members counts what
	// the policies of a namespace have added to them.
	sets    map[string][]netpolicy.Shard
	members map[string]int
	groups  map[groupKey]map[string][]*Pod
}

func (c *compiler) policy(p *Policy) netpolicy.Policy {
	spec := &p.Object.Spec
	out := netpolicy.Policy{Name: netpolicy.Name{Namespace: p.Object.Namespace, Name: p.Object.Name}}
	ingress, egress := types(p)
	if ingress {
		out.Ingress = &netpolicy.Direction{}
	}
	if egress {
		out.Egress = &netpolicy.Direction{}
	}
	var err error
	if out.Selector, err = selectorOf(&spec.PodSelector); err != nil {
		p.Report("spec.podSelector", "correct the selector; until then every pod of the namespace is isolated", err.Error())
		return out
	}
	if n := len(text(out.Selector)); n > maxSelector {
		out.Selector = nil
		p.Report("spec.podSelector", "write several policies; until then every pod of the namespace is isolated",
			fmt.Sprintf("says %d bytes, more than the %d that agents take", n, maxSelector))
		return out
	}
	if n := size(spec); n > maxPolicy {
		p.Report("spec", "split it into several policies; until then it admits nothing",
			fmt.Sprintf("has %d peers, ports and address blocks, more than the %d that agents take", n, maxPolicy))
		return out
	}
	// Without a type its rules have no effect, so they are not even looked at.
	for i := 0; ingress && i < len(spec.Ingress); i++ {
		r := &spec.Ingress[i]
		w := what{c, p, i, fmt.Sprintf("spec.ingress[%d]", i), "from", p.Object.Namespace}
		out.Ingress.Rules = w.rule(out.Ingress.Rules, r.From, r.Ports)
	}
	for i := 0; egress && i < len(spec.Egress); i++ {
		r := &spec.Egress[i]
		w := what{c, p, i, fmt.Sprintf("spec.egress[%d]", i), "to", ""}
		out.Egress.Rules = w.rule(out.Egress.Rules, r.To, r.Ports)
	}
	return out
}

func size(spec *networkingv1.NetworkPolicySpec) int {
	n := 0
	add := func(peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) {
		n += len(peers) + len(ports)
		for i := range peers {
			if peers[i].IPBlock != nil {
				n += len(peers[i].IPBlock.Except)
			}
		}
	}
	for i := range spec.Ingress {
		add(spec.Ingress[i].From, spec.Ingress[i].Ports)
	}
	for i := range spec.Egress {
		add(spec.Egress[i].To, spec.Egress[i].Ports)
	}
	return n
}

// types returns the directions in which a policy isolates.
func types(p *Policy) (ingress, egress bool) {
	spec := &p.Object.Spec
	if len(spec.PolicyTypes) == 0 {
		return true, len(spec.Egress) > 0
	}
	for i, t := range spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			ingress = true
		case networkingv1.PolicyTypeEgress:
			egress = true
		default:
			p.Report(fmt.Sprintf("spec.policyTypes[%d]", i), "write Ingress or Egress; until then both are isolated", fmt.Sprintf("%q is not a policy type", string(t)))
			return true, true
		}
	}
	return ingress, egress
}

// what is a rule that is being compiled.
type what struct {
	*compiler
	policy *Policy
	number int
	field  string
	// peers is the field of the rule's peers.
	peers string
	// servers is the namespace of everybody who is connected to; "" when these
	// may be anybody.
	servers string
}

// rule appends a rule, unless it admits no TCP.
func (w *what) rule(rules []netpolicy.Rule, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) []netpolicy.Rule {
	out := netpolicy.Rule{Number: w.number}
	for i := range peers {
		if peer, ok := w.peer(fmt.Sprintf("%s.%s[%d]", w.field, w.peers, i), &peers[i]); ok {
			out.Peers = append(out.Peers, peer)
		}
	}
	every := len(ports) == 0
	for i := range ports {
		port, all, ok := w.port(fmt.Sprintf("%s.ports[%d]", w.field, i), &ports[i])
		every = every || ok && all
		if ok && !all {
			out.Ports = append(out.Ports, port)
		}
	}
	// An empty list would match everything, whatever it was meant to say.
	if len(peers) > 0 && len(out.Peers) == 0 || !every && len(out.Ports) == 0 {
		return rules
	}
	if every {
		out.Ports = nil
	}
	return append(rules, out)
}

// peer returns false for one that matches nobody.
func (w *what) peer(field string, p *networkingv1.NetworkPolicyPeer) (netpolicy.Peer, bool) {
	switch {
	case p.IPBlock != nil && (p.PodSelector != nil || p.NamespaceSelector != nil):
		w.policy.Report(field, "write two entries", "has ipBlock beside a selector")
		return netpolicy.Peer{}, false
	case p.IPBlock != nil:
		return w.block(field+".ipBlock", p.IPBlock)
	case p.PodSelector == nil && p.NamespaceSelector == nil:
		w.policy.Report(field, "write podSelector, namespaceSelector or ipBlock; for everyone, leave the list out", "is empty")
		return netpolicy.Peer{}, false
	}
	var pods, namespaces netpolicy.Selector
	var err error
	if p.PodSelector != nil {
		if pods, err = selectorOf(p.PodSelector); err != nil {
			w.policy.Report(field+".podSelector", "correct the selector", err.Error())
			return netpolicy.Peer{}, false
		}
	}
	own := w.policy.Object.Namespace
	if p.NamespaceSelector != nil {
		own = ""
		if namespaces, err = selectorOf(p.NamespaceSelector); err != nil {
			w.policy.Report(field+".namespaceSelector", "correct the selector", err.Error())
			return netpolicy.Peer{}, false
		}
	}
	name := nameOf("peers", own, text(namespaces), text(pods))
	return netpolicy.Peer{Set: name}, w.set(field, name, func(yield func(netpolicy.Member)) {
		w.each(own, namespaces, pods, func(pod *Pod) {
			for _, addr := range pod.Addresses {
				yield(netpolicy.Member{Addr: addr})
			}
		})
	})
}

func (w *what) block(field string, b *networkingv1.IPBlock) (netpolicy.Peer, bool) {
	block, ok := w.prefix(field+".cidr", b.CIDR)
	out := netpolicy.Peer{Block: block}
	for i, text := range b.Except {
		except, fine := w.prefix(fmt.Sprintf("%s.except[%d]", field, i), text)
		if ok && fine && (!block.Contains(except.Addr()) || except.Bits() <= block.Bits()) {
			fine = false
			w.policy.Report(fmt.Sprintf("%s.except[%d]", field, i), "write a part of "+block.String(), fmt.Sprintf("%s is no part of the block", except))
		}
		ok = ok && fine // without its exception, the block would admit more
		out.Except = append(out.Except, except)
	}
	return out, ok
}

// prefix parses an address block. Bits after its prefix are of no effect, as in
// Kubernetes, which has blocks from before it refused them.
func (w *what) prefix(field, text string) (netip.Prefix, bool) {
	block, err := netip.ParsePrefix(text)
	if err != nil || block.Addr().Is4In6() {
		w.policy.Report(field, "write one such as 10.1.0.0/16 or fd00:1::/64", fmt.Sprintf("%q is not an address block", text))
		return block, false
	}
	return block.Masked(), true
}

// port returns false for one that matches no port of TCP; all says that it matches
// each.
func (w *what) port(field string, p *networkingv1.NetworkPolicyPort) (port netpolicy.Port, all, ok bool) {
	if p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP {
		if *p.Protocol != corev1.ProtocolUDP && *p.Protocol != corev1.ProtocolSCTP {
			w.policy.Report(field+".protocol", "write TCP, UDP or SCTP", fmt.Sprintf("%q is not a protocol", string(*p.Protocol)))
		}
		return port, false, false
	}
	switch {
	case p.Port == nil && p.EndPort != nil:
		w.policy.Report(field+".endPort", "write port, the first of them", "stands alone")
		return port, false, false
	case p.Port == nil:
		return port, true, true
	case p.Port.Type == intstr.String:
		return w.named(field, p)
	}
	first, last := p.Port.IntVal, p.Port.IntVal
	if p.EndPort != nil {
		last = *p.EndPort
	}
	if first < 1 || last > 65535 || last < first {
		w.policy.Report(field, "write ports of 1 to 65535, the lower one first", fmt.Sprintf("%d to %d are no ports", first, last))
		return port, false, false
	}
	return netpolicy.Port{First: uint16(first), Last: uint16(last)}, false, true
}

// named looks a port up by its name, which each pod gives to a port of its own.
func (w *what) named(field string, p *networkingv1.NetworkPolicyPort) (port netpolicy.Port, all, ok bool) {
	name := p.Port.StrVal
	switch {
	case !w.in.Named:
		w.policy.Report(field+".port", "write the port's number", fmt.Sprintf("%q is a name, and workloads have no named ports", name))
		return port, false, false
	case p.EndPort != nil:
		w.policy.Report(field+".endPort", "write the first port's number", "stands beside a port's name")
		return port, false, false
	case len(validation.IsValidPortName(name)) > 0:
		w.policy.Report(field+".port", "write a number, or the name that pods give the port", fmt.Sprintf("%q is not a port's name", name))
		return port, false, false
	}
	set := nameOf("ports", w.servers, name)
	return netpolicy.Port{Set: set}, false, w.set(field, set, func(yield func(netpolicy.Member)) {
		w.each(w.servers, nil, nil, func(pod *Pod) {
			for _, has := range pod.Ports {
				if has.Name != name {
					continue
				}
				for _, addr := range pod.Addresses {
					yield(netpolicy.Member{Addr: addr, Port: has.Number})
				}
			}
		})
	})
}

// set makes a set, unless there is one of its name. False means that the
// namespace has made too much of sets.
func (w *what) set(field, name string, members func(yield func(netpolicy.Member))) bool {
	if _, made := w.sets[name]; made {
		return true
	}
	var all []netpolicy.Member
	members(func(m netpolicy.Member) { all = append(all, m) })
	namespace := w.policy.Object.Namespace
	if w.members[namespace]+len(all) > maxMembers {
		w.policy.Report(field, "select the peers by fewer different selectors, or by narrower ones",
			fmt.Sprintf("picks %d addresses: the policies of a namespace may pick %d in all", len(all), maxMembers))
		return false
	}
	w.members[namespace] += len(all)
	w.sets[name] = netpolicy.Split(name, all)
	return true
}
