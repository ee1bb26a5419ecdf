package share

import (
	"maps"
	"slices"

	"github.com/heddle-mesh/heddle/internal/discovery/resources"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
)

// Waypoint is all that one waypoint is told: the settings, the services that have it as
// their waypoint or had it a moment ago, its own, and those that it sends requests to; the workloads
// of these without what is between them and their nodes, the policies that select those, and the
// routes of the services that have it as their waypoint, or had. It is immutable.
type Waypoint struct {
	*resources.Shared
	key     mesh.Key
	fronted []mesh.Key // the services that have it, sorted
	left    []mesh.Key // those that had it a moment ago, likewise
	// spaces are the namespaces that have workloads of it, absent the endpoints of services
	// that nothing can be told of yet.
	spaces map[string]bool
	absent map[mesh.Key]bool
}

// Changes are what is different in a configuration.
type Changes struct {
	*mesh.Change
	// Was is the View before. Settings is set when they are different.
	Was      *mesh.View
	Settings bool
	// Rerouted are the services about which a route is different, or was.
	Rerouted map[mesh.Key]bool
}

// Waypoint returns what a waypoint is told, of which nothing is known from before. Left are the
// services, sorted, that had it a moment ago.
func (sp *Spreading) Waypoint(key mesh.Key, left ...mesh.Key) *Waypoint {
	w := &Waypoint{Shared: resources.NewShared(nil), key: key, left: left}
	for _, s := range sp.View.Services() {
		if s.Waypoint == key {
			w.fronted = append(w.fronted, s.Key)
		}
	}
	return sp.whole(w, sp.View)
}

// Next returns what a waypoint is told after a change: the same Waypoint, where it is not
// concerned. It costs a few look-ups for each object that changed, and as much as the waypoint is
// told only where other objects are told to it than before.
func (sp *Spreading) Next(last *Waypoint, c *Changes, left ...mesh.Key) *Waypoint {
	if !slices.Equal(last.left, left) || last.concerned(sp, c) {
		next := *last
		next.left = left
		next.fronted = slices.DeleteFunc(slices.Clone(last.fronted), func(key mesh.Key) bool {
			s, ok := sp.View.Service(key)
			return !ok || s.Waypoint != last.key
		})
		for _, s := range c.Services {
			if s.Waypoint == last.key {
				next.fronted = append(next.fronted, s.Key)
			}
		}
		next.fronted = keyed.SortedKeys(next.fronted)
		return sp.whole(&next, c.Was)
	}
	var put []*resources.Resource
	for _, w := range c.Workloads {
		if last.Find(resources.KindWorkload, w.Key.String()) == nil {
			continue
		}
		if r := encodeAt(w); r != nil {
			put = append(put, r)
		}
	}
	if c.Settings {
		put = append(put, sp.settings())
	}
	return last.with(put, nil)
}

// with returns a Waypoint with some resources put into it, and others taken out.
func (w *Waypoint) with(put []*resources.Resource, gone []resources.Ref) *Waypoint {
	put = slices.DeleteFunc(put, func(r *resources.Resource) bool {
		was := w.Find(r.Kind, r.Name)
		return was != nil && was.Version == r.Version
	})
	if len(put)+len(gone) == 0 {
		return w
	}
	next := *w
	next.Shared = w.Shared.With(put, gone)
	return &next
}

// concerned reports whether other objects may have to be told to a waypoint than before.
func (w *Waypoint) concerned(sp *Spreading, c *Changes) bool {
	has := func(k resources.Kind, key mesh.Key) bool { return w.Find(k, key.String()) != nil }
	for _, s := range c.Services {
		if s.Waypoint == w.key || s.Key == w.key || has(resources.KindService, s.Key) {
			return true
		}
	}
	if slices.ContainsFunc(c.GoneServices, func(key mesh.Key) bool { return has(resources.KindService, key) }) ||
		slices.ContainsFunc(c.GoneWorkloads, func(key mesh.Key) bool { return has(resources.KindWorkload, key) }) {
		return true
	}
	for _, is := range c.Workloads {
		was, _ := c.Was.Workload(is.Key)
		if w.absent[is.Key] || has(resources.KindWorkload, is.Key) && (was == nil || len(is.Addresses) == 0 || !maps.Equal(was.Labels, is.Labels)) {
			return true
		}
	}
	for _, p := range c.Policies {
		if w.spaces[p.Namespace] {
			return true
		}
	}
	for _, key := range c.GonePolicies {
		if w.spaces[key.Namespace] {
			return true
		}
	}
	rerouted := func(key mesh.Key) bool { return c.Rerouted[key] }
	return slices.ContainsFunc(w.fronted, rerouted) || slices.ContainsFunc(w.left, rerouted)
}

