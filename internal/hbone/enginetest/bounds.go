package enginetest

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

func boundTests() []test {
	return []test{
		{"memory of slow readers", testSlowMemory}, {"memory at zero windows", testZeroWindows}, {"neighbours of slow readers", testNeighbours},
		{"RST with data pending", testResetPending}, {"RST from both ends", testResetByBoth},
		{"peer that stops reading", testStuckPeer}, {"server that stops reading", testStuckServer}, {"peer that answers no PING", testNoPong},
		{"header bombs", testHeaderBombs}, {"window games", testWindowGames}, {"short streams", testShortStreams},
	}
}

// held is the heap that is in use.
func held() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// pourUntilStuck writes until nothing more is taken for a while, and returns
// how much was.
func pourUntilStuck(c *net.TCPConn, most int) (n int) {
	buf := newBuffer(64 << 10)
	for n < most {
		_ = c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond)) // fails only on a closed socket
		k, err := c.Write(buf)
		n += k
		if err != nil {
			break
		}
	}
	_ = c.SetWriteDeadline(time.Time{}) // as before
	return n
}

// smallBuffers keeps the kernel from holding what an engine should.
func smallBuffers(c *net.TCPConn) error {
	return errors.Join(c.SetReadBuffer(32<<10), c.SetWriteBuffer(32<<10))
}

// slowRig is a rig whose applications' sockets hold little.
func slowRig(t *testing.T, make New, l hbone.Limits) *rig {
	return newRig(t, make, Options{}, func(r *rig) { r.small = true }, limits(l), accepting(func(r *rig, _ context.Context, _ *hbone.StreamRequest) (*hbone.Accepted, error) {
		near, far, err := tcpPair()
		if err != nil {
			return nil, err
		}
		r.apps <- far
		return &hbone.Accepted{Conn: near, Done: func(o hbone.Outcome) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.inbound = append(r.inbound, o)
		}}, errors.Join(smallBuffers(near), smallBuffers(far))
	}))
}

// testSlowMemory: applications that do not read cost the engines no more than
// the streams' windows, however much is sent to them.
func testSlowMemory(t *testing.T, make New) {
	const streams, window = 24, 128 << 10
	r := slowRig(t, make, hbone.Limits{StreamWindow: window})
	r.open(r.request()).finish()
	before := held()
	var flows []*flow
	var poured atomic.Int64
	var all sync.WaitGroup
	for range streams {
		f := r.open(r.request())
		flows = append(flows, f)
		all.Go(func() { poured.Add(int64(pourUntilStuck(f.program, 32<<20))) })
	}
	all.Wait()
	grown := held() - before
	t.Logf("%d streams took %d KiB, and hold %d KiB of heap", streams, poured.Load()>>10, grown>>10)
	if poured.Load() >= streams*32<<20 {
		t.Error("nothing holds a writer back whose reader does not read")
	}
	if most := int64(2*streams*window + 8<<20); grown > most {
		t.Errorf("%d bytes of heap for %d stuck streams, more than %d", grown, streams, most)
	}
	for _, f := range flows {
		reset(t, f.app)
		reset(t, f.program)
	}
	for _, f := range flows {
		f.outcome()
	}
	eventually(t, "the memory is free again", func() bool { return held()-before < 8<<20 })
}

