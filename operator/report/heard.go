package report

import "time"

// grace is for how long a node counts by its last word while its agent is not heard: agents
// restart, and go from one replica to another.
const grace = time.Minute

// heard is when each node's agent was last connected and said how its pods are.
type heard map[string]time.Time

// listen takes what the nodes are now, and forgets those that are not among them. One that is
// connected and was not known before has its grace to say how its pods are. Those that were
// not heard for longer are silent: their last word says nothing of what is enforced there, as
// nobody looks for drift. A waypoint's pods are there only while they are connected, and say
// nothing of pods.
func (h heard) listen(nodes []Node, now time.Time) {
	there := make(map[string]bool, len(nodes))
	for i := range nodes {
		n := &nodes[i]
		there[n.Name] = true
		if _, known := h[n.Name]; n.Connected && (n.Reports || !known) {
			h[n.Name] = now
		}
		n.silent = now.Sub(h[n.Name]) > grace && !ofWaypoint(n.Name)
	}
	for name := range h {
		if !there[name] {
			delete(h, name)
		}
	}
}

// unheard says what is not heard of a silent node.
func unheard(n *Node) string {
	if !n.Connected {
		return "its agent is not connected: what it has applied is in force, but nobody sees whether it stays so"
	}
	return "its agent does not say how its pods are"
}
