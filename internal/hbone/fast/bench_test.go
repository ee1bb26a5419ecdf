package fast_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/enginetest"
	"github.com/heddle-mesh/heddle/internal/hbone/fast"
	"github.com/heddle-mesh/heddle/internal/hbone/reference"
	"github.com/heddle-mesh/heddle/internal/hbone/tlsrecord"
)

// What one idle stream may cost, both ends of the tunnel together, the
// sockets' and the application's share of Go's heap included.
const (
	maxIdleBytes     = 2 * 12 << 10
	maxMessageAllocs = 0
)

// bench is an engine that serves itself, before an application that echoes.
type bench struct {
	tb      testing.TB
	engine  hbone.Engine
	request hbone.ConnectRequest
}

func newBench(tb testing.TB, engine hbone.Engine) *bench {
	ca := enginetest.NewCA(tb, "mesh.test")
	server, client := ca.SVID(tb, "server"), ca.SVID(tb, "client")
	b := &bench{tb: tb, engine: engine}
	app, l := listen(tb), listen(tb)
	go func() {
		for {
			c, err := app.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // the client checks what comes back
			}()
		}
	}()
	served := make(chan error, 1)
	go func() {
		served <- b.engine.Serve(l, &hbone.Server{
			Local: "server", Bundles: ca.Bundle(), Certificate: func() (*tls.Certificate, error) { return server, nil },
			Limits: hbone.Limits{Streams: 2000},
			Accept: func(context.Context, *hbone.StreamRequest) (*hbone.Accepted, error) {
				c, err := net.Dial("tcp", app.Addr().String())
				if err != nil {
					return nil, err
				}
				return &hbone.Accepted{Conn: c.(*net.TCPConn)}, nil
			},
		})
	}()
	endpoint := l.Addr().(*net.TCPAddr).AddrPort()
	b.request = hbone.ConnectRequest{
		Key:         hbone.Key{Source: "client", Leaf: hbone.Fingerprint(client), Peer: ca.ID("server"), Endpoint: endpoint},
		Certificate: client, Bundles: ca.Bundle(), Authority: netip.MustParseAddrPort("10.0.0.1:80"), Timeout: 10 * time.Second,
		Dial: func(context.Context) (*net.TCPConn, error) {
			c, err := net.Dial("tcp", endpoint.String())
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		},
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		_ = b.engine.Close(ctx) // streams may be open
		<-served
		app.Close()
	})
	return b
}

func listen(tb testing.TB) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

// open makes a stream and sends one message through it.
func (b *bench) open() *net.TCPConn {
	l := listen(b.tb)
	defer l.Close()
	program, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.tb.Fatal(err)
	}
	local, err := l.Accept()
	if err != nil {
		b.tb.Fatal(err)
	}
	req, buf := b.request, make([]byte, 100)
	req.Done = func(hbone.Outcome) {}
	if _, err := program.Write(buf); err != nil { // as programs do that speak first
		b.tb.Fatal(err)
	}
	b.engine.Connect(local.(*net.TCPConn), &req)
	b.tb.Cleanup(func() { program.Close() })
	if _, err := io.ReadFull(program, buf); err != nil {
		b.tb.Fatal(err)
	}
	return program.(*net.TCPConn)
}

func ping(tb testing.TB, c net.Conn, buf []byte) {
	if _, err := c.Write(buf); err != nil {
		tb.Fatal(err)
	}
	if _, err := io.ReadFull(c, buf); err != nil {
		tb.Fatal(err)
	}
}

// TestIdleStreamCost holds the ceilings: bytes, and no goroutine.
func TestIdleStreamCost(t *testing.T) {
	const n = 500
	b := newBench(t, fast.New(fast.Config{}))
	b.open()
	bytes, goroutines := footprint()
	for range n {
		b.open()
	}
	bytes2, goroutines2 := footprint()
	perStream, routines := (bytes2-bytes)/n, float64(goroutines2-goroutines)/n
	t.Logf("an idle stream: %d bytes, %.1f goroutines", perStream, routines-1) // one is the application's
	if perStream > maxIdleBytes {
		t.Errorf("an idle stream costs %d bytes, more than %d", perStream, maxIdleBytes)
	}
	if routines-1 > 0.1 {
		t.Errorf("an idle stream costs %.1f goroutines", routines-1)
	}
}

