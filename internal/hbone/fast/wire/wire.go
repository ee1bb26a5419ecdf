// Package wire is the ways in and out of a tunnel connection. Input is the way
// from the peer: records are opened where they were read. Output is the way to
// it: frames are put together in the plaintext of a record, records are sealed
// in a row of pooled buffers, and as much leaves at once as the socket takes;
// what is sealed is never sealed again. A Socket is the way to a stream's local
// socket. They know no streams, and decide nothing.
//
// Buffers belong to a loop, everything else to the loop of its Buffers.
package wire

import (
	"encoding/binary"
	"syscall"
	"time"

	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
	"github.com/heddle-mesh/heddle/internal/hbone/tlsrecord"
)

const (
	// recordBytes is a full record with its overhead.
	recordBytes = tlsrecord.MaxPlaintext + tlsrecord.Overhead
	// outBytes is room for eight records, each behind a KeyUpdate at worst.
	outBytes = 8 * (recordBytes + tlsrecord.UpdateBytes)
	// chunkBytes holds what a slow reader has not taken, or the beginning of a
	// record, mediumBytes and smallBytes less of the former.
	chunkBytes, mediumBytes, smallBytes = 17 << 10, 4 << 10, 512
	// maxFree bounds each of a loop's lists of free buffers, maxFreeOuts that of
	// the large ones.
	maxFree, maxFreeOuts = 64, 16
	// maxVector bounds the slices that a free vector has room for.
	maxVector = 1024
)

// Buffers are a loop's free buffers; the zero value is ready.
type Buffers struct {
	outs    [][]byte
	chunks  [3][][]byte // by size, the smallest first
	vectors []eventloop.Vector
}

// Chunk returns a buffer of 17 KiB, with any content.
func (b *Buffers) Chunk() []byte { return b.chunk(chunkBytes) }

// PutChunk takes one back.
func (b *Buffers) PutChunk(p []byte) {
	class, _ := classOf(cap(p))
	put(&b.chunks[class], maxFree, p)
}

// chunk returns a buffer that n bytes fit in, or as many as fit in the largest.
func (b *Buffers) chunk(n int) []byte {
	class, size := classOf(n)
	return get(&b.chunks[class], size)
}

func classOf(n int) (class, size int) {
	switch {
	case n <= smallBytes:
		return 0, smallBytes
	case n <= mediumBytes:
		return 1, mediumBytes
	}
	return 2, chunkBytes
}

// Vector returns an empty vector.
func (b *Buffers) Vector() eventloop.Vector {
	if n := len(b.vectors); n > 0 {
		v := b.vectors[n-1]
		b.vectors = b.vectors[:n-1]
		return v
	}
	return make(eventloop.Vector, 0, 32)
}

// PutVector takes one back.
func (b *Buffers) PutVector(v eventloop.Vector) {
	if len(b.vectors) < maxFree && cap(v) <= maxVector {
		clear(v)
		b.vectors = append(b.vectors, v[:0])
	}
}

func get(free *[][]byte, size int) []byte {
	if n := len(*free); n > 0 {
		b := (*free)[n-1]
		*free = (*free)[:n-1]
		return b
	}
	return make([]byte, size)
}

func put(free *[][]byte, most int, b []byte) {
	if len(*free) < most {
		*free = append(*free, b[:cap(b)])
	}
}

// Output is what is on its way to the peer: sealed buffers in the queue, and the
// buffer under work: sealed records, and an open one behind them. While the
// queue waits for the socket, the buffer under work goes on filling, so that
// small frames cost little memory.
type Output struct {
	buffers    *Buffers
	session    *tlsrecord.Session
	fd         int
	queue      []sealed
	buf        []byte
	done, open int       // sealed bytes of buf; plaintext of the open record
	stuckSince time.Time // when the socket stopped taking bytes
	tableless  bool      // the peer knows that our headers use no table
}

type sealed struct {
	buf      []byte
	from, to int
}

// NewOutput writes to a socket, which stays its owner's.
func NewOutput(b *Buffers, s *tlsrecord.Session, fd int) Output {
	return Output{buffers: b, session: s, fd: fd}
}

// Free drops everything.
func (o *Output) Free() {
	for _, q := range o.queue {
		put(&o.buffers.outs, maxFreeOuts, q.buf)
	}
	if o.buf != nil {
		put(&o.buffers.outs, maxFreeOuts, o.buf)
	}
	*o = NewOutput(o.buffers, o.session, o.fd)
}

// IsEmpty says that everything has left.
func (o *Output) IsEmpty() bool { return len(o.queue) == 0 && o.open == 0 && o.done == 0 }

// Held is the number of bytes of memory.
func (o *Output) Held() int {
	n := len(o.queue) * outBytes
	if o.buf != nil {
		n += outBytes
	}
	return n
}

// Queued is how many buffers wait for the socket.
func (o *Output) Queued() int { return len(o.queue) }

// Fits makes n bytes of plaintext fit the open record, at the cost of sealing
// it; false when the buffer under work is full: Enqueue comes before Room then.
func (o *Output) Fits(n int) bool {
	if o.open+n > tlsrecord.MaxPlaintext {
		o.seal()
	}
	return o.buf == nil || o.done+recordBytes+tlsrecord.UpdateBytes <= len(o.buf)
}

// Room returns the rest of the open record; Wrote says how much was used.
func (o *Output) Room() []byte {
	if o.buf == nil {
		o.buf = get(&o.buffers.outs, outBytes)
	}
	start := o.done + tlsrecord.HeaderBytes
	return o.buf[start+o.open : start+tlsrecord.MaxPlaintext]
}

