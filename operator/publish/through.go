package publish

import (
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// through puts a waypoint that a service's labels name in force only when it is ready for
// the first time: until then connections go where they went, so that none fails while a
// waypoint starts, or a service moves from one to another. From then on it stays in force,
// ready or not: who wanted it does not get around it by its failing. It belongs to the
// goroutine that publishes.
type through struct {
	// before are the waypoints in force of the services that had one, before the first
	// compilation.
	before map[mesh.Key]mesh.Key
	// waiting are the services whose labels name another waypoint than is in force.
	waiting map[mesh.Key]mesh.Key
}

// last returns the waypoint of a service in the last View, nil before the first.
func (t *through) last(view *mesh.View, service mesh.Key) mesh.Key {
	if view == nil {
		return t.before[service]
	}
	if s, ok := view.Service(service); ok {
		return s.Waypoint
	}
	return mesh.Key{}
}

// hold leaves a service with the waypoint that it had, if it is to have another that is not
// ready.
func (t *through) hold(s *mesh.Service, last mesh.Key, ready func(mesh.Key) bool) {
	delete(t.waiting, s.Key)
	if want := s.Waypoint; want != (mesh.Key{}) && want != last && !ready(want) {
		t.waiting[s.Key] = want
		s.Waypoint, s.Bypass = last, s.Bypass && last != mesh.Key{}
	}
}

// all holds everything that was compiled.
func (t *through) all(compiled *kube.Compiled, last *mesh.View) {
	t.waiting = map[mesh.Key]mesh.Key{}
	var ready map[mesh.Key]bool // workloads; made when it is needed
	endpoints := map[mesh.Key][]mesh.Key{}
	for i := range compiled.Services {
		endpoints[compiled.Services[i].Key] = compiled.Services[i].Endpoints
	}
	for i := range compiled.Services {
		t.hold(&compiled.Services[i], t.last(last, compiled.Services[i].Key), func(waypoint mesh.Key) bool {
			if ready == nil {
				ready = map[mesh.Key]bool{}
				for i := range compiled.Workloads {
					w := &compiled.Workloads[i]
					ready[w.Key] = w.Ready && w.Enrolled
				}
			}
			for _, key := range endpoints[waypoint] {
				if ready[key] {
					return true
				}
			}
			return false
		})
	}
}

// changed holds what has changed of the services of the last View.
func (t *through) changed(services []*mesh.Service, last *mesh.View) {
	for _, s := range services {
		t.hold(s, t.last(last, s.Key), func(waypoint mesh.Key) bool { return takesConnections(last, waypoint) })
	}
}

// due reports whether a service waits for a waypoint that is ready by now.
func (t *through) due(view *mesh.View) bool {
	for _, waypoint := range t.waiting {
		if takesConnections(view, waypoint) {
			return true
		}
	}
	return false
}

// takesConnections reports whether a workload of a service is enrolled, and ready.
func takesConnections(view *mesh.View, service mesh.Key) bool {
	s, ok := view.Service(service)
	if !ok {
		return false
	}
	for _, key := range s.Endpoints {
		if w, ok := view.Workload(key); ok && w.Ready && w.Enrolled {
			return true
		}
	}
	return false
}

// Through returns the waypoints in force, by service.
func Through(view *mesh.View) map[mesh.Key]mesh.Key {
	all := map[mesh.Key]mesh.Key{}
	for _, s := range view.Services() {
		if s.Waypoint != (mesh.Key{}) {
			all[s.Key] = s.Waypoint
		}
	}
	return all
}
