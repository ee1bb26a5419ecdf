// Package gated knows which workloads are behind their gates, by what the agents of their
// nodes report: only these send and receive datagrams, since an address is an identity over
// UDP only where nobody else can send from it (docs/decisions/0090).
//
// A node's agent speaks for the workloads of that node, and of no other. What it said holds
// while it is away, since gates stay when an agent ends, for Grace; and only of the same
// pod, by its UID, and the same addresses. What this replica does not hear it asks the other
// replicas. What was so before the start of an operator is kept, and holds until the
// node's agent says otherwise, for Grace at most from when that was heard last.
//
// A Ledger is safe for concurrent use. Run blocks, and has no goroutine left when it returns.
package gated
