package wire

import (
	"bytes"
	"crypto/tls"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone/tlsrecord"
)

// sessionPair makes both ends of a record layer, whose next record has the number.
func sessionPair(t *testing.T, sequence uint64) (out, in *tlsrecord.Session) {
	t.Helper()
	keys := func(fill byte, sequence uint64) tlsrecord.Keys {
		return tlsrecord.Keys{Suite: tls.TLS_AES_128_GCM_SHA256, Secret: bytes.Repeat([]byte{fill}, 32), Sequence: sequence}
	}
	out, err := tlsrecord.New(tlsrecord.State{In: keys(1, 0), Out: keys(2, sequence)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	in, err = tlsrecord.New(tlsrecord.State{In: keys(2, sequence), Out: keys(1, 0)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out, in
}

const testGap = 9

// fill reads up to n bytes into the output as a stream of a large flow does.
func fill(t *testing.T, s *Socket, b *Buffers, o *Output, n int) (got int) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for got == 0 {
		if !o.Fits(testGap + 1) {
			o.Enqueue()
		}
		var errno syscall.Errno
		got, _, errno = s.ReadInto(b, o, testGap, n)
		if errno != 0 && errno != syscall.EAGAIN || time.Now().After(deadline) {
			t.Fatalf("read: %v", errno)
		}
	}
	for left := got; left > 0; {
		if !o.Fits(testGap + 1) {
			t.Fatal("what was read does not fit the buffer under work")
		}
		room := o.Room()
		k := min(left, len(room)-testGap)
		copy(room, "a frame's")
		o.Wrote(testGap + k)
		left -= k
	}
	return got
}

// opened is the payload of everything that was written.
func opened(t *testing.T, o *Output, in *tlsrecord.Session) (payload []byte) {
	t.Helper()
	o.Enqueue()
	for b := o.Append(nil); len(b) > 0; {
		n, ok, err := tlsrecord.Length(b)
		if err != nil || !ok {
			t.Fatal("no record", err)
		}
		data, err := in.Open(b[:n])
		if err != nil {
			t.Fatal(err)
		}
		b = b[n:]
		for len(data) > 0 { // frames of a record
			at := bytes.Index(data[1:], []byte("a frame's"))
			if at < 0 {
				at = len(data) - 1
			}
			payload = append(payload, data[testGap:at+1]...)
			data = data[at+1:]
		}
	}
	return payload
}

// TestReadInto: what is read at once into several records is what was sent,
// wherever the open record stands, and also when the key ends among them.
func TestReadInto(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for _, sequence := range []uint64{0, 1<<24 - 40, 1<<24 - 3, 1<<24 - 1, 1 << 24} {
		program, local := connected(t)
		fd, err := eventloop.TakeOver(local)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { eventloop.CloseSocket(fd) })
		out, in := sessionPair(t, sequence)
		var b Buffers
		o, s := NewOutput(&b, out, -1), Socket{FD: fd}
		sent := make([]byte, 1_000_000)
		for i := range sent {
			sent[i] = byte(i * i >> 8)
		}
		go func() { _, _ = program.Write(sent) }() // the end looks at what came
		for total := 0; total < len(sent); {
			total += fill(t, &s, &b, &o, 1+random.IntN(300_000))
		}
		if got := opened(t, &o, in); !bytes.Equal(got, sent) {
			t.Errorf("from record %d on: %d bytes came of %d, or others", sequence, len(got), len(sent))
		}
		if out.RecordsLeft() < 1<<23 {
			t.Errorf("from record %d on: no update of the key", sequence)
		}
		o.Free()
	}
}

// TestReadIntoTakesMany: one read fills several records, and could fill those of
// a whole buffer.
func TestReadIntoTakesMany(t *testing.T) {
	program, local := connected(t)
	fd, err := eventloop.TakeOver(local)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { eventloop.CloseSocket(fd) })
	out, _ := sessionPair(t, 0)
	var b Buffers
	o, s := NewOutput(&b, out, -1), Socket{FD: fd}
	const each = tlsrecord.MaxPlaintext - testGap
	if _, err := program.Write(make([]byte, 3*each+1)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond)
	n, more, errno := s.ReadInto(&b, &o, testGap, 3*each)
	if n != 3*each || !more || errno != 0 {
		t.Errorf("one read took %d bytes of %d, more %v, %v", n, 3*each, more, errno)
	}
	if n, more, errno = s.ReadInto(&b, &o, testGap, each); n != 1 || more || errno != 0 {
		t.Errorf("the next took %d bytes of 1, more %v, %v", n, more, errno)
	}
	v := b.Vector()
	if o.places(&v, testGap, 1<<20); len(v) != 8 || len(v.Slice(7)) != each {
		t.Errorf("%d records for a buffer of 8", len(v))
	}
	o.Free()
}
