package mesh

import (
	"net/netip"
	"slices"

	"github.com/heddle-mesh/heddle/internal/mesh/policy"
)

// Datagram is what authorization looks at of a conversation over UDP: who opens it,
// with whom. Nothing is proved by a handshake: the identity of its source is that of
// the enrolled workload that has the address, whose gate lets no other address out.
type Datagram struct {
	// Source is the address that it comes from.
	Source netip.Addr
	// Destination is the workload, Port its application port.
	Destination *Workload
	Port        uint16
}

// AuthorizeDatagram decides whether a conversation over UDP may be opened. The
// destination is looked up by its key, as for Authorize.
//
// Nothing is let in by default. In order: a destination that no ALLOW policy about UDP
// selects (Workload.Datagrams) refuses, and so does a source that is no enrolled
// workload's address; where either end's identity is revoked it is refused; a matching
// DENY policy refuses; a matching ALLOW policy lets in; else it is refused. Modes and
// NetworkPolicies have no say: the former are about TCP, the latter whoever carries
// datagrams judges by.
func (v *View) AuthorizeDatagram(d Datagram) Decision {
	w, refusal := v.destination(&Connection{Destination: d.Destination})
	if w == nil {
		return refused(refusal)
	}
	source, _ := v.WorkloadAt(d.Source)
	return v.decideDatagram(datagramsOf(w), source, d.Source.Unmap().WithZone(""), d.Port)
}

// AuthorizeDatagramTo is AuthorizeDatagram for a workload that opens a conversation with
// an address and a port: a workload's or a service's, which service then names. Of a
// service the first endpoint that refuses decides, else the first one.
func (v *View) AuthorizeDatagramTo(source *Workload, to netip.AddrPort, service *Key) Decision {
	addr := to.Addr().Unmap()
	from, ok := source.AddressFor(addr, nil)
	if !ok {
		return refused(ReasonUnknownDestination)
	}
	if w, ok := v.WorkloadAt(addr); ok {
		return v.AuthorizeDatagram(Datagram{Source: from, Destination: w, Port: to.Port()})
	}
	decision := refused(ReasonKernelUDP)
	s, ok := v.ServiceAt(addr)
	if !ok {
		return decision
	}
	*service = s.Key
	for _, port := range s.UDPPorts {
		if port.Port != to.Port() {
			continue
		}
		for i, key := range s.Endpoints {
			w, _ := v.Workload(key)
			d := v.AuthorizeDatagram(Datagram{Source: from, Destination: w, Port: port.TargetPort})
			if i == 0 || d.Verdict == VerdictDeny {
				decision = d
			}
			if d.Verdict == VerdictDeny {
				break
			}
		}
	}
	return decision
}

// datagrams is what a workload's policies about UDP say, indexed.
type datagrams struct {
	*policy.Set
	workload *Workload
	ports    []uint16 // that anybody may be let in to, sorted
}

// datagramsOf returns nil for a workload that takes none.
func datagramsOf(w *Workload) *datagrams {
	if len(w.Datagrams) == 0 || !w.Enrolled {
		return nil
	}
	d := &datagrams{workload: w}
	var compiled []*policy.Compiled
	for _, p := range w.Datagrams {
		compiled = append(compiled, policy.Compile(p))
		if p.Action == ActionAllow {
			d.ports = append(d.ports, p.Ports()...)
		}
	}
	d.Set = policy.NewSet(compiled, nil)
	slices.Sort(d.ports)
	d.ports = slices.DeleteFunc(slices.Compact(d.ports), ReservedPort)
	return d
}

func (v *View) decideDatagram(d *datagrams, source *Workload, addr netip.Addr, port uint16) Decision {
	switch {
	case d == nil || source == nil || !source.Enrolled:
		return refused(ReasonKernelUDP)
	case v.Revoked(source.Identity) || v.Revoked(d.workload.Identity):
		return refused(ReasonIdentityRevoked)
	case ReservedPort(port):
		return refused(ReasonReservedPort)
	}
	a := policy.Attributes{Peer: source.Identity, Namespace: NamespaceOf(v.settings.TrustDomain, source.Identity), Source: addr, Port: port}
	found := d.LookUp(a.Peer)
	decision := refused(ReasonPolicyNoMatch)
	if name, rule, ok := found.First(ActionDeny, &a); ok {
		decision = Decision{Verdict: VerdictDeny, Reason: ReasonPolicyDeny, Policy: name, Rule: rule}
	} else if name, rule, ok := found.First(ActionAllow, &a); ok {
		decision = Decision{Verdict: VerdictAllow, Reason: ReasonPolicyAllow, Policy: name, Rule: rule}
	}
	if decision.Audited = found.Auditing(&a); len(decision.Audited) > 0 && decision.Verdict == VerdictAllow {
		decision.Verdict = VerdictAudit
	}
	return decision
}

