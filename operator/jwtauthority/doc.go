// Package jwtauthority signs the JWT-SVIDs of the mesh's trust domain, and replaces the keys that
// it signs by in overlap. It decides nothing about who may have one: operator/issuing does.
//
// # Keys
//
// The keys (ECDSA P-256, ES256) are one text beside those of the certificates' authority, in
// the same Secret or directory: see operator/rotation, whose Live reads it for every replica,
// and writes it for the one that leads. A key's life, each step of which is one change of that
// text:
//
//	next     in the bundle, so that whoever verifies has it before it signs (Times.Distribute)
//	signs    for Times.Period
//	retired  in the bundle until no token of it can be valid (Times.Keep)
//
// Which key signs is in the text, and not reckoned by each replica's clock: they agree as soon
// as they have read it. Nobody reports that they have a key, as agents do of a root
// (docs/decisions/0094).
//
// When the text is taken out, another key is made that signs at once, and what the one before
// has signed is no longer valid: so is a key dealt with that was stolen.
//
// An Authority is safe for concurrent use; its Run blocks.
package jwtauthority
