// Package heddle is the root of the Heddle service mesh: a sidecarless mesh
// whose node agent redirects the TCP connections of enrolled pods, by BPF, into
// a mutual-TLS tunnel, and whose kernel gate fails closed.
//
// There is no code here; repo_test.go holds the rules of the whole tree. The
// map of the tree is docs/architecture.md.
package heddle
