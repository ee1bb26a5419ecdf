package check

import (
	"maps"
	"slices"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Statement is what one PeerAuthentication says about one place: a workload's
// port, or all ports that nothing is said about.
type Statement struct {
	From  Subject
	Field string
	Mode  mesh.Mode
}

// Authentication is one PeerAuthentication.
type Authentication struct {
	Selector map[string]string // nil for the whole namespace
	Mode     *Statement        // nil for none
	Ports    map[uint16]Statement
}

// Resolve returns a workload's modes: the most specific statements, and among
// equally specific ones the first. Statements that lose against an equally
// specific one of another mind are warned of, and so is STRICT of a selector where a
// namespace's port lets plaintext in: who wrote it may think that it is what holds.
func Resolve(all []Authentication, labels map[string]string, unset mesh.Mode) (mesh.Mode, map[uint16]mesh.Mode) {
	if len(all) == 0 {
		return unset, nil
	}
	var mode *Statement
	ports := map[uint16]Statement{}
	for _, selected := range []bool{true, false} { // objects with a selector first
		var level Authentication
		level.Ports = map[uint16]Statement{}
		for _, a := range all {
			if (a.Selector != nil) != selected || !mesh.Selects(a.Selector, labels) {
				continue
			}
			if a.Mode != nil {
				if level.Mode == nil {
					level.Mode = a.Mode
				} else {
					a.Mode.loses(*level.Mode)
				}
			}
			for _, port := range slices.Sorted(maps.Keys(a.Ports)) {
				if first, said := level.Ports[port]; said {
					a.Ports[port].loses(first)
				} else {
					level.Ports[port] = a.Ports[port]
				}
			}
		}
		for _, port := range slices.Sorted(maps.Keys(level.Ports)) {
			if _, above := ports[port]; above {
				continue
			}
			ports[port] = level.Ports[port]
			if !selected && mode != nil {
				mode.opened(port, ports[port])
			}
		}
		if mode == nil {
			mode = level.Mode
		}
	}
	var modes map[uint16]mesh.Mode
	for port, said := range ports {
		if modes == nil {
			modes = map[uint16]mesh.Mode{}
		}
		modes[port] = said.Mode
	}
	if mode == nil {
		return unset, modes
	}
	return mode.Mode, modes
}

// loses warns that another, equally specific statement holds instead.
func (st Statement) loses(to Statement) {
	if st.Mode != to.Mode {
		st.warn("take one of the two out, or give one a narrower selector",
			"has no effect on workloads for which %s says %s: of two equally specific ones the older holds, then the one whose name comes first", to.From.owner(), to.Mode)
	}
}

// opened warns that workloads that are picked to be STRICT take plaintext at a port, since
// what is said of a port wins over what a selector says of all ports.
func (st Statement) opened(port uint16, by Statement) {
	if st.Mode == mesh.ModeStrict && by.Mode == mesh.ModePermissive {
		st.warn("add the port to spec.portModes as STRICT, or as PERMISSIVE if that is meant",
			"does not hold at port %d: %s lets it be %s in the whole namespace, and what is said of a port wins: plaintext is let in there", port, by.From.owner(), by.Mode)
	}
}

// warn warns once: a statement is met again with each workload.
func (st Statement) warn(remedy, format string, args ...any) {
	warning := st.From.Make(st.Field, remedy, format, args...)
	text := warning.Error()
	list := st.From.List
	if list.said[text] {
		return
	}
	if list.said == nil {
		list.said = map[string]bool{}
	}
	list.said[text] = true
	list.Warnings = append(list.Warnings, warning)
}

// owner names the object, and where it was read.
func (s Subject) owner() string {
	if place := s.Origin.String(); place != "" {
		return s.Object + " at " + place
	}
	return s.Object
}
