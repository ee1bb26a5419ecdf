//go:build !race

package route_test

const slower = 1
