// Package nodeauth is how agents and the operator know each other: a node joins
// by a token, holds an SVID of its own from then on, spiffe://TD/node/NAME, and
// calls the operator with it over mutual TLS; on the operator's side, PeerNode
// says which node called. It carries the issuing of workload SVIDs (Client), but
// decides nothing about it.
//
// Node and Client are safe for concurrent use. Constructors start nothing but
// gRPC's own idle connection; Node.Run blocks, Node.Close ends the connection.
package nodeauth
