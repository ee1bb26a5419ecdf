package handover

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/testbed"
)

// A message on every connection: the connection's number, the message's, how
// many bytes follow, and the checksum of all of it. The bytes follow from the two
// numbers, so that each end knows what must come.
const headerBytes = 20

func message(to []byte, conn, seq uint32, size int) []byte {
	to = slices.Grow(to[:0], headerBytes+size)[:headerBytes+size]
	binary.BigEndian.PutUint32(to[0:], conn)
	binary.BigEndian.PutUint32(to[4:], seq)
	binary.BigEndian.PutUint32(to[8:], uint32(size))
	state := uint64(conn)<<32 | uint64(seq)
	for i := headerBytes; i < len(to); i++ {
		state = state*6364136223846793005 + 1442695040888963407
		to[i] = byte(state >> 56)
	}
	binary.BigEndian.PutUint32(to[12:], crc32.ChecksumIEEE(to[headerBytes:]))
	binary.BigEndian.PutUint32(to[16:], crc32.ChecksumIEEE(to[:16]))
	return to
}

var errWrongBytes = errors.New("wrong bytes")

// receive reads one message into buf and checks it.
func receive(r io.Reader, buf []byte) (conn, seq uint32, whole []byte, err error) {
	buf = slices.Grow(buf[:0], headerBytes)[:headerBytes]
	if _, err := io.ReadFull(r, buf); err != nil {
		return 0, 0, buf, err
	}
	size := binary.BigEndian.Uint32(buf[8:])
	if crc32.ChecksumIEEE(buf[:16]) != binary.BigEndian.Uint32(buf[16:]) || size > 1<<20 {
		return 0, 0, buf, errWrongBytes
	}
	buf = slices.Grow(buf, int(size))[:headerBytes+size]
	if _, err := io.ReadFull(r, buf[headerBytes:]); err != nil {
		return 0, 0, buf, err
	}
	if crc32.ChecksumIEEE(buf[headerBytes:]) != binary.BigEndian.Uint32(buf[12:]) {
		return 0, 0, buf, errWrongBytes
	}
	return binary.BigEndian.Uint32(buf[0:]), binary.BigEndian.Uint32(buf[4:]), buf, nil
}

// results are what the traffic has noticed.
type results struct {
	messages, requests, connections atomic.Int64
	bytes                           atomic.Int64
	control                         atomic.Int64 // messages past the agents

	mu     sync.Mutex
	failed []error
	// longest are the longest times between a tick and its echo, by path.
	longest map[string]answer
}

// answer is one that took long.
type answer struct {
	took time.Duration
	at   time.Time
}

func (r *results) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = append(r.failed, err)
}

// take returns what has failed since the last call.
func (r *results) take() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	failed := r.failed
	r.failed = nil
	return failed
}

func (r *results) waited(what string, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if took > r.longest[what].took {
		r.longest[what] = answer{took, time.Now()}
	}
}

// forget begins to look for the longest answers anew.
func (r *results) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.longest = map[string]answer{}
}

// tell logs what has taken longer than ever before since a moment.
func (r *results) tell(t *testing.T, since time.Time) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for what, a := range r.longest {
		if a.at.After(since) && a.took > maxPause/2 {
			t.Logf("  %s: an answer took %v, %v after the beginning", what, a.took, a.at.Sub(since))
		}
	}
}

// pauses returns the longest answer of a path through agents, and of the one
// past them.
func (r *results) pauses() (meshed, past time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for what, a := range r.longest {
		if what == pastAgents {
			past = a.took
		} else {
			meshed = max(meshed, a.took)
		}
	}
	return meshed, past
}

// echo answers every message with itself, after it has checked it.
func echo(res *results, l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			in := bufio.NewReaderSize(c, 4096)
			var buf []byte
			for {
				_, _, whole, err := receive(in, buf)
				if errors.Is(err, io.EOF) {
					return
				}
				if err == nil {
					_, err = c.Write(whole)
				}
				if err != nil {
					res.fail(fmt.Errorf("server: %w", err))
					return
				}
				buf = whole
			}
		}()
	}
}

// path is from whom to whom connections go.
type path struct {
	what, from, to string
}

// pastAgents is the path of the control: between pods that are in no mesh, on
// the same machine at the same time. What its answers take is not the agents'.
const pastAgents = "past the agents"

// answerWithin is when a message counts as lost. It is far beyond the pause that
// the test allows: that is judged by its figure.
const answerWithin = 20 * time.Second

// client is one connection that asks.
type client struct {
	res  *results
	what string
	c    *net.TCPConn
	in   *bufio.Reader
	id   uint32
	seq  uint32
	out  []byte
	buf  []byte
}

func dial(b *testbed.Bed, res *results, p path, id uint32) (*client, error) {
	c, err := b.Dial(p.from, p.to, answerWithin)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.what, err)
	}
	res.connections.Add(1)
	return &client{res: res, what: p.what, c: c, in: bufio.NewReaderSize(c, 4096), id: id}, nil
}

// ask sends one message and waits for it to come back.
func (k *client) ask(size int) error {
	k.seq++
	k.out = message(k.out, k.id, k.seq, size)
	begun := time.Now()
	err := k.c.SetDeadline(begun.Add(answerWithin))
	if err == nil {
		_, err = k.c.Write(k.out)
	}
	if err == nil {
		err = k.answer()
	}
	if err != nil {
		return fmt.Errorf("%s: connection %d, message %d of %d bytes: %w", k.what, k.id, k.seq, size, err)
	}
	k.res.messages.Add(1)
	k.res.bytes.Add(int64(len(k.out)))
	return nil
}

