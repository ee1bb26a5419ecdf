// Package publish turns what people wrote into what an operator serves, under an
// epoch that never goes back: a Publisher does for a folder of YAML, a Cluster
// for the mirror of a Kubernetes cluster.
//
// A Publisher watches the folder and reads and compiles all of it when anything
// may have changed. What is refused leaves the last good configuration in force,
// also across a restart. It owns the operator's state directory, whose layout
// package operator documents. A Cluster compiles a moment after a change,
// what the change concerns or else everything (package kube/delta), and
// what is refused of single objects leaves the others in force; it keeps nothing
// on disk. Neither signs certificates or talks to an agent itself.
//
// A Publisher's Status and Collect may be called from any goroutine; Begin,
// then Follow, by one.
package publish
