package h2

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// noted is a Visitor that writes down what it is told.
type noted struct{ events []string }

func (n *noted) add(format string, args ...any) error {
	n.events = append(n.events, fmt.Sprintf(format, args...))
	return nil
}
func (n *noted) DataBegins(id uint32, length int) error { return n.add("begins %d %d", id, length) }
func (n *noted) Data(p []byte) {
	last := len(n.events) - 1
	if strings.HasPrefix(n.events[last], "data ") {
		n.events[last] += string(p)
		return
	}
	_ = n.add("data %s", p) // never fails
}
func (n *noted) DataEnds(padding int, end bool) error      { return n.add("ends %d %v", padding, end) }
func (n *noted) Headers(h Header) error                    { return n.add("headers %+v", h) }
func (n *noted) Reset(id uint32, code http2.ErrCode) error { return n.add("reset %d %v", id, code) }
func (n *noted) Settings(list []http2.Setting, ack bool) error {
	return n.add("settings %v %v", list, ack)
}
func (n *noted) Ping(data [8]byte, ack bool) error { return n.add("ping %v %v", data, ack) }
func (n *noted) GoAway(last uint32, code http2.ErrCode) error {
	return n.add("goaway %d %v", last, code)
}
func (n *noted) WindowUpdate(id, increment uint32) error { return n.add("window %d %d", id, increment) }
func (n *noted) Other() error                            { return n.add("other") }

// conversation is a client's part of a connection with every kind of frame, and
// headers that use a dynamic table, in one block and in pieces.
func conversation() []byte {
	b := append([]byte(http2.ClientPreface), AppendSettings(nil, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 77})...)
	var block strings.Builder
	enc := hpack.NewEncoder(&block)
	header := func(fields ...string) []byte {
		block.Reset()
		for i := 0; i < len(fields); i += 2 {
			if err := enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
				panic(err)
			}
		}
		return []byte(block.String())
	}
	b = AppendFrame(b, http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, header(":method", "CONNECT", "x-a", "one", "x-b", "\xff\x00two"))
	h := header(":method", "CONNECT", "x-a", "one", "x-b", "\xff\x00two", "x-c", strings.Repeat("c", 300))
	b = AppendFrame(b, http2.FrameHeaders, 0, 3, h[:2])
	b = AppendFrame(b, http2.FrameContinuation, 0, 3, h[2:4])
	b = AppendFrame(b, http2.FrameContinuation, http2.FlagContinuationEndHeaders, 3, h[4:])
	b = AppendFrame(b, http2.FrameData, http2.FlagDataPadded, 1, append([]byte{4}, "hello....."...))
	b = AppendFrame(b, http2.FrameData, http2.FlagDataEndStream, 3, []byte("bye"))
	b = AppendFrame(b, http2.FramePing, 0, 0, []byte("12345678"))
	b = AppendFrame(b, http2.FrameWindowUpdate, 0, 1, []byte{0, 0, 1, 0})
	b = AppendFrame(b, http2.FrameRSTStream, 0, 1, []byte{0, 0, 0, 8})
	b = AppendFrame(b, http2.FrameHeaders, http2.FlagHeadersEndHeaders, 5, header("x-c", strings.Repeat("c", 300), "x-b", "\xff\x00two", "x-d", "new"))
	return AppendFrame(b, http2.FrameHeaders, http2.FlagHeadersEndHeaders, 7, header("x-d", "new", "x-a", "one"))
}

// TestFieldsAreNotKept: a list of fields serves the next header, empty, unless it
// was long.
func TestFieldsAreNotKept(t *testing.T) {
	p := Parser{MaxHeaderBytes: 8 << 10}
	header := func(id uint32, n int) {
		t.Helper()
		var block []byte
		for range n {
			block = AppendField(block, "authorization", "secret")
		}
		var got noted
		if err := p.Feed(AppendFrame(nil, http2.FrameHeaders, http2.FlagHeadersEndHeaders, id, block), &got); err != nil {
			t.Fatal(err)
		}
		if len(got.events) != 1 || strings.Count(got.events[0], "secret") != n {
			t.Errorf("%d fields give %q", n, got.events)
		}
		for _, f := range p.fields[:cap(p.fields)] {
			if f != (hpack.HeaderField{}) {
				t.Errorf("%v is kept", f)
			}
		}
	}
	if err := p.Feed(AppendSettings(nil), &noted{}); err != nil { // the peer begins with it
		t.Fatal(err)
	}
	header(1, 7)
	list := &p.fields[:1][0]
	header(3, 2)
	header(5, 0)
	if &p.fields[:1][0] != list {
		t.Error("another list for another header")
	}
	header(7, 2*maxKeptFields)
	if cap(p.fields) != 0 {
		t.Errorf("a list of %d is kept", cap(p.fields))
	}
	header(9, 1)
}

