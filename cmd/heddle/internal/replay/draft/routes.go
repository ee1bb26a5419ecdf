package draft

import (
	"slices"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain/routed"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// Route is one that waypoints go by.
type Route = route.Route

// RoutesOf compiles the routes of a cluster, or without them those that a folder has.
func RoutesOf(folder *kube.Objects, in *routed.Objects) []Route { return routed.Of(folder, in) }

// End is a workload to which a waypoint may send what a client sends, and the port there.
type End struct {
	*mesh.Workload
	Port uint16
}

// Ends are all of them, each once, for what is sent to a port of a service: its own, or in their place those of all backends of
// the routes that are for the client, mirrors too, whatever its requests are. Namespace is the client's, "" for one of
// none. Of a client of another trust domain, the service's own are asked as well.
func Ends(v *mesh.View, routes []Route, src *mesh.Workload, namespace string, dialled mesh.Route, port uint16) (ends []End) {
	add := func(to mesh.Route) {
		for _, w := range to.Candidates {
			if end := (End{w, to.PortOf(w)}); !slices.Contains(ends, end) {
				ends = append(ends, end)
			}
		}
	}
	if dialled.Service == nil {
		return nil
	}
	about := route.At(routes, route.Parent{Service: dialled.Service.Key, Port: port}, namespace)
	if len(about) == 0 || v.Foreign(src.Identity) {
		add(dialled)
	}
	for _, r := range about {
		for i := range r.Rules {
			for _, to := range backends(&r.Rules[i]) {
				add(v.RouteTo(src, to.Service, to.Port)) // one that leads to nobody has no candidates
			}
		}
	}
	return ends
}

// backends are those that a rule sends anything to, and those that get a copy. What its filters, or a backend's, answer
// goes to nobody.
func backends(rule *route.Rule) (all []route.Parent) {
	answers := func(f route.Filter) bool { return f.Redirect != nil || f.Broken != "" }
	mirrors := func(filters []route.Filter) {
		for _, f := range filters {
			if m := f.Mirror; m != nil && m.Broken == "" && m.Numerator > 0 {
				all = append(all, route.Parent{Service: m.Service, Port: m.Port})
			}
		}
	}
	if slices.ContainsFunc(rule.Filters, answers) {
		return nil
	}
	for i := range rule.Backends {
		if b := &rule.Backends[i]; b.Weight > 0 && b.Broken == "" && !slices.ContainsFunc(b.Filters, answers) {
			all = append(all, route.Parent{Service: b.Service, Port: b.Port})
			mirrors(b.Filters)
		}
	}
	if len(all) > 0 {
		mirrors(rule.Filters)
	}
	return all
}
