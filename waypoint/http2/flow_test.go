package http2_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	xhttp2 "golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

// updates are the WINDOW_UPDATEs of what a side has said, by their stream.
func updates(t testing.TB, out []byte) map[uint32]int {
	t.Helper()
	sum := map[uint32]int{}
	fr := xhttp2.NewFramer(nil, bytes.NewReader(bytes.TrimPrefix(out, []byte(http2.Preface))))
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return sum
		}
		if u, ok := f.(*xhttp2.WindowUpdateFrame); ok {
			sum[u.StreamID] += int(u.Increment)
		}
	}
}

// TestWindows: a stream that nobody reads is stopped by its window, holds no more than that, and stalls none of its
// neighbours, who may send for ever.
func TestWindows(t *testing.T) {
	config := http2.Defaults()
	config.Window, config.ConnWindow = 100_000, 200_000
	s := server(config)
	stuck := map[uint32]bool{1: true}
	k := client()
	must(k.WriteSettingsAck())
	s.whole(k.post(1).post(3))
	k.Reset()
	feed := func(k *talk) {
		for in := k.Bytes(); len(in) > 0; {
			out, n, step, err := s.Next(nil, in)
			if in = in[n:]; err != nil {
				t.Fatal(err)
			}
			if step.Event == http2.Data && !stuck[step.Stream] {
				out = s.Consumed(out, step.Stream, len(step.Data))
			}
			s.out = append(s.out, out...)
		}
		k.Reset()
	}
	for sent := 0; sent < 100_000; sent += 10_000 {
		k.data(1, false, strings.Repeat("a", 10_000))
		feed(k)
	}
	for range 1000 {
		k.data(3, false, strings.Repeat("b", 10_000))
		feed(k)
	}
	given := updates(t, s.out)
	if given[1] != 0 || given[3] < 10_000_000-100_000 || given[0] < 10_000_000 {
		t.Errorf("given back: %v", given)
	}
	if s.Unread() != 100_000 {
		t.Errorf("%d bytes are unread", s.Unread())
	}
	s.out = s.Consumed(s.out, 1, 60_000)
	if given := updates(t, s.out); given[1] != 60_000 || s.Unread() != 40_000 {
		t.Errorf("given back: %v, unread %d", given, s.Unread())
	}
	// More than there is cannot be consumed, and a stream that ends is not held any more.
	s.out = s.Consumed(s.out, 1, 1<<40)
	if given := updates(t, s.out); given[1] != 100_000 || s.Unread() != 0 {
		t.Errorf("given back: %v, unread %d", given, s.Unread())
	}
	k.data(1, false, strings.Repeat("a", 10_000))
	feed(k)
	if s.Reset(nil, 1, http2.Cancel); s.Unread() != 0 {
		t.Errorf("%d bytes of a stream that has ended are unread", s.Unread())
	}
}

// TestPaddingIsGivenBack: padding counts, and nobody is there to consume it.
func TestPaddingIsGivenBack(t *testing.T) {
	s := server(http2.Defaults())
	k := client()
	must(k.WriteSettingsAck())
	k.post(1)
	for range 1000 {
		must(k.WriteDataPadded(1, false, []byte("a"), make([]byte, 255)))
	}
	if s.whole(k); s.err != nil || len(s.steps) != 2 || len(s.steps[1]) != len("1 data ")+1000 {
		t.Errorf("%v, %d steps", s.err, len(s.steps))
	}
}

// TestSmallWindow: before SETTINGS are acknowledged a peer has its 65,535 bytes, then what we said.
func TestSmallWindow(t *testing.T) {
	config := http2.Defaults()
	config.Window = 1000
	s := server(config)
	stop := func(http2.Step) {}
	s.on = stop
	if s.whole(client().post(1).data(1, false, strings.Repeat("a", 16000))); s.err != nil || len(s.steps) != 2 {
		t.Fatalf("%q, %v", s.steps, s.err)
	}
	k := newTalk()
	must(k.WriteSettingsAck())
	if s.whole(k.post(3).data(3, false, strings.Repeat("a", 1001))); !slices.Contains(s.steps, "3 reset window_exceeded FLOW_CONTROL_ERROR") {
		t.Errorf("%.200q, %v", s.steps, s.err)
	}
}

// TestConnectionWindow: a window below the first one is reached by giving nothing back, and holds for all streams together.
func TestConnectionWindow(t *testing.T) {
	config := http2.Defaults()
	config.ConnWindow = 1000
	k := client().post(1).post(3)
	for i := range uint32(4) {
		k.data(1+2*(i%2), false, strings.Repeat("x", 16000))
	}
	s := server(config).whole(k)
	if given := updates(t, s.out); s.err != nil || given[0] != 0 {
		t.Fatalf("%v, given back: %v", s.err, given)
	}
	k = newTalk().data(3, false, strings.Repeat("x", 1536))
	if wrong, ok := s.whole(k).err.(*http2.Error); !ok || wrong.Reason != reason.WindowExceeded || wrong.Code != http2.FlowControlError {
		t.Error(s.err)
	}
}