func footprint() (bytes, goroutines int) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapInuse + m.StackInuse), runtime.NumGoroutine()
}

// TestMessageAllocations holds the ceiling of allocations for one message there
// and back.
func TestMessageAllocations(t *testing.T) {
	c := newBench(t, fast.New(fast.Config{})).open()
	buf := make([]byte, 1000)
	allocs := testing.AllocsPerRun(500, func() { ping(t, c, buf) })
	t.Logf("a message there and back: %.2f allocations", allocs)
	if allocs > maxMessageAllocs {
		t.Errorf("a message there and back: %.2f allocations, more than %d", allocs, maxMessageAllocs)
	}
}

// maxRecordAllocs is what one record of a large flow may cost on average: none, but
// for windows that grow, and for buffers beyond those that a loop keeps, while a
// busy machine lets a reader fall behind.
const maxRecordAllocs = 0.25

// TestBulkAllocations holds the ceiling of allocations for a record of a large flow,
// which one end seals and the other one opens.
func TestBulkAllocations(t *testing.T) {
	c := newBench(t, fast.New(fast.Config{})).open()
	buf, back := make([]byte, 256<<10), make([]byte, 256<<10)
	move := func(bytes int) {
		done := make(chan error, 1)
		go func() {
			var err error
			for n := 0; n < bytes && err == nil; n += len(back) {
				_, err = io.ReadFull(c, back)
			}
			done <- err
		}()
		for n := 0; n < bytes; n += len(buf) {
			if _, err := c.Write(buf); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	move(32 << 20) // windows and free buffers become as many as they need to be
	const bulk = 64 << 20
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	move(bulk)
	runtime.ReadMemStats(&after)
	records := float64(2 * bulk / tlsrecord.MaxPlaintext) // there and back, at least
	allocs := float64(after.Mallocs-before.Mallocs) / records
	t.Logf("a record of a large flow: %.4f allocations, %.0f bytes", allocs, float64(after.TotalAlloc-before.TotalAlloc)/records)
	if allocs > maxRecordAllocs && !enginetest.Race {
		t.Errorf("a record of a large flow: %.4f allocations, more than %v", allocs, maxRecordAllocs)
	}
}

// engines are what the benchmarks compare, in one run.
func engines() map[string]func() hbone.Engine {
	return map[string]func() hbone.Engine{
		"loop":      func() hbone.Engine { return fast.New(fast.Config{}) },
		"reference": func() hbone.Engine { return reference.New(reference.Config{}) },
	}
}

func compare(b *testing.B, run func(*testing.B, *bench)) {
	for name, engine := range engines() {
		b.Run(name, func(b *testing.B) { run(b, newBench(b, engine())) })
	}
}

func BenchmarkPingPong(b *testing.B) {
	compare(b, func(b *testing.B, bench *bench) {
		c := bench.open()
		buf := make([]byte, 1000)
		b.ReportAllocs()
		for b.Loop() {
			ping(b, c, buf)
		}
	})
}

func BenchmarkPingPong32(b *testing.B) {
	compare(b, func(b *testing.B, bench *bench) {
		conns := make(chan *net.TCPConn, 64)
		for range cap(conns) {
			conns <- bench.open()
		}
		b.SetParallelism(16)
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			c, buf := <-conns, make([]byte, 1000)
			for pb.Next() {
				ping(b, c, buf)
			}
		})
	})
}

func BenchmarkThroughput(b *testing.B) {
	compare(b, throughput)
}

func throughput(b *testing.B, bench *bench) {
	c := bench.open()
	buf := make([]byte, 256<<10)
	b.SetBytes(int64(2 * len(buf))) // there and back
	b.ReportAllocs()
	b.ResetTimer()
	done := make(chan error, 1)
	go func() {
		got := make([]byte, 256<<10)
		for range b.N {
			if _, err := io.ReadFull(c, got); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for range b.N {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

func BenchmarkNewStream(b *testing.B) {
	compare(b, func(b *testing.B, bench *bench) {
		b.ReportAllocs()
		for b.Loop() {
			bench.open().Close()
		}
	})
}
