package pending_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/serve/h2/pending"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestBody: whatever comes and goes in whatever pieces, all of it goes on in order, its sender is given back each byte once,
// and a second taker gets the same from the beginning, unless it was too much to be kept.
func TestBody(t *testing.T) {
	const most = 1000
	var b pending.Body
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 1))
		var came, went []byte
		given, tries := 0, 1
		for range 1 + random.IntN(60) {
			switch random.IntN(8) {
			case 0, 1, 2:
				piece := make([]byte, random.IntN(80))
				for i := range piece {
					piece[i] = byte(random.Uint32())
				}
				came, b.Data = append(came, piece...), append(b.Data, piece...)
			case 3:
				if !b.Cut {
					b.Again()
					went, tries = nil, tries+1
				}
			default:
				p := b.Waiting()
				p = p[:random.IntN(len(p)+1)]
				went = append(went, p...)
				given += b.Went(len(p), most)
			}
			if len(went) > given || string(went) != string(came[:len(went)]) || string(b.Waiting()) != string(came[len(went):]) {
				t.Fatalf("seed %d: %d came, %d went, %d wait, %d given back, try %d", seed, len(came), len(went), len(b.Waiting()), given, tries)
			}
			if b.Cut && len(b.Waiting()) < len(b.Data) {
				t.Fatalf("seed %d: %d bytes are kept for %d", seed, len(b.Data), len(b.Waiting()))
			}
		}
		name := []byte("x-sum")
		b.End([]http1.Field{{Name: name, Value: []byte("1")}})
		if name[0] = 'y'; !b.Ended || len(b.Trailers) != 1 || string(b.Trailers[0].Name) != "x-sum" {
			t.Fatalf("the end is %v %v", b.Ended, b.Trailers)
		}
		if b.Reset(); b.Ended || b.Cut || b.Done || len(b.Data) > 0 || len(b.Trailers) > 0 {
			t.Fatalf("what is left is %+v", b)
		}
	}
	b.Data = make([]byte, 1<<20)
	if b.Reset(); cap(b.Data) > 0 {
		t.Errorf("%d bytes are kept for another one", cap(b.Data))
	}
}

// TestStalls: time counts from when nothing more was taken, and not while nothing waits.
func TestStalls(t *testing.T) {
	var b pending.Body
	began := time.Unix(1000, 0)
	for i, step := range []struct {
		some, moved bool
		since       int // seconds after it began; -1 for never
	}{{false, true, -1}, {true, true, 1}, {true, false, 1}, {true, false, 1}, {true, true, 4}, {false, false, -1}, {true, false, 6}, {false, true, -1}} {
		b.Refused(step.some, step.moved, began.Add(time.Duration(i)*time.Second))
		want := time.Time{}
		if step.since >= 0 {
			want = began.Add(time.Duration(step.since)*time.Second + time.Minute)
		}
		if at := b.Stalls(time.Minute); !at.Equal(want) {
			t.Errorf("step %d: it stalls at %v, want %v", i, at, want)
		}
	}
	b.Refused(true, false, began)
	if b.Reset(); !b.Stalls(time.Minute).IsZero() {
		t.Error("what is forgotten stalls")
	}
}
