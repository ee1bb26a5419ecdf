package enginetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/secured"
)

func scheduleTests() []test {
	return []test{{"random schedules", testSchedules}, {"every cut of the wire", testWireInPieces}, {"FIN with data pending", testFinPending}}
}

// The ends of a stream.
const (
	program = 0
	app     = 1
)

// act is one step of a schedule, by one end.
type act struct {
	do  string // write, end, settle, reset, cut, pause
	end int
	n   int
}

// randomActs is a stream's life. It ends with a FIN of both ends, a reset by
// one, or a cut; "settle" waits until everything that was sent has arrived, so
// that what follows has one outcome only.
func randomActs(random *rand.Rand) (acts []act) {
	var ended [2]bool
	sizes := []int{1, 100, 4096, 16384, 16385, 70_000, 300_000}
	for range 2 + random.IntN(10) {
		end := random.IntN(2)
		switch n := random.IntN(12); {
		case n == 0:
			acts = append(acts, act{do: "settle"})
		case n == 1:
			acts = append(acts, act{do: "pause", n: random.IntN(5)})
		case n == 2 && !ended[end] && !ended[1-end]:
			ended[end] = true
			acts = append(acts, act{do: "end", end: end})
		case !ended[end]:
			acts = append(acts, act{do: "write", end: end, n: 1 + random.IntN(sizes[random.IntN(len(sizes))])})
		}
	}
	end := random.IntN(2)
	switch random.IntN(4) {
	case 0:
		if random.IntN(2) == 0 {
			acts = append(acts, act{do: "settle"})
		}
		return append(acts, act{do: "reset", end: end})
	case 1:
		return append(acts, act{do: "settle"}, act{do: "cut", end: end})
	}
	for _, e := range []int{end, 1 - end} {
		if !ended[e] {
			acts = append(acts, act{do: "end", end: e})
		}
	}
	return acts
}

// player carries out a schedule over two ends of one connection, whatever is
// between them.
type player struct {
	seed  uint64
	ends  [2]*net.TCPConn
	cut   func(end int)
	sent  [2]int
	fin   [2]bool
	over  atomic.Bool // a reset or a cut may break writes
	got   [2]atomic.Int64
	saw   [2]chan string // how reading ended
	write [2]chan act
	wrong chan error
	all   sync.WaitGroup
}

// result is what each end saw: how many bytes, all of them the right ones, and
// the end.
type result struct {
	got [2]int64
	saw [2]string
}

func bytesOf(seed uint64, end int) *rand.ChaCha8 {
	return rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24), byte(end)})
}

// play runs the acts and returns what both ends saw.
func (p *player) play(acts []act) (result, error) {
	p.wrong = newChan[error](16)
	for end, c := range p.ends {
		p.saw[end], p.write[end] = newChan[string](1), newChan[act](64)
		_ = c.SetDeadline(time.Now().Add(2 * wait)) // fails only on a closed socket
		p.all.Go(func() { p.saw[end] <- p.read(end, c) })
		p.all.Go(func() { p.writer(end, c) })
	}
	var err error
	for _, a := range acts {
		if err = p.step(a); err != nil {
			break
		}
	}
	for _, c := range p.write {
		close(c)
	}
	if err != nil {
		p.ends[0].Close()
		p.ends[1].Close()
	}
	p.all.Wait()
	var r result
	for end := range p.ends {
		r.got[end], r.saw[end] = p.got[end].Load(), <-p.saw[end]
	}
	close(p.wrong)
	for e := range p.wrong {
		err = errors.Join(err, e)
	}
	return r, err
}

func (p *player) step(a act) error {
	switch a.do {
	case "write":
		p.sent[a.end] += a.n
		p.write[a.end] <- a
	case "end":
		p.fin[a.end] = true
		p.write[a.end] <- a
	case "pause":
		time.Sleep(time.Duration(a.n) * time.Millisecond)
	case "settle":
		return p.settle(program, app)
	case "reset":
		// It has heard the other end out: only its own bytes can be overtaken.
		if err := p.settle(1 - a.end); err != nil {
			return err
		}
		p.over.Store(true)
		return errors.Join(p.ends[a.end].SetLinger(0), p.ends[a.end].Close())
	case "cut":
		p.over.Store(true)
		p.cut(a.end)
	}
	return nil
}

// settle waits until all that the given ends sent has arrived, the FINs too.
func (p *player) settle(by ...int) error {
	arrived := func(end int) bool {
		return p.got[1-end].Load() == int64(p.sent[end]) && (!p.fin[end] || len(p.saw[1-end]) == 1)
	}
	for deadline := time.Now().Add(wait); slices.ContainsFunc(by, func(end int) bool { return !arrived(end) }); time.Sleep(time.Millisecond / 2) {
		if time.Now().After(deadline) {
			return fmt.Errorf("sent %v, arrived %d and %d in %v", p.sent, p.got[app].Load(), p.got[program].Load(), wait)
		}
	}
	return nil
}

