// Package datagram decides about UDP between workloads, and writes the decisions out for
// their gates. All of it is pure; what it returns is the caller's.
package datagram

import (
	"net/netip"
	"slices"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/policy"
)

// Conversation is what authorization looks at of datagrams between two: who opens it,
// with whom. Nothing is proved by a handshake: the identity of its source is that of
// the enrolled workload that has the address, whose gate lets no other address out.
type Conversation struct {
	// Source is the address that it comes from.
	Source netip.Addr
	// Destination is the workload, Port its application port.
	Destination *mesh.Workload
	Port        uint16
}

// Authorize decides whether a conversation over UDP may be opened. The
// destination is looked up by its key, as for View.Authorize.
//
// Nothing is let in by default. In order: a destination that no ALLOW policy about UDP
// selects (Workload.Datagrams) refuses, and so does a source that is no enrolled
// workload's address; either end refuses that is not known to be behind its gate
// (Workload.Gated); where either end's identity is revoked it is refused; a matching
// DENY policy refuses; a matching ALLOW policy lets in; else it is refused. Modes and
// NetworkPolicies have no say: the former are about TCP, the latter whoever carries
// datagrams judges by.
func Authorize(v *mesh.View, c Conversation) mesh.Decision {
	source, _ := v.WorkloadAt(c.Source)
	return authorize(v, source, c)
}

// authorize is Authorize for what a workload sends from one of its addresses.
func authorize(v *mesh.View, source *mesh.Workload, c Conversation) mesh.Decision {
	switch w := current(v, c.Destination); {
	case !v.Synced():
		return refused(mesh.ReasonNotSynced)
	case w == nil:
		return refused(mesh.ReasonUnknownDestination)
	default:
		return decide(v, rulesIn(v, w), source, c.Source.Unmap().WithZone(""), c.Port)
	}
}

// current returns a View's workload for one that may be an older View's.
func current(v *mesh.View, w *mesh.Workload) *mesh.Workload {
	if w == nil {
		return nil
	}
	w, _ = v.Workload(w.Key)
	return w
}

func refused(reason mesh.Reason) mesh.Decision {
	return mesh.Decision{Verdict: mesh.VerdictDeny, Reason: reason, Rule: -1}
}

// AuthorizeTo is Authorize for a workload that opens a conversation with an address and a
// port, from each of its own addresses that may: it decides as the workload's gate does.
// They are a workload's or a service's, which is then returned, or nobody's in the mesh: then
// Settings.UDPEgress decides. Of a service the first
// endpoint that refuses decides, else the last one; at is whose policies decided.
func AuthorizeTo(v *mesh.View, source *mesh.Workload, to netip.AddrPort) (decision mesh.Decision, service, at mesh.Key) {
	addr := to.Addr().Unmap()
	if w, ok := v.WorkloadAt(addr); ok {
		return authorizeFrom(v, source, w, addr, to.Port()), service, w.Key
	}
	decision = refused(mesh.ReasonKernelUDP)
	s, ok := v.ServiceAt(addr)
	if !ok {
		return authorizeOutside(v, source, netip.AddrPortFrom(addr, to.Port())), service, at
	}
	i := slices.IndexFunc(s.UDPPorts, func(p mesh.ServicePort) bool { return p.Port == to.Port() })
	if i < 0 {
		return decision, s.Key, at
	}
	for _, key := range s.Endpoints {
		w, _ := v.Workload(key)
		if at = key; w == nil {
			return refused(mesh.ReasonUnknownDestination), s.Key, at
		}
		if w.Key == source.Key && opens(v, w) {
			decision = mesh.Decision{Verdict: mesh.VerdictAllow, Reason: mesh.ReasonPolicyAllow, Rule: -1} // itself
		} else {
			decision = authorizeFrom(v, source, w, addr, s.UDPPorts[i].TargetPort)
		}
		if decision.Verdict == mesh.VerdictDeny {
			break
		}
	}
	return decision, s.Key, at
}

