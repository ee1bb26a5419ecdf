// Package report tells people, on the objects that they wrote, what became of
// them: conditions Accepted and Live in the status of Heddle's own kinds, and
// events on whatever is refused. It decides nothing: verdicts come from
// compiling, and what is live from the agents' acknowledgements on all replicas.
//
// Only a leader reports. It writes by server-side apply, only what differs from
// what is there, no faster than maxWrites per second. An object is live on a
// node when its agent has applied its present generation.
//
// # Rights
//
// In all namespaces:
//
//	heddle.dev  meshes/status, workloads/status, peerauthentications/status,
//	            authorizationpolicies/status   patch
//	""          events                         create
//
// What changes is recorded in the log ("audit: "), object by object: docs/operator.md says
// what is in it, and what is not.
//
// A Reporter's Run is called once at a time, and ends what it starts.
package report
