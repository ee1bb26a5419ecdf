package fast_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/enginetest"
	"github.com/heddle-mesh/heddle/internal/hbone/fast"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// flowLimit is how long anything in these tests may take.
const flowLimit = 20 * time.Second

// pods is two engines, and pods that each serve a port and are a source.
type pods struct {
	t              *testing.T
	client, server hbone.Engine
	ca             *enginetest.CA
	cert           *tls.Certificate
	served         sync.WaitGroup
}

// pod is a source and a destination with one budget for each end.
type pod struct {
	pods     *pods
	name     string
	memory   *hbone.Memory // at the server
	source   *hbone.Memory // at the client
	endpoint netip.AddrPort
	apps     chan *net.TCPConn
	quick    bool // its sockets' buffers are as usual

	mu      sync.Mutex
	streams map[netip.AddrPort]int // that came on each connection
	dials   int
}

func (d *pod) note(remote netip.AddrPort) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.streams[remote]++
}

func (d *pod) dialed() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dials
}

func newPods(t *testing.T, cfg fast.Config) *pods {
	p := &pods{t: t, client: fast.New(cfg), server: fast.New(cfg), ca: enginetest.NewCA(t, "mesh.test")}
	p.cert = p.ca.SVID(t, "pod")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), flowLimit)
		defer cancel()
		for _, e := range []hbone.Engine{p.client, p.server} {
			if err := e.Close(ctx); err != nil {
				t.Errorf("close: %v", err)
			}
		}
		p.served.Wait()
	})
	return p
}

// small keeps the kernel from holding what an engine should. A small buffer to
// receive would make TCP wait for room for a segment of the loopback's.
func (d *pod) small(c *net.TCPConn) {
	if d.quick {
		return
	}
	if err := c.SetWriteBuffer(16 << 10); err != nil {
		d.pods.t.Error(err)
	}
}

func (p *pods) add(name string, budget int64, l hbone.Limits) *pod {
	d := &pod{pods: p, name: name, apps: make(chan *net.TCPConn, 1000), streams: map[netip.AddrPort]int{}}
	if budget > 0 {
		d.memory, d.source = hbone.NewMemory(budget), hbone.NewMemory(budget)
	}
	tunnels := pathListener(p.t)
	d.endpoint = tunnels.Addr().(*net.TCPAddr).AddrPort()
	p.served.Go(func() {
		if err := p.server.Serve(tunnels, &hbone.Server{
			Local: name, Bundles: p.ca.Bundle(), Certificate: func() (*tls.Certificate, error) { return p.cert, nil }, Limits: l, Memory: d.memory,
			Accept: func(_ context.Context, req *hbone.StreamRequest) (*hbone.Accepted, error) {
				app, local := pathPair(p.t)
				d.note(req.Remote)
				d.small(local)
				d.apps <- app
				return &hbone.Accepted{Conn: local}, nil
			},
		}); err != nil {
			p.t.Errorf("serve: %v", err)
		}
	})
	return d
}

// open makes a stream and returns the program's and the application's ends.
func (d *pod) open() (program, app *net.TCPConn) {
	t := d.pods.t
	program, local := pathPair(t)
	d.small(local)
	d.pods.client.Connect(local, &hbone.ConnectRequest{
		Key:         hbone.Key{Source: d.name, Leaf: hbone.Fingerprint(d.pods.cert), Peer: d.pods.ca.ID("pod"), Endpoint: d.endpoint},
		Certificate: d.pods.cert, Bundles: d.pods.ca.Bundle(), Authority: netip.MustParseAddrPort("10.0.0.1:80"), Memory: d.source,
		Dial: func(ctx context.Context) (*net.TCPConn, error) {
			d.mu.Lock()
			d.dials++
			d.mu.Unlock()
			c, err := new(net.Dialer).DialContext(ctx, "tcp", d.endpoint.String())
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		},
		Done: func(o hbone.Outcome) {
			if o.Err != nil {
				t.Errorf("%s: %v", d.name, o.Err)
			}
		},
	})
	select {
	case app = <-d.apps:
		return program, app
	case <-time.After(flowLimit):
		t.Fatal("no stream")
		return nil, nil
	}
}

