// Package flow has the flow record, what keeps records and what reads them.
//
// A Record says of one finished or refused connection, or of dropped packets,
// who talked to whom, what was decided and why, and what it cost. A Recorder
// takes records: it counts them in the metrics and puts them in a Ring, which
// is bounded, never makes a writer wait, and counts exactly what each of its
// watchers was too slow to see. Drops coalesces what the kernel's gate reports,
// so that a flood of dropped packets cannot push connections out of the Ring.
//
// Package flow decides nothing and knows no sockets. Recorder, Ring, Drops and
// Metrics are safe for concurrent use; a Record that went into a Ring is
// read-only.
package flow
