package netpolicy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Index is a set of policies with what they refer to.
type Index struct {
	policies    []*Policy // sorted by name
	shards      []*Shard  // sorted
	byNamespace map[string][]*compiled
}

// compiled is a policy whose sets were looked up.
type compiled struct {
	*Policy
	ingress, egress []rule
}

type rule struct {
	peers []peer
	ports []port
}

type peer struct {
	*Peer
	set *set // nil for a block
}

type port struct {
	*Port
	set *set // nil for numbers
}

// New takes over policies and shards, in any order. It returns every error it
// finds, joined. A set of which there are no shards is empty. Members are not
// looked at: who has them from elsewhere validates them, once, and an address out
// of its place would not be found.
func New(policies []Policy, shards []Shard) (*Index, error) {
	x := &Index{byNamespace: map[string][]*compiled{}}
	var errs []error
	for i := range shards {
		x.shards = append(x.shards, &shards[i])
	}
	slices.SortFunc(x.shards, (*Shard).Compare)
	sets := map[string]*set{}
	for i, s := range x.shards {
		err := s.place()
		switch {
		case err != nil:
		case sets[s.Set] == nil:
			sets[s.Set] = &set{make([]*Shard, s.Count)}
		case len(sets[s.Set].shards) != int(s.Count) || x.shards[i-1].Compare(s) == 0:
			err = errors.New("does not go with another shard")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("address set %s: %w", s.Set, err))
			continue
		}
		sets[s.Set].shards[s.Index] = s
	}
	for i := range policies {
		x.policies = append(x.policies, &policies[i])
	}
	slices.SortStableFunc(x.policies, func(a, b *Policy) int { return a.Name.Compare(b.Name) })
	for i, p := range x.policies {
		err := p.Validate()
		if p.Namespace == "" || p.Name.Name == "" || i > 0 && x.policies[i-1].Name == p.Name {
			err = errors.Join(err, errors.New("has no name of its own"))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("network policy %v: %w", p.Name, err))
			continue
		}
		x.byNamespace[p.Namespace] = append(x.byNamespace[p.Namespace], &compiled{p, look(p.Ingress, sets), look(p.Egress, sets)})
	}
	return x, errors.Join(errs...)
}

func look(d *Direction, sets map[string]*set) []rule {
	if d == nil {
		return nil
	}
	nobody := &set{}
	find := func(name string) *set {
		if s, ok := sets[name]; ok || name == "" {
			return s
		}
		return nobody
	}
	rules := make([]rule, len(d.Rules))
	for i := range d.Rules {
		for j := range d.Rules[i].Peers {
			p := &d.Rules[i].Peers[j]
			rules[i].peers = append(rules[i].peers, peer{p, find(p.Set)})
		}
		for j := range d.Rules[i].Ports {
			p := &d.Rules[i].Ports[j]
			rules[i].ports = append(rules[i].ports, port{p, find(p.Set)})
		}
	}
	return rules
}

// Policies returns all policies, sorted by name.
func (x *Index) Policies() []*Policy {
	if x == nil {
		return nil
	}
	return x.policies
}

// Shards returns the shards of all sets, sorted.
func (x *Index) Shards() []*Shard {
	if x == nil {
		return nil
	}
	return x.shards
}

// Empty reports whether there are no policies. A nil Index is empty.
func (x *Index) Empty() bool { return x == nil || len(x.policies) == 0 }

// Rules are those of all policies that select one workload.
type Rules struct{ ingress, egress direction }

// direction is nothing unless policies isolate the workload in it.
type direction struct {
	isolated bool
	by       Name // the first policy that isolates
	rules    []rule
}

func (d *direction) add(p *compiled, says *Direction, rules []rule) {
	if says == nil {
		return
	}
	if !d.isolated {
		d.isolated, d.by = true, p.Name
	}
	d.rules = append(d.rules, rules...)
}

// For returns the rules of a workload.
func (x *Index) For(namespace string, labels map[string]string) *Rules {
	r := &Rules{}
	if x == nil {
		return r
	}
	for _, p := range x.byNamespace[namespace] {
		if p.Selector.Matches(labels) {
			r.ingress.add(p, p.Ingress, p.ingress)
			r.egress.add(p, p.Egress, p.egress)
		}
	}
	return r
}

// Ingress reports whether the workload may be connected to at a port by a client
// at an address; pod says that the client is known to be whoever has it at
// present. When it may not, by is the first of the policies that isolate it. It
// allocates nothing.
func (r *Rules) Ingress(client netip.Addr, pod bool, server netip.AddrPort) (by Name, ok bool) {
	return r.ingress.admits(client, pod, server)
}

// Egress reports whether the workload may connect to an address and port, as
// Ingress does.
func (r *Rules) Egress(server netip.AddrPort) (by Name, ok bool) {
	return r.egress.admits(server.Addr(), true, server)
}

func (d *direction) admits(other netip.Addr, pod bool, server netip.AddrPort) (Name, bool) {
	if !d.isolated {
		return Name{}, true
	}
	for i := range d.rules {
		if d.rules[i].portsHave(server) && d.rules[i].peersHave(other, pod) { // ports are quicker looked at
			return Name{}, true
		}
	}
	return d.by, false
}

func (r *rule) peersHave(addr netip.Addr, pod bool) bool {
	for i := range r.peers {
		p := &r.peers[i]
		if p.set != nil {
			if pod && p.set.has(addr, 0) {
				return true
			}
			continue
		}
		if p.Block.Contains(addr) && !within(p.Except, addr) {
			return true
		}
	}
	return len(r.peers) == 0
}

func within(blocks []netip.Prefix, addr netip.Addr) bool {
	for _, b := range blocks {
		if b.Contains(addr) {
			return true
		}
	}
	return false
}

func (r *rule) portsHave(server netip.AddrPort) bool {
	for i := range r.ports {
		p := &r.ports[i]
		if p.set != nil {
			if p.set.has(server.Addr(), server.Port()) {
				return true
			}
		} else if p.First <= server.Port() && server.Port() <= p.Last {
			return true
		}
	}
	return len(r.ports) == 0
}
