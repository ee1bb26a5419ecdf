package tunnel

import (
	"net/http"
	"syscall"
	"time"

	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/window"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/wire"
	"github.com/heddle-mesh/heddle/internal/hbone/flood"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
)

// minRead is the least room in a record for which reading is worth it.
const minRead = 2 << 10

// Stream is one CONNECT stream with its local socket.
type Stream struct {
	conn  *Conn
	owner Owner
	id    uint32
	local wire.Socket

	sendWindow     int64
	recv           window.Stream
	sent, received uint64
	progress       *hbone.Counters
	place          window.Place
	last           *eventloop.Timer // of lastWords, of finished and of fated
	fate           error            // of a stream that the peer has reset, which ends so
	fatedBy        time.Time

	flags
}

type flags struct {
	answered   bool // 200 was sent or received
	accepting  bool // the owner has not decided on it
	placed     bool // counts against the limit of streams
	recvEnd    bool // END_STREAM came
	sentEnd    bool // END_STREAM is written
	resetKnown bool // RST_STREAM was sent or received, or need not be
	blocked    bool // in the connection's list
	delivering bool // in the loop's list
	finishing  bool
	parting    bool // the peer wants no more: what the program sends is not read
	exposed    bool // the application may have what was sent before the peer's 200
	alone      bool // its connection is lost: its delivery is all that is left
	repeated   bool // elsewhere: its owner hears no more of it
	dead       bool
}

func (c *Conn) newStream(id uint32) *Stream {
	s := &Stream{conn: c, id: id, local: wire.None(), sendWindow: c.flow.initial, recv: c.flow.recv.NewStream()}
	c.lastID = id
	c.streams[id] = s
	c.loop.Clear(&c.life.idle)
	return s
}

// Open sends a CONNECT with the given header block, and what the program has said
// already on its socket, which stays its owner's. It returns nil when the
// connection was lost meanwhile: the owner has been told then.
func (c *Conn) Open(block []byte, owner Owner, local syscall.Conn) *Stream {
	id := uint32(1)
	if c.lastID > 0 {
		id = c.lastID + 2
	}
	s := c.newStream(id)
	s.owner = owner
	c.headers(0, id, block)
	s.sendEarly(local)
	if s.dead {
		return nil
	}
	return s
}

// Conn is the stream's connection.
func (s *Stream) Conn() *Conn { return s.conn }

// Attach gives an answered stream its local socket, which it owns from then on.
// It fails the stream when it cannot. What can be read there, the loop tells.
func (s *Stream) Attach(fd int, progress *hbone.Counters, cutter *hbone.Cutter) {
	early, err := s.local.Discard(fd, s.conn.loop.scratch)
	if err != nil {
		eventloop.Abort(fd)
		s.LocalFailed(err)
		return
	}
	s.local.FD, s.progress = fd, progress
	s.sentBytes(early)
	if err := s.conn.loop.Register(fd, s); err != nil {
		s.LocalFailed(err)
		return
	}
	s.bind(cutter)
}

// bind lets a cutter end the stream.
func (s *Stream) bind(cutter *hbone.Cutter) {
	cutter.Bind(func(cause error) {
		s.conn.loop.Post(func() { s.Fail(cause, http2.ErrCodeCancel) }) // a stopped loop has no streams
	})
}

// Decided says that the owner has made up its mind about a stream that the peer
// opened. It returns false when that comes too late.
func (s *Stream) Decided() bool {
	s.accepting = false
	s.conn.deciding--
	if !s.dead {
		return true
	}
	s.unplace()
	s.conn.endIfDrained()
	return false
}

// Accept answers 200 and gives the stream its local socket, as Attach does.
func (s *Stream) Accept(fd int, progress *hbone.Counters, cutter *hbone.Cutter) {
	if s.Attach(fd, progress, cutter); s.dead {
		return
	}
	s.answered = true
	s.conn.headers(0, s.id, h2.AppendStatus(make([]byte, 0, 8), http.StatusOK))
	s.deliverPending()
}

// Refuse answers with another status, and ends the stream.
func (s *Stream) Refuse(status int, err error) {
	s.conn.headers(http2.FlagHeadersEndStream, s.id, h2.AppendStatus(nil, status))
	if !s.recvEnd {
		// The peer need not go on with its half (RFC 9113 section 8.1).
		s.conn.resetStream(s.id, http2.ErrCodeNo)
	}
	s.resetKnown = true
	s.end(err)
	if err := s.conn.guard.Spend(flood.Reset); err != nil {
		s.conn.failRead(err)
	}
}

// Ready implements eventloop.Source.
func (s *Stream) Ready(e eventloop.Events) {
	if s.local.Event(e); s.local.IsBroken() {
		s.lastWords()
	}
	if e.Writable() && s.local.Waits() {
		s.deliverPending()
	}
	if e.Readable() {
		s.conn.loop.queueStream(s)
	}
}

// retry looks again whether there is something to send, after a change of the
// stream's window.
func (s *Stream) retry() {
	if s.answered && !s.sentEnd {
		s.conn.loop.queueStream(s)
	}
}

// Place implements window.Reader.
func (s *Stream) Place() *window.Place { return &s.place }

