package serve_test

import (
	"bytes"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/waypoint/http2"
)

// flooder is a client of HTTP/2 that is written by hand. What it writes goes out when it is sent; what it is told is
// read all the time, and its PINGs are answered.
type flooder struct {
	*xhttp2.Framer // writes to out
	conn           net.Conn
	out            bytes.Buffer
	block          bytes.Buffer
	table          *hpack.Encoder
	writing        sync.Mutex
	heard          atomic.Bool // a GOAWAY
	code           atomic.Uint32
	pings          atomic.Int32
	ended          chan struct{} // closed when nothing more is said
	heads          chan []hpack.HeaderField
	resets         chan xhttp2.ErrCode
}

// flooding opens a connection with a window of its own for streams.
func (w *world) flooding(window uint32) *flooder {
	w.t.Helper()
	f := w.unread()
	f.ended, f.heads, f.resets = make(chan struct{}), make(chan []hpack.HeaderField, 4096), make(chan xhttp2.ErrCode, 4096)
	w.t.Cleanup(func() { _ = f.conn.Close(); <-f.ended })
	_ = f.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: window}) // to memory, as all of it
	_ = f.WriteSettingsAck()
	_ = f.send()
	go f.read()
	return f
}

// unread opens a connection of which nothing is read; its preface is written.
func (w *world) unread() *flooder {
	w.t.Helper()
	f := &flooder{conn: w.dial()}
	w.t.Cleanup(func() { _ = f.conn.Close() })
	f.Framer, f.table = xhttp2.NewFramer(&f.out, nil), hpack.NewEncoder(&f.block)
	f.AllowIllegalWrites = true
	f.out.WriteString(http2.Preface)
	return f
}

// read is all that the waypoint says.
func (f *flooder) read() {
	defer close(f.ended)
	defer f.conn.Close()
	in := xhttp2.NewFramer(nil, f.conn)
	in.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		frame, err := in.ReadFrame()
		if err != nil {
			return
		}
		switch frame := frame.(type) {
		case *xhttp2.GoAwayFrame:
			f.code.Store(uint32(frame.ErrCode))
			f.heard.Store(true)
		case *xhttp2.PingFrame:
			if !frame.IsAck() {
				f.pings.Add(1)
				var pong bytes.Buffer
				_ = xhttp2.NewFramer(&pong, nil).WritePing(true, frame.Data)
				f.writing.Lock()
				_, _ = f.conn.Write(pong.Bytes())
				f.writing.Unlock()
			}
		case *xhttp2.MetaHeadersFrame:
			f.heads <- frame.Fields
		case *xhttp2.RSTStreamFrame:
			select {
			case f.resets <- frame.ErrCode:
			default: // more than anybody looks at
			}
		}
	}
}

// send sends what was written.
func (f *flooder) send() error {
	f.writing.Lock()
	defer f.writing.Unlock()
	_, err := f.out.WriteTo(f.conn)
	f.out.Reset()
	return err
}

// ask writes the head of a request, and its end if it has no body.
func (f *flooder) ask(id uint32, method string, fields ...string) {
	_ = f.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: id, BlockFragment: f.compress(method, fields...), EndHeaders: true, EndStream: method != "POST"})
}

func (f *flooder) compress(method string, fields ...string) []byte {
	f.block.Reset()
	all := append([]string{":method", method, ":scheme", "http", ":authority", "h", ":path", "/"}, fields...)
	for i := 0; i < len(all); i += 2 {
		_ = f.table.WriteField(hpack.HeaderField{Name: all[i], Value: all[i+1]})
	}
	return f.block.Bytes()
}

// answered waits for a response, and returns its status.
func (f *flooder) answered(t *testing.T) string {
	t.Helper()
	select {
	case head := <-f.heads:
		return head[0].Value
	case <-time.After(10 * time.Second):
		t.Fatal("there is no answer")
		return ""
	}
}