// whole finds all that a waypoint is told, from the services that have it. Was is the
// View that last is of: workloads that are the same there are not encoded again.
func (sp *Spreading) whole(last *Waypoint, was *mesh.View) *Waypoint {
	want := map[*resources.Resource]bool{}
	note := func(r *resources.Resource) {
		if r != nil {
			want[r] = true
		}
	}
	note(sp.settings())
	services := map[mesh.Key]bool{last.key: true}
	for _, key := range slices.Concat(last.fronted, last.left) {
		services[key] = true
		for _, r := range sp.Routes.of(key) {
			note(sp.Routes.resource(r.ID))
			destinations(r, func(to mesh.Key) { services[to] = true })
		}
	}
	workloads := map[mesh.Key]bool{}
	for key := range services {
		note(sp.Shared.Find(resources.KindService, key.String()))
		if s, ok := sp.View.Service(key); ok {
			for _, endpoint := range s.Endpoints {
				if sp.tells(s, endpoint) {
					workloads[endpoint] = true
				}
			}
		}
	}
	next := *last
	next.spaces, next.absent = map[string]bool{}, map[mesh.Key]bool{}
	for key := range workloads {
		next.spaces[key.Namespace] = true
		if r := sp.workload(last, was, key, note); r != nil {
			note(r)
		} else {
			next.absent[key] = true
		}
	}
	return next.become(want)
}

// tells reports whether a waypoint is told of an endpoint. Those of other namespaces are at
// addresses that anybody may write into a service: whose they are, and what policies their
// namespace has, is not told for that. What is in no mesh at all is told.
func (sp *Spreading) tells(s *mesh.Service, endpoint mesh.Key) bool {
	return endpoint.Namespace == s.Namespace || endpoint.Namespace == mesh.ExternalNamespace
}

// become returns the Waypoint with these resources and no others.
func (w *Waypoint) become(want map[*resources.Resource]bool) *Waypoint {
	names := map[resources.Ref]bool{}
	for r := range want {
		names[resources.Ref{Kind: r.Kind, Name: r.Name}] = true
	}
	var gone []resources.Ref
	for _, r := range w.All() {
		if at := (resources.Ref{Kind: r.Kind, Name: r.Name}); !names[at] {
			gone = append(gone, at)
		}
	}
	return w.with(slices.Collect(maps.Keys(want)), gone)
}

// workload returns a workload as a waypoint is told of it, and notes the policies that
// select it; nil of one that nothing can be told of.
func (sp *Spreading) workload(last *Waypoint, was *mesh.View, key mesh.Key, note func(*resources.Resource)) *resources.Resource {
	w, ok := sp.View.Workload(key)
	if !ok || len(w.Addresses) == 0 {
		return nil
	}
	sp.policiesOf(w.Namespace).of(w, func(p *mesh.Policy) {
		if p.Selects(w.Namespace, w.Labels) {
			note(sp.Rest.Find(resources.KindPolicy, p.Key.String()))
		}
	})
	if before, ok := was.Workload(key); ok && before == w {
		if r := last.Find(resources.KindWorkload, key.String()); r != nil {
			return r
		}
	}
	return encodeAt(w)
}

// encodeAt encodes what a waypoint is told of a workload: who it is, how it is reached, and
// what policies select it by, not what is enforced where it runs. It is less than its own node
// is told, which was encoded before: there is no error that would not have come up then.
func encodeAt(w *mesh.Workload) *resources.Resource {
	r, err := resources.EncodeWorkload(&mesh.Workload{Key: w.Key, ServiceAccount: w.ServiceAccount, Node: w.Node, Identity: w.Identity,
		Addresses: w.Addresses, Enrolled: w.Enrolled, Ready: w.Ready, Leaving: w.Leaving, Zone: w.Zone, Labels: w.Labels, Mode: w.Mode, PortModes: w.PortModes})
	if err != nil {
		return nil
	}
	return r
}

func (sp *Spreading) settings() *resources.Resource {
	return sp.Shared.Find(resources.KindSettings, resources.KindSettings.String())
}
