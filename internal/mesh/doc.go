// Package mesh is the pure model of a Heddle mesh: workloads, services,
// policies, and the two decisions made from them, Route and Authorize. It has
// no clock, no I/O and no goroutines, and it imports nothing else of this
// repository, so that the operator, the agent, the waypoint and the command
// line reach the same verdict from the same View.
//
// A View is an immutable snapshot; everything reachable from it is read-only
// and safe for concurrent use. A Store holds the current View: one writer
// replaces it, any number of readers take it.
//
// # Vocabulary
//
//	workload            one pod: address set, identity and node
//	identity            a SPIFFE ID; spiffeid.ID, never a string
//	SVID, trust bundle  as SPIFFE defines them
//	enroll, unenroll    a namespace or pod joins or leaves the mesh
//	redirect            the BPF act of steering a connection to the agent
//	outbound, inbound   seen from the pod
//	peer                the authenticated other end of mutual TLS
//	tunnel, stream      an HBONE connection; one CONNECT on it
//	route               decision for one connection
//	permit              proof of authorization
//	verdict, reason     allow or deny; closed enum that says why
//	policy              authorization rule
//	flow                record of one finished or refused connection
//	revision            version of the store
//	drain               stop accepting, let finish, deadline
package mesh
