// Package chaos kills agents without warning, at random moments, under traffic,
// and counts plaintext on the wire. It holds tests only. Root is needed.
package chaos