// waiting is a workload that answers nothing until the request is taken back, or the test ends, but for what is for now.
func waiting(t *testing.T) *backend {
	release := make(chan struct{})
	b := serving(t, "cart", cartAddr, 1, func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Now") != "" {
			return
		}
		select {
		case <-r.Context().Done():
		case <-release:
		}
	})
	t.Cleanup(func() { close(release) }) // before the workload ends
	return b
}

// TestHTTP2Floods: whoever does one thing for ever is told ENHANCE_YOUR_CALM, or what the fault is, loses the connection, and is counted
// with the reason; others go on, and nothing is left of it.
func TestHTTP2Floods(t *testing.T) {
	const calm = xhttp2.ErrCodeEnhanceYourCalm
	nothing := func(*flooder) {}
	post := func(f *flooder) { f.ask(1, "POST") }
	gone := func(f *flooder) { f.ask(1, "GET"); _ = f.WriteRSTStream(1, xhttp2.ErrCodeCancel) }
	for _, c := range []struct {
		name, reason string
		code         xhttp2.ErrCode
		before       func(f *flooder)
		again        func(f *flooder, n uint32)
	}{
		{"rapid reset", "rapid_reset", calm, nothing, func(f *flooder, n uint32) {
			f.ask(2*n+1, "GET")
			_ = f.WriteRSTStream(2*n+1, xhttp2.ErrCodeCancel)
		}},
		{"made you reset, by an increment of 0", "made_you_reset", calm, nothing, func(f *flooder, n uint32) {
			f.ask(2*n+1, "GET")
			_ = f.WriteRawFrame(xhttp2.FrameWindowUpdate, 0, 2*n+1, make([]byte, 4))
		}},
		{"made you reset, by a body that is malformed", "made_you_reset", calm, nothing, func(f *flooder, n uint32) {
			f.ask(2*n+1, "POST", "content-length", "1")
			_ = f.WriteData(2*n+1, true, nil)
		}},
		{"streams beyond the limit", "refused_stream_flood", calm, func(f *flooder) {
			for n := range uint32(100) {
				f.ask(2*n+1, "POST")
			}
		}, func(f *flooder, n uint32) { f.ask(201+2*n, "POST") }},
		{"empty CONTINUATIONs", "head_flood", calm, func(f *flooder) { _ = f.WriteRawFrame(xhttp2.FrameHeaders, 0, 1, []byte("\x82\x86\x84")) },
			func(f *flooder, _ uint32) { _ = f.WriteContinuation(1, false, nil) }},
		{"large CONTINUATIONs", "head_flood", calm, func(f *flooder) { _ = f.WriteRawFrame(xhttp2.FrameHeaders, 0, 1, []byte("\x82\x86\x84")) },
			func(f *flooder, _ uint32) { _ = f.WriteContinuation(1, false, bytes.Repeat([]byte{0x88}, 8<<10)) }},
		{"SETTINGS", "settings_flood", calm, nothing, func(f *flooder, _ uint32) { _ = f.WriteSettings() }},
		{"PING", "ping_flood", calm, nothing, func(f *flooder, _ uint32) { _ = f.WritePing(false, [8]byte{}) }},
		{"answers to no PING", "ping_flood", calm, nothing, func(f *flooder, _ uint32) { _ = f.WritePing(true, [8]byte{}) }},
		{"empty DATA", "empty_frame_flood", calm, post, func(f *flooder, _ uint32) { _ = f.WriteData(1, false, nil) }},
		{"padding", "empty_frame_flood", calm, post, func(f *flooder, _ uint32) { _ = f.WriteDataPadded(1, false, nil, make([]byte, 9)) }},
		{"WINDOW_UPDATE", "window_update_flood", calm, nothing, func(f *flooder, _ uint32) { _ = f.WriteWindowUpdate(0, 1) }},
		{"PRIORITY", "idle_frame_flood", calm, nothing, func(f *flooder, _ uint32) {
			_ = f.WriteRawFrame(xhttp2.FramePriority, 0, 1, []byte("\x00\x00\x00\x03\x00"))
		}},
		{"unknown frames", "idle_frame_flood", calm, nothing, func(f *flooder, _ uint32) { _ = f.WriteRawFrame(0xbe, 0, 1, nil) }},
		{"frames of a stream that is gone", "closed_stream_flood", calm, gone, func(f *flooder, _ uint32) { _ = f.WriteRSTStream(1, xhttp2.ErrCodeCancel) }},
		// What is wrong at once.
		{"a window beyond what there is", "window_too_large", xhttp2.ErrCodeFlowControl, nothing, func(f *flooder, _ uint32) { _ = f.WriteWindowUpdate(0, 1<<31-1) }},
		{"an increment of 0 of the connection", "zero_window_update", xhttp2.ErrCodeProtocol, nothing,
			func(f *flooder, _ uint32) { _ = f.WriteRawFrame(xhttp2.FrameWindowUpdate, 0, 0, make([]byte, 4)) }},
		{"a table that is too large", "bad_compression", xhttp2.ErrCodeCompression, nothing, func(f *flooder, _ uint32) {
			_ = f.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("\x3f\xff\xff\x3f\x82\x86\x84"), EndHeaders: true, EndStream: true})
		}},
		{"a frame that is too large", "frame_too_large", xhttp2.ErrCodeFrameSize, post, func(f *flooder, _ uint32) { _ = f.WriteData(1, false, make([]byte, 16<<10+1)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, []*backend{waiting(t)}, oneLoop)
			counted := func() float64 { return w.value("heddle_waypoint_refusals_total", "reason", c.reason) }
			other := w.flooding(1 << 16)
			f := w.flooding(1 << 16)
			c.before(f)
			for n := uint32(0); n < 20_000 && !f.heard.Load(); n++ {
				if c.again(f, n); f.out.Len() > 4<<10 || n%64 == 0 {
					if f.send() != nil {
						break
					}
				}
			}
			select {
			case <-f.ended:
			case <-time.After(10 * time.Second):
				t.Fatal("the connection goes on")
			}
			if !f.heard.Load() || xhttp2.ErrCode(f.code.Load()) != c.code {
				t.Errorf("it ends with a GOAWAY: %v, of %v, want %v", f.heard.Load(), xhttp2.ErrCode(f.code.Load()), c.code)
			}
			if n := counted(); n != 1 {
				t.Errorf("%s is counted %v times", c.reason, n)
			}
			other.ask(1, "GET", "x-now", "1")
			if err := other.send(); err != nil {
				t.Fatal(err)
			}
			if got := other.answered(t); got != "200" {
				t.Errorf("another client gets %s", got)
			}
			_ = other.conn.Close()
			eventually(t, "nothing is left", func() bool { return w.server.Connections() == 0 }) // and nothing is held: the world looks
		})
	}
}