// testZeroWindows: a peer that grants nothing makes the engine read nothing
// from the applications, and does not touch its other connections.
func testZeroWindows(t *testing.T, make New) {
	const streams = 64
	r := slowRig(t, make, hbone.Limits{})
	honest := r.open(r.request())
	before := held()
	c := r.rawClient()
	must(t, c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
	var all sync.WaitGroup
	var taken atomic.Int64
	for i := range streams {
		id := uint32(2*i + 1)
		c.connect(id, false)
		if code := c.status(id); code != 200 {
			t.Fatalf("status %d", code)
		}
		application := within(t, r.apps, "the application's connection")
		t.Cleanup(func() { application.Close() })
		all.Go(func() { taken.Add(int64(pourUntilStuck(application, 8<<20))) })
	}
	all.Wait()
	if grown := held() - before; grown > 8<<20 {
		t.Errorf("%d bytes of heap for %d streams without a window; applications wrote %d", grown, streams, taken.Load())
	}
	honest.echo("still here")
	honest.finish()
	must(t, c.fr.WriteWindowUpdate(1, 10)) // and what was granted comes
	f, err := c.next(func(f http2.Frame) bool { _, ok := f.(*http2.DataFrame); return ok })
	must(t, err)
	if d := f.(*http2.DataFrame); d.StreamID != 1 || len(d.Data()) > 10 {
		t.Errorf("%d bytes on stream %d", len(d.Data()), d.StreamID)
	}
}

// testNeighbours: one stream moves its bytes as fast beside others on its
// connection whose readers sleep as alone, within what a busy machine varies.
func testNeighbours(t *testing.T, make New) {
	const size = 8 << 20
	r := newRig(t, make, Options{})
	transfer := func() time.Duration {
		f := r.open(r.request())
		start := time.Now()
		poured := newChan[[32]byte](1)
		go func() { poured <- pour(t, f.program, size, 9) }()
		if got := drink(t, f.app); got != within(t, poured, "the writer") {
			t.Error("bytes changed")
		}
		took := time.Since(start)
		must(t, f.app.CloseWrite())
		f.outcome()
		return took
	}
	transfer()
	alone := min(transfer(), transfer(), transfer())
	var all sync.WaitGroup
	for range 8 {
		f := r.open(r.request())
		all.Go(func() { pourUntilStuck(f.program, 32<<20) })
		all.Go(func() { pourUntilStuck(f.app, 32<<20) })
		t.Cleanup(func() { f.program.Close() })
	}
	all.Wait()
	beside := min(transfer(), transfer(), transfer())
	t.Logf("%d MiB: alone %v, beside 8 stuck streams %v", size>>20, alone, beside)
	if beside > 4*alone+100*time.Millisecond {
		t.Errorf("%v beside stuck streams, %v alone", beside, alone)
	}
	if n := r.dialed(); n != 1 {
		t.Errorf("%d connections, want one for all", n)
	}
}

// testResetPending: a stream that is reset while its bytes wait gives the
// connection's window back: many in a row are not the end of it.
func testResetPending(t *testing.T, make New) {
	const window, piece = 200_000, 15_000
	r := newRig(t, make, Options{}, limits(hbone.Limits{StreamWindow: 100_000, ConnectionWindow: window}), func(r *rig) {
		r.srv.Accept = func(ctx context.Context, _ *hbone.StreamRequest) (*hbone.Accepted, error) {
			<-ctx.Done() // nothing is read
			return nil, ctx.Err()
		}
	})
	c := r.rawClient()
	available := 65535 // RFC 9113 section 6.9.2
	for i := range 40 {
		id := uint32(2*i + 1)
		c.connect(id, false)
		for range 4 {
			for available < piece {
				f, err := c.next(func(f http2.Frame) bool { u, ok := f.(*http2.WindowUpdateFrame); return ok && u.StreamID == 0 })
				if err != nil {
					t.Fatalf("stream %d: the connection's window does not come back: %v", i, err)
				}
				available += int(f.(*http2.WindowUpdateFrame).Increment)
			}
			must(t, c.fr.WriteData(id, false, newBuffer(piece)))
			available -= piece
		}
		must(t, c.fr.WriteRSTStream(id, http2.ErrCodeCancel))
	}
	if available > window {
		t.Errorf("a window of %d, more than the %d that it began with", available, window)
	}
}

// testStuckPeer: a client that stops reading, whether it goes on to send or
// not, is noticed, and its streams end with a reason.
func testStuckPeer(t *testing.T, make New) {
	for _, talks := range []bool{false, true} {
		r := newRig(t, make, Options{PingInterval: 200 * time.Millisecond, PingTimeout: 300 * time.Millisecond, WriteTimeout: 500 * time.Millisecond})
		c := r.rawClient()
		must(t, c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1}))
		must(t, c.fr.WriteWindowUpdate(0, 1<<30))
		c.connect(1, false)
		application := within(t, r.apps, "the application's connection")
		defer application.Close()
		if code := c.status(1); code != 200 {
			t.Fatalf("status %d", code)
		}
		stop := newChan[struct{}](0)
		var talking sync.WaitGroup
		if talks {
			talking.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(100 * time.Millisecond):
						if c.fr.WriteRawFrame(0x42, 0, 0, nil) != nil {
							return
						}
					}
				}
			})
		}
		start := time.Now()
		expectBroken(t, application)
		if in := r.lastInbound(1); !errors.Is(in.Err, hbone.ErrProtocol) && !errors.Is(in.Err, hbone.ErrLimit) {
			t.Errorf("talks %v: outcome %v", talks, in.Err)
		}
		t.Logf("talks %v: noticed after %v", talks, time.Since(start))
		close(stop)
		talking.Wait()
	}
}

