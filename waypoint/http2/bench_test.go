package http2_test

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/http2"
)

// trip is a request of a client, as it goes to a backend, and its response, as it comes back: what an owner of sockets does
// for each. Client and backend are played by x/net's encoder, or by an echo of the same bytes.
type trip struct {
	server, client  *http2.Conn
	front, back     []byte // what goes to the client, and to the backend
	id, there       uint32
	ended           bool
	update          [13]byte
	request, answer func(id uint32) []byte
}

// encoded is a head, compressed as it is the first time, and again by whoever has a table. A literal path is one that is new each time.
func encoded(literal bool, fields ...string) (first, again []byte) {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	write := func() []byte {
		block.Reset()
		for _, f := range fields {
			i := strings.Index(f[1:], ": ") + 1
			must(enc.WriteField(hpack.HeaderField{Name: f[:i], Value: f[i+2:], Sensitive: literal && f[:i] == ":path"}))
		}
		return bytes.Clone(block.Bytes())
	}
	return write(), write()
}

func frames(first, again, body []byte) func(id uint32) []byte {
	var out bytes.Buffer
	fr := xhttp2.NewFramer(&out, nil)
	begun := false
	return func(id uint32) []byte {
		block := again
		if !begun {
			begun, block = true, first
		}
		out.Reset()
		must(fr.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true, EndStream: len(body) == 0}))
		if len(body) > 0 {
			must(fr.WriteData(id, true, body))
		}
		return out.Bytes()
	}
}

