package waypoints

import "github.com/heddle-mesh/heddle/internal/mesh"

// ReadyIn returns how many workloads of a service take connections, as agents are told. A
// nil View has none.
func ReadyIn(view *mesh.View, key mesh.Key) (ready int) {
	if view == nil {
		return 0
	}
	service, ok := view.Service(key)
	if !ok {
		return 0
	}
	for _, endpoint := range service.Endpoints {
		if w, ok := view.Workload(endpoint); ok && w.Ready && w.Enrolled {
			ready++
		}
	}
	return ready
}

// LostIn returns the services whose connections are refused as their waypoints are not
// there, with those. A nil View has none.
func LostIn(view *mesh.View) map[mesh.Key]mesh.Key {
	if view == nil {
		return nil
	}
	lost := map[mesh.Key]mesh.Key{}
	for _, s := range view.Services() {
		if s.Waypoint == (mesh.Key{}) || s.Bypass {
			continue
		}
		if _, there := view.Service(s.Waypoint); !there {
			lost[s.Key] = s.Waypoint
		}
	}
	return lost
}
