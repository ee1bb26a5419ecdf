// Package rotation is the operator's authority as it changes: the keys that sign
// now, and how a root or an intermediate gives way to the next without a
// connection that fails.
//
// # Stages
//
// A root's rotation is two stages, each of which waits until everybody who matters
// has reported:
//
//	distribute  the new root is trusted beside the old one, which signs
//	reissue     the new one signs; SVIDs of the old one are replaced
//
// and then the old root is no longer trusted. An intermediate's has the second
// only, since its root is trusted already. Everybody are the replicas of the
// operator, which must all say and sign what the stage means, and the nodes that
// hold certificates or trust: what they report is read from what their agents use.
// A node that does not report holds the rotation; Force goes on without those of
// them that are not connected. Until the old root goes, the operator proves itself
// by it, so that a node that missed a stage can still connect and catch up.
//
// Abort goes back the way it came: from distribute at once, from reissue by
// replacing SVIDs once more.
//
// # What is stored
//
// An authority is a set of texts, a Store keeps it: a Secret, or a directory. Each
// stage is one change of the texts, made by whoever finds that it is due and only
// if nobody else changed them. A replica that starts goes on from them. The names:
//
//	tls.crt, tls.key            signs; the certificates up to the root
//	root.key                    the root's key, where an intermediate signs
//	ca.crt                      further roots to trust
//	next.crt, next.key, next.root.key              during distribute: what is to sign
//	previous.crt, previous.key, previous.root.key  during reissue: what signed before
//	rotation.json               the stage
//	configuration.key           see operator/keys
//	jwt.key                     see operator/jwtauthority
//
// A version of the operator that knows no rotation reads the first four, and so
// signs what the stage says, and trusts what it says.
//
// Live and Rotator are safe for concurrent use; their Run blocks.
package rotation
