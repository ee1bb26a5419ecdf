package socket

// Buffers are what was used by the sockets of one loop, and is used again.
type Buffers struct {
	spare [][]byte
	bytes int // of their memory
}

const (
	firstBytes = 2 << 10  // of a buffer
	spareBytes = 32 << 10 // the largest one that is kept
	spares     = 1024     // how many are
	allBytes   = 4 << 20  // how much memory they have together
)

// Get returns an empty buffer.
func (b *Buffers) Get() []byte {
	if n := len(b.spare); n > 0 {
		one := b.spare[n-1]
		b.spare = b.spare[:n-1]
		b.bytes -= cap(one)
		return one
	}
	return make([]byte, 0, firstBytes)
}

// Put takes a buffer back.
func (b *Buffers) Put(one []byte) {
	if cap(one) > 0 && cap(one) <= spareBytes && len(b.spare) < spares && b.bytes+cap(one) <= allBytes {
		b.bytes += cap(one)
		b.spare = append(b.spare, one[:0])
	}
}

// Buffered is a Socket with what has come and is not used yet, and what is to go out. It has memory while
// there is something only.
type Buffered struct {
	Socket
	In, Out []byte
	// whole is In's memory from its beginning on, once a part of In was used; else nil.
	whole []byte
}

// Send writes; what the socket does not take waits. It reports whether something waits now, and did
// not before.
func (s *Buffered) Send(b []byte, from *Buffers) (waits bool) {
	if len(s.Out) == 0 {
		b = b[s.Write(b):]
	}
	if len(b) == 0 || s.Refused() {
		return false
	}
	if waits = s.Out == nil; waits {
		s.Out = from.Get()
	}
	s.Out = append(s.Out, b...)
	return waits
}

// Flush writes what waits, and reports whether the socket took something.
func (s *Buffered) Flush(to *Buffers) bool {
	if len(s.Out) == 0 || !s.Writable() {
		return false
	}
	n := s.Write(s.Out)
	if s.Out = s.Out[:copy(s.Out, s.Out[n:])]; len(s.Out) == 0 {
		to.Put(s.Out)
		s.Out = nil
	}
	return n > 0
}

// Take returns what has come: what is kept, or else what the socket has, read into scratch. Used is to
// follow.
func (s *Buffered) Take(scratch []byte) (data []byte, kept bool) {
	if len(s.In) > 0 {
		return s.In, true
	}
	return scratch[:s.Read(scratch)], false
}

// Used keeps what is left of what Take gave, of which n bytes were used.
func (s *Buffered) Used(data []byte, kept bool, n int, from *Buffers) {
	switch rest := data[n:]; {
	case kept && len(rest) > 0:
		if s.whole == nil {
			s.whole = s.In
		}
		s.In = rest
	case kept:
		s.Drop(from)
	case len(rest) > 0:
		s.In = append(from.Get(), rest...)
	}
}

// More reads behind what is kept, and returns how much came.
func (s *Buffered) More(scratch []byte, from *Buffers) int {
	n := s.Read(scratch)
	switch {
	case n == 0:
		return 0
	case s.whole != nil:
		s.In, s.whole = append(s.whole[:0], s.In...), nil
	case s.In == nil:
		s.In = from.Get()
	}
	s.In = append(s.In, scratch[:n]...)
	return n
}

// Drop forgets what is kept.
func (s *Buffered) Drop(to *Buffers) {
	if s.whole != nil {
		s.In = s.whole
	}
	to.Put(s.In)
	s.In, s.whole = nil, nil
}