// TestStateAtEveryByte goes on with another parser, from a state that was
// written down, after every single byte.
func TestStateAtEveryByte(t *testing.T) {
	all := conversation()
	var want, got noted
	whole := Parser{Server: true, MaxHeaderBytes: 8 << 10}
	if err := whole.Feed(all, &want); err != nil {
		t.Fatal(err)
	}
	p := Parser{Server: true, MaxHeaderBytes: 8 << 10}
	for i := range all {
		if err := p.Feed(all[i:i+1], &got); err != nil {
			t.Fatalf("byte %d: %v", i, err)
		}
		before := p.State()
		written, err := json.Marshal(before)
		if err != nil {
			t.Fatal(err)
		}
		var read ParserState
		if err := json.Unmarshal(written, &read); err != nil {
			t.Fatal(err)
		}
		if p, err = NewParser(read); err != nil {
			t.Fatalf("byte %d: %v: %s", i, err, written)
		}
		if again := p.State(); !reflect.DeepEqual(again.Table, before.Table) {
			t.Fatalf("byte %d: table %q, want %q", i, again.Table, before.Table)
		}
	}
	if !reflect.DeepEqual(got.events, want.events) {
		t.Errorf("got  %q\nwant %q", got.events, want.events)
	}
	if len(whole.State().Table) < 4 {
		t.Error("the conversation used no dynamic table")
	}
}

// TestStateGoesOn: taking a state changes nothing.
func TestStateGoesOn(t *testing.T) {
	all := conversation()
	var want, got noted
	for v, ask := range map[*noted]bool{&want: false, &got: true} {
		p := Parser{Server: true, MaxHeaderBytes: 8 << 10}
		for len(all) > 0 {
			n := min(7, len(all))
			if err := p.Feed(all[:n], v); err != nil {
				t.Fatal(err)
			}
			if all = all[n:]; ask {
				p.State()
			}
		}
		all = conversation()
	}
	if !reflect.DeepEqual(got.events, want.events) {
		t.Errorf("got  %q\nwant %q", got.events, want.events)
	}
}

// TestImpossibleStates are refused.
func TestImpossibleStates(t *testing.T) {
	frame := func(kind http2.FrameType, length int) []byte {
		b := make([]byte, HeaderBytes)
		Frame(b, kind, 0, 1, length)
		return b
	}
	good := func() ParserState {
		return ParserState{Server: true, MaxHeaderBytes: 1 << 10, Preface: len(http2.ClientPreface), Started: true}
	}
	if _, err := NewParser(good()); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*ParserState){
		"no bound of headers":       func(s *ParserState) { s.MaxHeaderBytes = 0 },
		"a large bound of headers":  func(s *ParserState) { s.MaxHeaderBytes = 1 << 30 },
		"half a preface":            func(s *ParserState) { s.Preface = 3 },
		"a long head":               func(s *ParserState) { s.Head = make([]byte, 10) },
		"padding":                   func(s *ParserState) { s.Padding = 256 },
		"less than nothing left":    func(s *ParserState) { s.Left = -1 },
		"a whole frame":             func(s *ParserState) { s.Head = frame(http2.FramePing, 8); s.Payload = make([]byte, 8) },
		"more left than the frame":  func(s *ParserState) { s.Head, s.Left = frame(http2.FramePing, 8), 9 },
		"less payload than came":    func(s *ParserState) { s.Head, s.Left = frame(http2.FramePing, 8), 3 },
		"payload of DATA":           func(s *ParserState) { s.Head, s.Left, s.Payload = frame(http2.FrameData, 8), 3, make([]byte, 5) },
		"a frame too long":          func(s *ParserState) { s.Head, s.Left = frame(http2.FrameData, MaxFrame+1), MaxFrame },
		"payload without a frame":   func(s *ParserState) { s.Payload = make([]byte, 5) },
		"a header of stream 0":      func(s *ParserState) { s.Block = &BlockState{} },
		"too many continuations":    func(s *ParserState) { s.Block = &BlockState{ID: 1, Frames: maxContinuations + 1} },
		"a header that is too long": func(s *ParserState) { s.Block = &BlockState{ID: 1, Bytes: make([]byte, 1<<20)} },
		"a large table":             func(s *ParserState) { s.Table = []Field{{Name: make([]byte, decoderTable)}} },
	} {
		s := good()
		change(&s)
		if _, err := NewParser(s); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
