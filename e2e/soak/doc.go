// Package soak holds the test that a mesh under churn grows neither in memory
// nor in descriptors: thirty seconds of it with the other tests of root, half an
// hour by `make soak`, where also a pod comes and goes and a policy changes every
// minute, and an agent hands over to the next every five. It needs root, and is not a benchmark.
package soak
