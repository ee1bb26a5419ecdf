// Package window says how much peers may send: receive windows of a connection
// and its streams that tune themselves to the path, within a pod's budget of
// memory. And it says how much streams send in a turn of their loop. It is
// arithmetic: it reads and sends nothing, and knows no connection.
//
// Everything belongs to one goroutine at a time.
package window

import (
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
)

const (
	// firstStreamWindow and firstConnectionWindow are what windows begin with, in
	// bytes, if they may become as large.
	firstStreamWindow     = 256 << 10
	firstConnectionWindow = 1 << 20
	// leastStreamWindow is a full frame: what a pod's budget never takes.
	leastStreamWindow = h2.MaxFrame
	// A stream's first window is a budget's part, so that many slow readers do
	// not use it up; the largest one is another, so that one alone does not.
	firstPart, largestPart = 128, 8
	// measureEvery is how long a measured round trip is believed while streams
	// are busy. It keeps PINGs far below what peers take for a flood.
	measureEvery = time.Second
	// usedUpWithin is the round trips below which a window holds its sender back.
	usedUpWithin = 4
)

// pace is how fast a window is used. It is no part of a connection's value: a
// process that goes on with one begins to measure anew.
type pace struct {
	since time.Time
	bytes int64 // given back since
}

// leap is how many times larger a window becomes at most, at once, of one that is far
// too small. BBR takes the little that a sender may send for what the path carries
// while it makes up for a loss (net/ipv4/tcp_rate.c, tcp_rate_check_app_limited), and
// believes that for long: a window that doubles in each round trip costs more than it
// keeps small.
const leap = 16

// short says how many times larger, a power of two, a window of the given size should
// be; 1 is for one that does not hold its sender back: one that is used up in less
// than four round trips does. Two are for the half that may be
// on its way while the permission for the rest is on its way back, and two for
// losses: each keeps what came behind it from the reader for a round trip or more,
// and on a path that loses a hundredth there is one in most windows.
func (p *pace) short(size, n int64, now time.Time, rtt time.Duration) (times int64) {
	if p.count(n, now); p.bytes < size/2 {
		return 1
	}
	took := float64(now.Sub(p.since)) * float64(size) / float64(p.bytes)
	p.begin(now)
	for times = 1; times < leap && float64(times)*took < usedUpWithin*float64(rtt); {
		times *= 2
	}
	return times
}

// grown is how much a window of the given size grows by to be so many times larger, as
// far as that is within most and the share of the budget. More than double is for a
// share of which as much again is left: what grows at once may not need it.
func grown(size, times, most int64, memory *hbone.Memory, share hbone.Share) int64 {
	for ; times > 1; times /= 2 {
		more := (times - 1) * size
		switch {
		case times*size > most:
		case times == 2:
			if memory.Promise(share, more) {
				return more
			}
		case memory.Promise(share, 2*more):
			memory.Keep(share, -more)
			return more
		}
	}
	return 0
}

func (p *pace) begin(now time.Time) { p.since, p.bytes = now, 0 }

// count counts n bytes, but for the first: nobody knows how long these took.
func (p *pace) count(n int64, now time.Time) {
	if p.since.IsZero() {
		p.begin(now)
		return
	}
	p.bytes += n
}

// Path is what a connection knows of the way to its peer and back, the peer's
// own work included.
type Path struct {
	// RTT is 0 when it is unknown.
	RTT     time.Duration
	asked   time.Time // when a PING left last
	waiting bool      // for its answer
}

// Ask says whether it is time for a PING, which then leaves.
func (p *Path) Ask(now time.Time) bool {
	if p.waiting || now.Sub(p.asked) < measureEvery {
		return false
	}
	p.asked, p.waiting = now, true
	return true
}

// Answered is the answer. What the peer had queued before it makes it later
// than the path does: less is believed at once, more slowly.
func (p *Path) Answered(now time.Time) {
	if !p.waiting {
		return
	}
	p.waiting = false
	if took := max(now.Sub(p.asked), time.Microsecond); p.RTT == 0 || took < p.RTT {
		p.RTT = took
	} else {
		p.RTT += (took - p.RTT) / 8
	}
}

// Connection is a connection's receive window, and what its streams' have in
// common.
type Connection struct {
	h2.Window
	Path Path
	// First is what a stream's window begins with, as the peer knows it.
	First int64
	// Acked says that it does. Streams may have 65,535 bytes before that (RFC 9113
	// section 6.9.3).
	Acked bool
	// Late is how many bytes the peer may have on their way on streams that have ended
	// before it said that it was through, in frames as small as its programs write.
	Late int64

	memory        *hbone.Memory
	most, largest int64 // what the window, and a stream's, may become
	pace          pace
	held          int64 // that the budget knows of
	waiting       bool  // for the budget
}

// New is for a connection of a pod with the given budget, nil for none. Windows
// grow up to what is given, in bytes. The connection's own is that of every
// connection (RFC 9113 section 6.9.2) until Open.
func New(memory *hbone.Memory, stream, connection int32) Connection {
	w := Connection{Window: h2.NewWindow(h2.DefaultWindow), memory: memory, most: int64(connection), largest: int64(stream)}
	w.First = min(w.largest, firstStreamWindow)
	if limit := memory.Limit(); limit > 0 {
		w.First = min(w.First, max(leastStreamWindow, limit/firstPart))
		w.largest = min(w.largest, max(w.First, limit/largestPart))
	}
	return w
}