// fill makes bytes that say where they belong.
func fill(seed, n int) []byte {
	b := make([]byte, 0, n+16)
	for i := 0; len(b) < n; i++ {
		b = strconv.AppendInt(b, int64(seed*1_000_003+i*7), 36)
	}
	return b[:n]
}

// transfer moves n bytes one way, to their FIN, and returns how long it took.
func transfer(t *testing.T, from, to *net.TCPConn, n int) time.Duration {
	t.Helper()
	data, start := fill(1, n), time.Now()
	sent := make(chan error, 1)
	go func() {
		_, err := from.Write(data)
		sent <- errors.Join(err, from.CloseWrite())
	}()
	got, err := io.ReadAll(to)
	if err := errors.Join(err, <-sent, to.CloseWrite()); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d of %d bytes: %v", len(got), n, err)
	}
	return time.Since(start)
}

// stuck is a stream whose reader does not read.
type stuck struct {
	from, to *net.TCPConn
	data     []byte
	sent     chan error
}

func stall(from, to *net.TCPConn, seed, n int) *stuck {
	s := &stuck{from: from, to: to, data: fill(seed, n), sent: make(chan error, 1)}
	go func() {
		_, err := from.Write(s.data)
		s.sent <- errors.Join(err, from.CloseWrite())
	}()
	return s
}

// read reads everything, and release sends nothing back.
func (s *stuck) read(t *testing.T) {
	_ = s.to.SetReadDeadline(time.Now().Add(flowLimit)) // fails on a closed socket only
	got, err := io.ReadAll(s.to)
	if err := errors.Join(err, <-s.sent); err != nil || !bytes.Equal(got, s.data) {
		t.Errorf("%d of %d bytes: %v", len(got), len(s.data), err)
	}
}

func (s *stuck) release(t *testing.T) {
	s.read(t)
	if err := s.to.CloseWrite(); err != nil {
		t.Error(err)
	}
}

// settled waits until a budget changes no more.
func settled(m *hbone.Memory) (most int64) {
	before := int64(-1)
	for same := 0; same < 10; time.Sleep(20 * time.Millisecond) {
		now := m.Used()
		if now == before {
			same++
		} else {
			same = 0
		}
		before, most = now, max(most, now)
	}
	return most
}

// TestMemoryBudget: 200 slow readers of a pod with a small budget never hold more
// than that; another pod's stream is as fast as ever; and when they read, all
// that was sent to them arrives. Both ends hold to it.
func TestMemoryBudget(t *testing.T) {
	const streams, budget, each = 200, 4 << 20, 500_000
	for _, towards := range []string{"applications", "programs"} {
		t.Run(towards, func(t *testing.T) {
			p := newPods(t, fast.Config{})
			slow, other := p.add("slow", budget, hbone.Limits{Streams: 1000}), p.add("other", budget, hbone.Limits{})
			other.quick = true
			memory := slow.memory
			ends := func(d *pod) (from, to *net.TCPConn) { return d.open() }
			if towards == "programs" {
				memory = slow.source
				ends = func(d *pod) (from, to *net.TCPConn) { to, from = d.open(); return from, to }
			}
			alone := func() time.Duration {
				from, to := ends(other)
				return transfer(t, from, to, 4<<20)
			}
			quick := min(alone(), alone(), alone())
			var all []*stuck
			for i := range streams {
				from, to := ends(slow)
				all = append(all, stall(from, to, i, each))
			}
			most := settled(memory)
			t.Logf("%d streams with %d KiB: held %d KiB of a budget of %d", streams, streams*each>>10, most>>10, budget>>10)
			if most > budget {
				t.Errorf("held %d, more than %d", most, budget)
			}
			if !memory.Full() {
				t.Errorf("held %d: the budget was not tried", most)
			}
			beside := min(alone(), alone(), alone())
			t.Logf("another pod's 4 MiB: %v before, %v beside", quick, beside)
			if beside > 4*quick+50*time.Millisecond {
				t.Errorf("another pod's 4 MiB: %v before, %v beside", quick, beside)
			}
			var reading sync.WaitGroup
			for _, s := range all {
				reading.Go(func() { s.release(t) })
			}
			reading.Wait()
			testenv.Eventually(t, flowLimit, "nothing is held", func() bool { return memory.Used() == 0 })
		})
	}
}

