package replay

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/draft"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/replay/past"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// The bounds of what is said of what gets no rule: pairs of who sent and where to, and ports
// of one.
const (
	maxUnruled      = 64
	maxUnruledPorts = 8
)

// datagramNeeds finds out who needs to be admitted over UDP to the workloads of a
// namespace.
type datagramNeeds struct {
	judge     *judge
	groups    []*draft.Group
	namespace string
	// through is what those who sent to a service's address need of its endpoints: their
	// gates ask that all let them in. Own is what one needs of itself that is such an
	// endpoint: that it takes from anybody.
	through, own map[*draft.Group]draft.Needs
	without      []*past.Connection // that get no rule: that were dropped, or would be now
	passed       map[pair]bool
	passedOver   uint64
}

// pair is the names of who sent, and where to.
type pair struct{ source, destination string }

func newDatagramNeeds(j *judge, groups []*draft.Group, namespace string) *datagramNeeds {
	n := &datagramNeeds{judge: j, groups: groups, namespace: namespace, through: map[*draft.Group]draft.Needs{}, own: map[*draft.Group]draft.Needs{}, passed: map[pair]bool{}}
	for _, g := range groups {
		n.through[g], n.own[g] = draft.Needs{}, draft.Needs{}
	}
	return n
}

// target is a workload to which datagrams go, or may.
type target struct {
	*mesh.Workload
	port uint16
}

// targets are those to whom they went, or every endpoint of the service that they were
// sent to.
func (j *judge) targets(c *past.Connection) (all []target, service *mesh.Service) {
	if c.Destination.Workload != (mesh.Key{}) {
		for _, w := range j.servers(c) {
			all = append(all, target{w, c.Port})
		}
		return all, nil
	}
	to, ok := j.dialled(c)
	if !ok {
		return nil, nil
	}
	if w, ok := j.model.WorkloadAt(to.Addr()); ok {
		return []target{{w, to.Port()}}, nil
	}
	if service, ok = j.model.ServiceAt(to.Addr()); !ok {
		return nil, nil
	}
	i := slices.IndexFunc(service.UDPPorts, func(p mesh.ServicePort) bool { return p.Port == to.Port() })
	if i < 0 {
		return nil, service
	}
	for _, key := range service.Endpoints {
		if w, ok := j.model.Workload(key); ok {
			all = append(all, target{w, service.UDPPorts[i].TargetPort})
		}
	}
	return all, service
}

// concerns reports whether datagrams went to the namespace, or may have.
func (n *datagramNeeds) concerns(c *past.Connection, service *mesh.Service) bool {
	return c.Anywhere() || c.Destination.Workload.Namespace == n.namespace || c.Service.Namespace == n.namespace || service != nil && service.Namespace == n.namespace
}

func (n *datagramNeeds) groupOf(w *mesh.Workload) *draft.Group {
	i := slices.IndexFunc(n.groups, func(g *draft.Group) bool { return slices.Contains(g.Members, w) })
	if i < 0 {
		return nil
	}
	return n.groups[i]
}

// consider takes datagrams, and returns why they cannot be considered. Those that were
// dropped, or would be now, wait for settle.
func (n *datagramNeeds) consider(c *past.Connection) (notes []string) {
	if c.Carried() > 0 {
		n.passed[pair{nameOf(&c.Source), nameOf(&c.Destination)}] = true
	}
	targets, service := n.judge.targets(c)
	switch {
	case !n.concerns(c, service):
		return nil
	case !n.judge.model.UDP():
		n.passedOver += c.Carried()
		return nil
	case c.Carried() == 0:
		n.without = append(n.without, c)
		return nil
	}
	decision, unclear := n.judge.decide(c)
	switch {
	case unclear == judged && decision.denied():
		n.without = append(n.without, c)
	case unclear == judged:
		unclear = n.admit(c, targets, service != nil)
	}
	if unclear != judged {
		notes = append(notes, fmt.Sprintf("%s over UDP of %s to %s not considered: %s", counted(c.Carried(), "flow"), nameOf(&c.Source), to(who(&c.Destination, c), c.Port), unclear))
	}
	return notes
}

// admit notes that datagrams are to be let in.
func (n *datagramNeeds) admit(c *past.Connection, targets []target, service bool) why {
	src, _, unclear := n.judge.sender(c)
	if unclear != judged || src == nil { // nobody lets such in
		return unclear
	}
	from := draft.Named(n.judge.model.Settings().TrustDomain, src.Identity, n.namespace)
	for _, t := range targets {
		switch g := n.groupOf(t.Workload); {
		case g == nil:
		case !service:
			g.UDP.Add(from, t.port, c.Carried())
		case t.Key == src.Key:
			n.own[g].Add(from, t.port, c.Carried())
		default:
			n.through[g].Add(from, t.port, c.Carried())
		}
	}
	return judged
}

