// Package trustfeed carries what the authority says of itself to the agents, and
// back what each of them holds: roots, and the SVIDs with their issuers. It is
// what a rotation is gated on. Server is the operator's end, Follower the agent's.
//
// It decides nothing: what is trusted and who signs is said by the operator's
// authority, and what a report is worth by operator/rotation.
//
// An operator of a version before answers UNIMPLEMENTED; the agent then takes its
// roots from answers to its requests for certificates, as before, and asks again
// now and then.
//
// Server and Follower are safe for concurrent use. Follower.Run blocks, and has no
// goroutine left when it returns; a Server's streams end with Drain.
package trustfeed