// answered is a server with requests that have heads of responses.
func answered(t testing.TB, config *http2.Config, settings []xhttp2.Setting, ids ...uint32) *side {
	t.Helper()
	s := server(config)
	k := newTalk()
	k.WriteString(http2.Preface)
	must(k.WriteSettings(settings...))
	for _, id := range ids {
		k.get(id)
	}
	s.whole(k)
	for _, id := range ids {
		out, err := s.Answer(s.out, id, responseHead(t, 200), nil)
		if err != nil {
			t.Fatal(err)
		}
		s.out = out
	}
	s.out, s.steps = nil, nil
	return s
}

// TestSending: Data sends what the windows let out and no more, says when there is room, and takes turns.
func TestSending(t *testing.T) {
	s := answered(t, http2.Defaults(), nil, 1, 3, 5)
	body := bytes.Repeat([]byte("x"), 100_000)
	left := map[uint32]int{1: len(body), 3: len(body), 5: len(body)}
	write := func(id uint32) {
		out, n := s.Data(s.out, id, body[:left[id]])
		s.out = out
		left[id] -= n
	}
	write(1)
	if left[1] != len(body)-65535 {
		t.Fatalf("%d bytes are left", left[1])
	}
	write(3)
	write(5)
	if left[3] != len(body) || left[5] != len(body) {
		t.Fatalf("left %v", left)
	}
	var turns []uint32
	s.on = func(step http2.Step) {
		if step.Event == http2.Writable {
			turns = append(turns, step.Stream)
			write(step.Stream)
		}
	}
	k := newTalk()
	must(k.WriteWindowUpdate(0, 150_000)) // stream 1 still has nothing of its own
	s.whole(k)
	if left[1] != 100_000-65535 || left[3] > 100_000-65535 || left[5] > 100_000-65535 {
		t.Fatalf("left %v, turns %v", left, turns)
	}
	for i := range min(len(turns), 6) {
		if turns[i] != uint32(3+2*(i%2)) {
			t.Errorf("turns %v", turns)
		}
	}
	k.Reset()
	must(k.WriteWindowUpdate(0, 1<<20))
	for _, id := range []uint32{1, 3, 5} {
		must(k.WriteWindowUpdate(id, 1<<20))
	}
	s.whole(k)
	for id, n := range left {
		if n != 0 {
			t.Errorf("%d bytes of %d are left", n, id)
		}
		s.out = s.End(s.out, id, nil)
	}
	if s.err != nil || s.Streams() != 0 {
		t.Error(s.err, s.Streams())
	}
	got := map[uint32]int{}
	for _, l := range said(t, s.out) {
		var id uint32
		var end bool
		var data string
		if n, _ := fmt.Sscanf(l, "%d data %t %s", &id, &end, &data); n == 3 {
			if got[id] += len(data); len(data) > 1<<14 {
				t.Errorf("a frame of %d", len(data))
			}
		}
	}
	if got[1] != 100_000 || got[3] != 100_000 || got[5] != 100_000 {
		t.Errorf("sent %v", got)
	}
}

// TestInitialWindow: SETTINGS change the windows of open streams, below 0 too (RFC 9113 section 6.9.2).
func TestInitialWindow(t *testing.T) {
	window := func(n uint32) []xhttp2.Setting {
		return []xhttp2.Setting{{ID: xhttp2.SettingInitialWindowSize, Val: n}}
	}
	s := answered(t, http2.Defaults(), window(10), 1)
	body := bytes.Repeat([]byte("x"), 100)
	if out, n := s.Data(nil, 1, body); n != 10 || len(out) != 19 {
		t.Fatalf("%d sent", n)
	}
	change := func(n uint32) {
		k := newTalk()
		must(k.WriteSettings(window(n)...))
		s.whole(k)
	}
	change(0) // -10
	change(9)
	if _, n := s.Data(nil, 1, body); n != 0 || slices.Contains(s.steps, "1 writable") {
		t.Fatalf("%d sent, %q", n, s.steps)
	}
	change(15)
	if !slices.Contains(s.steps, "1 writable") {
		t.Errorf("%q", s.steps)
	}
	if _, n := s.Data(nil, 1, body); n != 5 {
		t.Errorf("%d sent", n)
	}
}

// TestReplyInTinyWindows: a reply whose body does not fit is a reply without one, not one that waits.
func TestReplyInTinyWindows(t *testing.T) {
	s := server(http2.Defaults())
	k := newTalk()
	k.WriteString(http2.Preface)
	must(k.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 3}))
	s.whole(k.get(1).get(3))
	s.out = nil
	for id, body := range map[uint32]string{1: "long", 3: "abc"} {
		out, err := s.Reply(s.out, id, 503, "", nil, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		s.out = out
	}
	lines := said(t, s.out)
	slices.Sort(lines)
	want := []string{"1 head true :status=503", "3 data false abc", "3 data true ", "3 head false :status=503|content-length=3"}
	if !slices.Equal(lines, want) || s.Streams() != 0 {
		t.Errorf("%q", lines)
	}
}
