package wire

import (
	"syscall"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone/tlsrecord"
)

// Input is the way in: what a socket has, cut into records and opened in place.
// Between two turns it holds a buffer only while there is half a record.
type Input struct {
	buffers *Buffers
	session *tlsrecord.Session
	fd      int
	partial []byte // the beginning of a record
	rest    []byte // of this turn: not opened yet
}

// NewInput reads from a socket, which stays its owner's.
func NewInput(b *Buffers, s *tlsrecord.Session, fd int) Input {
	return Input{buffers: b, session: s, fd: fd}
}

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
	data, err = in.session.Open(record)
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
		in.Free()
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

// Free drops it, and what was not opened.
func (in *Input) Free() {
	in.rest = nil
	if in.partial != nil {
		in.buffers.PutChunk(in.partial)
		in.partial = nil
	}
}

// Held is the number of bytes of its buffer.
func (in *Input) Held() int { return cap(in.partial) }
