// Package kube reads Kubernetes-style objects and compiles them into the model
// of internal/mesh. Its two halves meet in Objects: LoadFolder reads a folder
// of YAML strictly into Objects, and Compile, which is pure, turns Objects into
// settings, workloads, services and policies.
//
// It decides nothing about connections and watches nothing. Every function may
// be called from any goroutine; Objects and Compiled must not be changed while
// someone uses them.
//
// Whatever is wrong is reported as a Problem, which names the place, the object,
// the field and the remedy. All problems are reported together, joined into one
// error; Problems takes them out again. A folder with a problem yields nothing:
// configuration is never half in force.
package kube