// expectBroken writes without end until the connection is reset.
func expectBroken(t *testing.T, c *net.TCPConn) {
	t.Helper()
	must(t, c.SetWriteDeadline(time.Now().Add(wait)))
	buf := newBuffer(256 << 10)
	for {
		if _, err := c.Write(buf); isTimeout(err) {
			t.Fatalf("no end within %v", wait)
		} else if err != nil {
			return
		}
	}
}

// testStuckServer is testStuckPeer for the other role.
func testStuckServer(t *testing.T, make New) {
	r := newRig(t, make, Options{PingInterval: 200 * time.Millisecond, PingTimeout: 300 * time.Millisecond, WriteTimeout: 500 * time.Millisecond})
	release := newChan[struct{}](0)
	addr := r.rawServer([]http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1}}, func(_ int, c *raw) error {
		id, err := c.request()
		if err == nil {
			err = errors.Join(c.fr.WriteWindowUpdate(0, 1<<30), c.answer(id, 200, false))
		}
		<-release
		return err
	})
	defer close(release)
	f := r.start(to(r.request(), addr))
	within(t, f.opened, "Established")
	expectBroken(t, f.program)
	if o := f.outcome(); !errors.Is(o.Err, hbone.ErrProtocol) && !errors.Is(o.Err, hbone.ErrLimit) {
		t.Errorf("outcome %v", o.Err)
	}
}

// testNoPong: a peer that reads everything and says nothing is dead.
func testNoPong(t *testing.T, make New) {
	r := newRig(t, make, Options{PingInterval: 100 * time.Millisecond, PingTimeout: 150 * time.Millisecond})
	addr := r.rawServer(nil, func(_ int, c *raw) error {
		id, err := c.request()
		if err == nil {
			err = c.answer(id, 200, false)
		}
		if err == nil {
			_, err = io.Copy(io.Discard, c.conn)
		}
		return err
	})
	f := r.start(to(r.request(), addr))
	within(t, f.opened, "Established")
	expectReset(t, f.program, false)
	if o := f.outcome(); !errors.Is(o.Err, hbone.ErrProtocol) {
		t.Errorf("outcome %v", o.Err)
	}
	c := r.rawClient()
	c.connect(1, false)
	application := within(t, r.apps, "the application's connection")
	defer application.Close()
	go func() { _, _ = io.Copy(io.Discard, c.conn) }() // until the server closes
	expectReset(t, application, false)
	if in := r.lastInbound(1); !errors.Is(in.Err, hbone.ErrProtocol) {
		t.Errorf("server's outcome %v", in.Err)
	}
}

// testHeaderBombs: headers that become large when they are decoded, changes of
// the table, and headers that are large as they come, cost no memory; the
// connections of others do not see them.
func testHeaderBombs(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	honest := r.open(r.request())
	bomb := strings.Repeat("\xbe", 15_000) // the dynamic table's first entry
	before := held()
	c := r.rawClient()
	send := func(id uint32, block string) error {
		return c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte(block), EndHeaders: true})
	}
	// A new entry of 3,000 bytes: a literal with incremental indexing.
	err := send(1, "\x40\x01x\x7f\xb9\x16"+strings.Repeat("v", 3000))
	go func() { _, _ = io.Copy(io.Discard, c.conn) }() // 431s, until the end
	for i := range 300 {
		if err != nil {
			break // the server may have had enough
		}
		err = send(uint32(2*i+3), bomb)
	}
	for i := range 300 {
		if err != nil {
			break
		}
		err = send(uint32(2*i+603), strings.Repeat("\x20", 15_000)) // each changes the table
	}
	honest.echo("still here")
	honest.finish()
	if grown := held() - before; grown > 8<<20 {
		t.Errorf("%d bytes of heap", grown)
	}
	r.lastRefusal(hbone.ErrLimit)
}

