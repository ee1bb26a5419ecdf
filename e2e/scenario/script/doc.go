// Package script has the language of scenarios: what a text says, step by step, and
// what is wrong with one that says nothing sensible. docs/scenarios.md describes it.
// It runs nothing and knows no mesh; package scenario does.
//
// Nothing of a Script may be changed; it may be read from any goroutine.
package script
