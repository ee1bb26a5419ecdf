// Package attack tries to get packets around the gate of one pod of a local
// mesh, the ways that a pod with NET_ADMIN and NET_RAW has, and from the wire.
//
// Every packet goes to an address of the mesh, or to all listeners on the pod's link,
// and carries a marker of its own. A tap on the far side of the gate, in the node's
// or the pod's network namespace, says whether it got through; the gate's counters, read before and
// after, say that it arrived there and was dropped. Of packets that leave the
// pod, a twin is sent from a link without a gate first: the tap must see that
// one, or its silence would prove nothing.
//
// A run is bounded in time and packets, needs root, and leaves nothing behind.
// Runs on one node must not overlap.
package attack
