package netpolicy

import "net/netip"

// Judgement is what one policy says of a connection.
type Judgement struct {
	Policy *Policy
	// Rules are those of the direction, in their order.
	Rules []RuleJudgement
}

// RuleJudgement is which parts of a rule match: it admits when both do.
type RuleJudgement struct {
	// Number is that of the Rule.
	Number     int
	Peer, Port bool
	// Except is the exception that the other end is in, of a block that has it; not
	// valid when there is none, or when another peer matches.
	Except netip.Prefix
}

// Admits returns the number of the first rule that admits the connection; false
// when none does.
func (j *Judgement) Admits() (number int, ok bool) {
	for i := range j.Rules {
		if j.Rules[i].Peer && j.Rules[i].Port {
			return j.Rules[i].Number, true
		}
	}
	return 0, false
}

// Judge returns what each policy says that isolates a workload in a direction, by
// name: for people, who want to know why. One that admits is enough, and without any
// nothing is kept from it; so say Rules.Ingress and Rules.Egress, which this agrees
// with for a client that is known to be whoever has its address. The other end is
// the client at ingress, and has server's address at egress.
func (x *Index) Judge(namespace string, labels map[string]string, ingress bool, other netip.Addr, server netip.AddrPort) []Judgement {
	if x == nil {
		return nil
	}
	var all []Judgement
	for _, p := range x.byNamespace[namespace] {
		says, rules := p.Egress, p.egress
		if ingress {
			says, rules = p.Ingress, p.ingress
		}
		if says == nil || !p.Selector.Matches(labels) {
			continue
		}
		j := Judgement{Policy: p.Policy}
		for i := range rules {
			r := RuleJudgement{Number: says.Rules[i].Number, Peer: rules[i].peersHave(other, true), Port: rules[i].portsHave(server)}
			if !r.Peer {
				r.Except = rules[i].excepted(other)
			}
			j.Rules = append(j.Rules, r)
		}
		all = append(all, j)
	}
	return all
}

// excepted returns the exception that an address is in.
func (r *rule) excepted(addr netip.Addr) netip.Prefix {
	for i := range r.peers {
		p := &r.peers[i]
		for _, except := range p.Except {
			if p.set == nil && p.Block.Contains(addr) && except.Contains(addr) {
				return except
			}
		}
	}
	return netip.Prefix{}
}
