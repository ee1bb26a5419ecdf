// Package handover replaces the agents of a running mesh under traffic, again
// and again, and counts what the traffic notices. It holds tests only. Root is
// needed.
package handover
