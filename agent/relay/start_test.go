package relay_test

import (
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/relay"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// sum is what went into a connection or came out of it.
type sum struct {
	bytes int64
	crc   uint32
	err   error
}

func (s *sum) add(p []byte) {
	s.bytes += int64(len(p))
	s.crc = crc32.Update(s.crc, crc32.MakeTable(crc32.Castagnoli), p)
}

// send writes pieces of random sizes and contents until it has written total
// bytes or stop is set, and then FIN.
func send(to *net.TCPConn, total int64, stop *atomic.Bool) (s sum) {
	block := make([]byte, 1<<20)
	random := rand.NewChaCha8([32]byte{byte(total)})
	random.Read(block)
	for s.bytes < total && !stop.Load() {
		from := rand.IntN(len(block))
		size := 1 + rand.IntN(1<<rand.IntN(19))
		p := block[from:min(from+size, len(block))]
		p = p[:min(int64(len(p)), total-s.bytes)]
		n, err := to.Write(p)
		s.add(p[:n])
		if err != nil {
			s.err = err
			return s
		}
	}
	s.err = to.CloseWrite()
	return s
}

func receive(from *net.TCPConn) (s sum) {
	buf := make([]byte, 256<<10)
	for {
		n, err := from.Read(buf)
		s.add(buf[:n])
		if err != nil {
			if err != io.EOF {
				s.err = err
			}
			return s
		}
	}
}

// transfer is a direction under way.
type transfer struct{ sent, received chan sum }

func begin(from, to *net.TCPConn, total int64, stop *atomic.Bool) *transfer {
	f := &transfer{make(chan sum, 1), make(chan sum, 1)}
	go func() { f.sent <- send(from, total, stop) }()
	go func() { f.received <- receive(to) }()
	return f
}

// check waits for the end, and says how many bytes went over.
func (f *transfer) check(t testing.TB) int64 {
	t.Helper()
	var sums [2]sum
	for i, end := range []chan sum{f.sent, f.received} {
		select {
		case sums[i] = <-end:
		case <-time.After(60 * time.Second):
			t.Fatal("the transfer did not end")
		}
	}
	if sums[0] != sums[1] {
		t.Errorf("sent %+v, received %+v", sums[0], sums[1])
	}
	return sums[0].bytes
}

// TestGigabyte carries half of one each way at once.
func TestGigabyte(t *testing.T) {
	c := carry(t, 8)
	const each = 512 << 20
	there, back := begin(c.client, c.server, each, new(atomic.Bool)), begin(c.server, c.client, each, new(atomic.Bool))
	there.check(t)
	back.check(t)
	if err := c.wait(t); err != nil {
		t.Error(err)
	}
	if c.sent.Load() != each || c.received.Load() != each {
		t.Errorf("counted %d and %d", c.sent.Load(), c.received.Load())
	}
}

// TestResetOfEitherEnd: whichever end resets, and whatever its peer did before,
// both see it.
func TestResetOfEitherEnd(t *testing.T) {
	for _, byServer := range []bool{false, true} {
		for _, fin := range []string{"none", "own", "other"} {
			c := carry(t, 8)
			end, other := c.client, c.server
			if byServer {
				end, other = other, end
			}
			switch fin {
			case "own":
				end.CloseWrite()
				io.ReadAll(other)
			case "other":
				other.CloseWrite()
				io.ReadAll(end)
			}
			relay.Reset(end)
			if err := c.wait(t); !errors.Is(err, relay.ErrReset) { // before anybody writes
				t.Errorf("by server %v, FIN of %s: %v", byServer, fin, err)
			}
			testenv.Eventually(t, 5*time.Second, "other end sees the reset", func() bool {
				_, err := other.Write([]byte("x"))
				return isReset(err)
			})
		}
	}
}

// TestBytesBeforeReset: what an end sent before its RST is read first, as it
// would be without a relay (an answer, and then a close with bytes unread).
func TestBytesBeforeReset(t *testing.T) {
	c := carry(t, 8)
	c.server.Write([]byte("early answer"))
	relay.Reset(c.server)
	got := make([]byte, 12)
	c.client.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadFull(c.client, got); err != nil || string(got) != "early answer" {
		t.Errorf("read %q, %v", got, err)
	}
	if err := c.wait(t); !errors.Is(err, relay.ErrReset) {
		t.Error(err)
	}
}

// TestLastWords: an end that takes no more, while it is written to and while its
// reader is slow, has said something before: all that was read of it arrives.
func TestLastWords(t *testing.T) {
	for _, limit := range []int{0, 8} {
		r := relay.New(limit)
		r.Hurry(time.Minute)
		t.Cleanup(r.Close)
		c := carryBy(t, r, nil)
		stalled := stick(t, []*carried{c})[0]
		said := make(chan struct{})
		go func() {
			defer close(said)
			_, _ = c.server.Write(make([]byte, 24<<20)) // the RST comes before
		}()
		var before uint64
		testenv.Eventually(t, 20*time.Second, "the server is stopped", func() bool {
			last := before
			before = c.received.Load()
			time.Sleep(50 * time.Millisecond)
			return last == before && before > 0
		})
		relay.Reset(c.server)
		<-said
		got, err := io.Copy(io.Discard, c.client)
		if err != nil && !isReset(err) { // it is the client's writer that is told, else
			t.Errorf("%d pipes: read %d bytes and %v, want a reset", limit, got, err)
		}
		if err := c.wait(t); !errors.Is(err, relay.ErrReset) {
			t.Errorf("%d pipes: ended with %v", limit, err)
		}
		if all := c.received.Load(); all <= before || uint64(got) != all {
			t.Errorf("%d pipes: %d bytes arrived of %d; %d before the RST", limit, got, all, before)
		}
		<-stalled.sent
	}
}

// TestResetBehindEnd: what an end said before its FIN, and then a RST, arrives, though
// its reader has not taken it yet.
func TestResetBehindEnd(t *testing.T) {
	const said = 200 << 10 // more than the reader's kernel takes, and less than the relay's holds
	r := relay.New(0)
	r.Hurry(time.Minute)
	t.Cleanup(r.Close)
	c := carryBy(t, r, nil)
	if _, err := c.server.Write(make([]byte, said)); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 20*time.Second, "everything is passed on", func() bool { return c.received.Load() == said })
	c.server.CloseWrite()
	c.server.SetReadDeadline(time.Now().Add(20 * time.Second))
	for range 2 { // behind which the FIN is passed on, too
		c.client.Write([]byte("x"))
		if _, err := io.ReadFull(c.server, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	relay.Reset(c.server)
	time.Sleep(100 * time.Millisecond) // for the relay to know of it
	c.client.SetReadDeadline(time.Now().Add(20 * time.Second))
	if got, err := io.Copy(io.Discard, c.client); got != said || err != nil && !isReset(err) {
		t.Errorf("read %d of %d bytes, %v", got, said, err)
	}
	if err := c.wait(t); !errors.Is(err, relay.ErrReset) {
		t.Errorf("ended with %v", err)
	}
}

// TestUrgentData: what comes after it does not stay behind (RFC 6093 says to
// expect that it is lost or in line).
func TestUrgentData(t *testing.T) {
	r := relay.New(8)
	defer r.Close()
	c := &carried{done: make(chan error, 1)}
	p := relay.Pair{Sent: &c.sent, Received: &c.received, Measure: func(int, int) { c.endings.Add(1) }}
	c.client, p.A = tcpPair(t)
	p.B, c.server = tcpPair(t)
	raw, err := c.client.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// All of it is there before the first look.
	c.client.Write([]byte("before"))
	raw.Control(func(fd uintptr) { err = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil) })
	if err != nil {
		t.Fatal(err)
	}
	c.client.Write([]byte("after"))
	c.start(t, r, p)
	got, want := make([]byte, 11), "beforeafter"
	c.server.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadFull(c.server, got); err != nil || string(got) != want {
		t.Errorf("read %q, %v", got, err)
	}
	c.client.Close()
	c.server.Close()
	c.wait(t)
}

// stick makes clients of pairs write whose servers do not read, until that stops
// the clients too.
func stick(t testing.TB, all []*carried) []*transfer {
	t.Helper()
	var stuck []*transfer
	for _, c := range all {
		f := &transfer{make(chan sum, 1), make(chan sum, 1)}
		go func() { f.sent <- send(c.client, 24<<20, new(atomic.Bool)) }()
		stuck = append(stuck, f)
	}
	for _, c := range all {
		var before uint64
		testenv.Eventually(t, 20*time.Second, "the client is stopped", func() bool {
			last := before
			before = c.sent.Load()
			time.Sleep(50 * time.Millisecond)
			return last == before && before > 0
		})
	}
	return stuck
}

// unstick lets the server read.
func (f *transfer) unstick(c *carried) { go func() { f.received <- receive(c.server) }() }

// TestSlowReadersAreBounded: a reader that does not read costs one buffer here,
// or one pipe, of which there are no more than allowed.
func TestSlowReadersAreBounded(t *testing.T) {
	const pairs = 10
	for _, limit := range []int{0, 3} {
		r := relay.New(limit)
		pipes := openPipes(t)
		var before, after runtime.MemStats
		all := make([]*carried, pairs)
		for i := range all {
			all[i] = carryBy(t, r, nil)
		}
		runtime.GC()
		runtime.ReadMemStats(&before)
		stuck := stick(t, all)
		runtime.GC()
		runtime.ReadMemStats(&after)
		// The test's own senders have a block of 1 MiB each.
		each := (int64(after.HeapInuse)-int64(before.HeapInuse))/pairs - 1<<20
		t.Logf("%d pipes allowed: %d bytes for each stuck pair", limit, each)
		if each > 128<<10 {
			t.Errorf("a slow reader costs %d bytes", each)
		}
		if n := openPipes(t) - pipes; n > 2*limit {
			t.Errorf("%d descriptors of pipes", n)
		}
		for i, c := range all {
			stuck[i].unstick(c)
			if n := stuck[i].check(t); n != 24<<20 {
				t.Errorf("%d bytes", n)
			}
			c.server.Close()
			if err := c.wait(t); err != nil {
				t.Error(err)
			}
		}
		r.Close()
		if n := openPipes(t); n != pipes {
			t.Errorf("%d descriptors of pipes after the end, %d before", n, pipes)
		}
	}
}

// TestResetOfStuckSender: it is seen although nobody reads what it sent, and
// none of that gets into another pair through a pipe that is used again.
func TestResetOfStuckSender(t *testing.T) {
	for _, limit := range []int{0, 1} {
		r := relay.New(limit)
		r.Hurry(100 * time.Millisecond)
		t.Cleanup(r.Close)
		pipes := openPipes(t)
		stuck := carryBy(t, r, nil)
		stalled := stick(t, []*carried{stuck})[0]
		testenv.Eventually(t, 5*time.Second, "a pipe is held", func() bool { return openPipes(t)-pipes == 2*limit })
		relay.Reset(stuck.client)
		if err := stuck.wait(t); !errors.Is(err, relay.ErrReset) {
			t.Error(err)
		}
		<-stalled.sent
		c := carryBy(t, r, nil)
		begin(c.client, c.server, 8<<20, new(atomic.Bool)).check(t)
		c.server.Close()
		c.wait(t)
	}
}

func openPipes(t testing.TB) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && strings.HasPrefix(target, "pipe:") {
			n++
		}
	}
	return n
}

