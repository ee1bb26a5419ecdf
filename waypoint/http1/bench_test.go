package http1_test

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/waypoint/http1"
)

// What a browser asks for, and what it gets.
const (
	browserRequest = "GET /api/v1/items?page=2&sort=name HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n" +
		"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n" +
		"Connection: keep-alive\r\nCookie: session=0123456789abcdef0123456789abcdef\r\nSec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\nPriority: u=0, i\r\n\r\n"
	serverResponse = "HTTP/1.1 200 OK\r\nServer: nginx/1.26.0\r\nDate: Mon, 30 Nov 2026 12:00:00 GMT\r\nContent-Type: application/json\r\nContent-Length: 64\r\n" +
		"Connection: keep-alive\r\nCache-Control: no-store\r\nETag: \"66291a3c-267\"\r\n\r\n0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	smallRequest  = "GET / HTTP/1.1\r\nHost: 10.96.0.10\r\n\r\n"
	chunkedUpload = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n10;a=b\r\n0123456789abcdef\r\n10\r\n0123456789abcdef\r\n0\r\nX-Sum: 1\r\n\r\n"
)

// trip carries one request and its response, and is what an owner of sockets does for
// each.
type trip struct {
	x   *http1.Exchange
	out []byte
}

func (tr *trip) request(t testing.TB, in []byte) {
	t.Helper()
	for {
		out, n, at, err := tr.x.Request(tr.out[:0], in)
		in = in[n:]
		switch {
		case err != nil:
			t.Fatal(err)
		case at == http1.HeadRead:
			if out, err = tr.x.Forward(out, nil); err != nil {
				t.Fatal(err)
			}
		case at == http1.End || at == http1.More:
			tr.out = out
			return
		}
		tr.out = out
	}
}

func (tr *trip) response(t testing.TB, in []byte) {
	t.Helper()
	for {
		out, n, at, err := tr.x.Response(tr.out[:0], in)
		in = in[n:]
		switch {
		case err != nil:
			t.Fatal(err)
		case at == http1.HeadRead:
			if out, err = tr.x.Answer(out, nil); err != nil {
				t.Fatal(err)
			}
		case at == http1.End || at == http1.More:
			tr.out = out
			return
		}
		tr.out = out
	}
}

// trips are the requests and responses that cost is measured of, and in how many
// pieces they come.
func trips() map[string][3]any {
	return map[string][3]any{
		"browser":            {browserRequest, serverResponse, 1},
		"browser, 3 pieces":  {browserRequest, serverResponse, 3},
		"small":              {smallRequest, okAnswer, 1},
		"chunked, trailers":  {chunkedUpload, strings.Replace(chunkedUpload, "POST / HTTP/1.1", "HTTP/1.1 200 OK", 1), 1},
		"options, 1.0 keeps": {"GET / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n\r\n", serverResponse, 1},
	}
}

func (tr *trip) make(t testing.TB, request, response []byte, pieces int) {
	size := max(1, (len(request)+pieces-1)/pieces)
	for rest := request; len(rest) > 0; rest = rest[min(size, len(rest)):] {
		tr.request(t, rest[:min(size, len(rest))])
	}
	size = max(1, (len(response)+pieces-1)/pieces)
	for rest := response; len(rest) > 0; rest = rest[min(size, len(rest)):] {
		tr.response(t, rest[:min(size, len(rest))])
	}
	if !tr.x.Done() || tr.x.Closing() || !tr.x.Reusable() {
		t.Fatal("a trip that does not end well")
	}
}

// TestAllocations: a request and its response on a connection that goes on allocate
// nothing.
func TestAllocations(t *testing.T) {
	for name, c := range trips() {
		tr := &trip{x: http1.NewExchange(http1.Defaults()), out: make([]byte, 0, 4<<10)}
		request, response, pieces := []byte(c[0].(string)), []byte(c[1].(string)), c[2].(int)
		if n := testing.AllocsPerRun(100, func() { tr.make(t, request, response, pieces) }); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// TestMemoryCost: what a connection costs while it idles, and while it has a usual head.
func TestMemoryCost(t *testing.T) {
	tr := &trip{x: http1.NewExchange(http1.Defaults()), out: make([]byte, 0, 4<<10)}
	tr.make(t, []byte(browserRequest), []byte(serverResponse), 2)
	if n := tr.x.Held(); n > 8<<10 {
		t.Errorf("%d bytes are held after a usual request", n)
	}
	tr.x.Release()
	if n := unsafe.Sizeof(*tr.x); n > 2<<10 {
		t.Errorf("an exchange has %d bytes", n)
	}
	if n := tr.x.Held(); n != 0 {
		t.Errorf("%d bytes are held by an idle connection", n)
	}
}

// processor is the processor time of this process so far: what is measured beside others says
// more in it.
func processor(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkNetHTTP is the same trip as net/http reads and writes it, on one goroutine.
func BenchmarkNetHTTP(b *testing.B) {
	b.ReportAllocs()
	in, out := bufio.NewReader(nil), bufio.NewWriter(io.Discard)
	before := processor(b)
	for b.Loop() {
		in.Reset(strings.NewReader(browserRequest))
		q, err := http.ReadRequest(in)
		if err == nil {
			err = q.Write(out)
		}
		if err != nil {
			b.Fatal(err)
		}
		in.Reset(strings.NewReader(serverResponse))
		a, err := http.ReadResponse(in, q)
		if err == nil {
			err = a.Write(out)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(processor(b)-before)/float64(b.N), "cpu-ns/op")
}

func BenchmarkTrip(b *testing.B) {
	for name, c := range trips() {
		b.Run(name, func(b *testing.B) {
			tr := &trip{x: http1.NewExchange(http1.Defaults()), out: make([]byte, 0, 4<<10)}
			request, response, pieces := []byte(c[0].(string)), []byte(c[1].(string)), c[2].(int)
			b.SetBytes(int64(len(request) + len(response)))
			b.ReportAllocs()
			before := processor(b)
			for b.Loop() {
				tr.make(b, request, response, pieces)
			}
			b.ReportMetric(float64(processor(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// BenchmarkParse is a request alone, without writing it anew.
func BenchmarkParse(b *testing.B) {
	p := http1.NewRequests(http1.Defaults())
	in := []byte(browserRequest)
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, _, err := p.Next(in); err != nil {
			b.Fatal(err)
		}
		if e, _, _, err := p.Next(nil); e != http1.End || err != nil {
			b.Fatal(e, err)
		}
	}
}

// BenchmarkBody is what a large body in chunks costs to be written anew in chunks.
func BenchmarkBody(b *testing.B) {
	const size = 16 << 10
	chunk := []byte("4000\r\n" + strings.Repeat("x", size) + "\r\n")
	tr := &trip{x: http1.NewExchange(http1.Defaults()), out: make([]byte, 0, 2*size)}
	tr.request(b, []byte("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"))
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		tr.request(b, chunk)
	}
}
