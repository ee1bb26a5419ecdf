package h2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/internal/hbone/flood"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
)

const maxHeaderBytes = 8 << 10

// stricter are the reasons for which we end a connection that x/net/http2's
// Framer goes on with, and where the rule is.
func stricter() map[string]string {
	return map[string]string{
		"does not begin with SETTINGS":    "RFC 9113 section 3.4: x/net checks it above its Framer",
		"PUSH_PROMISE":                    "RFC 9113 section 8.4: a client sends none, and we allow servers none",
		"a stream that depends on itself": "RFC 7540 section 5.3.1",
		"setting":                         "RFC 9113 section 6.5.2: x/net checks it above its Framer",
		"PRIORITY":                        "RFC 9113 section 6.3 has a stream error for another length than 5; nobody honest sends it",
		"frames without meaning":          "a header in more than 8 CONTINUATIONs, or longer than twice what it may be",
	}
}

// opinion is what an implementation makes of a connection's bytes: what it read
// before its verdict.
type opinion struct {
	read []string
	err  error
}

// framerOpinion is x/net/http2's. It reads no END of the bytes as an error.
func framerOpinion(wire []byte) (o opinion) {
	var n notes
	fr := http2.NewFramer(nil, bytes.NewReader(wire))
	fr.SetMaxReadFrameSize(h2.MaxFrame)
	decoder := hpack.NewDecoder(4096, nil)
	var block []byte
	var begun *http2.HeadersFrame
	var beginning h2.Header
	for {
		f, err := fr.ReadFrame()
		if se, ok := errors.AsType[http2.StreamError](err); ok && errors.Is(se.Cause, io.EOF) {
			err = se.Cause
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				o.err = err
			}
			o.read = n.list
			return o
		}
		switch f := f.(type) {
		case *http2.HeadersFrame:
			begun, beginning = f, h2.Header{ID: f.StreamID, End: f.StreamEnded()}
			block = bytes.Clone(f.HeaderBlockFragment())
		case *http2.ContinuationFrame:
			block = append(block, f.HeaderBlockFragment()...)
		}
		whole := false
		switch f := f.(type) {
		case *http2.HeadersFrame:
			whole = f.HeadersEnded()
		case *http2.ContinuationFrame:
			whole = f.HeadersEnded()
		default:
			note(&n, f)
		}
		if whole && begun != nil {
			if o.err = decode(&n, decoder, beginning, block); o.err != nil {
				o.read = n.list
				return o
			}
		}
	}
}

// decode decodes a header block with hpack, and leaves out what is too much.
func decode(n *notes, decoder *hpack.Decoder, h h2.Header, block []byte) error {
	fields, err := decoder.DecodeFull(block)
	if err != nil {
		return http2.ConnectionError(http2.ErrCodeCompression)
	}
	total := 0
	for _, f := range fields {
		if total += int(f.Size()); total > maxHeaderBytes {
			h.TooLong = true
			continue
		}
		h.Fields = append(h.Fields, f)
	}
	return n.Headers(h)
}

// note writes down a frame other than a header's.
func note(n *notes, f http2.Frame) {
	switch f := f.(type) {
	case *http2.DataFrame:
		_ = n.add("DATA %d %q %v", f.StreamID, f.Data(), f.StreamEnded())
	case *http2.RSTStreamFrame:
		_ = n.Reset(f.StreamID, f.ErrCode)
	case *http2.SettingsFrame:
		list := []http2.Setting{}
		_ = f.ForeachSetting(func(s http2.Setting) error { list = append(list, s); return nil })
		_ = n.Settings(list, f.IsAck())
	case *http2.PingFrame:
		_ = n.Ping(f.Data, f.IsAck())
	case *http2.GoAwayFrame:
		_ = n.GoAway(f.LastStreamID, f.ErrCode)
	case *http2.WindowUpdateFrame:
		_ = n.WindowUpdate(f.StreamID, f.Increment)
	default:
		_ = n.Other()
	}
}

// judge makes the notes refuse what an engine refuses in Visitor's place.
type judge struct{ notes }

