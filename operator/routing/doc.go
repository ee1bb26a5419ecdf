// Package routing says on a cluster's routes what became of them, and keeps them as they
// were last good. It compiles nothing: that is package publish's, on every replica, by
// package kube/routes.
//
// Every replica reads what is kept before it compiles for the first time, so that a route
// that is bad by then falls back as it did before the restart. The leader keeps it, in
// ConfigMaps of the operator's namespace (ADR 110), and writes statuses and events.
//
// # Rights
//
// In all namespaces:
//
//	gateway.networking.k8s.io  httproutes/status, grpcroutes/status,
//	                           tlsroutes/status, tcproutes/status     patch
//	""                         events                                 create
//
// In the operator's: create on configmaps, and get and update on those that Names
// returns, and on ThroughName.
//
// A Writer's Run is called once at a time, and ends what it starts.
package routing
