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

const (
	// maxIdleBytes is what one idle stream may cost, both ends of the tunnel together, the
	// sockets' and the application's share of Go's heap included.
	maxIdleBytes = 2 * 12 << 10
	// maxAllocs is what a record or a message may cost on average, of both ends: the
	// windows that grow and the buffers beyond those that a loop keeps are few.
	maxAllocs = 0.02
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

// mallocs is how many objects do allocates, in the whole process. testing.AllocsPerRun
// rounds down to an integer for each run, this does not.
func mallocs(do func()) float64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs - before.Mallocs)
}

// fewestAllocs measures until it is no more than most, five times at most: what a busy
// machine makes of a run, which lets a reader fall behind, is not the engine's.
func fewestAllocs(t *testing.T, what string, most float64, measure func() float64) {
	t.Helper()
	fewest := measure()
	for range 4 {
		if fewest > most {
			fewest = min(fewest, measure())
		}
	}
	t.Logf("%s: %.4f allocations", what, fewest)
	if fewest > most && !enginetest.Race {
		t.Errorf("%s: %.4f allocations, more than %v", what, fewest, most)
	}
}

// TestMessageAllocations holds the ceiling of allocations for one message there
// and back, on average: none, but for what the runtime does of its own.
func TestMessageAllocations(t *testing.T) {
	const messages = 5000
	c := newBench(t, fast.New(fast.Config{})).open()
	buf := make([]byte, 1000)
	pings := func() {
		for range messages {
			ping(t, c, buf)
		}
	}
	pings() // buffers become as many as they need to be
	fewestAllocs(t, "a message there and back", maxAllocs, func() float64 { return mallocs(pings) / messages })
}

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
	const records = 2 * bulk / tlsrecord.MaxPlaintext // there and back, at least
	fewestAllocs(t, "a record of a large flow", maxAllocs, func() float64 { return mallocs(func() { move(bulk) }) / records })
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