// DatagramRule lets a workload's gate pass a conversation over UDP; see View.DatagramRules.
// It is comparable.
type DatagramRule struct {
	// Remote is the other end.
	Remote netip.Addr
	// Port is that of the end that is spoken to.
	Port uint16
	// Inbound says that the other end opens it.
	Inbound bool
}

// DatagramRules is AuthorizeDatagram for the gates of a node's workloads, written out:
// whom each may open conversations with, and who with it. A workload may speak to
// whoever lets it in, at each of its own addresses of the family, and to an address of a
// service when every endpoint that may be behind it does. Those without a rule are left
// out.
func (v *View) DatagramRules(node string) map[Key][]DatagramRule {
	var open []*datagrams
	for _, w := range v.workloads {
		if d := datagramsOf(w); d != nil && len(d.ports) > 0 {
			open = append(open, d)
		}
	}
	if len(open) == 0 {
		return nil
	}
	rules := map[Key][]DatagramRule{}
	byKey := map[Key]*datagrams{}
	for _, d := range open {
		byKey[d.workload.Key] = d
		if d.workload.Node == node {
			if in := v.inbound(d); len(in) > 0 {
				rules[d.workload.Key] = in
			}
		}
	}
	for _, w := range v.OnNode(node) {
		if !w.Enrolled {
			continue
		}
		out := v.outbound(w, open)
		out = v.throughServices(w, byKey, out)
		if len(out) > 0 {
			rules[w.Key] = append(rules[w.Key], out...)
		}
	}
	return rules
}

// inbound returns who may speak to a workload.
func (v *View) inbound(d *datagrams) (rules []DatagramRule) {
	for _, source := range v.workloads {
		if source == d.workload {
			continue
		}
		for _, addr := range source.Addresses {
			for _, port := range d.ports {
				if v.decideDatagram(d, source, addr, port).Verdict != VerdictDeny {
					rules = append(rules, DatagramRule{Remote: addr, Port: port, Inbound: true})
				}
			}
		}
	}
	return rules
}

// outbound returns to whom a workload may speak.
func (v *View) outbound(w *Workload, open []*datagrams) (rules []DatagramRule) {
	for _, d := range open {
		if d.workload == w {
			continue
		}
		for _, port := range d.ports {
			for _, addr := range d.workload.Addresses {
				if v.admitsAll(d, w, addr, port) {
					rules = append(rules, DatagramRule{Remote: addr, Port: port})
				}
			}
		}
	}
	return rules
}

// admitsAll reports whether a source is let in from each of its addresses that may speak
// to one of dst's family.
func (v *View) admitsAll(d *datagrams, source *Workload, dst netip.Addr, port uint16) bool {
	some := false
	for _, addr := range source.Addresses {
		if addr.Is4() != dst.Is4() {
			continue
		}
		if v.decideDatagram(d, source, addr, port).Verdict == VerdictDeny {
			return false
		}
		some = true
	}
	return some
}

// throughServices adds the addresses of services to which a workload may speak.
func (v *View) throughServices(w *Workload, open map[Key]*datagrams, rules []DatagramRule) []DatagramRule {
	for _, s := range v.services {
		for _, port := range s.UDPPorts {
			for _, addr := range s.Addresses {
				admits := func(key Key) bool {
					d := open[key]
					return d != nil && (d.workload == w || v.admitsAll(d, w, addr, port.TargetPort))
				}
				if len(s.Endpoints) > 0 && !slices.ContainsFunc(s.Endpoints, func(key Key) bool { return !admits(key) }) {
					rules = append(rules, DatagramRule{Remote: addr, Port: port.Port})
				}
			}
		}
	}
	return rules
}
