package split_test

import (
	"fmt"
	"math"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/internal/mesh/route/split"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func mustNew(t testing.TB, weights []uint32, phase uint64) *split.Scheduler {
	t.Helper()
	s, err := split.New(weights, phase)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fatal is what the two kinds of test have in common.
type fatal interface {
	Helper()
	Fatalf(format string, args ...any)
}

// anyStretch is what docs/routing.md says of stretches of any length.
const anyStretch = 6

// watch takes requests and holds a Scheduler to what it promises: of every 100 in a
// row, each backend has its share rounded down or up. It returns how far from its share a
// backend was at most in any stretch of requests, however long: the difference between
// the most that it was ahead, since the beginning, and the most that it was behind.
func watch(t fatal, s *split.Scheduler, weights []uint32, requests int) (furthest float64) {
	t.Helper()
	total := int64(0)
	for _, w := range weights {
		total += int64(w)
	}
	var last [split.Window]int
	window, all := make([]int64, len(weights)), make([]int64, len(weights))
	ahead, behind := make([]float64, len(weights)), make([]float64, len(weights))
	for n := range requests {
		b := s.Next()
		if b < 0 || b >= len(weights) || weights[b] == 0 {
			t.Fatalf("weights %v: request %d goes to backend %d", weights, n, b)
		}
		if n >= split.Window {
			window[last[n%split.Window]]--
		}
		last[n%split.Window] = b
		window[b]++
		all[b]++
		for i, w := range weights {
			lead := float64(all[i]) - float64(n+1)*float64(w)/float64(total)
			ahead[i], behind[i] = max(ahead[i], lead), min(behind[i], lead)
			furthest = max(furthest, ahead[i]-behind[i])
			// All in whole numbers: |window - 100 w/total| < 1.
			if off := window[i]*total - split.Window*int64(w); n+1 >= split.Window && (off <= -total || off >= total) {
				t.Fatalf("weights %v: of the 100 requests up to %d, backend %d has %d; its share is %d/%d", weights, n, i, window[i], split.Window*int64(w), total)
			}
		}
	}
	return furthest
}

// compositions calls with every list of k weights that add up to total.
func compositions(k, total uint32, with func([]uint32)) {
	weights := make([]uint32, k)
	var fill func(i int, left uint32)
	fill = func(i int, left uint32) {
		if i == int(k)-1 {
			weights[i] = left
			with(weights)
			return
		}
		for w := range left + 1 {
			weights[i] = w
			fill(i+1, left-w)
		}
	}
	fill(0, total)
}

// TestEveryWindow tries all weights of up to five backends that add up to little, for a
// whole period and a bit more, from its beginning and from elsewhere.
func TestEveryWindow(t *testing.T) {
	furthest, tried := 0.0, 0
	for k, most := range map[uint32]uint32{2: 40, 3: 15, 4: 9, 5: 7} {
		for total := uint32(1); total <= most; total++ {
			compositions(k, total, func(weights []uint32) {
				for _, phase := range []uint64{0, 137} {
					tried++
					furthest = max(furthest, watch(t, mustNew(t, weights, phase), weights, split.Window*(int(total)+2)))
				}
			})
		}
	}
	t.Logf("%d sets of weights; at most %.3f requests off in a stretch of any length", tried, furthest)
	if furthest >= anyStretch {
		t.Errorf("some backend was %.3f requests off in some stretch, want less than %d", furthest, anyStretch)
	}
}

// rounds takes requests from the beginning of the period, and holds every backend to less
// than one request off after each whole round.
func rounds(t fatal, weights []uint32, rounds int64) {
	t.Helper()
	s, err := split.New(weights, 0)
	if err != nil {
		t.Fatalf("%v", err)
	}
	total, all := int64(0), make([]int64, len(weights))
	for _, w := range weights {
		total += int64(w)
	}
	for round := range rounds {
		for range split.Window {
			all[s.Next()]++
		}
		for i, w := range weights {
			if off := all[i]*total - (round+1)*split.Window*int64(w); off <= -total || off >= total {
				t.Fatalf("weights %v: after %d rounds backend %d has %d of %d/%d", weights, round+1, i, all[i], (round+1)*split.Window*int64(w), total)
			}
		}
	}
}

// TestRounds tries drawn weights, and all of few that add up to little.
func TestRounds(t *testing.T) {
	for k, most := range map[uint32]uint32{4: 12, 6: 9, 7: 8} {
		for total := uint32(3); total <= most; total++ {
			compositions(k, total, func(weights []uint32) { rounds(t, weights, int64(total)) })
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(rapid.Uint32Range(1, rapid.SampledFrom([]uint32{3, 20, 300}).Draw(t, "most")), 2, 16).Draw(t, "weights")
		rounds(t, weights, 300)
	})
}

// TestAnyWeights is TestEveryWindow for weights of any size.
func TestAnyWeights(t *testing.T) {
	furthest := 0.0
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]uint32{1, 3, 10, 100, 1000, 1_000_000}).Draw(t, "size")
		weights := rapid.SliceOfN(rapid.Uint32Range(0, size), 1, 16).Draw(t, "weights")
		weights[rapid.IntRange(0, len(weights)-1).Draw(t, "one")] = rapid.Uint32Range(1, size).Draw(t, "positive")
		s, err := split.New(weights, rapid.Uint64().Draw(t, "phase"))
		if err != nil {
			t.Fatal(err)
		}
		furthest = max(furthest, watch(t, s, weights, 3000))
	})
	t.Logf("at most %.3f requests off in a stretch of any length", furthest)
	if furthest >= anyStretch {
		t.Errorf("some backend was %.3f requests off in some stretch, want less than %d", furthest, anyStretch)
	}
}

