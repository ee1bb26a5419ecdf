// Package interop tries the tunnel against Envoy, in both directions: an
// implementation of HBONE that shares no code with ours. TestToEnvoy and
// TestFromEnvoy drive our engine over loopback, TestMesh agents that run. The
// tests need root and the Envoy binary that envoy.sh gets, and fail without
// them. The package holds no code of its own.
package interop
