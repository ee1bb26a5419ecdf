// Package scale measures a control plane with many nodes and pods: one operator
// in a process of its own, and nodes that are streams over a unix socket. Some
// nodes are the agents' real client; the others take in, count and acknowledge
// what they are sent, so that this machine has room for thousands.
//
// The operator is the real compiler, snapshots and server over a cluster that
// is made up in its memory; there is no API server, no TLS and no network.
//
// HEDDLE_SCALE names the sizes, as NODES:PODS,...; `make scale` runs large ones
// and prints the table of docs/scale.md.
package scale
