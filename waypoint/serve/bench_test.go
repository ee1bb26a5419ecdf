package serve_test

import (
	"bufio"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// What a browser asks for, and what it gets.
const (
	browserRequest = "GET /api/v1/items?page=2&sort=name HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n" +
		"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n" +
		"Connection: keep-alive\r\nCookie: session=0123456789abcdef0123456789abcdef\r\nX-Forwarded-For: 6.6.6.6\r\nPriority: u=0, i\r\n\r\n"
	serverResponse = "HTTP/1.1 200 OK\r\nServer: nginx/1.26.0\r\nDate: Mon, 30 Nov 2026 12:00:00 GMT\r\nContent-Type: application/json\r\nContent-Length: 64\r\n" +
		"Connection: keep-alive\r\nCache-Control: no-store\r\nETag: \"66291a3c-267\"\r\n\r\n0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

// answering answers whatever comes in one piece, and allocates nothing for it.
func answering(c net.Conn) {
	buf := make([]byte, 8<<10)
	response := []byte(serverResponse)
	for {
		if _, err := c.Read(buf); err != nil {
			return
		}
		if _, err := c.Write(response); err != nil {
			return
		}
	}
}

// steady is a world in which one client makes one request after the other, with routes, metrics and the
// access log on.
func steady(t testing.TB, options ...option) (trip func()) {
	t.Helper()
	w := newWorld(t, []*backend{raw(t, "cart", cartAddr, answering)}, append(options, func(cfg *serve.Config) { cfg.Loops = 1 })...)
	rule := toBackend("cart", route.Filter{RequestHeaders: &route.Headers{Set: []route.Header{{Name: "x-route", Value: "1"}}}},
		route.Filter{ResponseHeaders: &route.Headers{Remove: []string{"server"}}})
	rule.Matches = []route.Match{{Path: route.PathMatch{Value: "/api"}}}
	w.routes = routed(rule)
	w.set()
	c := w.dial()
	t.Cleanup(func() { _ = c.Close() })
	in := bufio.NewReaderSize(c, 8<<10)
	request, answer := []byte(browserRequest), make([]byte, 8<<10)
	size := 0
	trip = func() {
		if _, err := c.Write(request); err != nil {
			t.Fatal(err)
		}
		if size == 0 { // the first one says how long all of them are
			_, fields, err := readHead(in)
			if err != nil {
				t.Fatal(err)
			}
			size = len("HTTP/1.1 200 OK\r\n\r\n") + len(fields) + 64
			_, _ = io.ReadFull(in, answer[:64])
			return
		}
		if _, err := io.ReadFull(in, answer[:size]); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		trip()
	}
	return trip
}

// TestAllocations: a request that is routed, changed, counted and logged allocates nothing, from the
// client's socket to the backend's and back.
func TestAllocations(t *testing.T) {
	trip := steady(t)
	runtime.GC()
	if n := testing.AllocsPerRun(2000, trip); n > 0 {
		t.Errorf("%v allocations for a request", n)
	}
}

// TestToldAllocations: nor does one that is kept as a flow, and belongs to a trace that is not sampled.
func TestToldAllocations(t *testing.T) {
	trip := steady(t, flows(64), traces(t, "http://127.0.0.1:1", "0"))
	runtime.GC()
	if n := testing.AllocsPerRun(2000, trip); n > 0 {
		t.Errorf("%v allocations for a request", n)
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

// BenchmarkRequest is one request and its response, client and backend included.
func BenchmarkRequest(b *testing.B) {
	trip := steady(b)
	b.ReportAllocs()
	before := processor(b)
	for b.Loop() {
		trip()
	}
	b.ReportMetric(float64(processor(b)-before)/float64(b.N), "cpu-ns/op")
}

// TestIdleMemory: what a connection costs that waits for its next request.
func TestIdleMemory(t *testing.T) {
	const connections, most = 500, 4 << 10 // bytes of heap, the client's own included
	w := newWorld(t, []*backend{raw(t, "cart", cartAddr, answering)})
	open := func(n int) {
		for range n {
			c := w.dial()
			t.Cleanup(func() { _ = c.Close() })
			if _, err := io.WriteString(c, browserRequest); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, len(serverResponse)-len("Connection: keep-alive\r\n"))); err != nil {
				t.Fatal(err)
			}
		}
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	open(100)
	before := heap()
	open(connections)
	if each := int64(heap()-before) / connections; each > most {
		t.Errorf("an idle connection has %d bytes, more than %d", each, most)
	} else {
		t.Logf("an idle connection has %d bytes of heap, its client's included", each)
	}
}
