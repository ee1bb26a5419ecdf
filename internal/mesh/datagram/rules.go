package datagram

import (
	"net/netip"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/policy"
)

// MaxRules bounds the rules of a workload: a gate's table has that many.
const MaxRules = 65536

// Rule lets a workload's gate pass a conversation over UDP; see Rules. It is comparable.
type Rule struct {
	// Remote is the other end, or Outside.
	Remote netip.Addr
	// Port is that of the end that is spoken to.
	Port uint16
	// Inbound says that the other end opens it.
	Inbound bool
}

// Rules is Authorize for the gates of a node's workloads, written out:
// whom each may open conversations with, and who with it. A workload may speak to
// whoever lets it in, at each of its own addresses of the family, and to an address of a
// service when every endpoint that may be behind it does, and to whoever is Outside where
// Settings.UDPEgress says so. Those without a rule are left
// out, and so is of each what is beyond MaxRules. It costs the node's workloads times all
// others; Changes costs what changed.
func Rules(v *mesh.View, node string) map[mesh.Key][]Rule {
	all := map[mesh.Key][]Rule{}
	fits := outsideFits(v)
	for _, w := range v.OnNode(node) {
		if rules, _ := written(v, w, fits); len(rules) > 0 {
			all[w.Key] = rules
		}
	}
	return all
}

// RulesOf is what Rules has of one workload, and how many more there would be than MaxRules:
// none of one that is not the node's.
func RulesOf(v *mesh.View, node string, key mesh.Key) (rules []Rule, left int) {
	w, ok := v.Workload(key)
	if !ok || w.Node != node {
		return nil, 0
	}
	return written(v, w, outsideFits(v))
}

func written(v *mesh.View, w *mesh.Workload, fits bool) ([]Rule, int) {
	l := list{}
	l.outside(v, w, fits)
	if len(v.Receivers()) == 0 || !behindGate(w) {
		return l.rules, l.left
	}
	if d := rulesIn(v, w); opening(d) {
		to := newInbound(v, d)
		for _, source := range v.Workloads() {
			l.inbound(to, source)
		}
	}
	for _, r := range v.Receivers() {
		l.outbound(v, w, rulesOfReceiver(r))
	}
	for _, s := range v.Services() {
		l.through(v, w, newThrough(v, s))
	}
	return l.rules, l.left
}

// list is a list of rules that is being written.
type list struct {
	rules []Rule
	left  int // found no room
}

func (l *list) add(r Rule) {
	if len(l.rules) < MaxRules {
		l.rules = append(l.rules, r)
	} else {
		l.left++
	}
}

// opening reports whether a workload lets anybody in.
func opening(d *rules) bool { return d != nil && len(d.ports) > 0 }

// admitted returns those of ports at which a source is let in from one of its addresses:
// where Authorize does not refuse.
func admitted(v *mesh.View, d *rules, source *mesh.Workload, addr netip.Addr, ports []uint16) (in []uint16) {
	if d == nil || !behindGate(source) || v.Revoked(source.Identity) || v.Revoked(d.workload.Identity) {
		return nil
	}
	a := policy.Attributes{Peer: source.Identity, Namespace: mesh.NamespaceOf(v.Settings().TrustDomain, source.Identity), Source: addr}
	found := d.LookUp(a.Peer, a.Source)
	for _, port := range ports {
		if a.Port = port; mesh.ReservedPort(port) {
			continue
		}
		if _, _, seen := found.First(mesh.ActionDeny, &a); seen != policy.No {
			continue
		}
		if _, _, seen := found.First(mesh.ActionAllow, &a); seen != policy.No {
			in = append(in, port)
		}
	}
	return in
}

// inbound says who may speak to a workload. What it says of an identity is remembered where
// addresses do not count.
type inbound struct {
	*rules
	view *mesh.View
	seen map[spiffeid.ID][]uint16
}

func newInbound(v *mesh.View, d *rules) *inbound {
	to := &inbound{rules: d, view: v}
	if !d.ByAddress() {
		to.seen = map[spiffeid.ID][]uint16{}
	}
	return to
}

func (to *inbound) from(source *mesh.Workload, addr netip.Addr) []uint16 {
	if !behindGate(source) {
		return nil
	}
	ports, known := to.seen[source.Identity]
	if known {
		return ports
	}
	ports = admitted(to.view, to.rules, source, addr, to.ports)
	if to.seen != nil {
		to.seen[source.Identity] = ports
	}
	return ports
}

// inbound adds at which ports a source may speak to a workload.
func (l *list) inbound(to *inbound, source *mesh.Workload) {
	if source == to.workload {
		return
	}
	for _, addr := range source.Addresses {
		for _, port := range to.from(source, addr) {
			l.add(Rule{Remote: addr, Port: port, Inbound: true})
		}
	}
}

// outbound adds at which addresses and ports a workload may speak to another.
func (l *list) outbound(v *mesh.View, w *mesh.Workload, d *rules) {
	if !opening(d) || d.workload == w {
		return
	}
	for _, addr := range d.workload.Addresses {
		for _, port := range admitsAll(v, d, w, addr, d.ports) {
			l.add(Rule{Remote: addr, Port: port})
		}
	}
}

// admitsAll returns those of ports at which a source is let in from each of its addresses
// that may speak to one of dst's family.
func admitsAll(v *mesh.View, d *rules, source *mesh.Workload, dst netip.Addr, ports []uint16) (in []uint16) {
	some := false
	for _, addr := range source.Addresses {
		if addr.Is4() == dst.Is4() {
			ports, some = admitted(v, d, source, addr, ports), true
		}
	}
	if !some {
		return nil
	}
	return ports
}

// through is a service and who may be behind it.
type through struct {
	*mesh.Service
	endpoints []*rules // nil while one of them lets nobody in
}

func newThrough(v *mesh.View, s *mesh.Service) through {
	t := through{Service: s}
	if len(s.UDPPorts) == 0 || len(s.Addresses) == 0 {
		return t
	}
	for _, key := range s.Endpoints {
		w, _ := v.Workload(key)
		if w == nil {
			return through{Service: s}
		}
		d := rulesIn(v, w)
		if !opening(d) {
			return through{Service: s}
		}
		t.endpoints = append(t.endpoints, d)
	}
	return t
}

// through adds the addresses and ports of a service to which a workload may speak.
func (l *list) through(v *mesh.View, w *mesh.Workload, t through) {
	if len(t.endpoints) == 0 {
		return
	}
	for _, port := range t.UDPPorts {
		for _, addr := range t.Addresses {
			if t.admits(v, w, addr, port.TargetPort) {
				l.add(Rule{Remote: addr, Port: port.Port})
			}
		}
	}
}

func (t *through) admits(v *mesh.View, w *mesh.Workload, addr netip.Addr, target uint16) bool {
	for _, d := range t.endpoints {
		if d.workload != w && len(admitsAll(v, d, w, addr, []uint16{target})) == 0 {
			return false
		}
	}
	return true
}
