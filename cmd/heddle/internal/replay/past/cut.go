package past

import "fmt"

// What is told of a file that ends too early, or of which somebody has taken lines out.
const (
	mayBeCut = "the file of the history may be cut: %s; remedy: write it anew with `heddle history -o json`, and see that it exits with 0"
	noEnd    = "its last line is no node's coverage"
)

// cutAt says why a file may be cut at a line's end, or "". The lines of nodes' coverage are its
// end, as they come after all others and each says how many there are; those of a version
// before did not say so. Files behind one another are one file.
func (h *History) cutAt(ended bool) string {
	if !ended {
		return fmt.Sprintf(mayBeCut, noEnd)
	}
	known, lines := map[string]bool{}, map[int]int{}
	for i := range h.Nodes {
		known[h.Nodes[i].Node] = true
		lines[h.Nodes[i].Lines]++
		h.Nodes[i].Lines = 0 // a file's own
	}
	for said, there := range lines {
		if said > 0 && there%said != 0 {
			return fmt.Sprintf(mayBeCut, fmt.Sprintf("it has the coverage of %d nodes, and says that it is of %d", there, said))
		}
	}
	for i := range h.Summaries {
		if node := h.Summaries[i].Node; !known[node] {
			return fmt.Sprintf(mayBeCut, fmt.Sprintf("it has connections of node %q, and not its coverage", node))
		}
	}
	return ""
}

// Gaps says what of the past may be missing: a file's end, what an agent had no room for, and what it could not read.
func (h *History) Gaps() (all []string) {
	if h.Cut != "" {
		all = append(all, h.Cut)
	}
	for _, n := range h.Nodes {
		if n.LeftOut > 0 {
			all = append(all, fmt.Sprintf("node %s left out %d connections, for want of room", n.Node, n.LeftOut))
		}
		for _, damage := range n.Damaged {
			all = append(all, fmt.Sprintf("node %s: %s", n.Node, damage))
		}
	}
	return all
}
