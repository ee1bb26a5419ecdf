// Package spire has SPIRE issue a mesh's certificates: the operator becomes a CA below
// the SPIRE server's, in the trust domain that both have, and goes on to sign for agents
// as it does with a CA of its own. SPIRE's roots are the mesh's.
//
// # How it asks
//
// The operator is a workload of SPIRE: it has its SVID, and SPIRE's roots, from the
// Workload API of the SPIRE agent beside it, and with that SVID asks the SPIRE server for
// an intermediate (SVID.NewDownstreamX509CA), for which its registration entry is marked as
// downstream. The intermediate's key is made here and kept where the operator's own CA would
// be: in the Secret, or the state directory. All replicas sign with that one.
//
// # How it changes
//
// Follower compares what is in use with what SPIRE says, and does the first of these that
// is due:
//
//	a root that SPIRE has and the mesh does not    it is trusted beside the others
//	half of the intermediate's life is over, or    a new one is asked for. Below a root that is
//	SPIRE does not have its root any more          known it signs at once; below another one when
//	                                               every node that matters reports that it trusts it
//	a root that SPIRE does not have any more       it is no longer trusted, when every node that
//	                                               matters reports no certificate of another issuer
//
// So a mesh with a CA of its own comes to SPIRE's by the same steps. Whoever holds them up is
// said to. A new intermediate waits for agents that are not connected until a tenth of the
// present one's life is left, and for replicas and other agents until a fiftieth: then it is
// used all the same, since otherwise no connection would live. A root that SPIRE gave up waits
// for agents that are not connected for an hour.
//
// What SPIRE does not answer changes nothing: the intermediate signs until it ends. When it has
// ended, no connection is left that could fail, and SPIRE's CA and roots are put in at once: by
// First at the start, else by Follower.
//
// Client and Follower are safe for concurrent use; Follower's Run blocks.
package spire