func (p *player) writer(end int, c *net.TCPConn) {
	random := bytesOf(p.seed, end)
	var err error
	for a := range p.write[end] {
		switch {
		case err != nil: // broken by a reset
		case a.do == "end":
			err = c.CloseWrite()
		default:
			buf := newBuffer(a.n)
			_, _ = random.Read(buf) // never fails
			_, err = c.Write(buf)
		}
	}
	if err != nil && !p.over.Load() {
		p.wrong <- fmt.Errorf("end %d writes: %w", end, err)
	}
}

// read compares what arrives with what was sent, and says how it ended.
func (p *player) read(end int, c *net.TCPConn) string {
	random := bytesOf(p.seed, 1-end)
	sizes := rand.New(rand.NewPCG(p.seed, uint64(end)))
	buf, want := newBuffer(64<<10), newBuffer(64<<10)
	for {
		n, err := c.Read(buf[:1+sizes.IntN(len(buf))])
		_, _ = random.Read(want[:n]) // never fails
		if !slices.Equal(buf[:n], want[:n]) {
			p.wrong <- fmt.Errorf("end %d: other bytes than were sent, after %d", end, p.got[end].Load())
			return "wrong"
		}
		p.got[end].Add(int64(n))
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			return "FIN"
		case isTimeout(err):
			return "nothing"
		default:
			return "RST"
		}
	}
}

// stage is a rig whose streams each have an application of their own, found by
// their baggage, and cutters at both ends.
type stage struct {
	*rig
	mu   sync.Mutex
	open map[string]*staged
}

type staged struct {
	app     *net.TCPConn
	cutters [2]hbone.Cutter
	done    [2]chan hbone.Outcome
}

func newStage(t *testing.T, make New) *stage {
	s := &stage{open: map[string]*staged{}}
	s.rig = newRig(t, make, Options{}, accepting(func(_ *rig, _ context.Context, req *hbone.StreamRequest) (*hbone.Accepted, error) {
		near, far, err := tcpPair()
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		one := s.open[req.Baggage]
		one.app = far
		return &hbone.Accepted{Conn: near, Cutter: &one.cutters[app], Done: func(o hbone.Outcome) { one.done[app] <- o }}, nil
	}))
	return s
}

var errCut = errors.New("cut by the test")

// run plays a schedule through the tunnel, and checks both outcomes.
func (s *stage) run(seed uint64, acts []act) (result, error) {
	name := fmt.Sprint("stream-", seed)
	one := &staged{done: [2]chan hbone.Outcome{newChan[hbone.Outcome](2), newChan[hbone.Outcome](2)}}
	s.mu.Lock()
	s.open[name] = one
	s.mu.Unlock()
	near, local, err := tcpPair()
	if err != nil {
		return result{}, err
	}
	defer near.Close()
	opened := newChan[struct{}](1)
	req := s.request()
	req.Baggage, req.Cutter = name, &one.cutters[program]
	req.Established = func(hbone.Timing, secured.By) { opened <- struct{}{} }
	req.Done = func(o hbone.Outcome) { one.done[program] <- o }
	s.client.engine.Connect(local, req)
	select {
	case <-opened:
	case o := <-one.done[program]:
		return result{}, fmt.Errorf("connect: %w", o.Err)
	}
	s.mu.Lock()
	far := one.app
	s.mu.Unlock()
	defer far.Close()
	p := &player{seed: seed, ends: [2]*net.TCPConn{near, far}, cut: func(end int) { one.cutters[end].Cut(errCut) }}
	r, err := p.play(acts)
	if err != nil {
		return r, err
	}
	return r, one.checkOutcomes(acts[len(acts)-1], p)
}

// checkOutcomes: nil for a stream that ended in order, with the bytes of both
// directions; a reset, or the cutter's cause, for the others.
func (one *staged) checkOutcomes(last act, p *player) error {
	for end, done := range one.done {
		var o hbone.Outcome
		select {
		case o = <-done:
		case <-time.After(wait):
			return fmt.Errorf("end %d: no outcome", end)
		}
		switch last.do {
		case "cut":
			if end == last.end && !errors.Is(o.Err, errCut) || o.Err == nil {
				return fmt.Errorf("end %d: outcome %w of a stream cut by %d", end, o.Err, last.end)
			}
		case "reset":
			// A drained connection may end with the stream, before it says why.
			if !errors.Is(o.Err, hbone.ErrReset) && (end == last.end || !errors.Is(o.Err, hbone.ErrProtocol)) {
				return fmt.Errorf("end %d: outcome %w, want a reset", end, o.Err)
			}
		default:
			if o.Err != nil || o.Sent != uint64(p.sent[end]) || o.Received != uint64(p.sent[1-end]) {
				return fmt.Errorf("end %d: outcome %+v, sent %v", end, o, p.sent)
			}
		}
	}
	return nil
}

// onTCP plays a schedule over a plain TCP connection. What a cut is there, only
// the tunnel has: both ends see a RST unless they saw a FIN.
func onTCP(seed uint64, acts []act) (result, error) {
	a, b, err := tcpPair()
	if err != nil {
		return result{}, err
	}
	defer a.Close()
	defer b.Close()
	ends := [2]*net.TCPConn{a, b}
	p := &player{seed: seed, ends: ends, cut: func(int) {
		for _, c := range ends {
			_ = c.SetLinger(0) // fails only on a closed socket
			c.Close()
		}
	}}
	return p.play(acts)
}