// TestHTTP2Bomb: what a byte each repeats out of the table is a head that is too large, of one stream; the connection goes on, and
// little is held.
func TestHTTP2Bomb(t *testing.T) {
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, echo)}, oneLoop)
	f := w.flooding(1 << 16)
	big := strings.Repeat("v", 3000)
	f.ask(1, "GET", "x-big", big)
	bomb := append([]byte("\x82\x86\x84"), bytes.Repeat([]byte{0xbe}, 16_000)...) // 48 MB
	const bombs = 50
	for n := range uint32(bombs) {
		_ = f.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 2*n + 3, BlockFragment: bomb, EndHeaders: true, EndStream: true})
	}
	f.ask(2*bombs+3, "GET", "x-big", big)
	if err := f.send(); err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for range bombs + 2 {
		got[f.answered(t)]++
	}
	if got["200"] != 2 || got["431"] != bombs || f.heard.Load() {
		t.Errorf("%v, GOAWAY %v; want two of 200, and 431 to each bomb", got, f.heard.Load())
	}
	if n := w.value("heddle_waypoint_refusals_total", "reason", "head_too_large"); n != bombs {
		t.Errorf("%v are counted, of %d", n, bombs)
	}
	time.Sleep(1100 * time.Millisecond) // the gauge is told once a second
	if n := w.gauge("heddle_waypoint_buffered_bytes"); n > 1<<20 {
		t.Errorf("%v bytes are held for a head that was refused", n)
	}
}
