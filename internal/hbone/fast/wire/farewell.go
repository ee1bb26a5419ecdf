package wire

import (
	"time"

	"github.com/heddle-mesh/heddle/internal/eventloop"
)

// closeGrace is how long a peer that was told goodbye may take to say so, too.
const closeGrace = 250 * time.Millisecond

// Farewell is the time between a goodbye and the closing of the socket. A closed one
// answers what the peer says with a RST, which drops what the peer's kernel has not
// taken (net/ipv4/tcp_input.c, tcp_rcv_state_process). The zero value is ready.
type Farewell struct {
	// Owed says that every stream has ended in good order: the peer is to have all of it.
	Owed bool

	left  int // bytes, when the kernel was asked last
	since time.Time
}

// Begin calls over when the peer has had its time, on the timer t: closeGrace, and as long
// as it is owed something until its kernel has it, or has taken nothing for so long.
func (f *Farewell) Begin(l *eventloop.Loop, t *eventloop.Timer, fd int, within time.Duration, over func()) {
	l.SetAfter(t, closeGrace, func() {
		if f.Owed && !f.isOver(eventloop.Unsent(fd), l.Now(), within) {
			f.Begin(l, t, fd, within, over)
			return
		}
		over()
	})
}

func (f *Farewell) isOver(left int, now time.Time, within time.Duration) bool {
	if left != f.left {
		f.left, f.since = left, now
	}
	return left == 0 || now.Sub(f.since) >= within
}
