package window

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// way is a path of a given delay and rate, to a reader that takes bytes at a
// rate of its own.
type way struct {
	rtt        time.Duration
	rate, read float64 // bytes per second
	loss       float64 // share of segments that are lost, and of those sent again
	seed       uint64  // of the losses
}

const (
	step    = time.Millisecond
	segment = 1448 // bytes
)

// run simulates a sender that always has more, and returns the windows at the
// end, and the bytes that were read.
func (y way) run(memory *hbone.Memory, length time.Duration) (w Connection, s Stream, read int64) {
	w = New(memory, 16<<20, 64<<20)
	w.Open()
	w.Path.RTT = y.rtt
	s = w.NewStream()
	type credit struct {
		at                 time.Time
		connection, stream int64
	}
	now := time.Unix(1, 0)
	mayConn, mayStream := w.Available, s.Available
	var credits []credit
	var flying []credit // data: stream bytes that arrive
	var waits int64
	random := rand.New(rand.NewPCG(y.seed, 0))
	for end := now.Add(length); now.Before(end); now = now.Add(step) {
		for len(credits) > 0 && !credits[0].at.After(now) {
			mayConn, mayStream = mayConn+credits[0].connection, mayStream+credits[0].stream
			credits = credits[1:]
		}
		if n := min(int64(y.rate*step.Seconds()), mayConn, mayStream); n > 0 {
			mayConn, mayStream = mayConn-n, mayStream-n
			arrives := now.Add(y.rtt / 2)
			// What is lost is sent again, after two round trips more when nothing behind
			// it tells (RFC 8985); what is behind it waits.
			for lost := float64(n) / segment * y.loss; random.Float64() < lost; lost = y.loss {
				arrives = arrives.Add(y.rtt)
				if min(mayConn, mayStream) == 0 {
					arrives = arrives.Add(2 * y.rtt)
				}
			}
			flying = append(flying, credit{arrives, n, n})
		}
		back := credit{at: now.Add(y.rtt / 2)}
		for len(flying) > 0 && !flying[0].at.After(now) {
			n := flying[0].stream
			flying = flying[1:]
			if !w.Take(n) || !s.Take(n) {
				panic("more than the window")
			}
			waits += n
			if w.Owed += n; w.IsDue() {
				back.connection += int64(w.Grant(now, y.rtt))
			}
		}
		if n := min(waits, int64(y.read*step.Seconds())); n > 0 {
			waits -= n
			read += n
			s.Hold(&w, int(waits))
			back.stream = int64(s.Consumed(&w, n, waits > 0, now))
		}
		if back.connection > 0 || back.stream > 0 {
			credits = append(credits, back)
		}
	}
	return w, s, read
}

func TestGrowth(t *testing.T) {
	const never = 0
	for _, tt := range []struct {
		name        string
		way         way
		memory      *hbone.Memory
		least, most int64 // of the stream's window at the end
		share       float64
	}{
		{"long and fast", way{rtt: 50 * time.Millisecond, rate: 100e6, read: 1e9}, nil, 8 << 20, 16 << 20, 0.9},
		{"long and fast, within a budget", way{rtt: 50 * time.Millisecond, rate: 100e6, read: 1e9}, hbone.NewMemory(16 << 20), 1 << 20, 2 << 20, 0.2},
		{"reader of half the speed", way{rtt: 50 * time.Millisecond, rate: 100e6, read: 50e6}, nil, 2 << 20, 16 << 20, 0.4},
		{"slow reader, with losses", way{rtt: 50 * time.Millisecond, rate: 30e6, read: 1e6, loss: 0.01}, nil, firstStreamWindow, firstStreamWindow, 0.03},
		{"short", way{rtt: 2 * time.Millisecond, rate: 25e6, read: 1e9}, nil, firstStreamWindow, firstStreamWindow, 0.9},
		{"long, little is sent", way{rtt: 50 * time.Millisecond, rate: 1e6, read: 1e9}, nil, firstStreamWindow, firstStreamWindow, 0.9},
		{"slow reader", way{rtt: 50 * time.Millisecond, rate: 100e6, read: 1e6}, nil, firstStreamWindow, firstStreamWindow, 0.009},
		{"reader that does not read", way{rtt: 50 * time.Millisecond, rate: 100e6, read: never}, nil, firstStreamWindow, firstStreamWindow, 0},
	} {
		const length = 5 * time.Second
		w, s, read := tt.way.run(tt.memory, length)
		share := float64(read) / (tt.way.rate * length.Seconds())
		t.Logf("%s: stream %d KiB, connection %d KiB, %.2f of the path", tt.name, s.Size>>10, w.Size>>10, share)
		if s.Size < tt.least || s.Size > tt.most {
			t.Errorf("%s: a stream's window of %d KiB", tt.name, s.Size>>10)
		}
		if share < tt.share {
			t.Errorf("%s: %.3f of the path", tt.name, share)
		}
	}
}

