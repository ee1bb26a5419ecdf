package route

import "slices"

// At returns the routes at a parent that are for clients of a namespace ("" for those of none), as a Table goes by
// them: a consumer's take the place of all producers' (Route). They point into routes.
func At(routes []Route, to Parent, from string) []*Route {
	var producers, consumers []*Route
	for i := range routes {
		switch r := &routes[i]; {
		case !slices.Contains(r.Parents, to):
		case r.Namespace == to.Service.Namespace:
			producers = append(producers, r)
		case r.Namespace == from:
			consumers = append(consumers, r)
		}
	}
	if len(consumers) > 0 {
		return consumers
	}
	return producers
}
