package http2_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

// flooding is a client that does the same thing for ever.
type flooding struct {
	reason reason.Reason
	source string
	// before comes once, again as often as there is room.
	before func(k *talk)
	again  func(k *talk, n uint32)
	// most is how often it works.
	most int
}

func floods() []flooding {
	nothing := func(*talk) {}
	stream := func(k *talk) { k.post(1) }
	return []flooding{
		{reason.RapidReset, "CVE-2023-44487", nothing, func(k *talk, n uint32) {
			k.get(2*n + 1)
			must(k.WriteRSTStream(2*n+1, xhttp2.ErrCodeCancel))
		}, 400},
		{reason.MadeYouReset, "CVE-2025-8671: an increment of 0", nothing, func(k *talk, n uint32) {
			k.get(2*n + 1)
			must(k.WriteWindowUpdate(2*n+1, 0))
		}, 100},
		{reason.MadeYouReset, "CVE-2025-8671: a window too large", nothing, func(k *talk, n uint32) {
			k.get(2*n + 1)
			must(k.WriteWindowUpdate(2*n+1, 1<<31-1))
		}, 100},
		{reason.MadeYouReset, "CVE-2025-8671: DATA behind the end", nothing, func(k *talk, n uint32) { k.get(2*n+1).data(2*n+1, true, "x") }, 100},
		{reason.MadeYouReset, "CVE-2025-8671: HEADERS behind the end", nothing, func(k *talk, n uint32) { k.get(2*n+1).head(2*n+1, true, "a: b") }, 100},
		{reason.MadeYouReset, "CVE-2025-8671: bodies that are malformed", nothing, func(k *talk, n uint32) { k.post(2*n+1, "content-length: 1").data(2*n+1, true, "") }, 100},
		{reason.RefusedFlood, "streams beyond what is allowed", func(k *talk) {
			for n := range uint32(100) {
				k.post(2*n + 1)
			}
		}, func(k *talk, n uint32) { k.post(201 + 2*n) }, 400},
		{reason.SettingsFlood, "CVE-2019-9515", nothing, func(k *talk, _ uint32) { must(k.WriteSettings()) }, 50},
		{reason.SettingsFlood, "acknowledgements of nothing", nothing, func(k *talk, _ uint32) { must(k.WriteSettingsAck()) }, 51},
		{reason.PingFlood, "CVE-2019-9512", nothing, func(k *talk, _ uint32) { must(k.WritePing(false, [8]byte{})) }, 200},
		{reason.PingFlood, "answers to no PING", nothing, func(k *talk, _ uint32) { must(k.WritePing(true, [8]byte{})) }, 200},
		{reason.EmptyFlood, "CVE-2019-9518", stream, func(k *talk, _ uint32) { k.data(1, false, "") }, 100},
		{reason.EmptyFlood, "CVE-2019-9518, with padding", stream, func(k *talk, _ uint32) { must(k.WriteDataPadded(1, false, nil, make([]byte, 9))) }, 100},
		{reason.UpdateFlood, "WINDOW_UPDATE of the connection", nothing, func(k *talk, _ uint32) { must(k.WriteWindowUpdate(0, 1)) }, 2000},
		{reason.UpdateFlood, "WINDOW_UPDATE of a stream", stream, func(k *talk, _ uint32) { must(k.WriteWindowUpdate(1, 1)) }, 2000},
		{reason.IdleFlood, "CVE-2019-9513: PRIORITY", nothing, func(k *talk, _ uint32) { k.raw(xhttp2.FramePriority, 0, 1, "\x00\x00\x00\x03\x00") }, 1000},
		{reason.IdleFlood, "frames of no known kind", nothing, func(k *talk, _ uint32) { k.raw(0xbe, 0, 1, "") }, 1000},
		{reason.IdleFlood, "GOAWAY", nothing, func(k *talk, _ uint32) { must(k.WriteGoAway(0, 0, nil)) }, 1000},
		{reason.ClosedFlood, "RST_STREAM of a stream that has ended", func(k *talk) {
			k.get(1)
			must(k.WriteRSTStream(1, xhttp2.ErrCodeCancel))
		}, func(k *talk, _ uint32) { must(k.WriteRSTStream(1, xhttp2.ErrCodeCancel)) }, 1000},
		{reason.ClosedFlood, "DATA of a stream that has ended", func(k *talk) {
			k.get(1)
			must(k.WriteRSTStream(1, xhttp2.ErrCodeCancel))
		}, func(k *talk, _ uint32) { k.data(1, false, "x") }, 1000},
	}
}

