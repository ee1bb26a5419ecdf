package draft

import (
	"fmt"
	"slices"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Remaining says of the policies that are there, and stay beside those that are suggested, what follows from it.
func Remaining(v *mesh.View, groups []*Group, suggested []Policy, namespace string) (notes []string) {
	all := slices.Clone(v.Policies())
	for _, g := range groups {
		for _, w := range g.Members {
			all = append(all, w.Datagrams...)
		}
	}
	for _, p := range all {
		replaces := func(s Policy) bool { return s.Policy.Name == p.Name }
		if p.Namespace == namespace && p.AboutRequests() {
			notes = append(notes, fmt.Sprintf("AuthorizationPolicy %s is about requests, of which connections tell nothing: it stays, and nothing is suggested in its place", p.Key))
			continue
		}
		if p.Namespace == namespace && p.Action == mesh.ActionAllow && !slices.ContainsFunc(suggested, replaces) {
			notes = append(notes, fmt.Sprintf("AuthorizationPolicy %s admits what it did: try to do without, with --delete AuthorizationPolicy/%s", p.Key, p.Key))
		}
	}
	return notes
}

// AboutRequests reports whether policies that are about requests decide who comes to a workload.
func AboutRequests(v *mesh.View, w *mesh.Workload) bool {
	return v.AboutRequests(w) && slices.ContainsFunc(v.Policies(), func(p *mesh.Policy) bool {
		return p.Action != mesh.ActionAudit && p.AboutRequests() && p.Selects(w.Namespace, w.Labels)
	})
}
