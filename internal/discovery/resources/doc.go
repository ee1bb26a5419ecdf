// Package resources has what discovery carries: the objects of a mesh as
// resources with versions, sets of them under a signed commit, the staging of
// one round of changes, and the file that a verified set is kept in.
//
// It knows no streams and no nodes' shares; package discovery does. Everything
// from outside is bounded and believed only under a verified signature. A Set
// and a Resource are immutable and safe for concurrent use; a Staging is not.
package resources