func (k *client) answer() error {
	conn, seq, whole, err := receive(k.in, k.buf)
	k.buf = whole
	if err == nil && (conn != k.id || seq != k.seq || string(whole) != string(k.out)) {
		err = fmt.Errorf("%w: the answer is to message %d of %d", errWrongBytes, seq, conn)
	}
	return err
}

// tick asks at a steady pace until ctx is done, and notes how long the longest
// answer took beyond its time: that is how long the connection stood still.
func (k *client) tick(ctx context.Context, every time.Duration) {
	defer k.c.Close()
	time.Sleep(time.Duration(rand.Int64N(int64(every))))
	pace := time.NewTicker(every)
	defer pace.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pace.C:
		}
		begun := time.Now()
		if err := k.ask(16 + rand.IntN(800)); err != nil {
			k.res.fail(err)
			return
		}
		k.res.waited(k.what, time.Since(begun))
		if k.what == pastAgents {
			k.res.control.Add(1)
		}
	}
}

// request asks at a steady rate, on a connection that is replaced now and then:
// new ones must work at every moment, too.
func request(ctx context.Context, b *testbed.Bed, res *results, p path, id uint32, every time.Duration) {
	var k *client
	defer func() {
		if k != nil {
			k.c.Close()
		}
	}()
	// By the clock, not by a ticker, which leaves out what came too late: a pause
	// is made up for.
	due := time.Now().Add(time.Duration(rand.Int64N(int64(every))))
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(due)):
		}
		due = due.Add(every)
		var err error
		if n%40 == 0 {
			if k != nil {
				k.c.Close()
			}
			k, err = dial(b, res, p, id)
		}
		if err == nil {
			err = k.ask(100)
		}
		if err != nil {
			res.fail(fmt.Errorf("request: %w", err))
			return
		}
		res.requests.Add(1)
	}
}

// pour keeps a connection full in both directions, so that bytes are on their
// way whenever it comes to rest.
func pour(ctx context.Context, b *testbed.Bed, res *results, p path, id uint32) {
	k, err := dial(b, res, p, id)
	if err != nil {
		res.fail(err)
		return
	}
	defer k.c.Close()
	const window, size = 16, 16 << 10
	slots := make(chan struct{}, window)
	var writing sync.WaitGroup
	writing.Go(func() {
		defer close(slots)
		var out []byte
		for seq := uint32(1); ctx.Err() == nil; seq++ {
			slots <- struct{}{}
			out = message(out, id, seq, size)
			if _, err := k.c.Write(out); err != nil {
				res.fail(fmt.Errorf("pour: %s: %w", p.what, err))
				return
			}
			time.Sleep(20 * time.Millisecond) // the other traffic needs the machine, too
		}
		if err := k.c.CloseWrite(); err != nil {
			res.fail(err)
		}
	})
	defer writing.Wait()
	var buf []byte
	for want := uint32(1); ; want++ {
		if err := k.c.SetReadDeadline(time.Now().Add(answerWithin)); err != nil {
			res.fail(err)
			return
		}
		_, seq, whole, err := receive(k.in, buf)
		buf = whole
		if errors.Is(err, io.EOF) && ctx.Err() != nil {
			return
		}
		if err == nil && seq != want {
			err = fmt.Errorf("%w: message %d came in place of %d", errWrongBytes, seq, want)
		}
		if err != nil {
			res.fail(fmt.Errorf("pour: %s: message %d: %w", p.what, want, err))
			k.c.Close() // the writer must not wait
			for range slots {
			}
			return
		}
		res.bytes.Add(int64(len(whole)))
		<-slots
	}
}

// So many connections of each side of the comparison ask every closeEvery, all
// others every idleEvery: each answer of each is measured.
const (
	closely    = 24
	closeEvery = 20 * time.Millisecond
	idleEvery  = 4 * time.Second
)

// controls is how many connections past the agents there are beside so many through them.
func controls(connections int) int { return min(connections/5, closely) }

// begin opens the long-lived connections and starts all traffic; the returned
// function ends it.
func begin(t *testing.T, b *testbed.Bed, res *results, connections, rate int, control path, paths []path) (end func()) {
	t.Helper()
	res.forget()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	// Some of the connections are looked at closely: more would take the machine's
	// time from what is measured.
	close := controls(connections)
	for i := range connections + close {
		p := control
		if i < connections {
			p = paths[i%len(paths)]
		}
		k, err := dial(b, res, p, uint32(i))
		if err != nil {
			cancel()
			t.Fatalf("connection %d: %v", i, err)
		}
		every := idleEvery
		if i < close || i >= connections {
			every = closeEvery
		}
		running.Go(func() { k.tick(ctx, every) })
	}
	workers := max(20, rate/50) // each has 20 ms for an answer before it is late for the next
	for i := range workers {
		running.Go(func() {
			request(ctx, b, res, paths[i%len(paths)], uint32(1<<20+i), time.Second*time.Duration(workers)/time.Duration(rate))
		})
	}
	for i, p := range paths {
		running.Go(func() { pour(ctx, b, res, p, uint32(1<<21+i)) })
	}
	return sync.OnceFunc(func() { cancel(); running.Wait() })
}
