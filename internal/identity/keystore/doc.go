// Package keystore keeps private keys with their SVIDs, and the trust bundle,
// as files in a root-only directory: a tmpfs that outlives the agent's process,
// so that a restarted agent has its certificates at once and without the
// operator, and a reboot takes them away. It checks that the directory is what
// it must be and refuses, one by one, files that are not; it does not decide
// whether a certificate is still trusted (package identity does).
//
// A Store is safe for concurrent use, also by several processes on one
// directory: every write replaces a whole file.
package keystore
