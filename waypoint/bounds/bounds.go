// Package bounds has what a waypoint does at most, and waits for at most. It is data, and how deadlines are compared.
package bounds

import (
	"errors"
	"fmt"
	"time"
)

// Limits bound what a waypoint does at once, over all of its loops.
type Limits struct {
	// Connections of clients; those that come beyond are closed at once.
	Connections int
	// Requests under way, and Bytes that are held for them: what comes beyond is answered with
	// 503. Those that are under way already may have a quarter more of Bytes, together.
	Requests int
	Bytes    int64
	// ReplayBytes bounds what of one request, its head included, is kept for another try, or
	// for mirrors. What is larger is sent once.
	ReplayBytes int
	// Idle connections to workloads, and IdlePerWorkload to one port of one, are kept.
	Idle, IdlePerWorkload int
	// Mirrors under way; what comes beyond is dropped.
	Mirrors int
}

// Timeouts bound what is waited for.
type Timeouts struct {
	// Header is for the first bytes of a connection, and for a request's head once it has begun.
	Header time.Duration
	// Hold is how long a client waits whose agent says that it dialled a service that is not
	// known of this waypoint: its agent may have been told of it first.
	Hold time.Duration
	// Sniff is how long a client may be silent on a port of which nobody says whether it
	// is HTTP: then it is taken for a protocol in which the server speaks first.
	Sniff time.Duration
	// Stall ends a client that does not send what it owes of a body, or takes nothing.
	Stall time.Duration
	// Idle ends a client's connection, IdleWorkload one to a workload, between two requests.
	Idle, IdleWorkload time.Duration
	// Connect bounds the time until a workload has accepted a connection, Mirror a whole copy.
	Connect, Mirror time.Duration
	// Drain is how long what is under way may go on when the waypoint is to end; DrainIdle when
	// connections without a request end.
	Drain, DrainIdle time.Duration
	// Leave and LeaveIdle are the same for the connections to a service that has this waypoint no
	// more. Leave is no longer than the Grace of agents, and LeaveIdle shorter by what a request
	// takes, so that the last one is answered.
	Leave, LeaveIdle time.Duration
}

// Defaults are bounds for a waypoint of one namespace.
func Defaults() (Limits, Timeouts) {
	return Limits{Connections: 50_000, Requests: 10_000, Bytes: 512 << 20, ReplayBytes: 64 << 10, Idle: 4096, IdlePerWorkload: 256, Mirrors: 512},
		Timeouts{Header: 10 * time.Second, Hold: time.Second, Sniff: 300 * time.Millisecond, Stall: time.Minute, Idle: 10 * time.Minute, IdleWorkload: time.Minute,
			Connect: 5 * time.Second, Mirror: 15 * time.Second, Drain: 30 * time.Second, DrainIdle: 5 * time.Second, Leave: 30 * time.Second, LeaveIdle: 20 * time.Second}
}

// Check says what is wrong with bounds: each that a waypoint cannot be without has to be more
// than 0.
func Check(l *Limits, t *Timeouts) error {
	var errs []error
	for _, b := range []struct {
		name string
		n    int64
	}{
		{"connections", int64(l.Connections)}, {"requests", int64(l.Requests)}, {"bytes", l.Bytes}, {"replay bytes", int64(l.ReplayBytes)},
		{"header timeout", int64(t.Header)}, {"stall timeout", int64(t.Stall)}, {"idle timeout", int64(t.Idle)}, {"connect timeout", int64(t.Connect)},
	} {
		if b.n <= 0 {
			errs = append(errs, fmt.Errorf("bound of %s: %d: want more than 0", b.name, b.n))
		}
	}
	return errors.Join(errs...)
}

// Most is how many bytes may be held for what is under way already: beyond Bytes nothing new is begun, and beyond Most what
// asks for more ends as well.
func (l *Limits) Most() int64 { return l.Bytes + l.Bytes/4 }

// Share is what one of n loops has of the limits.
func (l Limits) Share(n int) Limits {
	l.Connections, l.Requests, l.Bytes, l.Mirrors = max(1, l.Connections/n), max(1, l.Requests/n), max(1, l.Bytes/int64(n)), l.Mirrors/n
	l.Idle, l.IdlePerWorkload = max(1, l.Idle/n), max(1, l.IdlePerWorkload/n)
	return l
}

// Earlier is the first of two times, of which the zero one is never.
func Earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