// TestFloods: each works as often as its burst, and again at its rate in time, and then ends the connection.
func TestFloods(t *testing.T) {
	for _, f := range floods() {
		synctest.Test(t, func(t *testing.T) {
			s := server(http2.Defaults())
			k := client()
			f.before(k)
			s.whole(k)
			var n uint32
			flood := func() (times int) {
				for ; s.err == nil && times < 5000; times++ {
					k.Reset()
					f.again(k, n)
					n++
					s.out = s.out[:0]
					s.whole(k)
				}
				return times
			}
			if times := flood(); times < f.most || times > f.most+2 {
				t.Errorf("%s: %d times, not %d", f.source, times, f.most)
			}
			if wrong, ok := s.err.(*http2.Error); !ok || wrong.Reason != f.reason || wrong.Code != http2.EnhanceYourCalm || wrong.Status() != 0 {
				t.Errorf("%s: %v, not %v", f.source, s.err, f.reason)
			}
		})
		synctest.Test(t, func(t *testing.T) { // at half of its rate it goes on for ever
			s := server(http2.Defaults())
			k := client()
			f.before(k)
			s.whole(k)
			for n := range uint32(f.most + 500) {
				k.Reset()
				f.again(k, n)
				s.out = s.out[:0]
				s.whole(k)
				time.Sleep(time.Second)
			}
			if s.err != nil {
				t.Errorf("%s, slowly: %v", f.source, s.err)
			}
		})
	}
}

// TestNoFlood: what a busy connection does is none, however long it lasts.
func TestNoFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := server(http2.Defaults())
		k := client()
		body := bytes.Repeat([]byte("x"), 1000)
		s.on = func(step http2.Step) {
			if step.Event != http2.End {
				return
			}
			out, err := s.Answer(s.out, step.Stream, responseHead(t, 200), nil)
			if err != nil {
				t.Fatal(err)
			}
			out, _ = s.Data(out, step.Stream, body)
			s.out = s.End(out, step.Stream, nil)
		}
		for n := range uint32(5000) {
			id := 4*n + 1
			k.post(id).data(id, true, "")
			must(k.WriteWindowUpdate(0, 1000))
			must(k.WriteWindowUpdate(id, 1000))
			must(k.WritePing(false, [8]byte{}))
			if n%2 == 1 { // a third of all is cancelled
				k.post(id + 2)
				must(k.WriteRSTStream(id+2, xhttp2.ErrCodeCancel))
			}
			s.whole(k)
			k.Reset()
			if s.out, s.steps = s.out[:0], nil; s.err != nil {
				t.Fatalf("after %d: %v", n, s.err)
			}
		}
	})
}

// TestNoFault: one client whose requests are refused, or one backend that answers badly, does not end a connection that others
// share: no work was begun for the one, and the other was asked.
func TestNoFault(t *testing.T) {
	s := server(http2.Defaults())
	k := client()
	c := newSide(http2.NewClient(http2.Defaults()))
	c.whole(backend())
	h := requestHead(t, ":method: GET", ":scheme: http", ":authority: h", ":path: /")
	b := newTalk()
	for n := range uint32(3000) {
		s.whole(k.get(2*n+1, "connection: close"))
		k.Reset()
		id, err := uint32(0), error(nil)
		if c.out, id, err = c.Open(nil, h, nil); err != nil {
			t.Fatal(n, err)
		}
		if n%2 == 0 { // cancelled, and answered meanwhile
			c.out = c.Conn.Reset(c.out, id, http2.Cancel)
		}
		c.whole(b.head(id, false, ":status: 200", "connection: close").data(id, true, "x"))
		b.Reset()
		s.out, s.steps, c.steps = nil, nil, nil
		if s.err != nil || c.err != nil {
			t.Fatalf("after %d: %v, %v", n, s.err, c.err)
		}
	}
}

// TestContinuations: CVE-2024-27316. A head without end is refused while it comes, by its frames and by its bytes.
func TestContinuations(t *testing.T) {
	for _, part := range []int{0, 1, 16 << 10} {
		s := server(http2.Defaults())
		k := client().raw(xhttp2.FrameHeaders, 0, 1, "\x82\x86\x84")
		frames, total := 0, 0
		for ; s.err == nil && frames < 1000; frames++ {
			s.whole(k)
			k.Reset()
			k.raw(xhttp2.FrameContinuation, 0, 1, strings.Repeat("\x88", part))
			total += part
		}
		if wrong, ok := s.err.(*http2.Error); !ok || wrong.Reason != reason.HeadFlood || frames > 18 || total > 6*16<<10 {
			t.Errorf("%d frames of %d: %v", frames, part, s.err)
		}
		if s.Held() > 400<<10 {
			t.Errorf("%d bytes are held", s.Held())
		}
	}
}

