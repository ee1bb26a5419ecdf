//go:build !race

package enginetest

// shortStreams is how many testShortStreams opens.
const shortStreams = 10_000
