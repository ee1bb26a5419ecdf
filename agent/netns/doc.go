// Package netns works in other network namespaces: it opens them by path, runs
// functions and makes sockets inside them, and connects such sockets without
// holding a thread.
//
// A thread that changed its namespace never runs anything else. Programs that
// use the package, or package bpf, should lock their main goroutine to the main
// thread (runtime.LockOSThread in an init of main): its namespaces are what
// /proc/PID/ns shows, and it cannot end. All types are safe for concurrent use.
package netns
