package wire

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/eventloop"
)

// Socket is the end of a stream that a program or an application holds: it is
// written to in one call for each turn, and what it does not take waits. None is one that
// is not there yet; what it is given meanwhile waits.
type Socket struct {
	// FD is -1 as long as there is none.
	FD int
	// FinSent says that all was delivered, and a FIN after it.
	FinSent bool

	ended   bool             // the other end will send no more
	urgent  bool             // reads may end short at urgent data
	errored bool             // there is an error to be asked for
	closed  bool             // it has broken, whoever took the error
	early   int              // bytes that Peek has seen and Discard has not
	vector  eventloop.Vector // of this turn
	pending Pending          // what the socket has not taken
}

// None is no socket yet.
func None() Socket { return Socket{FD: -1} }

// IsOpen says whether there is a socket.
func (s *Socket) IsOpen() bool { return s.FD >= 0 }

// Event takes note of what happened. A socket of which both directions have just
// ended hangs up too, without being broken.
func (s *Socket) Event(e eventloop.Events) {
	s.ended, s.urgent = s.ended || e.Ended(), s.urgent || e.Urgent()
	s.errored = s.errored || e&unix.EPOLLERR != 0
	s.closed = s.closed || e&unix.EPOLLHUP != 0 && !s.FinSent
}

// IsBroken says that the other end takes no more: what it said before can still
// be read (net/ipv4/tcp_input.c, tcp_reset), what it is given is dropped.
func (s *Socket) IsBroken() bool { return s.errored || s.closed }

// Break is IsBroken from now on, for who has found out by writing.
func (s *Socket) Break(b *Buffers) {
	s.closed = true
	s.Free(b)
}

// Reset is why the socket is broken, 0 when it is not. It is asked when nothing is
// read any more: the error that it takes is what tells the end of reading from a
// FIN.
func (s *Socket) Reset() (errno syscall.Errno) {
	if s.errored {
		errno = eventloop.SocketError(s.FD)
	}
	if errno == 0 && s.closed {
		errno = syscall.ECONNRESET
	}
	return errno
}

// IsAtEnd says that reading would find the end now: the other end will send no more,
// and all that it has sent is read.
func (s *Socket) IsAtEnd() bool {
	if !s.ended {
		return false
	}
	var one [1]byte
	n, errno := eventloop.Receive(s.FD, one[:], unix.MSG_PEEK)
	return n == 0 && errno == 0
}

// Read reads into p. More says that there may be something left that gives no
// new event.
func (s *Socket) Read(p []byte) (n int, more bool, errno syscall.Errno) {
	n, errno = eventloop.Read(s.FD, p)
	if errno == syscall.EAGAIN {
		s.urgent = false // it was passed
	}
	return n, n == len(p) || s.ended || s.urgent, errno
}

// ReadInto is Read of up to n bytes into an output's open record and the ones
// behind it, with a gap before each part for the header of its frame.
func (s *Socket) ReadInto(b *Buffers, o *Output, gap, n int) (got int, more bool, errno syscall.Errno) {
	v := b.Vector()
	o.places(&v, gap, n)
	room := 0
	for i := range v {
		room += len(v.Slice(i))
	}
	if got, errno = eventloop.ReadVector(s.FD, v); errno == syscall.EAGAIN {
		s.urgent = false // it was passed
	}
	b.PutVector(v)
	return got, got == room || s.ended || s.urgent, errno
}

// Take takes bytes to be written: those that no others wait for must stay as
// they are until the turn's Write.
func (s *Socket) Take(b *Buffers, p []byte) {
	if s.IsBroken() {
		return
	}
	if !s.IsOpen() || s.Waits() {
		s.pending.Store(b, p)
		return
	}
	if s.vector == nil {
		s.vector = b.Vector()
	}
	s.vector.Add(p)
}

// Store takes bytes that wait already.
func (s *Socket) Store(b *Buffers, p []byte) { s.pending.Store(b, p) }

// Waits says that the socket has not taken everything.
func (s *Socket) Waits() bool { return !s.pending.IsEmpty() }

// Held is the memory of what waits, in bytes.
func (s *Socket) Held() int { return s.pending.Held() }

// Append appends what waits.
func (s *Socket) Append(b []byte) []byte { return s.pending.Append(b) }

// Write writes what this turn brought, and keeps a copy of what the socket does
// not take. Last says that Finish or Close follows at once: a message and the FIN
// then go as one segment, for which the other end wakes once.
func (s *Socket) Write(b *Buffers, last bool) (written int, errno syscall.Errno) {
	v := s.vector
	if v == nil {
		return 0, 0
	}
	s.vector = nil
	if last && len(v) == 1 {
		if written, errno = eventloop.WriteBefore(s.FD, v.Slice(0)); errno == 0 && written < len(v.Slice(0)) {
			errno = syscall.EAGAIN
		}
	} else {
		written, errno = eventloop.WriteVector(s.FD, v)
	}
	if errno == syscall.EAGAIN {
		skip := written
		for i := range v {
			p := v.Slice(i)
			n := min(skip, len(p))
			skip -= n
			s.pending.Store(b, p[n:])
		}
		errno = 0
	}
	b.PutVector(v)
	return written, errno
}

// WriteWaiting writes what waits.
func (s *Socket) WriteWaiting(b *Buffers) (int, syscall.Errno) { return s.pending.Write(b, s.FD) }

// Free drops everything that was not written.
func (s *Socket) Free(b *Buffers) {
	if s.vector != nil {
		b.PutVector(s.vector)
		s.vector = nil
	}
	s.pending.Free(b)
}

// Finish sends a FIN, once, when nothing waits. It leaves that to Close, which
// follows when the stream is over: nothing is unread then that would make a RST
// of it.
func (s *Socket) Finish(over bool) error {
	if s.FinSent || s.Waits() || s.IsBroken() {
		return nil
	}
	if s.FinSent = true; over {
		return nil
	}
	return eventloop.CloseWrite(s.FD)
}

// IsTaken says that the other end's kernel has everything, or takes no more. Fin sends
// one behind it, if there was none.
func (s *Socket) IsTaken(fin bool) bool {
	if fin && s.IsOpen() && s.vector == nil && s.Finish(false) != nil {
		s.closed = true
	}
	return !s.IsOpen() || s.IsBroken() || !s.Waits() && s.vector == nil && eventloop.Unsent(s.FD) == 0
}

// Close closes the socket, if it is open: in good order, or with a RST.
func (s *Socket) Close(l *eventloop.Loop, orderly bool) {
	if !s.IsOpen() {
		return
	}
	l.Forget(s.FD)
	if orderly {
		eventloop.CloseSocket(s.FD)
	} else {
		eventloop.Abort(s.FD)
	}
}
