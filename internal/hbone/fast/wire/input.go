package wire

import (
	"syscall"
	"time"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
	"github.com/heddle-mesh/heddle/internal/hbone/tlsrecord"
)

// Input is the way in: what a socket has, cut into records and opened in place.
// Between two turns it holds memory only for what has begun and not ended: a
// record, a handshake message, a frame or a header.
type Input struct {
	// Parser reads the frames in what Next returns.
	Parser h2.Parser

	buffers *Buffers
	session *tlsrecord.Session
	fd      int
	partial []byte // the beginning of a record
	rest    []byte // of this turn: not opened yet
	whole   uint32 // records that have ended, and no handshake message went on

	record, frame begun
}

// NewInput reads from a socket, which stays its owner's.
func NewInput(b *Buffers, s *tlsrecord.Session, fd int, p h2.Parser) Input {
	return Input{Parser: p, buffers: b, session: s, fd: fd}
}

// begun is since when something is known to have begun and not ended.
type begun struct {
	whole uint32
	since time.Time
}

// isLate is asked now and then: before is how many have ended before it.
func (b *begun) isLate(unfinished bool, before uint32, now time.Time, within time.Duration) bool {
	switch {
	case !unfinished:
		b.since = time.Time{}
	case b.since.IsZero() || b.whole != before:
		b.whole, b.since = before, now
	}
	return unfinished && now.Sub(b.since) >= within
}

// IsLate is asked now and then, and says whether the peer has had so long, since it
// was asked first, for the end of what it has begun.
func (in *Input) IsLate(now time.Time, within time.Duration) bool {
	unfinished, before := in.Parser.Unfinished()
	record := in.record.isLate(in.isInRecord(), in.whole, now, within)
	return in.frame.isLate(unfinished, before, now, within) || record
}

// Ages are for how long a frame, or header, and a record have had no end, as IsLate
// counts; 0 of what has ended.
func (in *Input) Ages(now time.Time) (frame, record time.Duration) {
	in.IsLate(now, 0) // takes note of what began since it was asked
	return in.frame.age(now), in.record.age(now)
}

// Age makes what Store and the parser have begun as old as another process's Ages.
func (in *Input) Age(now time.Time, frame, record time.Duration) {
	in.IsLate(now, 0)
	in.frame.makeOlder(frame)
	in.record.makeOlder(record)
}

func (b *begun) age(now time.Time) time.Duration {
	if b.since.IsZero() {
		return 0
	}
	return now.Sub(b.since)
}

func (b *begun) makeOlder(age time.Duration) {
	if !b.since.IsZero() {
		b.since = b.since.Add(-age)
	}
}

func (in *Input) isInRecord() bool { return len(in.partial) > 0 || in.session.Held() > 0 }

// Read reads into scratch, which Next then uses. Full says that there may be
// more to read.
func (in *Input) Read(scratch []byte) (n int, full bool, errno syscall.Errno) {
	have := copy(scratch, in.partial)
	if n, errno = eventloop.Read(in.fd, scratch[have:]); errno != 0 {
		return 0, false, errno
	}
	in.rest = scratch[:have+n]
	return n, have+n == len(scratch), 0
}

// Next returns the next record's data, which may be empty; false when there is
// no whole record.
func (in *Input) Next() (data []byte, ok bool, err error) {
	n, ok, err := tlsrecord.Length(in.rest)
	if err != nil || !ok || n > len(in.rest) {
		return nil, false, err
	}
	record := in.rest[:n]
	in.rest = in.rest[n:]
	if data, err = in.session.Open(record); in.session.Held() == 0 {
		in.whole++
	}
	return data, err == nil, err
}

// Keep ends the turn: it saves the beginning of a record for the next Read.
func (in *Input) Keep() {
	in.Store(in.rest)
	in.rest = nil
}

// Store is Keep for bytes that came from another process.
func (in *Input) Store(p []byte) {
	if len(p) == 0 {
		in.drop()
		return
	}
	if in.partial == nil {
		in.partial = in.buffers.Chunk()
	}
	in.partial = in.partial[:cap(in.partial)]
	in.partial = in.partial[:copy(in.partial, p)]
}

// Append appends what Keep has saved.
func (in *Input) Append(b []byte) []byte { return append(b, in.partial...) }

// Free drops everything, and what was not opened.
func (in *Input) Free() {
	in.rest = nil
	in.Parser.Free()
	in.drop()
}

func (in *Input) drop() {
	if in.partial != nil {
		in.buffers.PutChunk(in.partial)
		in.partial = nil
	}
}

// Held is the number of bytes of memory of what has begun and not ended.
func (in *Input) Held() int { return cap(in.partial) + in.Pieces() }

// Pieces is Held without the record, which all senders cut as they like: honest ones
// hardly ever cut what is left.
func (in *Input) Pieces() int { return in.Parser.Held() + in.session.Held() }