func newTrip(t testing.TB, literal bool, body int) *trip {
	tr := &trip{server: http2.NewServer(http2.Defaults()), client: http2.NewClient(http2.Defaults()), id: 1}
	first, again := encoded(literal, ":method: POST", ":scheme: http", ":path: /shop.Cart/AddItem", ":authority: cart.shop:7070", "content-type: application/grpc", "te: trailers",
		"user-agent: grpc-go/1.85.0", "grpc-timeout: 5S", "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	tr.request = frames(first, again, bytes.Repeat([]byte("q"), body))
	first, again = encoded(false, ":status: 200", "content-type: application/grpc", "grpc-encoding: identity", "date: Mon, 30 Nov 2026 12:00:00 GMT")
	tr.answer = frames(first, again, bytes.Repeat([]byte("a"), body))
	k, b := client(), backend()
	must(k.WriteSettingsAck())
	must(b.WriteSettingsAck())
	tr.front, tr.back = make([]byte, 0, 64<<10), make([]byte, 0, 64<<10)
	tr.readFront(t, k.Bytes())
	tr.readBack(t, b.Bytes())
	return tr
}

func (tr *trip) readFront(t testing.TB, in []byte) {
	for {
		out, n, s, err := tr.server.Next(tr.front, in)
		tr.front, in = out, in[n:]
		if err != nil {
			t.Fatal(err)
		}
		switch s.Event {
		case http2.More:
			return
		case http2.HeadRead:
			if tr.back, tr.there, err = tr.client.Open(tr.back, s.Head, nil); err != nil {
				t.Fatal(err)
			}
		case http2.Data:
			tr.back, _ = tr.client.Data(tr.back, tr.there, s.Data)
			tr.front = tr.server.Consumed(tr.front, s.Stream, len(s.Data))
		case http2.End:
			tr.back = tr.client.End(tr.back, tr.there, s.Trailers)
		}
	}
}

func (tr *trip) readBack(t testing.TB, in []byte) {
	for {
		out, n, s, err := tr.client.Next(tr.back, in)
		tr.back, in = out, in[n:]
		if err != nil {
			t.Fatal(err)
		}
		switch s.Event {
		case http2.More:
			return
		case http2.HeadRead:
			if tr.front, err = tr.server.Answer(tr.front, tr.id, s.Head, nil); err != nil {
				t.Fatal(err)
			}
		case http2.Data:
			tr.front, _ = tr.server.Data(tr.front, tr.id, s.Data)
			tr.back = tr.client.Consumed(tr.back, s.Stream, len(s.Data))
		case http2.End:
			tr.front, tr.ended = tr.server.End(tr.front, tr.id, s.Trailers), true
		}
	}
}

// windows are given back by the peers, once in a while.
func (tr *trip) windows(t testing.TB, sent int) {
	out := tr.update[:]
	copy(out, "\x00\x00\x04\x08\x00\x00\x00\x00\x00")
	out[9], out[10], out[11], out[12] = byte(sent>>24), byte(sent>>16), byte(sent>>8), byte(sent)
	tr.readFront(t, out)
	tr.readBack(t, out)
}

func (tr *trip) make(t testing.TB, body int) {
	tr.front, tr.back, tr.ended = tr.front[:0], tr.back[:0], false
	tr.readFront(t, tr.request(tr.id))
	tr.readBack(t, tr.answer(tr.there))
	if !tr.ended || tr.server.Streams() != 0 || tr.client.Streams() != 0 {
		t.Fatal("a trip that does not end well")
	}
	if body > 0 {
		tr.windows(t, body)
	}
	tr.id += 2
}

// TestAllocations: a request and its response on connections that go on allocate nothing, but for what x/net's decoder
// makes of fields that its table does not have: a string for each value.
func TestAllocations(t *testing.T) {
	for name, c := range map[string]struct {
		literal bool
		body    int
		most    float64
	}{"no body": {false, 0, 0}, "bodies": {false, 1000, 0}, "large bodies": {false, 16 << 10, 0}, "a new path each time": {true, 0, 1}} {
		tr := newTrip(t, c.literal, c.body)
		tr.make(t, c.body)
		tr.make(t, c.body)
		if n := testing.AllocsPerRun(200, func() { tr.make(t, c.body) }); n > c.most {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// TestAllocationsBetween: the same for a backend of HTTP/1.1, and for a client of HTTP/1.1.
func TestAllocationsBetween(t *testing.T) {
	tr := newTrip(t, false, 1000)
	x := http1.NewExchange(http1.Defaults())
	response := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello")
	downgraded := func() {
		tr.front, tr.back = tr.front[:0], tr.back[:0]
		for in := tr.request(tr.id); ; {
			out, n, s, err := tr.server.Next(tr.front, in)
			tr.front, in = out, in[n:]
			if err != nil {
				t.Fatal(err)
			}
			switch s.Event {
			case http2.HeadRead:
				x.TakeRequest(s.Head)
				if tr.back, err = x.Forward(tr.back, nil); err != nil {
					t.Fatal(err)
				}
			case http2.Data:
				tr.back = x.TakeRequestData(tr.back, s.Data)
				tr.front = tr.server.Consumed(tr.front, s.Stream, len(s.Data))
			case http2.End:
				tr.back = x.TakeRequestEnd(tr.back, s.Trailers)
			}
			if s.Event == http2.More {
				break
			}
		}
		for in, at := response, http1.More; at != http1.End; {
			n := 0
			var err error
			tr.back, n, at, err = x.Response(tr.back[:0], in)
			if in = in[n:]; err != nil {
				t.Fatal(err)
			}
			tr.front, _ = tr.server.Data(tr.front, tr.id, tr.back)
			if at == http1.HeadRead {
				if tr.front, err = tr.server.Answer(tr.front, tr.id, x.ResponseHead(), nil); err != nil {
					t.Fatal(err)
				}
			}
		}
		tr.front = tr.server.End(tr.front, tr.id, x.ResponseTrailers())
		if tr.id += 2; !x.Reusable() || tr.server.Streams() != 0 {
			t.Fatal("a trip that does not end well")
		}
	}
	for range 3 {
		downgraded()
	}
	if n := testing.AllocsPerRun(200, downgraded); n > 0 {
		t.Errorf("to HTTP/1.1: %v allocations", n)
	}
	request := []byte("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello")
	upgraded := func() {
		tr.front, tr.back = tr.front[:0], tr.back[:0]
		for in, at := request, http1.More; at != http1.End; {
			n := 0
			var err error
			tr.front, n, at, err = x.Request(tr.front[:0], in)
			if in = in[n:]; err != nil {
				t.Fatal(err)
			}
			tr.back, _ = tr.client.Data(tr.back, tr.there, tr.front)
			if at == http1.HeadRead {
				if tr.back, tr.there, err = tr.client.Open(tr.back, x.RequestHead(), nil); err != nil {
					t.Fatal(err)
				}
				x.Carry(nil)
			}
		}
		tr.back = tr.client.End(tr.back, tr.there, x.RequestTrailers())
		tr.front = tr.front[:0]
		for in := tr.answer(tr.there); ; {
			out, n, s, err := tr.client.Next(tr.back, in)
			tr.back, in = out, in[n:]
			if err != nil {
				t.Fatal(err)
			}
			switch s.Event {
			case http2.HeadRead:
				if tr.front, err = x.Answer(x.TakeResponse(tr.front, s.Head), nil); err != nil {
					t.Fatal(err)
				}
			case http2.Data:
				tr.front = x.TakeResponseData(tr.front, s.Data)
				tr.back = tr.client.Consumed(tr.back, s.Stream, len(s.Data))
			case http2.End:
				tr.front = x.TakeResponseEnd(tr.front, s.Trailers)
			}
			if s.Event == http2.More {
				break
			}
		}
		if x.Closing() || !x.Done() {
			t.Fatal("a trip that does not end well")
		}
		tr.windows(t, 1000)
	}
	x = http1.NewExchange(http1.Defaults())
	for range 3 {
		upgraded()
	}
	if n := testing.AllocsPerRun(200, upgraded); n > 0 {
		t.Errorf("to HTTP/2: %v allocations", n)
	}
}

// TestMemoryCost: what a connection costs while it idles.
func TestMemoryCost(t *testing.T) {
	tr := newTrip(t, false, 100)
	tr.make(t, 100)
	if n := tr.server.Held(); n > 8<<10 {
		t.Errorf("%d bytes are held after a usual request", n)
	}
	if tr.server.Release(); tr.server.Held() > 4<<10 {
		t.Errorf("%d bytes are held by an idle connection", tr.server.Held())
	}
	tr.make(t, 100)
}

// processor is the processor time of this process so far: what is measured beside others says more in it.
func processor(b testing.TB) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkTrip(b *testing.B) {
	for name, c := range map[string]struct {
		literal bool
		body    int
	}{"no body": {false, 0}, "100 bytes": {false, 100}, "16 KiB": {false, 16 << 10}, "a new path each time": {true, 0}} {
		b.Run(name, func(b *testing.B) {
			tr := newTrip(b, c.literal, c.body)
			b.ReportAllocs()
			before := processor(b)
			for b.Loop() {
				if tr.id > 1<<30 {
					b.Fatal("too many streams for a connection")
				}
				tr.make(b, c.body)
			}
			b.ReportMetric(float64(processor(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// BenchmarkXNet is what x/net's Framer and hpack alone take to read and write the same two heads anew, without streams,
// windows or judgement.
func BenchmarkXNet(b *testing.B) {
	again := xNet(b)
	b.ReportAllocs()
	before := processor(b)
	for b.Loop() {
		again()
	}
	b.ReportMetric(float64(processor(b)-before)/float64(b.N), "cpu-ns/op")
}

func xNet(t testing.TB) (again func()) {
	tr := newTrip(t, false, 0)
	var in, block bytes.Buffer
	read, write := xhttp2.NewFramer(nil, &in), xhttp2.NewFramer(io.Discard, nil)
	enc, decoders := hpack.NewEncoder(&block), [2]*hpack.Decoder{hpack.NewDecoder(4096, nil), hpack.NewDecoder(4096, nil)}
	return func() {
		for i, wire := range [2][]byte{tr.request(1), tr.answer(1)} {
			in.Write(wire)
			read.ReadMetaHeaders = decoders[i]
			f, err := read.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			block.Reset()
			for _, h := range f.(*xhttp2.MetaHeadersFrame).Fields {
				must(enc.WriteField(h))
			}
			must(write.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true}))
		}
	}
}

// BenchmarkBody is what a large body costs to go through.
func BenchmarkBody(b *testing.B) {
	const size = 16 << 10
	tr := newTrip(b, false, 0)
	wire := tr.request(1)
	wire[4] &^= 1 // without END_STREAM
	tr.readFront(b, wire)
	var out bytes.Buffer
	must(xhttp2.NewFramer(&out, nil).WriteData(1, false, bytes.Repeat([]byte("x"), size)))
	update := []byte("\x00\x00\x04\x08\x00\x00\x00\x00\x01\x00\x00\x40\x00")
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		tr.front, tr.back = tr.front[:0], tr.back[:0]
		tr.readFront(b, out.Bytes())
		tr.readBack(b, update)
		copy(tr.update[:], update[:9])
		tr.update[8], tr.update[11], tr.update[12] = 0, 0x40, 0
		tr.readBack(b, tr.update[:])
		if len(tr.back) < size {
			b.Fatal("it does not go through")
		}
	}
}