// Open gives the window its first size, and returns the increment to send.
func (w *Connection) Open() uint32 {
	more := min(w.most, firstConnectionWindow) - h2.DefaultWindow
	if more <= 0 || !w.memory.Promise(hbone.Connections, more) {
		return 0
	}
	w.Window = h2.NewWindow(h2.DefaultWindow + more)
	return uint32(more)
}

// Thaw goes on with windows that were promised in another process.
func (w *Connection) Thaw(window h2.Window, first, late int64, acked bool) {
	w.Window, w.First, w.Late, w.Acked = window, first, late, acked
	w.memory.Keep(hbone.Connections, max(0, w.Size-h2.DefaultWindow))
}

// Leave takes everything back from the budget, but for what is held.
func (w *Connection) Leave() {
	w.memory.Leave(w)
	w.memory.Keep(hbone.Connections, -max(0, w.Size-h2.DefaultWindow))
}

// IsLate takes DATA of so many bytes on a stream that is over, and says whether it may
// have been on its way.
func (w *Connection) IsLate(n int64) bool {
	if n == 0 || n > w.Late {
		return false
	}
	w.Late -= n
	return true
}

// IsDue says that Grant is worth a frame, and that nobody waits to call it.
func (w *Connection) IsDue() bool { return w.Owed >= w.Size/4 && !w.waiting }

// IsFull says that the budget is used up; Wait then calls again, from anywhere,
// when it is not any more, unless it is not by now: it returns false then.
func (w *Connection) IsFull() bool { return w.memory.Full() }

// Wait waits for the budget; Granted is the end of that.
func (w *Connection) Wait(again func()) bool {
	w.waiting = w.memory.Wait(w, again)
	return w.waiting
}

// Granted is the end of Wait.
func (w *Connection) Granted() { w.waiting = false }

// Grant returns the increment to send. The window grows when it holds the peer
// back.
func (w *Connection) Grant(now time.Time, rtt time.Duration) uint32 {
	times := w.pace.short(w.Size, w.Owed, now, rtt)
	w.Grow(grown(w.Size, times, w.most, w.memory, hbone.Connections))
	return w.Give(0)
}

// Hold tells the budget what the connection itself holds, in bytes.
func (w *Connection) Hold(n int) { w.hold(&w.held, n) }

// hold changes what the budget knows of somebody.
func (w *Connection) hold(known *int64, n int) {
	change := int64(n) - *known
	*known = int64(n)
	if change > 0 {
		w.memory.Take(change)
	} else if change < 0 {
		w.memory.Give(-change)
	}
}

// Stream is a stream's receive window.
type Stream struct {
	h2.Window
	pace   pace
	held   int64     // that the budget knows of
	behind time.Time // since when more than half of the window waits for the reader; like pace, no part of its value
}

// NewStream is the window of a new stream.
func (w *Connection) NewStream() Stream {
	s := Stream{Window: h2.NewWindow(w.First)}
	if !w.Acked {
		s.Available = max(s.Available, h2.DefaultWindow)
	}
	return s
}

// ThawStream goes on with a stream's window from another process.
func (w *Connection) ThawStream(window h2.Window) Stream {
	s := Stream{Window: window}
	w.memory.Keep(hbone.Streams, s.Size-w.First)
	return s
}

// Leave takes back, at the stream's end, what its window was promised. Open says that the
// peer may still use it.
func (s *Stream) Leave(w *Connection, open bool) {
	if open {
		w.Late = min(w.Late+s.Available, w.Size)
	}
	w.memory.Keep(hbone.Streams, w.First-s.Size)
	s.Size = w.First
}

// shrink keeps some of n bytes that are free again, and returns the others.
func (s *Stream) shrink(w *Connection, n int64) int64 {
	before := s.Size
	n = s.Shrink(n, w.First)
	w.memory.Keep(hbone.Streams, s.Size-before)
	return n
}

// Hold tells the budget what the stream's local socket has not taken.
func (s *Stream) Hold(w *Connection, n int) { w.hold(&s.held, n) }

// Consumed returns the increment to send for what the local socket has taken;
// more waits for it, or not. The window grows when it is what holds the peer
// back, and the reader keeps up: nothing waits for it. It shrinks to what it
// began with while much does for longer than a burst: what comes behind a lost
// segment comes at once, and the reader has to catch up with it.
func (s *Stream) Consumed(w *Connection, n int64, waits bool, now time.Time) uint32 {
	late := s.isLate(now, w.Path.RTT)
	switch {
	case waits:
		if s.pace.count(n, now); late {
			n = s.shrink(w, n)
		}
	default:
		times := s.pace.short(s.Size, n, now, w.Path.RTT)
		s.Grow(grown(s.Size, times, w.largest, w.memory, hbone.Streams))
	}
	return s.Give(n)
}

// isLate says that more than half of the window has waited for the reader while it
// should have been used up.
func (s *Stream) isLate(now time.Time, rtt time.Duration) bool {
	if s.held <= s.Size/2 {
		s.behind = time.Time{}
		return false
	}
	if s.behind.IsZero() {
		s.behind = now
	}
	return now.Sub(s.behind) >= usedUpWithin*rtt
}
