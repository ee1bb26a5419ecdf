package wire

import (
	"syscall"

	"github.com/heddle-mesh/heddle/internal/eventloop"
)

// Pending is what a local socket has not taken. Its buffers are full but for the
// last, and that is no larger than what waits already, or comes at once: neither
// small frames nor few bytes cost much more than they are. The zero value is
// empty.
type Pending struct {
	chunks []chunk
	held   int
}

// chunk is a buffer with the bytes from..to in it.
type chunk struct {
	buf      []byte
	from, to int
}

// IsEmpty says that nothing waits.
func (p *Pending) IsEmpty() bool { return len(p.chunks) == 0 }

// Len is the number of bytes that wait.
func (p *Pending) Len() (n int) {
	for _, ch := range p.chunks {
		n += ch.to - ch.from
	}
	return n
}

// Held is the number of bytes of memory.
func (p *Pending) Held() int { return p.held }

// Store keeps a copy of the bytes.
func (p *Pending) Store(b *Buffers, data []byte) {
	for len(data) > 0 {
		if n := len(p.chunks); n == 0 || p.chunks[n-1].to == len(p.chunks[n-1].buf) {
			buf := b.chunk(max(len(data), p.held))
			p.chunks = append(p.chunks, chunk{buf: buf})
			p.held += len(buf)
		}
		last := &p.chunks[len(p.chunks)-1]
		n := copy(last.buf[last.to:], data)
		last.to += n
		data = data[n:]
	}
}

// Write writes as much as the socket takes, and returns how many bytes that were;
// that the socket is full is no error.
func (p *Pending) Write(b *Buffers, fd int) (written int, errno syscall.Errno) {
	n := 0
	for n < len(p.chunks) {
		ch := &p.chunks[n]
		var k int
		if k, errno = eventloop.Write(fd, ch.buf[ch.from:ch.to]); errno != 0 {
			break
		}
		written += k
		if ch.from += k; ch.from == ch.to {
			p.held -= len(ch.buf)
			b.PutChunk(ch.buf)
			n++
		}
	}
	rest := copy(p.chunks, p.chunks[n:])
	clear(p.chunks[rest:])
	if p.chunks = p.chunks[:rest]; rest == 0 {
		p.chunks = nil
	}
	if errno == syscall.EAGAIN {
		errno = 0
	}
	return written, errno
}

// Append appends the bytes that wait.
func (p *Pending) Append(b []byte) []byte {
	for _, ch := range p.chunks {
		b = append(b, ch.buf[ch.from:ch.to]...)
	}
	return b
}

// Free drops everything.
func (p *Pending) Free(b *Buffers) {
	for _, ch := range p.chunks {
		b.PutChunk(ch.buf)
	}
	p.chunks, p.held = nil, 0
}
