package draft

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube/fit"
	"github.com/heddle-mesh/heddle/internal/kube/policies"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// The bounds of the lists of an AuthorizationPolicy, as its schema has them.
const (
	maxRules        = 64
	maxSources      = 32
	maxAccounts     = 256
	maxBlocks       = 64
	maxDestinations = 64
	maxPorts        = 256
)

// Policies admit clients over TCP, and say nothing about UDP: as many as their bounds want, as what one does not
// admit another may. The trust domain is the mesh's.
func (g *Group) Policies(namespace string, trustDomain spiffeid.TrustDomain) []Policy {
	d := &drafting{namespace: namespace, name: g.Owners[0] + "-clients", selector: g.selector, trustDomain: trustDomain, maxBytes: fit.MaxBytes}
	return d.admitting(g.TCP)
}

// Datagrams admit clients over UDP. They say nothing about TCP, as all of their rules name
// UDP.
func (g *Group) Datagrams(namespace string, trustDomain spiffeid.TrustDomain) []Policy {
	udp := v1alpha1.ProtocolUDP
	d := &drafting{namespace: namespace, name: g.Owners[0] + "-datagrams", selector: g.selector, trustDomain: trustDomain, protocol: &udp, maxBytes: policies.MaxBytes}
	return d.admitting(g.UDP)
}

// MaxOverUDP bounds BytesOverUDP of what a mesh takes.
const MaxOverUDP = policies.MaxWorkload

// BytesOverUDP is what policies about UDP come to for a workload of the group: those that are suggested, beside those that
// are there and stay.
func (g *Group) BytesOverUDP(suggested []Policy, trustDomain spiffeid.TrustDomain) (most int) {
	if len(suggested) == 0 {
		return 0
	}
	d, ours := &drafting{trustDomain: trustDomain}, 0
	for i := range suggested {
		d.namespace = suggested[i].Policy.Namespace
		ours += d.bytes(&suggested[i])
	}
	for _, w := range g.Members {
		n := ours
		for _, p := range w.Datagrams {
			if !slices.ContainsFunc(suggested, func(s Policy) bool { return s.Policy.Name == p.Name }) {
				n += fit.Policy(p)
			}
		}
		most = max(most, n)
	}
	return most
}

// drafting is what the policies of one group have in common.
type drafting struct {
	namespace, name string
	selector        map[string]string
	trustDomain     spiffeid.TrustDomain
	protocol        *v1alpha1.Protocol
	// maxBytes bounds a policy, by the measure of package fit; size is what the last one comes to.
	maxBytes, size int
}

// next is a policy without rules, of which there are so many before it.
func (d *drafting) next(before int) Policy {
	name := d.name
	if before > 0 {
		name += fmt.Sprintf("-%d", before+1)
	}
	return Policy{Policy: empty(d.namespace, name, d.selector)}
}

// admitting has a rule for each set of ports that the same clients need; several where one would be too large.
func (d *drafting) admitting(all Needs) (out []Policy) {
	clients, sets := map[string][]Client{}, map[string][]uint16{}
	for _, from := range slices.SortedFunc(maps.Keys(all), compareClients) {
		ports := slices.Sorted(maps.Keys(all[from]))
		key := fmt.Sprint(ports)
		clients[key], sets[key] = append(clients[key], from), ports
	}
	for _, set := range slices.SortedFunc(maps.Values(sets), slices.Compare[[]uint16]) {
		for ports := range slices.Chunk(set, d.portsOfARule()) {
			for _, one := range d.rules(all, clients[fmt.Sprint(set)], ports) {
				out = d.add(out, one)
			}
		}
	}
	return out
}

// portsOfARule are so few that they take a quarter of a policy, of 8 bytes each by package fit, and that their lists
// are not too many.
func (d *drafting) portsOfARule() int { return min(maxDestinations*maxPorts, d.maxBytes/4/8) }

