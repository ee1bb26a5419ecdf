package share

import (
	"cmp"
	"slices"

	"github.com/heddle-mesh/heddle/internal/discovery/resources"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// Routes are all that are in force, encoded. They are immutable, and so are what they refer
// to.
type Routes struct {
	all     []*route.Route // sorted by name
	encoded map[route.ID]*resources.Resource
	// byParent has them by the services that they are about.
	byParent map[mesh.Key][]*route.Route
}

// NewRoutes makes Routes of a list, which it takes over. Those that no message could hold
// are left out; untold names them.
func NewRoutes(list []*route.Route) (r *Routes, untold []error) {
	r = &Routes{encoded: map[route.ID]*resources.Resource{}, byParent: map[mesh.Key][]*route.Route{}}
	for _, one := range list {
		encoded, err := resources.EncodeRoute(one)
		if err != nil {
			untold = append(untold, err)
			continue
		}
		r.encoded[one.ID] = encoded
		r.all = append(r.all, one)
	}
	slices.SortFunc(r.all, compareRoutes)
	for _, one := range r.all {
		for i, p := range one.Parents {
			if !slices.ContainsFunc(one.Parents[:i], func(before route.Parent) bool { return before.Service == p.Service }) {
				r.byParent[p.Service] = append(r.byParent[p.Service], one)
			}
		}
	}
	return r, untold
}

func compareRoutes(a, b *route.Route) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), a.Key.Compare(b.Key))
}

// All returns the routes, sorted by name: read only. Those of nil are none.
func (r *Routes) All() []*route.Route {
	if r == nil {
		return nil
	}
	return r.all
}

// of returns the routes about a service.
func (r *Routes) of(service mesh.Key) []*route.Route {
	if r == nil {
		return nil
	}
	return r.byParent[service]
}

// Difference returns what turns some routes into others: the resources of those that are
// new or different, and of those that are gone, and the services about which one is.
func (r *Routes) Difference(next *Routes) (put []*resources.Resource, gone []resources.Ref, about map[mesh.Key]bool) {
	about = map[mesh.Key]bool{}
	if r == next {
		return nil, nil, about
	}
	note := func(one *route.Route) {
		for _, p := range one.Parents {
			about[p.Service] = true
		}
	}
	for _, one := range next.All() {
		is := next.encoded[one.ID]
		if was := r.resource(one.ID); was == nil || was.Version != is.Version {
			put = append(put, is)
			note(one)
		}
	}
	for _, one := range r.All() {
		was, is := r.encoded[one.ID], next.resource(one.ID)
		if is == nil {
			gone = append(gone, was.Ref)
		}
		if is == nil || is.Version != was.Version {
			note(one)
		}
	}
	return put, gone, about
}

// Equal reports whether two are told as the same.
func (r *Routes) Equal(other *Routes) bool {
	put, gone, _ := r.Difference(other)
	return len(put)+len(gone) == 0
}

// resource returns the encoded route of a name; nil when there is none.
func (r *Routes) resource(id route.ID) *resources.Resource {
	if r == nil {
		return nil
	}
	return r.encoded[id]
}

// destinations calls f with every service that a route sends requests to.
func destinations(r *route.Route, f func(mesh.Key)) {
	filters := func(all []route.Filter) {
		for i := range all {
			if m := all[i].Mirror; m != nil && m.Broken == "" {
				f(m.Service)
			}
		}
	}
	for i := range r.Rules {
		filters(r.Rules[i].Filters)
		for j := range r.Rules[i].Backends {
			b := &r.Rules[i].Backends[j]
			if b.Broken == "" {
				f(b.Service)
			}
			filters(b.Filters)
		}
	}
}