// settle ends the needs of the groups, and returns what is to be said of what gets no rule.
func (n *datagramNeeds) settle() (notes []string) {
	for _, g := range n.groups {
		g.UDP.Cover(n.through[g])
		if len(g.UDP) == 0 {
			g.UDP.Cover(n.own[g].Least())
		}
	}
	if n.passedOver > 0 {
		notes = append(notes, fmt.Sprintf("no rule for %s over UDP that passed: give --udp-by-identity, as the mesh's operator has it", counted(n.passedOver, "flow")))
	}
	return append(notes, n.ofWithout()...)
}

// fate is what becomes of datagrams that are not to be let in: why they get no rule; or why
// they are let in all the same.
type fate struct {
	why   string
	opens bool
}

// ofWithout says of what was dropped between workloads of the mesh, or would be now, that it
// gets no rule; and of each that is let in all the same that it is.
func (n *datagramNeeds) ofWithout() (notes []string) {
	type alike struct {
		pair
		fate
	}
	counts, ports := map[alike]uint64{}, map[alike][]uint16{}
	var all []alike
	for _, c := range n.without {
		f, ok := n.fate(c)
		if !ok {
			continue
		}
		a := alike{pair{nameOf(&c.Source), who(&c.Destination, c).Name}, f}
		if counts[a] == 0 {
			all = append(all, a)
		}
		counts[a] += max(c.Carried(), c.Refused())
		ports[a] = append(ports[a], c.Port)
	}
	slices.SortFunc(all, func(a, b alike) int {
		return cmp.Or(strings.Compare(a.source, b.source), strings.Compare(a.destination, b.destination), strings.Compare(a.why, b.why))
	})
	told, left := 0, 0
	for _, a := range all {
		text := fmt.Sprintf("%s over UDP of %s to %s, %s", counted(counts[a], "flow"), a.source, a.destination, portsText(ports[a]))
		switch {
		case a.opens:
			notes = append(notes, fmt.Sprintf("what is suggested lets in %s: %s", text, a.why))
		case told < maxUnruled:
			told++
			notes = append(notes, fmt.Sprintf("no rule for %s: %s", text, a.why))
		default:
			left++
		}
	}
	if left > 0 {
		notes = append(notes, fmt.Sprintf("no rule for more flows over UDP, between %s", counted(left, "other pair")))
	}
	return notes
}

// fate is false of what needs no word: it was not between workloads of the mesh, or cannot
// be judged, or is allowed now and has a rule.
func (n *datagramNeeds) fate(c *past.Connection) (f fate, ok bool) {
	src, client, unclear := n.judge.sender(c)
	targets, service := n.judge.targets(c)
	if unclear != judged || src == nil || !src.Enrolled || len(targets) == 0 || slices.ContainsFunc(targets, func(t target) bool { return !t.Enrolled }) {
		return f, false
	}
	decision, unclear := n.judge.decide(c)
	if unclear != judged {
		return f, false
	}
	covered := true
	var owners []string
	for _, t := range targets {
		g := n.groupOf(t.Workload)
		if g == nil {
			return f, false
		}
		owners = append(owners, g.Owners...)
		switch own := service != nil && t.Key == src.Key; {
		case own && len(g.UDP) > 0 || !own && g.UDP.Has(draft.Named(n.judge.model.Settings().TrustDomain, src.Identity, n.namespace), t.port):
		case own || n.judge.datagram(src, netip.AddrPortFrom(ofFamily(t.Addresses, client), t.port)).denied():
			covered = false
		}
	}
	slices.Sort(owners)
	unmatched := decision.Reason == mesh.ReasonPolicyNoMatch.String() || decision.Reason == mesh.ReasonKernelUDP.String()
	switch {
	case !decision.denied() && covered:
		return f, false
	case !decision.denied():
		f.why = "none passed, though policy lets such in now"
	case unmatched && covered:
		return fate{fmt.Sprintf("refused now (%s), and others need the same of %s", decision.text(), strings.Join(slices.Compact(owners), ", ")), true}, true
	case unmatched:
		f.why = fmt.Sprintf("refused now (%s); write one with protocol: UDP to let such in", decision.text())
	default:
		f.why = fmt.Sprintf("refused now (%s)", decision.text())
	}
	if n.passed[pair{nameOf(&c.Destination), nameOf(&c.Source)}] {
		f.why += "; or answers that came too late"
	}
	return f, true
}

func portsText(ports []uint16) string {
	slices.Sort(ports)
	ports = slices.Compact(ports)
	what := "port"
	if len(ports) > 1 {
		what = "ports"
	}
	var words []string
	for _, port := range ports[:min(len(ports), maxUnruledPorts)] {
		words = append(words, fmt.Sprint(port))
	}
	text := what + " " + strings.Join(words, ", ")
	if n := len(ports) - maxUnruledPorts; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text
}