// rules is a rule for clients, or several where it would be too large for a policy.
func (d *drafting) rules(need Needs, clients []Client, ports []uint16) []Policy {
	one, from := d.next(0), sources(clients)
	one.Policy.Spec.Rules = []v1alpha1.Rule{{From: from, To: d.destinations(ports)}}
	n := max(parts(d.bytes(&one), d.maxBytes), parts(len(from), maxSources))
	if n > 1 && len(clients) > 1 {
		var all []Policy
		for some := range slices.Chunk(clients, parts(len(clients), n)) {
			all = append(all, d.rules(need, some, ports)...)
		}
		return all
	}
	one.Counts = []uint64{0}
	for _, client := range clients {
		for _, port := range ports {
			one.Counts[0] += need[client][port]
		}
	}
	return []Policy{one}
}

// parts is into how many parts of a size, at most, so many come.
func parts(many, size int) int { return (many + size - 1) / size }

// add adds the rule of one to the last policy, or where that has no room for it to another.
func (d *drafting) add(out []Policy, one Policy) []Policy {
	more, first := d.next(len(out)), d.next(0)
	n := d.bytes(&one) - d.bytes(&first)
	if len(out) == 0 || len(out[len(out)-1].Counts) == maxRules || d.size+n > d.maxBytes {
		out, d.size = append(out, more), d.bytes(&more)
	}
	last := &out[len(out)-1]
	last.Policy.Spec.Rules = append(last.Policy.Spec.Rules, one.Policy.Spec.Rules...)
	last.Counts = append(last.Counts, one.Counts...)
	d.size += n
	return out
}

func (d *drafting) destinations(ports []uint16) (to []v1alpha1.Destination) {
	for some := range slices.Chunk(ports, maxPorts) {
		one := v1alpha1.Destination{Protocol: d.protocol}
		for _, port := range some {
			one.Ports = append(one.Ports, v1alpha1.Port(port))
		}
		to = append(to, one)
	}
	return to
}

// bytes is no less than what agents are told of a policy.
func (d *drafting) bytes(p *Policy) int {
	told := mesh.Policy{Key: mesh.Key{Namespace: d.namespace, Name: p.Policy.Name}, Selector: d.selector}
	for _, rule := range p.Policy.Spec.Rules {
		var r mesh.Rule
		for _, from := range rule.From {
			s := mesh.Source{IPBlocks: make([]netip.Prefix, len(from.IPBlocks))}
			for _, account := range from.ServiceAccounts {
				namespace, name, qualified := strings.Cut(account, "/")
				if !qualified {
					namespace, name = d.namespace, account
				}
				if id, err := mesh.IdentityFor(d.trustDomain, namespace, name); err == nil {
					s.Identities = append(s.Identities, mesh.IdentityPattern(id.String()))
				}
			}
			for _, id := range from.Identities {
				s.Identities = append(s.Identities, mesh.IdentityPattern(id))
			}
			r.From = append(r.From, s)
		}
		for _, to := range rule.To {
			r.To = append(r.To, mesh.Destination{Ports: make([]uint16, len(to.Ports))})
		}
		told.Rules = append(told.Rules, r)
	}
	return fit.Policy(&told)
}

func sources(clients []Client) (from []v1alpha1.Source) {
	var accounts, identities []string
	var blocks []v1alpha1.AddressBlock
	for _, c := range clients {
		switch {
		case c.Account != "":
			accounts = append(accounts, c.Account)
		case c.Identity != "":
			identities = append(identities, c.Identity)
		default:
			blocks = append(blocks, v1alpha1.AddressBlock(c.Block))
		}
	}
	for some := range slices.Chunk(accounts, maxAccounts) {
		from = append(from, v1alpha1.Source{ServiceAccounts: some})
	}
	for some := range slices.Chunk(identities, maxAccounts) {
		from = append(from, v1alpha1.Source{Identities: some})
	}
	for some := range slices.Chunk(blocks, maxBlocks) {
		from = append(from, v1alpha1.Source{IPBlocks: some})
	}
	return from
}
