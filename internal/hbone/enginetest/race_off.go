//go:build !race

package enginetest

// shortStreams is how many testShortStreams opens.
const shortStreams = 10_000

// Race says that the race detector is on, which allocates for itself.
const Race = false