// TestNoDescriptorsLeft: bulk goes on without pipes.
func TestNoDescriptorsLeft(t *testing.T) {
	c := carry(t, 8)
	pipes := openPipes(t)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := unix.Rlimit{Cur: 3, Max: limit.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	f := begin(c.client, c.server, 32<<20, new(atomic.Bool))
	sent := f.check(t)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if n := openPipes(t) - pipes; n != 0 || sent != 32<<20 {
		t.Errorf("%d bytes with %d descriptors of pipes", sent, n)
	}
	c.server.Close()
	c.wait(t)
}

// TestIdlePairsCost: no goroutine, and little memory.
func TestIdlePairsCost(t *testing.T) {
	const pairs = 1000
	r := relay.New(8)
	defer r.Close()
	all := make([]*carried, pairs)
	first := carryBy(t, r, nil)
	goroutines := runtime.NumGoroutine()
	for i := range all {
		all[i] = carryBy(t, r, nil)
		all[i].client.Write([]byte("x"))
		io.ReadFull(all[i].server, make([]byte, 1))
	}
	// Each loop has two, which may have begun since.
	if n := runtime.NumGoroutine() - goroutines; n > 2*runtime.GOMAXPROCS(0) {
		t.Errorf("%d goroutines more for %d pairs", n, pairs)
	}
	with := inUse()
	for _, c := range all {
		c.cut()
		if err := c.wait(t); !errors.Is(err, relay.ErrReset) {
			t.Error(err)
		}
		c.cut = nil // holds the pair
	}
	each := (with - inUse()) / pairs
	t.Logf("%d bytes for each idle pair", each)
	if each > 1<<10 {
		t.Errorf("an idle pair costs %d bytes", each)
	}
	first.cut()
	first.wait(t)
}

// TestNothingIsAllocated while messages or bulk go through.
func TestNothingIsAllocated(t *testing.T) {
	c := carry(t, 8)
	for _, size := range []int{100, 128 << 10} {
		buf, got := make([]byte, size), make([]byte, size)
		message := func() {
			if _, err := c.client.Write(buf); err != nil {
				t.Error(err)
			}
			if _, err := io.ReadFull(c.server, got); err != nil {
				t.Error(err)
			}
		}
		if n := testing.AllocsPerRun(1000, message); n > 0 {
			t.Errorf("%v allocations for a message of %d bytes", n, size)
		}
	}
	c.cut()
	c.wait(t)
}

func inUse() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

func TestClose(t *testing.T) {
	r := relay.New(8)
	c := carryBy(t, r, nil)
	c.client.Write([]byte("x"))
	io.ReadFull(c.server, make([]byte, 1))
	r.Close()
	if err := c.wait(t); !errors.Is(err, relay.ErrReset) {
		t.Errorf("a pair that Close ended: %v", err)
	}
	c.cut() // after the end
	r.Close()
	far, a := tcpPair(t)
	b, _ := tcpPair(t)
	if _, err := r.Start(relay.Pair{A: a, B: b}, func(error) { t.Error("done was called") }); !errors.Is(err, relay.ErrClosed) {
		t.Errorf("Start after Close: %v", err)
	}
	far.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := far.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("read of a pair that was refused: %v", err)
	}
}