// TestCanary: of 100,000 requests, 1,000 of 1 %, from wherever a replica begins; and so
// when many goroutines ask at once.
func TestCanary(t *testing.T) {
	for _, phase := range []uint64{0, 1, 99, 12345, math.MaxUint64} {
		s := mustNew(t, []uint32{99, 1}, phase)
		counts := make([]int, 2)
		for range 100_000 {
			counts[s.Next()]++
		}
		if counts[1] != 1000 {
			t.Errorf("phase %d: the canary had %d requests of 100000, want 1000", phase, counts[1])
		}
	}
	const clients, each = 8, 12_500
	s := mustNew(t, []uint32{99, 1}, 7)
	counts := make([]int, clients)
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for range each {
				counts[c] += s.Next()
			}
		})
	}
	wg.Wait()
	sum := 0
	for _, n := range counts {
		sum += n
	}
	if sum != 1000 {
		t.Errorf("%d goroutines: the canary had %d requests of 100000, want 1000", clients, sum)
	}
}

// TestPhase: replicas that begin at random places send the first requests of all of them
// where the weights say, not all to the same backend.
func TestPhase(t *testing.T) {
	weights := []uint32{7, 2, 1, 5} // a period of three rounds
	first := make([]int, len(weights))
	const phases = 300
	for phase := range uint64(phases) {
		first[mustNew(t, weights, phase).Next()]++
	}
	for i, w := range weights {
		if want := phases * int(w) / 15; first[i] != want {
			t.Errorf("backend %d is first of %d replicas in %d, want %d", i, first[i], phases, want)
		}
	}
}

func TestNoBackend(t *testing.T) {
	var none *split.Scheduler
	for _, s := range []*split.Scheduler{none, mustNew(t, nil, 1), mustNew(t, []uint32{0, 0}, 1)} {
		if b := s.Next(); b != split.None {
			t.Errorf("a request goes to backend %d, want none", b)
		}
	}
	if _, err := split.New(make([]uint32, split.MaxBackends+1), 0); err == nil {
		t.Error("more backends than MaxBackends are taken")
	}
	if _, err := split.New([]uint32{1 << 31, 1}, 0); err == nil {
		t.Error("more weight than MaxTotal is taken")
	}
}

func TestNextDoesNotAllocate(t *testing.T) {
	s := mustNew(t, []uint32{333_333, 1, 77, 1_000_000, 5}, 0)
	if n := testing.AllocsPerRun(10_000, func() { s.Next() }); n != 0 {
		t.Errorf("Next allocates %v times", n)
	}
}

func BenchmarkNext(b *testing.B) {
	for _, weights := range [][]uint32{{99, 1}, {1, 1, 1}, {333_333, 1, 77, 1_000_000, 5}} {
		b.Run(fmt.Sprint(weights), func(b *testing.B) {
			s := mustNew(b, weights, 0)
			b.ReportAllocs()
			for b.Loop() {
				s.Next()
			}
		})
	}
}
