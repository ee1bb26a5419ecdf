// Package bpf is Heddle's part of the kernel and the typed handle on it.
//
// Three things run in the kernel: the redirect (sk_lookup in a pod's network
// namespace), the gate (tc on both sides of the pod's veth) and the stamp of
// the agent's sockets (cgroup/sock_create). The package loads, attaches, pins
// and adopts them, and reads what they counted. It knows addresses, ports and
// sockets; it knows no workloads, identities or policies, and imports nothing
// of Heddle's.
//
// Everything is pinned: when the process dies the gate goes on, and the next
// process adopts it. Pins are in a folder named by the layout version of the
// maps; types that maps hold come from BTF.
//
// A Node and its Pods are safe for concurrent use, except that Remove and
// Close must be the last call. Functions that name an interface by its index
// (Node.Pod, Pod.AttachGate, Pod.CheckGate, ...) must run in the network
// namespace that holds the host side of the pods' veths.
package bpf
