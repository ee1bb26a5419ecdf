// Package identity issues and rotates X.509-SVIDs, on both ends: the operator's
// Authority signs, the agent's Source asks in time and keeps what it got. It
// knows SPIFFE IDs and certificates; it does not know workloads or policy (who
// may have which identity is operator/issuing's question), does not talk to the
// network (package nodeauth does), and does not verify the peers of tunnels
// (internal/hbone does).
//
// Identities of a trust domain TD:
//
//	spiffe://TD/ns/NAMESPACE/sa/SERVICE_ACCOUNT   a workload
//	spiffe://TD/node/NAME                         an agent, towards the operator
//	spiffe://TD/operator                          the operator
//
// Private keys of workloads live in memory and in a tmpfs (package keystore).
//
// Authority and Source are safe for concurrent use. Constructors start nothing;
// Source.Run blocks until its context is done and every goroutine of its own
// has ended.
package identity
