// Package dns answers the queries of pods, which the kernel steers to the agent:
// for the mesh's services from the model, for everything else with what the server
// says that the pod has asked. It is a forwarder (RFC 5625) with a cache, not a
// resolver: it asks nobody but the server that the query was sent to, from the
// pod's own address, once for however many ask the same.
//
// # What answers
//
//	A and AAAA of NAME.NAMESPACE.svc.cluster.local, a      the model
//	service that has addresses
//	a name that was asked before, until its TTL            the cache (RFC 2308)
//	the same, while its server does not answer             the cache, as stale (RFC 8767)
//	everything else, headless services, pods' names,       the server that was asked
//	ExternalName, services that are not known yet
//
// It answers late rather than wrong: it never says by itself that a name is not
// there. What it cannot find out is a failure, after a query's whole time.
//
// # Bounds
//
// Each pod has a cache, tries, waiting queries, connections and a rate of its own
// (Limits), so that no pod takes from its neighbours, and none sees what others
// have asked. What is over is dropped, so that the client asks again.
//
// # Concurrency
//
// A Server is safe for concurrent use. New starts nothing; Serve blocks, and
// returns when nothing of the pod's is left.
package dns
