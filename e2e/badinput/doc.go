// Package badinput shows what the programs of a running mesh do with input that
// is wrong: configuration, certificates, tokens, files on disk, requests through
// the tunnel, and too much of anything. Each is refused with words that name it,
// is counted, leaves a reason where a person looks, and stops nobody else's
// traffic. It holds no code of its own; e2e/testbed is what the tests stand on.
// Root is needed.
package badinput