// differs says whether an end's view is one that TCP always gives: an end
// that resets is not asked, and data that a RST overtakes may be lost.
func (r result) differs(other result, acts []act) error {
	last := acts[len(acts)-1]
	settled := len(acts) < 2 || acts[len(acts)-2].do == "settle" || last.do == "end"
	for end := range r.got {
		if last.do == "reset" && end == last.end {
			continue
		}
		if last.do == "reset" && !settled {
			if r.saw[end] != "RST" && r.saw[end] != "FIN" {
				return fmt.Errorf("end %d of a stream that was reset saw %s", end, r.saw[end])
			}
			continue
		}
		if r.got[end] != other.got[end] || r.saw[end] != other.saw[end] {
			return fmt.Errorf("end %d read %d bytes and a %s; over TCP %d and a %s", end, r.got[end], r.saw[end], other.got[end], other.saw[end])
		}
	}
	return nil
}

// testSchedules plays random schedules, several streams at once under drains of
// both engines, and on plain TCP: the same bytes, and the same kind of end.
func testSchedules(t *testing.T, make New) {
	const atOnce = 6
	seeds := []uint64{1, 2, 3, 4, 5, 6, rand.Uint64N(1 << 32), rand.Uint64N(1 << 32)}
	for _, seed := range seeds {
		s := newStage(t, make)
		stop := newChan[struct{}](0)
		var drains, all sync.WaitGroup
		drains.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				case <-time.After(15 * time.Millisecond):
					[]side{s.client, s.server}[n%2].engine.Drain(hbone.Match{}, false)
				}
			}
		})
		for i := range uint64(atOnce) {
			all.Go(func() {
				one := seed*atOnce + i
				acts := randomActs(rand.New(rand.NewPCG(one, 5)))
				want, err := onTCP(one, acts)
				if err != nil {
					t.Errorf("seed %d, stream %d over TCP: %v\n%v", seed, i, err, acts)
					return
				}
				got, err := s.run(one, acts)
				if err == nil {
					err = got.differs(want, acts)
				}
				if err != nil {
					t.Errorf("seed %d, stream %d: %v\n%v", seed, i, err, acts)
				}
			})
		}
		all.Wait()
		close(stop)
		drains.Wait()
	}
}

// testWireInPieces: what crosses the wire a few bytes at a time, so that every
// record and frame is cut anywhere, is the same.
func testWireInPieces(t *testing.T, make New) {
	r := newRig(t, make, Options{})
	r.via = piecemeal(t, r.endpoint.String())
	f := r.open(r.request())
	for _, n := range []int{1, 30, 500, 3000} {
		f.echo(string(newBuffer(n)))
	}
	f.finish()
}

// piecemeal forwards in pieces of 1 to 7 bytes, each a packet.
func piecemeal(t *testing.T, to string) string {
	l := listen(t, "127.0.0.1:0")
	var all sync.WaitGroup
	forward := func(dst, src *net.TCPConn) {
		all.Go(func() {
			defer dst.Close()
			buf := newBuffer(7)
			for n := 0; ; n++ {
				k, err := src.Read(buf[:1+n%len(buf)])
				if err != nil {
					return
				}
				if _, err := dst.Write(buf[:k]); err != nil {
					return
				}
			}
		})
	}
	all.Go(func() {
		for {
			a, err := l.AcceptTCP()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", to)
			if err != nil {
				t.Error(err)
				a.Close()
				return
			}
			forward(b.(*net.TCPConn), a)
			forward(a, b.(*net.TCPConn))
		}
	})
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

// testFinPending: a stream whose both ends have said their last is not lost
// with its connection while the application has not read everything: the other
// engine is free to close it, as it does when it drains.
func testFinPending(t *testing.T, make New) {
	const size = 250_000 // within the window that a stream begins with
	for _, towards := range []string{"application", "program"} {
		r := slowRig(t, make, hbone.Limits{})
		f := r.open(r.request())
		from, to := f.program, f.app
		if towards == "program" {
			from, to = f.app, f.program
		}
		must(t, to.CloseWrite())
		expectEnd(t, from)
		r.client.engine.Drain(hbone.Match{}, false)
		r.server.engine.Drain(hbone.Match{}, false)
		poured := newChan[[32]byte](1)
		go func() { poured <- pour(t, from, size, 11) }()
		sum := within(t, poured, "the writer") // all of it is in the engines, or the kernel
		time.Sleep(300 * time.Millisecond)
		if got := drink(t, to); got != sum {
			t.Errorf("towards the %s: bytes were lost", towards)
		}
		if o := f.outcome(); o.Err != nil {
			t.Errorf("towards the %s: outcome %v", towards, o.Err)
		}
		if in := r.lastInbound(1); in.Err != nil {
			t.Errorf("towards the %s: server's outcome %v", towards, in.Err)
		}
	}
}
