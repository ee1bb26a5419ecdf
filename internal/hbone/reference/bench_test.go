package reference_test

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
	"github.com/heddle-mesh/heddle/internal/hbone/reference"
)

// What one idle stream may cost, both ends of the tunnel together: heap,
// goroutine stacks and goroutines. The fast engine has its own, lower ceilings.
const (
	maxIdleBytes      = 96 << 10
	maxIdleGoroutines = 6
	maxMessageAllocs  = 12
)

// bench is an engine that serves itself, before an application that echoes.
type bench struct {
	tb      testing.TB
	engine  *reference.Engine
	request hbone.ConnectRequest
}

func newBench(tb testing.TB) *bench {
	ca := enginetest.NewCA(tb, "mesh.test")
	server, client := ca.SVID(tb, "server"), ca.SVID(tb, "client")
	b := &bench{tb: tb, engine: reference.New(reference.Config{})}
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
	req := b.request
	req.Done = func(hbone.Outcome) {}
	b.engine.Connect(local.(*net.TCPConn), &req)
	b.tb.Cleanup(func() { program.Close() })
	ping(b.tb, program, make([]byte, 100))
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

// TestIdleStreamCost holds the ceilings.
func TestIdleStreamCost(t *testing.T) {
	const n = 500
	b := newBench(t)
	b.open()
	bytes, goroutines := footprint()
	for range n {
		b.open()
	}
	bytes2, goroutines2 := footprint()
	perStream, routines := (bytes2-bytes)/n, float64(goroutines2-goroutines)/n
	// The echoing application, one goroutine each, is in this process too.
	t.Logf("an idle stream: %d bytes, %.1f goroutines", perStream, routines-1)
	if perStream > maxIdleBytes {
		t.Errorf("an idle stream costs %d bytes, more than %d", perStream, maxIdleBytes)
	}
	if routines-1 > maxIdleGoroutines {
		t.Errorf("an idle stream costs %.1f goroutines, more than %d", routines-1, maxIdleGoroutines)
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
	c := newBench(t).open()
	buf := make([]byte, 1000)
	allocs := testing.AllocsPerRun(500, func() { ping(t, c, buf) })
	t.Logf("a message there and back: %.1f allocations", allocs)
	if allocs > maxMessageAllocs {
		t.Errorf("a message there and back: %.1f allocations, more than %d", allocs, maxMessageAllocs)
	}
}

func BenchmarkPingPong(b *testing.B) {
	c := newBench(b).open()
	buf := make([]byte, 1000)
	b.ReportAllocs()
	for b.Loop() {
		ping(b, c, buf)
	}
}

func BenchmarkThroughput(b *testing.B) {
	c := newBench(b).open()
	buf := make([]byte, 256<<10)
	b.SetBytes(int64(2 * len(buf))) // there and back
	b.ReportAllocs()
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
	bench := newBench(b)
	b.ReportAllocs()
	for b.Loop() {
		bench.open().Close()
	}
}
