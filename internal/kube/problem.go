package kube

import "github.com/heddle-mesh/heddle/internal/kube/problem"

// What is wrong with configuration; see package problem.
type (
	Problem = problem.Problem
	Ref     = problem.Ref
	Origin  = problem.Origin
)

// Problems returns the problems in an error of this package, sorted by place.
// An error that is none, such as one of reading a file, is left out.
func Problems(err error) []*Problem { return problem.All(err) }