// Read implements window.Reader: it reads from the local socket straight into the
// connection's open record, and into those behind it. What is left of most is less
// than minRead when there is more.
func (s *Stream) Read(most int) (took int, more bool) {
	c := s.conn
	for most-took >= minRead {
		if s.dead || c.resting || !s.local.IsOpen() || !s.answered || s.sentEnd || c.out.closing {
			return took, false
		}
		if c.out.Queued() > 0 || c.flow.send <= 0 || s.sendWindow <= 0 {
			return took, s.wait(took)
		}
		room := c.room(h2.HeaderBytes + minRead)
		if c.closed || c.out.Queued() > 0 {
			continue // making room met a full socket
		}
		k, more, errno := s.readInto(room, most-took)
		switch {
		case errno == syscall.EAGAIN:
			return took, false
		case errno != 0:
			s.LocalFailed(errno)
			return took, false
		case k == 0:
			s.localEnded()
			return took, false
		}
		s.sentBytes(k)
		if took += k; !more {
			return took, false // drained: the next bytes are a new edge
		}
	}
	return took, true
}

// wait is for a window, or for the peer's socket; true is for the next turn. END_STREAM
// needs no window (RFC 9113 section 6.9.1).
func (s *Stream) wait(took int) bool {
	queued := s.conn.out.Queued() > 0
	switch {
	case !queued && s.local.IsAtEnd():
		s.localEnded()
	case !queued && s.sendWindow <= 0: // WINDOW_UPDATE tries again
	case took > 0:
		return true // and waits behind those that had nothing yet
	case !s.blocked:
		s.blocked = true
		s.conn.flow.blocked = append(s.conn.flow.blocked, s)
	}
	return false
}

// localEnded is the end of what can be read.
func (s *Stream) localEnded() {
	if errno := s.local.Reset(); errno != 0 {
		s.LocalFailed(errno)
		return
	}
	s.sendEnd()
}

// readInto reads up to so many bytes, a message into the room, of a large flow
// as much as the buffer under work takes, at once.
func (s *Stream) readInto(room []byte, most int) (n int, more bool, errno syscall.Errno) {
	if !s.place.IsLarge() {
		if n, more, errno = s.local.Read(room[h2.HeaderBytes:][:s.most(room)]); n > 0 {
			s.data(room, n)
		}
		return n, more, errno
	}
	c := s.conn
	c.life.estimate.Busy(c.fd, c.loop.Now(), c.flow.recv.Path.RTT)
	b := &c.loop.Buffers
	n, more, errno = s.local.ReadInto(b, &c.out.Output, h2.HeaderBytes, int(min(int64(most), s.sendWindow, c.flow.send)))
	for left := n; left > 0; {
		room = c.room(h2.HeaderBytes + 1)
		k := min(left, len(room)-h2.HeaderBytes)
		s.data(room, k)
		left -= k
	}
	return n, more, errno
}

// most is how many bytes a DATA frame in the room may have.
func (s *Stream) most(room []byte) int {
	return int(min(int64(min(len(room)-h2.HeaderBytes, h2.MaxFrame)), s.sendWindow, s.conn.flow.send))
}

// data sends a frame whose n bytes are in the room already.
func (s *Stream) data(room []byte, n int) {
	c := s.conn
	h2.Frame(room, http2.FrameData, 0, s.id, n)
	c.out.Wrote(h2.HeaderBytes + n)
	c.flow.sent += flood.Updates(n)
	s.sendWindow -= int64(n)
	c.flow.send -= int64(n)
}

// sentBytes counts what has left the local socket.
func (s *Stream) sentBytes(n int) {
	if s.sent += uint64(n); s.progress != nil && n > 0 {
		s.progress.Sent.Store(s.sent)
	}
}

func (s *Stream) sendEnd() {
	s.conn.frame(http2.FrameData, http2.FlagDataEndStream, s.id, nil)
	s.conn.flow.sent += flood.Updates(0)
	s.sentEnd = true
	s.settle()
}

// receive takes a part of a DATA frame. What the socket can have at once is
// written at the end of the read, without a copy.
func (s *Stream) receive(p []byte) {
	if s.dead {
		return
	}
	s.local.Take(&s.conn.loop.Buffers, p)
	s.account()
	s.deliverLater()
}

func (s *Stream) deliverLater() {
	if !s.delivering {
		s.delivering = true
		s.conn.loop.delivering = append(s.conn.loop.delivering, s)
	}
}

func (s *Stream) receiveEnd() {
	s.recvEnd = true
	s.unplace()
	s.deliverLater()
}

// deliver writes what this turn brought.
func (s *Stream) deliver() {
	s.delivering = false
	if s.dead {
		return
	}
	s.delivered(s.local.Write(&s.conn.loop.Buffers, s.recvEnd))
}

func (s *Stream) deliverPending() { s.delivered(s.local.WriteWaiting(&s.conn.loop.Buffers)) }

// delivered is what the local socket took, or why it did not.
func (s *Stream) delivered(n int, errno syscall.Errno) {
	s.account()
	s.receivedBytes(n)
	if errno != 0 {
		s.local.Break(&s.conn.loop.Buffers)
		s.lastWords()
		return
	}
	s.settle()
}

func (s *Stream) receivedBytes(n int) {
	if s.received += uint64(n); s.progress != nil && n > 0 {
		s.progress.Received.Store(s.received)
	}
	s.consumed(int64(n))
}

// Outcome is how an answered stream ended, or stands.
func (s *Stream) Outcome(err error, t hbone.Timing) hbone.Outcome {
	o := hbone.Outcome{Err: err, Sent: s.sent, Received: s.received, Timing: t}
	if !s.conn.closed {
		o.Path = s.conn.life.path.Of(s.conn.fd, s.conn.loop.Now())
	}
	return o
}
