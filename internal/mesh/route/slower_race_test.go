//go:build race

package route_test

// slower is how much time the race detector may take of what a limit allows without it.
const slower = 100
