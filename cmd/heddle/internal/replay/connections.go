package replay

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/draft"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/past"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// maxNamed bounds those that one note names.
const maxNamed = 8

// connectionNeeds finds out who needs to be admitted over TCP to the workloads of a namespace.
type connectionNeeds struct {
	judge     *judge
	groups    []*draft.Group
	namespace string
	routes    []draft.Route
	// addressed are the workloads that are admitted by their address, with that.
	addressed []string
	// refused are connections that came through, and would not now; refusing, to whom they went.
	refused  []string
	refusing map[*mesh.Workload]bool
}

// consider takes connections, and returns why they cannot be considered; "" when they were, or
// need no rule.
func (n *connectionNeeds) consider(c *past.Connection) string {
	if c.Carried() == 0 {
		return ""
	}
	p := n.past(c)
	if c.Destination.Workload.Namespace != n.namespace && !c.Anywhere() && !p.leadsTo(n.namespace) {
		return ""
	}
	unclear := judged
	if p != nil {
		unclear = n.admitPast(c, p)
	} else {
		var decision Decision
		switch decision, unclear = n.judge.decide(c); {
		case unclear != judged:
		case decision.denied():
			n.refuse(c, decision, n.judge.servers(c))
		default:
			unclear = n.admit(c)
		}
	}
	if unclear == judged {
		return ""
	}
	return fmt.Sprintf("%s of %s to %s not considered: %s", counted(c.Carried(), "connection"), nameOf(&c.Source), to(who(&c.Destination, c), c.Port), unclear)
}

// from is how a policy names a client; false for one of which too little is known.
func (n *connectionNeeds) from(src *mesh.Workload, addr netip.Addr) (draft.Client, bool) {
	switch {
	case src != nil && src.Enrolled:
		return draft.Named(n.judge.model.Settings().TrustDomain, src.Identity, n.namespace), true
	case addr.IsValid():
		return draft.Client{Block: netip.PrefixFrom(addr, addr.BitLen()).String()}, true
	}
	return draft.Client{}, false
}

// admit notes that a connection to a workload itself is to be let in.
func (n *connectionNeeds) admit(c *past.Connection) why {
	servers := n.judge.servers(c)
	if len(servers) == 0 {
		return goneServer
	}
	src, addr, unclear := n.judge.client(c)
	if unclear != judged {
		return unclear
	}
	from, ok := n.from(src, addr)
	if !ok {
		return unknownClient
	}
	for _, w := range servers {
		if src == nil || !n.judge.model.SentOn(w, src.Identity, c.Port) { // nobody asks about the waypoint
			draft.Admit(n.groups, from, w, c.Port, c.Carried())
		}
	}
	if src != nil && from.Block != "" {
		n.addressed = append(n.addressed, fmt.Sprintf("%s (%s)", src.Key, addr))
	}
	return judged
}

// refuse notes that connections get no rule, as those that they went to would refuse them now.
func (n *connectionNeeds) refuse(c *past.Connection, decision Decision, servers []*mesh.Workload) {
	if n.refusing == nil {
		n.refusing = map[*mesh.Workload]bool{}
	}
	for _, w := range servers {
		n.refusing[w] = true
	}
	n.refused = append(n.refused, fmt.Sprintf("%s of %s to %s (%s)", counted(c.Carried(), "connection"), nameOf(&c.Source), to(who(&c.Destination, c), c.Port), decision.text()))
}

// others is what to write before "has reached" of workloads to which no rule admits anybody.
func (n *connectionNeeds) others(g *draft.Group) string {
	if slices.ContainsFunc(g.Members, func(w *mesh.Workload) bool { return n.refusing[w] }) {
		return " else"
	}
	return ""
}

// unruled says which connections get no rule because policies refuse them now; nothing of none.
func (n *connectionNeeds) unruled() (notes []string) {
	if all := named(n.refused); all != "" {
		notes = append(notes, "came through, would be refused now, and get no rule: "+all)
	}
	return notes
}

// unproven says who is admitted by an address that another may have next; nothing of nobody.
func (n *connectionNeeds) unproven() (notes []string) {
	if all := named(n.addressed); all != "" {
		notes = append(notes, fmt.Sprintf("by their addresses, as they have no identity, are admitted %s: enroll them, or their next pods are refused, and whoever has the addresses then is let in", all))
	}
	return notes
}

// named lists the first of several, in order, and how many more there are.
func named(all []string) string {
	slices.Sort(all)
	all = slices.Compact(all)
	more := ""
	if left := len(all) - maxNamed; left > 0 {
		all, more = all[:maxNamed], fmt.Sprintf(" and %d more", left)
	}
	return strings.Join(all, ", ") + more
}

// passage is a connection to a service behind a waypoint, past that.
type passage struct {
	src      *mesh.Workload
	addr     netip.Addr
	waypoint *mesh.Workload
	dialled  netip.AddrPort
	// ends are where the waypoint may send what comes with it.
	ends []draft.End
}

// past is nil for a connection that went to no waypoint, or from nobody who may come to one.
func (n *connectionNeeds) past(c *past.Connection) *passage {
	src, addr, unclear := n.judge.client(c)
	if unclear != judged || src == nil || !src.Enrolled || c.Port == 0 {
		return nil
	}
	for _, w := range n.judge.servers(c) {
		if dialled := n.judge.behind(c, w); dialled.IsValid() {
			m := n.judge.model
			namespace := mesh.NamespaceOf(m.Settings().TrustDomain, src.Identity)
			return &passage{src, addr, w, dialled, draft.Ends(m.View, n.routes, src, namespace, m.Past(src, dialled), c.Port)}
		}
	}
	return nil
}

// leadsTo reports whether the waypoint may send it to a workload of a namespace: routes may lead to
// another than the waypoint's.
func (p *passage) leadsTo(namespace string) bool {
	return p != nil && slices.ContainsFunc(p.ends, func(end draft.End) bool { return end.Namespace == namespace })
}

// admitPast notes that a connection is to be let in by all whom the waypoint asks about its client, and
// that let it in now.
func (n *connectionNeeds) admitPast(c *past.Connection, p *passage) why {
	m := n.judge.model
	leg := m.At(p.src, p.addr, p.waypoint, c.Port, p.dialled)
	if decision := decisionOf(&leg); decision.denied() {
		n.refuse(c, decision, nil)
		return judged
	}
	unclear, from := judged, draft.Named(m.Settings().TrustDomain, p.src.Identity, n.namespace)
	for _, end := range p.ends {
		_, d := m.Authorize(mesh.Connection{Peer: p.src.Identity, Source: p.addr, Destination: end.Workload, Port: end.Port})
		switch {
		case end.Namespace != n.namespace:
		case draft.AboutRequests(m.View, end.Workload):
			unclear = byRequest
		case d.Verdict != mesh.VerdictDeny:
			draft.Admit(n.groups, from, end.Workload, end.Port, c.Carried())
		}
	}
	return unclear
}
