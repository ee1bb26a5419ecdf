package routes

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// precedence is that of the kinds of routes at one port, the first wins (GEP-1426, "Route types").
func precedence(kind route.Kind) int {
	return slices.Index([]route.Kind{route.GRPC, route.HTTP, route.TLS, route.TCP}, kind)
}

// settle leaves one kind of route to each port, for clients of one kind: the first by precedence. Of TCPRoutes, which tell
// no connection from another, it leaves the oldest, and of those that are as old the first by name.
func settle(all []*attached) {
	type place struct {
		parent   route.Parent
		consumer string
	}
	at := func(a *attached, p route.Parent) place {
		if a.source.id.Namespace == p.Service.Namespace {
			return place{parent: p}
		}
		return place{p, a.source.id.Namespace}
	}
	inTurn := slices.DeleteFunc(slices.Clone(all), func(a *attached) bool { return a.served == nil })
	slices.SortFunc(inTurn, func(a, b *attached) int {
		return cmp.Or(cmp.Compare(precedence(a.source.id.Kind), precedence(b.source.id.Kind)),
			a.source.meta.CreationTimestamp.Compare(b.source.meta.CreationTimestamp.Time), a.source.id.Compare(b.source.id.Key))
	})
	taken := map[place]*attached{}
	for _, a := range inTurn {
		for i := range a.links {
			a.links[i].lose(a, func(p route.Parent) *attached { return taken[at(a, p)] })
			for _, p := range a.links[i].ports {
				if taken[at(a, p)] == nil {
					taken[at(a, p)] = a
				}
			}
		}
	}
}

// lose takes the ports that another route has from a link of a route, and says so.
func (l *link) lose(of *attached, taken func(route.Parent) *attached) {
	own := of.source.id.Kind
	var kept []route.Parent
	for _, p := range l.ports {
		winner := taken(p)
		if winner == nil || winner == of || winner.source.id.Kind == own && own != route.TCP {
			kept = append(kept, p)
			continue
		}
		why := fmt.Sprintf("%s goes before %s", article(winner.source.id.Kind), article(own))
		if winner.source.id.Kind == own {
			why = fmt.Sprintf("nothing tells connections of two %ss apart: the older one, or the first by name, has them all", own)
		}
		l.message = fmt.Sprintf("%s is for port %d too, and %s; give each a port of its own by parentRefs[].port", winner.source.id, p.Port, why)
	}
	if len(l.ports) > 0 && len(kept) == 0 {
		l.reason = reasonConflicted
	}
	l.ports = kept
}

func article(kind route.Kind) string {
	if kind == route.HTTP {
		return "an " + kind.String()
	}
	return "a " + kind.String()
}
