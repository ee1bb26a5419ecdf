package workload

import "maps"

// Places has a service's ready workloads by where they are.
type Places struct {
	// ByNode is nil where a client's node does not matter.
	ByNode, ByZone map[string][]*Workload
}

// PlacesOf indexes ready workloads; by node only where that matters. Where nothing
// but the client's node does, a node without ready ones has those of its own that leave.
func PlacesOf(ready, leaving []*Workload, byNode, nodeOnly bool) *Places {
	p := &Places{ByZone: map[string][]*Workload{}}
	if byNode {
		p.ByNode = map[string][]*Workload{}
	}
	for _, w := range ready {
		if w.Zone != "" {
			p.ByZone[w.Zone] = append(p.ByZone[w.Zone], w)
		}
		if byNode {
			p.ByNode[w.Node] = append(p.ByNode[w.Node], w)
		}
	}
	if !nodeOnly {
		return p
	}
	last := map[string][]*Workload{}
	for _, w := range leaving {
		if len(p.ByNode[w.Node]) == 0 {
			last[w.Node] = append(last[w.Node], w)
		}
	}
	maps.Copy(p.ByNode, last)
	return p
}
