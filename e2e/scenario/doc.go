// Package scenario has what a mesh must do as short texts, each of which runs in
// every world that implements World: network namespaces on this machine, in this
// package's own test, and Kubernetes, in package kubernetes and the test of e2e/product.
// docs/scenarios.md is the language; the texts are in testdata.
//
// Run takes the steps of a script one after the other, and the Trace that comes back
// draws them: who did what to whom, when, what came of it, and what the agents
// recorded. The package brings up no mesh itself, and does not know in which world it
// runs; package script has the language.
//
// A Trace may be read when its Run has returned.
package scenario
