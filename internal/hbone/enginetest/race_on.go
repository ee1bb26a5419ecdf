//go:build race

package enginetest

// shortStreams is how many testShortStreams opens: the race detector makes
// each ten times as dear.
const shortStreams = 1_000