// TestBomb: an entry of the table that a byte each repeats becomes no more than a head may be, and the tables stay in
// step.
func TestBomb(t *testing.T) {
	s := server(http2.Defaults())
	k := client().get(1, "x-big: "+strings.Repeat("v", 3000))
	k.raw(xhttp2.FrameHeaders, 5, 3, "\x82\x86\x84"+strings.Repeat("\xbe", 16_000))
	s.whole(k.get(5, "x-big: "+strings.Repeat("v", 3000)))
	if !slices.Contains(s.steps, "3 refused head_too_large") || !slices.Contains(s.steps, "5 end") || s.err != nil {
		t.Errorf("%.100q, %v", s.steps, s.err)
	}
	if s.Held() > 200<<10 {
		t.Errorf("%d bytes are held", s.Held())
	}
	cookies := client().raw(xhttp2.FrameHeaders, 4, 1, string(client().compress(":method: GET", ":scheme: http", ":path: /", "host: h", "cookie: "+strings.Repeat("c", 3000)))+strings.Repeat("\xbe", 15))
	if s := server(http2.Defaults()).whole(cookies); len(s.steps) != 1 || !strings.Contains(s.steps[0], strings.Repeat("; "+strings.Repeat("c", 3000), 15)) || s.Held() > 300<<10 {
		t.Errorf("%.200q, %d held", s.steps, s.Held())
	}
}

// TestTable: a peer's table is as large as we say, and a change of it stands at the beginning of a block.
func TestTable(t *testing.T) {
	size := func(n uint32) []byte {
		var block bytes.Buffer
		enc := hpack.NewEncoder(&block)
		enc.SetMaxDynamicTableSizeLimit(1 << 30)
		enc.SetMaxDynamicTableSize(n)
		for _, f := range []string{":method=GET", ":scheme=http", ":authority=h", ":path=/"} {
			name, value, _ := strings.Cut(f, "=")
			must(enc.WriteField(hpack.HeaderField{Name: name, Value: value}))
		}
		return block.Bytes()
	}
	for n, good := range map[uint32]bool{0: true, 100: true, 4095: true, 4096: true, 4097: false, 1 << 20: false} {
		s := server(http2.Defaults()).whole(client().raw(xhttp2.FrameHeaders, 5, 1, string(size(n))))
		if wrong, ok := s.err.(*http2.Error); good != (s.err == nil) || !good && (!ok || wrong.Code != http2.CompressionError) {
			t.Errorf("a table of %d bytes: %v", n, s.err)
		}
	}
	inside := client().raw(xhttp2.FrameHeaders, 5, 1, "\x40\x01a\x01b\x20")
	if s := server(http2.Defaults()).whole(inside); s.err == nil {
		t.Error("a change of the table inside of a head")
	}
}

// TestMemory: what a connection holds at most, whatever a client sends; and nothing when it idles.
func TestMemory(t *testing.T) {
	config := http2.Defaults()
	s := server(config)
	s.hold = true
	k := client()
	must(k.WriteSettingsAck())
	for n := range uint32(config.Streams) {
		k.post(2*n+1, "x-long: "+strings.Repeat("v", 10_000), fmt.Sprintf("x-%d: %d", n, n))
		for range 4 {
			k.data(2*n+1, false, strings.Repeat("d", 1<<14))
		}
	}
	s.steps = nil
	if s.whole(k); s.err != nil || s.Unread() != int64(config.Streams*config.Window) || s.Held() > 100<<10 {
		t.Errorf("%v: %d unread, %d held", s.err, s.Unread(), s.Held())
	}
	for n := range uint32(config.Streams) {
		s.out = s.Conn.Reset(s.out, 2*n+1, http2.Cancel)
	}
	if s.Release(); s.Held() > config.Table || s.Unread() != 0 || s.Streams() != 0 {
		t.Errorf("%d bytes are held by an idle connection, %d unread", s.Held(), s.Unread())
	}
	k.Reset()
	if s.whole(k.get(1001)); s.err != nil || !slices.Contains(s.steps, "1001 end") {
		t.Errorf("after Release: %v", s.err)
	}
}