func (j *judge) WindowUpdate(id, inc uint32) error {
	if inc == 0 { // RFC 9113 section 6.9
		return &h2.Error{Code: http2.ErrCodeProtocol, Reason: "WINDOW_UPDATE of 0"}
	}
	return j.notes.WindowUpdate(id, inc)
}

func ourOpinion(wire []byte, piece func() int) (o opinion) {
	var j judge
	p := &h2.Parser{MaxHeaderBytes: maxHeaderBytes}
	for len(wire) > 0 && o.err == nil {
		n := min(piece(), len(wire))
		o.err = p.Feed(wire[:n], &j)
		wire = wire[n:]
	}
	o.read = j.list
	return o
}

// agree says whether two verdicts are one, or ours is stricter for a reason
// that is on the list.
func agree(ours, theirs opinion) error {
	tooMuch, wrong := (*flood.Error)(nil), (*h2.Error)(nil)
	if ours.err != nil && !errors.As(ours.err, &wrong) && !errors.As(ours.err, &tooMuch) {
		return errors.New("an error of no class")
	}
	listed := func() bool {
		for reason := range stricter() {
			if ours.err != nil && strings.Contains(ours.err.Error(), reason) {
				return true
			}
		}
		return false
	}
	common := min(len(ours.read), len(theirs.read))
	if !slices.Equal(ours.read[:common], theirs.read[:common]) {
		return errors.New("the same frames read differently")
	}
	switch {
	case len(ours.read) > len(theirs.read):
		return errors.New("we read on where x/net/http2 stops")
	case listed():
		return nil
	case len(ours.read) < len(theirs.read):
		return errors.New("we stop where x/net/http2 reads on")
	case theirs.err != nil && ours.err == nil:
		return errors.New("only x/net/http2 refuses")
	}
	return sameCode(wrong, theirs.err)
}

// sameCode compares what the two would tell the peer. A frame that is cut off at
// the end is refused by its header already, where x/net waits for the rest.
func sameCode(ours *h2.Error, theirs error) error {
	code := http2.ErrCodeFrameSize // ErrFrameTooLarge
	if c, ok := errors.AsType[http2.ConnectionError](theirs); ok {
		code = http2.ErrCode(c)
	} else if s, ok := errors.AsType[http2.StreamError](theirs); ok {
		code = s.Code
	} else if theirs == nil {
		return nil
	}
	if ours == nil {
		return fmt.Errorf("we say nothing, x/net/http2 %v", code)
	}
	// With two things wrong in one frame either may be what is said.
	either := []http2.ErrCode{http2.ErrCodeProtocol, http2.ErrCodeFrameSize}
	if ours.Code != code && !(slices.Contains(either, ours.Code) && slices.Contains(either, code)) {
		return fmt.Errorf("we say %v, x/net/http2 %v", ours, code)
	}
	return nil
}

// bent is a connection with a few things wrong in it: bytes of frame headers, or
// anywhere.
func bent(t *testing.T, random *rand.Rand) []byte {
	wire := schedule(t, random, 6)[len(http2.ClientPreface):]
	for range random.IntN(4) {
		if random.IntN(4) == 0 {
			wire[random.IntN(len(wire))] = byte(random.Uint32())
			continue
		}
		at := frameStarts(wire)
		head := wire[at[random.IntN(len(at))]:]
		switch random.IntN(5) {
		case 0: // longer or shorter by a little
			head[2] = byte(int(head[2]) + random.IntN(21) - 10)
		case 1: // huge
			head[0], head[1] = byte(random.Uint32()), byte(random.Uint32())
		case 2:
			head[3] = byte(random.IntN(12))
		case 3:
			head[4] = byte(random.Uint32())
		default:
			binary.BigEndian.PutUint32(head[5:], []uint32{0, 1, 2, 3, 1 << 31, 1<<31 | 1, 1<<32 - 1}[random.IntN(7)])
		}
	}
	return wire
}