// TestStartWithClosedConnection: both are gone, and nobody is called.
func TestStartWithClosedConnection(t *testing.T) {
	r := relay.New(8)
	defer r.Close()
	for _, which := range []int{0, 1} {
		farA, a := tcpPair(t)
		farB, b := tcpPair(t)
		far := []*net.TCPConn{farB, farA}[which]
		[]*net.TCPConn{a, b}[which].Close()
		if _, err := r.Start(relay.Pair{A: a, B: b}, func(error) { t.Error("done was called") }); err == nil {
			t.Error("started")
		}
		far.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := far.Read(make([]byte, 1)); !isReset(err) {
			t.Errorf("read: %v, want a reset", err)
		}
	}
}

// TestMeasure: the sockets can be asked at the end, and only then.
func TestMeasure(t *testing.T) {
	r := relay.New(8)
	defer r.Close()
	client, a := tcpPair(t)
	b, server := tcpPair(t)
	done := make(chan error, 1)
	order := make(chan string, 3)
	_, err := r.Start(relay.Pair{
		A: a, B: b, Sent: new(atomic.Uint64), Received: new(atomic.Uint64),
		Measure: func(a, b int) {
			order <- "measure"
			for _, fd := range []int{a, b} {
				if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err != nil || info.Rtt == 0 {
					t.Errorf("ask the socket: %v", err)
				}
			}
		},
	}, func(err error) { order <- "done"; done <- err })
	if err != nil {
		t.Fatal(err)
	}
	client.Write([]byte("x"))
	io.ReadFull(server, make([]byte, 1))
	server.Write([]byte("x"))
	io.ReadFull(client, make([]byte, 1))
	client.Close()
	server.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, want := range []string{"measure", "done"} {
		if got := <-order; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// TestCutAtAnyTime: Cut races with the beginning and the end.
func TestCutAtAnyTime(t *testing.T) {
	r := relay.New(8)
	defer r.Close()
	for i := range 200 {
		c := carryBy(t, r, nil)
		if i%2 == 0 {
			go c.client.Close()
			go c.server.Close()
		}
		go c.cut()
		c.cut()
		if err := c.wait(t); err != nil && !errors.Is(err, relay.ErrReset) {
			t.Fatal(err)
		}
		select {
		case err := <-c.done:
			t.Fatalf("done again: %v", err)
		default:
		}
	}
}
