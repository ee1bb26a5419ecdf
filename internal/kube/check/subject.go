// Package check has the checks of what is about one object only: of single fields, such as
// names, labels, modes, address ranges and ports, and of what the Mesh says, within the
// bounds of what agents can be told of it. What is wrong with a field becomes a problem of
// its Subject, with what may be written instead. It knows nothing of other objects.
//
// A List, and the Subjects that report to it, belong to one goroutine.
package check

import (
	"fmt"

	"github.com/heddle-mesh/heddle/internal/kube/problem"
)

// List has what was found of many objects.
type List struct {
	Problems []*problem.Problem
	// Warnings are about objects that are valid, but unlikely to do what their author wants.
	Warnings []*problem.Problem
	said     map[string]bool // those that are met again with each workload
}

// Subject is the object that is being looked at, for problems about it.
type Subject struct {
	List   *List
	Object string // kind and name, see problem.Problem
	Origin problem.Origin
	Ref    problem.Ref
}

// NewSubject returns the Subject of an object; what is found of it goes into list.
func NewSubject(list *List, ref problem.Ref, origin problem.Origin) Subject {
	return Subject{list, problem.ObjectName(ref.Kind, ref.Namespace, ref.Name), origin, ref}
}

// Problem reports that a field is wrong, and what to do about it.
func (s Subject) Problem(field, remedy, format string, args ...any) {
	s.List.Problems = append(s.List.Problems, s.Make(field, remedy, format, args...))
}

// Conflict is Problem where another object has what only one may have.
func (s Subject) Conflict(field, remedy, format string, args ...any) {
	s.Problem(field, remedy, format, args...)
	s.List.Problems[len(s.List.Problems)-1].Reason = problem.Conflict
}

// Warn reports that a field is unlikely to do what its author wants.
func (s Subject) Warn(field, remedy, format string, args ...any) {
	s.List.Warnings = append(s.List.Warnings, s.Make(field, remedy, format, args...))
}

// Make returns a problem without reporting it.
func (s Subject) Make(field, remedy, format string, args ...any) *problem.Problem {
	return &problem.Problem{
		Origin: s.Origin.At(field), Ref: s.Ref, Object: s.Object, Field: field,
		Text: fmt.Sprintf(format, args...), Remedy: remedy,
	}
}