// authorizeFrom is Authorize from each address of a source that may speak to one of the
// family of dialled: the first that is refused decides, else the last. The source need not
// be of the View, as one that is gone and asked about is not.
func authorizeFrom(v *mesh.View, source, w *mesh.Workload, dialled netip.Addr, port uint16) mesh.Decision {
	decision := refused(mesh.ReasonUnknownDestination)
	for _, addr := range source.Addresses {
		if addr.Is4() != dialled.Is4() {
			continue
		}
		if decision = authorize(v, source, Conversation{Source: addr, Destination: w, Port: port}); decision.Verdict == mesh.VerdictDeny {
			break
		}
	}
	return decision
}

// opens reports whether anybody may be let in to a workload.
func opens(v *mesh.View, w *mesh.Workload) bool {
	d := rulesIn(v, w)
	return d != nil && len(d.ports) > 0
}

// rules are what a workload's policies about UDP say, indexed.
type rules struct {
	*policy.Set
	workload *mesh.Workload
	ports    []uint16 // that anybody may be let in to, sorted
}

// rulesIn is rulesOf, made once while the workload stays as it is.
func rulesIn(v *mesh.View, w *mesh.Workload) *rules {
	if len(w.Datagrams) == 0 {
		return nil
	}
	if r := v.Receiver(w); r != nil {
		return rulesOfReceiver(r)
	}
	return rulesOf(w)
}

func rulesOfReceiver(r *mesh.Receiver) *rules {
	return r.Of(func(w *mesh.Workload) any { return rulesOf(w) }).(*rules)
}

// behindGate reports whether a workload's addresses are its own alone: before that, others
// might send from them, and what comes to them is not judged.
func behindGate(w *mesh.Workload) bool { return w.Enrolled && w.Gated }

// rulesOf returns nil for a workload that takes none.
func rulesOf(w *mesh.Workload) *rules {
	if len(w.Datagrams) == 0 || !behindGate(w) {
		return nil
	}
	d := &rules{workload: w}
	var compiled []*policy.Compiled
	for _, p := range w.Datagrams {
		compiled = append(compiled, policy.Compile(p))
		if p.Action == mesh.ActionAllow {
			d.ports = append(d.ports, p.Ports()...)
		}
	}
	d.Set = policy.NewSet(compiled, nil)
	slices.Sort(d.ports)
	d.ports = slices.DeleteFunc(slices.Compact(d.ports), mesh.ReservedPort)
	return d
}

func decide(v *mesh.View, d *rules, source *mesh.Workload, addr netip.Addr, port uint16) mesh.Decision {
	switch {
	case d == nil || source == nil || !behindGate(source):
		return refused(mesh.ReasonKernelUDP)
	case v.Revoked(source.Identity) || v.Revoked(d.workload.Identity):
		return refused(mesh.ReasonIdentityRevoked)
	case mesh.ReservedPort(port):
		return refused(mesh.ReasonReservedPort)
	}
	a := policy.Attributes{Peer: source.Identity, Namespace: mesh.NamespaceOf(v.Settings().TrustDomain, source.Identity), Source: addr, Port: port}
	found := d.LookUp(a.Peer, a.Source)
	decision := refused(mesh.ReasonPolicyNoMatch)
	if name, rule, seen := found.First(mesh.ActionDeny, &a); seen != policy.No {
		decision = mesh.Decision{Verdict: mesh.VerdictDeny, Reason: mesh.ReasonPolicyDeny, Policy: name, Rule: rule}
	} else if name, rule, seen := found.First(mesh.ActionAllow, &a); seen != policy.No {
		decision = mesh.Decision{Verdict: mesh.VerdictAllow, Reason: mesh.ReasonPolicyAllow, Policy: name, Rule: rule}
	}
	if decision.Audited = found.Auditing(&a); len(decision.Audited) > 0 && decision.Verdict == mesh.VerdictAllow {
		decision.Verdict = mesh.VerdictAudit
	}
	return decision
}
