// Package federation is the mesh's end of SPIFFE Federation: a Follower asks the bundle
// endpoints of other trust domains for their bundles, and an Endpoint serves the mesh's own.
//
// What a Follower has is what agents are told, by internal/identity/trustfeed. It believes
//
//   - a bundle that the endpoint gave which the Mesh names, proved as its profile says;
//   - until there is one, and whenever the Mesh gives another than before, the Mesh's;
//   - nothing about the mesh's own trust domain, whoever says it;
//   - no bundle with a lower spiffe_sequence than the one that there is;
//   - the last good one, for as long as there is no other, also after a restart.
//
// Who may be reached by an identity of another trust domain is not decided here; see
// internal/mesh.
package federation
