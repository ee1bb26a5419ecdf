// Package workloadapi serves the SPIFFE Workload API to pods: each pod's own SVID
// with its private key, the trust bundle, and every change of them, on loopback TCP
// inside the pod's network namespace. Who reaches the listener is in the namespace,
// and that is the attestation: there is no other (SPIFFE Workload Endpoint, section 5).
//
// It serves pods of the mesh that have the label Label with the value Enabled, and no
// others: see docs/decisions/0086-pods-get-keys-when-they-ask.md. It does not issue
// (internal/identity does), nor say how a socket comes to be in a pod (Pod.Listen).
//
// # What answers
//
//	FetchX509SVID, FetchX509Bundles, FetchJWTBundles      streams, a message at each change
//	FetchJWTSVID, ValidateJWTSVID                         one answer
//	FetchWITSVID, FetchWITBundles                         Unimplemented; so are JWT-SVIDs where
//	                                                      their keys are not the mesh's own
//	a request or a token that is not valid                InvalidArgument
//	a request without "workload.spiffe.io: true"          InvalidArgument
//	an identity that is revoked, a pod that has left      PermissionDenied
//	no certificate yet, the agent goes                    Unavailable
//
// # Bounds
//
// Each pod has connections, streams and a rate of its own (Limits), so that no pod
// takes from its neighbours. Requests that are not admitted, and their bytes, are
// bounded by connection (endpoint.go).
//
// # Concurrency
//
// A Server is safe for concurrent use. New starts nothing; Run and Serve block, and
// return when every goroutine that they started has ended.
package workloadapi