// testWindowGames: windows granted a byte at a time, taken back, and made too
// large, cost the peer its stream or its connection, or nothing; never others.
func testWindowGames(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	honest := r.open(r.request())
	c := r.rawClient()
	must(t, c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
	c.connect(1, false)
	application := within(t, r.apps, "the application's connection")
	defer application.Close()
	if code := c.status(1); code != 200 {
		t.Fatalf("status %d", code)
	}
	send(t, application, strings.Repeat("x", 3000))
	var got int
	for got < 3000 { // a byte at a time
		must(t, c.fr.WriteWindowUpdate(1, 1))
		f, err := c.next(func(f http2.Frame) bool { _, ok := f.(*http2.DataFrame); return ok })
		must(t, err)
		if n := len(f.(*http2.DataFrame).Data()); n != 1 {
			t.Fatalf("%d bytes for a window of 1", n)
		}
		got++
	}
	honest.echo("beside one byte at a time")
	must(t, c.fr.WriteWindowUpdate(1, 1<<31-1))
	must(t, c.fr.WriteWindowUpdate(1, 1)) // beyond 2^31-1 (RFC 9113 section 6.9.1)
	if code := c.reset(1); code != http2.ErrCodeFlowControl {
		t.Errorf("a stream's window too large: %v", code)
	}
	c.connect(3, false)
	if code := c.status(3); code != 200 {
		t.Fatalf("status %d", code)
	}
	must(t, c.fr.WriteWindowUpdate(3, 1<<31-1))
	must(t, c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})) // the stream's with it
	if code := c.goaway(); code != http2.ErrCodeFlowControl && code != http2.ErrCodeNo {   // a RST may overtake the GOAWAY
		t.Errorf("windows too large by SETTINGS: %v", code)
	}
	honest.echo("still here")
	honest.finish()
}

// testShortStreams: ten thousand of them leave nothing behind.
func testShortStreams(t *testing.T, make New) {
	r := newRig(t, make, Options{}, accepting(func(*rig, context.Context, *hbone.StreamRequest) (*hbone.Accepted, error) {
		near, far, err := tcpPair()
		if err != nil {
			return nil, err
		}
		go func() {
			defer far.Close()
			_, _ = io.Copy(far, far) // the program checks what comes back
		}()
		return &hbone.Accepted{Conn: near, Done: func(hbone.Outcome) {}}, nil
	}))
	batch := func(n int) {
		var all sync.WaitGroup
		for worker := range 20 {
			all.Go(func() {
				for range n / 20 {
					if err := r.short(); err != nil {
						t.Errorf("worker %d: %v", worker, err)
						return
					}
				}
			})
		}
		all.Wait()
	}
	batch(shortStreams / 5)
	heap, routines, files := held(), runtime.NumGoroutine(), descriptors(t)
	batch(shortStreams)
	eventually(t, "no more goroutines than before", func() bool { return runtime.NumGoroutine() <= routines+10 })
	eventually(t, "no more descriptors than before", func() bool { return descriptors(t) <= files+10 })
	if grown := held() - heap; grown > 2<<20 {
		t.Errorf("%d streams left %d bytes of heap", shortStreams, grown)
	}
}

// short is a stream of one question and its answer.
func (r *rig) short() error {
	program, local, err := tcpPair()
	if err != nil {
		return err
	}
	defer program.Close()
	req := r.request()
	done := newChan[hbone.Outcome](1)
	req.Done = func(o hbone.Outcome) { done <- o }
	r.client.engine.Connect(local, req)
	if err := program.SetDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	if _, err := program.Write([]byte("question")); err != nil {
		return err
	}
	if err := program.CloseWrite(); err != nil {
		return err
	}
	answer, err := io.ReadAll(program)
	if err != nil || string(answer) != "question" {
		return errors.Join(err, errors.New("answer "+string(answer)))
	}
	return (<-done).Err
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}
