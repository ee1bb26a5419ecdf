package tunnel

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/wire"
)

// lastWordsWithin bounds how long the last bytes of an end that has broken wait for
// the other one to take them: the peer, or the local socket.
const lastWordsWithin = 3 * time.Second

// partingEvery is how often the kernel is asked whether the local socket's other end
// has taken the last bytes, of which it tells nobody.
const partingEvery = 20 * time.Millisecond

// lastWords lets the application's last bytes out before the stream ends for a
// broken local socket: reading meets the error behind them. When nobody reads any
// more, that is now; when the peer takes nothing, it is soon.
func (s *Stream) lastWords() {
	s.local.Free(&s.conn.loop.Buffers) // nobody takes it
	s.account()
	switch {
	case s.dead:
	case s.sentEnd || !s.answered:
		if errno := s.local.Reset(); errno != 0 {
			s.LocalFailed(errno)
		}
	case s.last == nil:
		s.after(lastWordsWithin, func() { s.LocalFailed(syscall.ECONNRESET) })
		s.conn.loop.queueStream(s)
	}
}

// LocalFailed ends the stream for an error of its local socket.
func (s *Stream) LocalFailed(err error) {
	s.Fail(fmt.Errorf("%w: by the local end: %w", hbone.ErrReset, err), http2.ErrCodeConnect)
}

// settle carries END_STREAM over as a FIN when everything before it is
// delivered, and ends the stream when both directions have. Our own END_STREAM
// must have left for that.
func (s *Stream) settle() {
	if s.dead || !s.local.IsOpen() {
		return
	}
	if s.fate != nil {
		s.fated()
		return
	}
	over := s.sentEnd && (s.alone || s.conn.out.IsEmpty())
	if s.recvEnd {
		if err := s.local.Finish(over && !s.parting); err != nil {
			s.local.Break(&s.conn.loop.Buffers)
			s.lastWords()
			return
		}
	}
	s.unplace()
	if s.local.FinSent && s.sentEnd && !s.finishing {
		if s.finishing = true; over {
			s.finished()
			return
		}
		s.conn.out.finishing = append(s.conn.out.finishing, s)
		s.conn.touch()
	}
}

// finished is the end in good order. Closing drops what a program has not taken,
// with a RST, when something of its own is unread (net/ipv4/tcp.c, __tcp_close).
func (s *Stream) finished() {
	switch {
	case s.dead || s.fate != nil || s.conn.resting && s.conn.atRest(s.finished):
	case s.parting && !s.local.IsTaken(false):
		s.after(partingEvery, s.finished)
	default:
		s.end(nil)
	}
}

// fated ends a stream that the peer has reset, when the local socket's other end has
// what came before that, or has had its time: without a tunnel it would be in the
// receiver's queue, where a RST leaves it (net/ipv4/tcp_input.c, tcp_reset). A RST
// of ours drops what is still in our own.
func (s *Stream) fated() {
	if s.local.IsTaken(s.parting) || !s.conn.loop.Now().Before(s.fatedBy) {
		s.end(s.fate)
		return
	}
	s.after(partingEvery, s.fated)
}

func (s *Stream) after(d time.Duration, do func()) {
	if s.last == nil {
		s.last = &eventloop.Timer{}
	}
	s.conn.loop.SetAfter(s.last, d, do)
}

// Fail ends the stream with a reset of both ends.
func (s *Stream) Fail(err error, code http2.ErrCode) {
	if s.dead || s.conn.atRest(func() { s.Fail(err, code) }) {
		return
	}
	if !s.resetKnown && !s.conn.out.closing && !s.conn.closed {
		s.conn.resetStream(s.id, code)
	}
	s.resetKnown = true
	s.end(err)
}

// end ends the stream: nil in good order, else with a RST to the local peer.
func (s *Stream) end(err error) {
	if s.dead {
		return
	}
	s.dead = true
	c := s.conn
	delete(c.streams, s.id)
	if c.data == s {
		c.data = nil
	}
	s.free()
	s.local.Close(c.loop.Loop, err == nil)
	s.unplace()
	if !s.repeated {
		s.owner.Ended(s, err)
	}
	c.endIfDrained()
}

// unplace gives the stream's place back once both of its directions have ended
// and the owner has decided.
func (s *Stream) unplace() {
	if s.placed && !s.accepting && (s.dead || s.recvEnd && s.sentEnd) {
		s.placed = false
		s.conn.flow.places--
	}
}

// elsewhere ends a stream that the peer has not processed: nothing of its
// payload is gone.
func (s *Stream) elsewhere(err error) {
	s.repeated = s.owner.Repeat(err)
	s.end(err)
}

// peerReset is a RST_STREAM: the end, behind what came before it.
func (s *Stream) peerReset(code http2.ErrCode) {
	if s.dead || s.fate != nil {
		return
	}
	if s.conn.client && !s.answered && code == http2.ErrCodeRefusedStream {
		s.exposed = false
		s.elsewhere(fmt.Errorf("%w: by the peer: %v", hbone.ErrLimit, code)) // RFC 9113 section 8.7
		return
	}
	if s.conn.client && s.recvEnd && code == http2.ErrCodeNo {
		s.sentEnd, s.parting = true, true // the answer is whole all the same (RFC 9113 section 8.1)
		s.settle()
		return
	}
	s.doom(wire.ResetError(s.conn.client, code))
}

// doom ends the stream with a reset of the local end, behind all that the peer has said.
func (s *Stream) doom(err error) {
	s.fate, s.fatedBy = err, s.conn.loop.Now().Add(lastWordsWithin)
	s.parting = s.recvEnd             // and its FIN
	s.sentEnd, s.recvEnd = true, true // nothing is read any more, no window given
	s.unplace()
	s.fated()
}

// connectionFailed ends the stream with its connection.
func (s *Stream) connectionFailed(err error) {
	s.resetKnown = true
	if s.conn.client && !s.answered && !s.exposed {
		s.elsewhere(err)
		return
	}
	if broken := errors.Is(err, hbone.ErrProtocol); broken && s.answered && s.recvEnd && !s.sentEnd {
		s.doom(err)
	}
	// The peer may close a connection whose streams have ended.
	if s.alone = s.alone || errors.Is(err, hbone.ErrProtocol) && s.undelivered(); s.alone {
		return
	}
	s.end(err)
}

// undelivered says that both ends have said their last, or the peer has reset the
// stream, and the local socket has yet to take some of it.
func (s *Stream) undelivered() bool {
	return s.fate != nil || s.recvEnd && s.sentEnd && (!s.local.FinSent || s.parting) && s.conn.out.IsEmpty()
}