// TestGrowthInSpiteOfLosses: what is lost delays what is behind it, which then
// comes faster than the reader reads, and the window grows all the same.
func TestGrowthInSpiteOfLosses(t *testing.T) {
	for seed := range uint64(24) {
		const length = 5 * time.Second
		y := way{rtt: 50 * time.Millisecond, rate: 30e6, read: 60e6, loss: 0.01, seed: seed}
		_, s, read := y.run(nil, length)
		if share := float64(read) / (y.rate * length.Seconds()); share < 0.8 {
			t.Errorf("seed %d: %.2f of the path, with a stream's window of %d KiB", seed, share, s.Size>>10)
		}
	}
}

// TestBooks: whatever happens in whatever order, a window is what is available,
// owed and held together, and a budget has everything back in the end.
func TestBooks(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	memory := hbone.NewMemory(32 << 20)
	for range 100 {
		w := New(memory, 16<<20, 64<<20)
		w.Open()
		w.Path.RTT = time.Duration(random.Int64N(int64(time.Second)))
		s := w.NewStream()
		now := time.Unix(1, 0)
		held := int64(0)
		for range 2000 {
			now = now.Add(time.Duration(random.Int64N(int64(20 * time.Millisecond))))
			n := random.Int64N(1 + min(1+random.Int64N(200_000), s.Available, w.Available))
			if !w.Take(n) || !s.Take(n) {
				t.Fatal("what is available may not be sent")
			}
			held += n
			s.Hold(&w, int(held))
			if w.Owed += n; w.IsDue() {
				w.Grant(now, w.Path.RTT)
			}
			n = random.Int64N(1 + held)
			if random.IntN(3) == 0 {
				n = held
			}
			held -= n
			s.Hold(&w, int(held))
			s.Consumed(&w, n, held > 0, now)
			if s.Available+s.Owed+held != s.Size || w.Available+w.Owed != w.Size || s.Size < w.First || s.Size > 4<<20 {
				t.Fatalf("stream %+v, held %d; connection %+v", s.Window, held, w.Window)
			}
			if random.IntN(50) == 0 { // another process goes on
				stream, connection, first := s.Window, w.Window, w.First
				s.Hold(&w, 0)
				s.Leave(&w, random.IntN(2) == 0)
				w.Leave()
				w = New(memory, 16<<20, 64<<20)
				w.Thaw(connection, first, 0, true)
				w.Path.RTT = time.Duration(random.Int64N(int64(time.Second)))
				s = w.ThawStream(stream)
				s.Hold(&w, int(held))
			}
		}
		s.Hold(&w, 0)
		s.Leave(&w, random.IntN(2) == 0)
		w.Leave()
	}
	if memory.Used() != 0 || !memory.Promise(hbone.Connections, 16<<20) || !memory.Promise(hbone.Streams, 8<<20) {
		t.Errorf("%d bytes held, or a promise kept, by nobody", memory.Used())
	}
}

// TestAsk: a path is measured now and then, however much arrives, and not at all
// by a peer that does not answer.
func TestAsk(t *testing.T) {
	for _, answers := range []bool{true, false} {
		var p Path
		now, pings := time.Unix(1, 0), 0
		for range 10_000 {
			if now = now.Add(time.Millisecond); p.Ask(now) {
				pings++
				if answers {
					p.Answered(now.Add(3 * time.Millisecond))
				}
			}
		}
		if most := map[bool]int{true: 10, false: 1}[answers]; pings != most {
			t.Errorf("%d PINGs in 10 s, want %d", pings, most)
		}
		if answers != (p.RTT == 3*time.Millisecond) {
			t.Errorf("round trip %v", p.RTT)
		}
	}
}

// TestLeap: a window that is far too small is sixteen times larger at once, if that is
// no more than half of what the budget has left; the last of a budget comes by doubling.
func TestLeap(t *testing.T) {
	const size, most = 256 << 10, 16 << 20
	memory := hbone.NewMemory(32 << 20) // 8 MiB for what streams' windows grow by
	for i, want := range []int64{15 * size, 7 * size, 3 * size, 3 * size, size, size, size, size, 0} {
		if got := grown(size, leap, most, memory, hbone.Streams); got != want {
			t.Errorf("the %d. window grows by %d KiB, want %d", i+1, got>>10, want>>10)
		}
	}
	if got := grown(size, leap, 1<<20, nil, hbone.Streams); got != 3*size {
		t.Errorf("a window of 1 MiB at most grows by %d KiB", got>>10)
	}
	if got := grown(size, 1, most, nil, hbone.Streams); got != 0 {
		t.Errorf("a window that holds nobody back grows by %d KiB", got>>10)
	}
	const rtt = 50 * time.Millisecond
	for took, want := range map[time.Duration]int64{5 * rtt: 1, 3 * rtt: 2, rtt: 4, rtt / 2: 8, rtt / 10: leap} {
		now := time.Unix(1, 0)
		p := pace{since: now}
		if got := p.short(size, size, now.Add(took), rtt); got != want {
			t.Errorf("a window used up in %v is to be %d times larger, want %d", took, got, want)
		}
	}
	_, s, _ := way{rtt: rtt, rate: 100e6, read: 1e9}.run(nil, 3*rtt)
	if s.Size < 2<<20 {
		t.Errorf("after three round trips a window of %d KiB", s.Size>>10)
	}
}
