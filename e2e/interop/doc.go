// Package interop tries the tunnel against Envoy, in both directions: an
// implementation of HBONE that shares no code with ours. TestToEnvoy and
// TestFromEnvoy drive our engine over loopback, TestMesh agents that run. TestMesh
// also has py-spiffe and go-spiffe, which share no code either, get SVIDs by the
// Workload API. The tests need root, the Envoy binary that envoy.sh gets and the
// library that pyspiffe.sh gets, and fail without them. The package holds no code of
// its own.
package interop
