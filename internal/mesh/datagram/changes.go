package datagram

import (
	"reflect"
	"slices"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
)

// Change is how the Rules of a workload differ from those of a View before.
type Change struct {
	// Whole says that they are not compared: RulesOf has them. The lists are empty then.
	Whole bool
	// Gone are no longer, Added are new; none is in both, and none in one of them twice.
	// Rules to whoever is Outside are in neither.
	Gone, Added []Rule
}

// Changes returns how the Rules of a node's workloads differ between two Views, of which
// the second was made of the first by changes; those that stay as they were are left out.
// MaxRules has no say in it. It costs the node's workloads times those that changed, and a
// comparison of pointers for every other. A workload of the node that changed itself is
// Whole; where settings did, or much, all are.
func Changes(before, after *mesh.View, node string) map[mesh.Key]Change {
	c := changes{before: before, after: after, all: map[mesh.Key]Change{}}
	if !c.compare() {
		for _, v := range []*mesh.View{before, after} {
			for _, w := range v.OnNode(node) {
				c.all[w.Key] = Change{Whole: true}
			}
		}
		return c.all
	}
	were, own := before.OnNode(node), after.OnNode(node)
	for _, w := range were {
		if is := keyed.Find(own, w.Key); is == nil || !alike(w, is) {
			c.all[w.Key] = Change{Whole: true}
		}
	}
	some := len(c.workloads)+len(c.services) > 0
	var services []pair[through]
	if some {
		services = c.affected()
	}
	for _, w := range own {
		switch was := keyed.Find(were, w.Key); {
		case was == nil: // it may be new to the node alone
			c.all[w.Key] = Change{Whole: true}
		case some && !c.all[w.Key].Whole && behindGate(w):
			c.of(was, w, services)
		}
	}
	return c.all
}

type changes struct {
	before, after *mesh.View
	workloads     []pair[*mesh.Workload]
	services      []pair[*mesh.Service]
	all           map[mesh.Key]Change
}

// pair is what was and what is, nil for none.
type pair[P any] struct{ was, is P }

// compare finds what differs; false when that is too much to go through it one by one.
func (c *changes) compare() bool {
	if !c.after.SameSettings(c.before) || outsideFits(c.before) != outsideFits(c.after) {
		return false
	}
	most := len(c.after.Workloads())/8 + 16
	c.workloads = differences(c.before.Workloads(), c.after.Workloads(), alike, most)
	c.services = differences(c.before.Services(), c.after.Services(), func(a, b *mesh.Service) bool {
		return slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.Endpoints, b.Endpoints) && reflect.DeepEqual(a.UDPPorts, b.UDPPorts)
	}, most)
	return len(c.workloads) <= most && len(c.services) <= most
}

// alike reports whether two of the same name are the same to Rules.
func alike(a, b *mesh.Workload) bool {
	return a == b || a.Identity == b.Identity && a.Enrolled == b.Enrolled && a.Gated == b.Gated && slices.Equal(a.Addresses, b.Addresses) &&
		slices.EqualFunc(a.Datagrams, b.Datagrams, func(a, b *mesh.Policy) bool { return a == b || reflect.DeepEqual(a, b) })
}

// differences returns what differs between two sorted lists, or the first most and one.
func differences[T any, P keyed.Object[T]](was, is []P, alike func(a, b P) bool, most int) (all []pair[P]) {
	for len(all) <= most && len(was)+len(is) > 0 {
		switch {
		case len(was) > 0 && len(is) > 0 && was[0] == is[0]:
			was, is = was[1:], is[1:]
		case len(is) == 0 || len(was) > 0 && was[0].Self().Compare(is[0].Self()) < 0:
			all, was = append(all, pair[P]{was: was[0]}), was[1:]
		case len(was) == 0 || was[0].Self() != is[0].Self():
			all, is = append(all, pair[P]{is: is[0]}), is[1:]
		default:
			if !alike(was[0], is[0]) {
				all = append(all, pair[P]{was[0], is[0]})
			}
			was, is = was[1:], is[1:]
		}
	}
	return all
}

// affected returns the services that may lead elsewhere, or to others than before.
func (c *changes) affected() (all []pair[through]) {
	names := map[mesh.Key]bool{}
	for _, s := range c.services {
		for _, one := range []*mesh.Service{s.was, s.is} {
			if one != nil {
				names[one.Key] = true
			}
		}
	}
	for _, w := range c.workloads {
		for _, v := range []*mesh.View{c.before, c.after} {
			for _, s := range v.ServicesOf(keyOf(w)) {
				names[s.Key] = names[s.Key] || len(s.UDPPorts) > 0
			}
		}
	}
	for name, some := range names {
		if !some {
			continue
		}
		var p pair[through]
		if s, ok := c.before.Service(name); ok {
			p.was = newThrough(c.before, s)
		}
		if s, ok := c.after.Service(name); ok {
			p.is = newThrough(c.after, s)
		}
		all = append(all, p)
	}
	return all
}

func keyOf(w pair[*mesh.Workload]) mesh.Key {
	if w.is != nil {
		return w.is.Key
	}
	return w.was.Key
}

// of notes what differs for a workload that is as it was but for what Rules do not ask for.
func (c *changes) of(was, is *mesh.Workload, services []pair[through]) {
	before, after := differing{view: c.before, own: was}, differing{view: c.after, own: is}
	for _, w := range c.workloads {
		before.workload(w.was)
		after.workload(w.is)
	}
	for _, s := range services {
		before.service(s.was)
		after.service(s.is)
	}
	if before.left+after.left > 0 {
		c.all[is.Key] = Change{Whole: true}
	} else if gone, added := without(before.rules, after.rules), without(after.rules, before.rules); len(gone)+len(added) > 0 {
		c.all[is.Key] = Change{Gone: gone, Added: added}
	}
}

// differing is the part of a workload's rules that may differ.
type differing struct {
	list
	view *mesh.View
	own  *mesh.Workload
	to   *inbound
}

func (d *differing) workload(other *mesh.Workload) {
	if other == nil {
		return
	}
	if d.to == nil {
		d.to = &inbound{}
		if in := rulesIn(d.view, d.own); opening(in) {
			d.to = newInbound(d.view, in)
		}
	}
	if d.to.rules != nil {
		d.inbound(d.to, other)
	}
	if len(other.Datagrams) > 0 {
		d.outbound(d.view, d.own, rulesIn(d.view, other))
	}
}

func (d *differing) service(s through) {
	if s.Service != nil {
		d.through(d.view, d.own, s)
	}
}

// without returns those of a that are not in b, each once.
func without(a, b []Rule) (all []Rule) {
	if len(a) == 0 {
		return nil
	}
	seen := make(map[Rule]bool, len(a)+len(b))
	for _, r := range b {
		seen[r] = true
	}
	for _, r := range a {
		if !seen[r] {
			seen[r] = true
			all = append(all, r)
		}
	}
	return all
}