// places adds the places to v where the next n bytes of payload go, each behind a
// gap for the header of its frame: in the open record, and in whole ones behind it
// as far as the buffer under work goes. A key's last record ends them, as the
// KeyUpdate behind it moves what follows.
func (o *Output) places(v *eventloop.Vector, gap, n int) {
	room := o.Room()
	start := o.done
	for records := max(1, o.session.RecordsLeft()); ; records-- {
		room = room[gap:]
		k := min(n, len(room))
		v.Add(room[:k])
		n -= k
		start += recordBytes
		if n == 0 || records == 1 || start+recordBytes+tlsrecord.UpdateBytes > len(o.buf) {
			return
		}
		room = o.buf[start+tlsrecord.HeaderBytes:][:tlsrecord.MaxPlaintext]
	}
}

// Wrote counts bytes that were put into Room.
func (o *Output) Wrote(n int) { o.open += n }

// seal closes the open record, and puts a KeyUpdate before it when one is due.
func (o *Output) seal() {
	if o.session.UpdateDue() {
		if o.buf == nil {
			o.buf = get(&o.buffers.outs, outBytes)
		}
		from := o.done + tlsrecord.HeaderBytes
		copy(o.buf[from+tlsrecord.UpdateBytes:], o.buf[from:from+o.open])
		b, _ := o.session.AppendUpdate(o.buf[:o.done]) // cannot fail with keys that worked before
		o.done = len(b)
	}
	if o.open > 0 {
		o.done += o.session.Seal(o.buf[o.done:], o.open)
		o.open = 0
	}
}

// Enqueue seals everything, and moves the buffer under work to the queue.
func (o *Output) Enqueue() {
	o.seal()
	if o.done > 0 {
		o.queue = append(o.queue, sealed{o.buf, 0, o.done})
	} else if o.buf != nil {
		put(&o.buffers.outs, maxFreeOuts, o.buf)
	}
	o.buf, o.done = nil, 0
}

// Alert queues an alert behind everything: the last that is sent.
func (o *Output) Alert(a tlsrecord.Alert) {
	o.Enqueue()
	q := sealed{buf: get(&o.buffers.outs, outBytes)}
	q.to = len(o.session.AppendAlert(q.buf[:0], a))
	o.queue = append(o.queue, q)
}

// IsStuck says that the socket has taken nothing of the queue for so long.
func (o *Output) IsStuck(now time.Time, within time.Duration) bool {
	return !o.stuckSince.IsZero() && now.Sub(o.stuckSince) > within
}

// Write writes the queue, as much as the socket takes.
func (o *Output) Write(now time.Time) (errno syscall.Errno) {
	n := 0
	progress := false
	for n < len(o.queue) {
		q := &o.queue[n]
		var k int
		if k, errno = eventloop.Write(o.fd, q.buf[q.from:q.to]); errno != 0 {
			break
		}
		progress = true
		if q.from += k; q.from == q.to {
			put(&o.buffers.outs, maxFreeOuts, q.buf)
			n++
		}
	}
	rest := copy(o.queue, o.queue[n:])
	clear(o.queue[rest:])
	o.queue = o.queue[:rest]
	switch {
	case rest == 0:
		o.stuckSince = time.Time{}
	case progress || o.stuckSince.IsZero():
		o.stuckSince = now
	}
	if errno == syscall.EAGAIN {
		errno = 0
	}
	return errno
}

// Append appends the bytes of the queue.
func (o *Output) Append(b []byte) []byte {
	for _, q := range o.queue {
		b = append(b, q.buf[q.from:q.to]...)
	}
	return b
}

// Queue queues bytes that Append gave in another process.
func (o *Output) Queue(b []byte) {
	for len(b) > 0 {
		buf := get(&o.buffers.outs, outBytes)
		n := copy(buf, b)
		o.queue = append(o.queue, sealed{buf, 0, n})
		b = b[n:]
	}
}

// Frame puts a whole frame, and Number one of four bytes, into b, which has
// room. They return its length.
func Frame(b []byte, kind http2.FrameType, flags http2.Flags, id uint32, payload []byte) int {
	h2.Frame(b, kind, flags, id, len(payload))
	return h2.HeaderBytes + copy(b[h2.HeaderBytes:], payload)
}

// Headers is Frame for a header, which may take a byte more: the first says that none uses a table.
func (o *Output) Headers(b []byte, flags http2.Flags, id uint32, block []byte) int {
	n := h2.HeaderBytes
	if !o.tableless {
		o.tableless = true
		b[n] = h2.NoTable
		n++
	}
	n += copy(b[n:], block)
	h2.Frame(b, http2.FrameHeaders, flags|http2.FlagHeadersEndHeaders, id, n-h2.HeaderBytes)
	return n
}

// Number is Frame for WINDOW_UPDATE and RST_STREAM.
func Number(b []byte, kind http2.FrameType, id, value uint32) int {
	h2.Frame(b, kind, 0, id, 4)
	binary.BigEndian.PutUint32(b[h2.HeaderBytes:], value)
	return h2.HeaderBytes + 4
}

// Ping puts a PING into b, which must have room, and returns its length.
func Ping(b []byte, data [8]byte, ack bool) int {
	var flags http2.Flags
	if ack {
		flags = http2.FlagPingAck
	}
	h2.Frame(b, http2.FramePing, flags, 0, len(data)) // not Frame: data would escape to the heap
	return h2.HeaderBytes + copy(b[h2.HeaderBytes:], data[:])
}

// GoAway is Ping for a GOAWAY.
func GoAway(b []byte, last uint32, code http2.ErrCode) int {
	h2.Frame(b, http2.FrameGoAway, 0, 0, 8)
	binary.BigEndian.PutUint32(b[h2.HeaderBytes:], last)
	binary.BigEndian.PutUint32(b[h2.HeaderBytes+4:], uint32(code))
	return h2.HeaderBytes + 8
}
