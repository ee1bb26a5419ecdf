// Package issuing is the operator's side of the issuing service: it decides who
// may have which SVID, from join tokens and from the mesh's present View, has
// package identity sign, and leaves a line of audit log for every decision. It
// holds no key and no state but rate limits.
//
// Server is safe for concurrent use and starts nothing.
package issuing