// TestMemoryAtHalf: a budget that stays full is no dead peer, and readers that
// stop for good do not keep one that is not full from others: what is left goes
// round.
func TestMemoryAtHalf(t *testing.T) {
	p := newPods(t, fast.Config{PingInterval: 200 * time.Millisecond, PingTimeout: time.Second, WriteTimeout: time.Second})
	d := p.add("pod", 2<<20, hbone.Limits{Streams: 1000})
	var all []*stuck
	for i := range 120 {
		program, app := d.open()
		all = append(all, stall(program, app, i, 400_000))
	}
	settled(d.memory)
	if !d.memory.Full() {
		t.Fatalf("held %d: not full", d.memory.Used())
	}
	time.Sleep(2500 * time.Millisecond)
	var reading sync.WaitGroup
	for _, s := range all[20:] {
		reading.Go(func() { s.release(t) })
	}
	reading.Wait()
	for range 3 {
		program, app := d.open()
		transfer(t, program, app, 1<<20)
	}
	for _, s := range all[:20] {
		s.release(t)
	}
}

// TestEchoAtFullBudget: programs that write before they read, all at once and
// more than the budget, are not each other's deadlock: what they write is read on
// by a full budget.
func TestEchoAtFullBudget(t *testing.T) {
	const streams, each = 40, 200_000
	p := newPods(t, fast.Config{})
	d := p.add("pod", 1<<20, hbone.Limits{Streams: 1000})
	var all sync.WaitGroup
	for i := range streams {
		program, app := d.open()
		all.Go(func() { // an application that answers a piece before it reads the next
			_, err := io.CopyBuffer(struct{ io.Writer }{app}, struct{ io.Reader }{app}, make([]byte, 4096))
			if err := errors.Join(err, app.CloseWrite()); err != nil {
				t.Errorf("echo: %v", err)
			}
		})
		s := stall(program, program, i, each)
		all.Go(func() {
			time.Sleep(300 * time.Millisecond) // until everything is full
			s.read(t)
		})
	}
	all.Wait()
}

// TestStalledNeighbours: streams whose readers have stopped, more than the
// connection's window in all, do not hold up another one on their connection.
func TestStalledNeighbours(t *testing.T) {
	const stalled, window = 100, 1 << 20
	// One loop: every stream of the pod is on one connection.
	p := newPods(t, fast.Config{Loops: 1, ConnectionWindow: window})
	d := p.add("pod", 0, hbone.Limits{Streams: 1000, ConnectionWindow: window})
	both := func() time.Duration {
		program, app := d.open()
		there := transfer(t, program, app, 2<<20)
		app, program = d.open()
		return there + transfer(t, program, app, 2<<20)
	}
	alone := min(both(), both(), both())
	var all []*stuck
	for i := range stalled {
		program, app := d.open()
		all = append(all, stall(program, app, i, 800_000), stall(app, program, i, 800_000))
	}
	time.Sleep(time.Second)
	beside := min(both(), both(), both())
	t.Logf("2 MiB each way: %v alone, %v beside %d stalled streams", alone, beside, stalled)
	if beside > 4*alone+100*time.Millisecond {
		t.Errorf("2 MiB each way: %v alone, %v beside %d stalled streams", alone, beside, stalled)
	}
	var reading sync.WaitGroup
	for _, s := range all {
		reading.Go(func() { s.read(t) })
	}
	reading.Wait()
}
