package explain

import (
	"reflect"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Redirects reports whether a change, to the Model that then is, is one of a service or of its waypoint's, so that who
// dials it may come to others than now, or to nobody. Of a service that is not there now, nothing is known.
func (m *Model) Redirects(then *Model, service mesh.Key) bool {
	was, known := m.Service(service)
	is, stays := then.Service(service)
	switch {
	case !known:
		return false
	case !stays || !leadsAlike(was, is):
		return true
	case was.Waypoint == (mesh.Key{}):
		return false
	}
	before, known := m.Service(was.Waypoint)
	after, stays := then.Service(was.Waypoint)
	return known != stays || known && !leadsAlike(before, after)
}

// leadsAlike reports whether two services of one name lead from the same addresses and ports to the same workloads.
func leadsAlike(a, b *mesh.Service) bool {
	x, y := *a, *b
	for _, s := range []*mesh.Service{&x, &y} {
		s.Sticky, s.StickyFor, s.UDPPorts = false, 0, nil
	}
	return reflect.DeepEqual(x, y)
}