// frameStarts are where frames begin, as their lengths have it now.
func frameStarts(wire []byte) (at []int) {
	for i := 0; i+h2.HeaderBytes <= len(wire); {
		at = append(at, i)
		i += h2.HeaderBytes + int(wire[i])<<16 + int(wire[i+1])<<8 + int(wire[i+2])
	}
	return at
}

// extended says that a frame is PRIORITY_UPDATE (RFC 9218 section 7.1), which x/net
// reads and judges; to us it is a frame without meaning, to be passed over.
func extended(wire []byte) bool {
	const priorityUpdate = 0x10
	return slices.ContainsFunc(frameStarts(wire), func(at int) bool { return wire[at+3] == priorityUpdate })
}

// randomFrames are frames of every kind with flags, streams and payloads of no
// sense, after good SETTINGS.
func randomFrames(random *rand.Rand) []byte {
	wire := h2.AppendSettings(nil)
	for range 1 + random.IntN(8) {
		lengths := []int{0, 1, 4, 5, 6, 8, 9, 12, random.IntN(300)}
		payload := make([]byte, lengths[random.IntN(len(lengths))])
		for i := range payload {
			payload[i] = byte(random.Uint32())
		}
		if random.IntN(2) == 0 && len(payload) > 0 {
			payload[0] = byte(random.IntN(len(payload) + 2)) // as padding it may fit
		}
		flags := []byte{0, 1, 4, 5, 8, 0x20, 0x2d, byte(random.Uint32())}[random.IntN(8)]
		id := []uint32{0, 1, 1, 3, 1<<31 | 1}[random.IntN(5)]
		wire = h2.AppendFrame(wire, http2.FrameType(random.IntN(11)), http2.Flags(flags), id, payload)
	}
	return wire
}

// TestVerdicts compares with x/net/http2 over connections that are wrong
// somewhere: what is read before, and the verdict, whole and byte by byte.
func TestVerdicts(t *testing.T) {
	refused := 0
	for seed := range uint64(4000) {
		random := rand.New(rand.NewPCG(seed, 9113))
		wire := randomFrames(random)
		if seed%2 == 0 {
			wire = bent(t, random)
		}
		if extended(wire) {
			continue
		}
		theirs := framerOpinion(wire)
		for _, piece := range []func() int{func() int { return len(wire) }, func() int { return 1 }, func() int { return 1 + random.IntN(40) }} {
			ours := ourOpinion(wire, piece)
			if err := agree(ours, theirs); err != nil {
				t.Fatalf("seed %d: %v\nours   %q %v\ntheirs %q %v\n%x", seed, err, ours.read, ours.err, theirs.read, theirs.err, wire)
			}
			if ours.err != nil {
				refused++
			}
		}
	}
	if refused < 2000 {
		t.Errorf("%d connections refused: there is too little wrong in them to show anything", refused)
	}
}

// TestVerdictsSplit cuts wrong connections in two at every byte: the verdict is
// the same.
func TestVerdictsSplit(t *testing.T) {
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 7541))
		wire := randomFrames(random)
		want := ourOpinion(wire, func() int { return len(wire) })
		for cut := 1; cut < len(wire); cut++ {
			sizes := []int{cut, len(wire)}
			got := ourOpinion(wire, func() int { n := sizes[0]; sizes = sizes[1:]; return n })
			if !slices.Equal(got.read, want.read) || fmt.Sprint(got.err) != fmt.Sprint(want.err) {
				t.Fatalf("seed %d, cut at %d: %q %v\nwhole: %q %v", seed, cut, got.read, got.err, want.read, want.err)
			}
		}
	}
}

// FuzzVerdict is TestVerdicts over what the fuzzer thinks of.
func FuzzVerdict(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(randomFrames(rand.New(rand.NewPCG(seed, 1))))
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		if extended(wire) {
			return
		}
		ours, theirs := ourOpinion(wire, func() int { return len(wire) }), framerOpinion(wire)
		if err := agree(ours, theirs); err != nil {
			t.Errorf("%v\nours   %q %v\ntheirs %q %v", err, ours.read, ours.err, theirs.read, theirs.err)
		}
	})
}
