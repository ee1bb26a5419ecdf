// Package problem has what is wrong with configuration: what it says, about which
// field of which object, where that was read, and what to do about it. It finds
// nothing itself.
//
// Functions may be called from any goroutine; problems must not be changed while
// someone uses them.
package problem

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Problem is one thing that is wrong with the configuration, or, as a warning,
// one that is unlikely to do what its author wants.
type Problem struct {
	// Origin is where the object, or the field, was read.
	Origin Origin
	// Ref is the object; its Kind is "" when not known.
	Ref Ref
	// Object is its kind and name, "Workload shop/web"; "" when not known.
	Object string
	// Field is the path of the field, "spec.addresses[0]"; "" for the whole.
	Field string
	// Text says what is wrong, Remedy what to do about it (may be empty).
	Text, Remedy string
	Reason       Reason
}

// Reason is the class of a Problem: few, so that they can be counted.
type Reason uint8

// The reasons.
const (
	Invalid    Reason = iota // a field says what cannot be enforced
	Syntax                   // no YAML, or not the fields and types of a kind that is known
	Conflict                 // another object has what only one may have
	Unreadable               // a file cannot be read, or there is too much of it
)

// String returns the name of a Reason.
func (r Reason) String() string {
	return [...]string{Invalid: "Invalid", Syntax: "Syntax", Conflict: "Conflict", Unreadable: "Unreadable"}[r]
}

// Reasons returns all of them.
func Reasons() []Reason { return []Reason{Invalid, Syntax, Conflict, Unreadable} }

// Ref names an object.
type Ref struct{ Kind, Namespace, Name string }

// Error returns everything that is known, on one line:
//
//	mesh/shop.yaml:12 (document 2): Workload shop/web: spec.addresses[0]: "10.1" is not an IP address; write one such as 10.1.2.3
func (p *Problem) Error() string {
	var parts []string
	if place := p.Origin.String(); place != "" {
		parts = append(parts, place)
	}
	for _, part := range []string{p.Object, p.Field, p.Text} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	line := strings.Join(parts, ": ")
	if p.Remedy != "" {
		line += "; " + p.Remedy
	}
	return line
}

// All returns the problems in an error that Join made, sorted by place.
// An error that is none, such as one of reading a file, is left out.
func All(err error) []*Problem {
	var found []*Problem
	var collect func(error)
	collect = func(err error) {
		var joined interface{ Unwrap() []error }
		var one *Problem
		switch {
		case errors.As(err, &joined):
			for _, e := range joined.Unwrap() {
				collect(e)
			}
		case errors.As(err, &one):
			found = append(found, one)
		}
	}
	collect(err)
	Sort(found)
	return found
}

// Sort sorts problems by place, object, field and text.
func Sort(problems []*Problem) {
	slices.SortStableFunc(problems, func(a, b *Problem) int {
		return cmp.Or(
			cmp.Compare(a.Origin.Folder, b.Origin.Folder),
			cmp.Compare(a.Origin.File, b.Origin.File),
			cmp.Compare(a.Origin.Document, b.Origin.Document),
			cmp.Compare(a.Origin.Line, b.Origin.Line),
			cmp.Compare(a.Object, b.Object),
			cmp.Compare(a.Field, b.Field),
			cmp.Compare(a.Text, b.Text),
		)
	})
}

// ByObject returns problems by the object that they are about, in their order.
func ByObject(problems []*Problem) map[Ref][]*Problem {
	by := map[Ref][]*Problem{}
	for _, p := range problems {
		by[p.Ref] = append(by[p.Ref], p)
	}
	return by
}

// Covered says whether one of the problems is about the same field of the same object as p,
// or about one around it or in it.
func (p *Problem) Covered(by []*Problem) bool {
	return slices.ContainsFunc(by, func(q *Problem) bool {
		return q.Ref == p.Ref && (within(p.Field, q.Field) || within(q.Field, p.Field))
	})
}

// within says whether a field is another, or in it.
func within(field, around string) bool {
	rest, ok := strings.CutPrefix(field, around)
	return ok && (rest == "" || around == "" || rest[0] == '.' || rest[0] == '[')
}

// Join makes one error of problems, in order of place, or nil of none.
func Join(problems []*Problem) error {
	Sort(problems)
	errs := make([]error, len(problems))
	for i, p := range problems {
		errs[i] = p
	}
	return errors.Join(errs...)
}

// Origin is where an object was read. The zero Origin is that of an object that
// was not read from a file.
type Origin struct {
	// Folder is the folder that was read, as it was named; "" of none, such as standard input.
	Folder string
	// File is the path inside the folder, with slashes.
	File string
	// Document is the number of the YAML document in the file, from 1.
	Document int
	// Line is the line in the file, from 1; 0 when not known.
	Line int
	// Lines has the line of each field of the object, by path.
	Lines map[string]int
}

// String returns "mesh/shop.yaml:12 (document 2)", or less when less is known.
func (o Origin) String() string {
	if o.File == "" {
		return ""
	}
	place := path.Join(o.Folder, o.File)
	if o.Line > 0 {
		place += fmt.Sprintf(":%d", o.Line)
	}
	if o.Document > 1 {
		place += fmt.Sprintf(" (document %d)", o.Document)
	}
	return place
}

// At returns the origin of a field of the object: of the nearest field around
// it when it is not there itself.
func (o Origin) At(field string) Origin {
	for field != "" {
		if line, ok := o.Lines[field]; ok {
			o.Line = line
			return o
		}
		field = field[:max(0, strings.LastIndexAny(field, ".["))]
	}
	return o
}

// ObjectName returns "Workload shop/web", or "Mesh default" without namespace.
func ObjectName(kind, namespace, name string) string {
	if name == "" {
		name = "(no name)"
	}
	if namespace != "" {
		name = namespace + "/" + name
	}
	return kind + " " + name
}
