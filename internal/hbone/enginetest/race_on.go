//go:build race

package enginetest

// shortStreams is how many testShortStreams opens: the race detector makes
// each ten times as dear.
const shortStreams = 1_000

// Race says that the race detector is on, which allocates for itself.
const Race = true
