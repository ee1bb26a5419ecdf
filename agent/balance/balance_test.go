package balance

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func candidates(names ...string) []*mesh.Workload {
	var all []*mesh.Workload
	for _, n := range names {
		all = append(all, &mesh.Workload{Key: mesh.Key{Namespace: "ns", Name: n}})
	}
	return all
}

func TestPickPrefersFewerConnections(t *testing.T) {
	b := New()
	of := candidates("busy", "idle")
	b.Begin(of[0].Key)
	b.Begin(of[0].Key)
	for range 50 {
		if got := b.Pick(of, nil); got != of[1] {
			t.Fatalf("picked %v", got.Key)
		}
	}
	b.End(of[0].Key)
	seen := map[string]bool{}
	for range 100 {
		seen[b.Pick(of, nil).Name] = true
	}
	if len(seen) != 2 {
		t.Errorf("picked only %v when one has a single connection", seen)
	}
	b.End(of[0].Key)
	b.End(of[0].Key) // more than began is none
	clear(seen)
	for range 100 {
		seen[b.Pick(of, nil).Name] = true
	}
	if len(seen) != 2 {
		t.Errorf("picked only %v when both are idle", seen)
	}
	if len(b.loads) != 0 {
		t.Errorf("%d loads are kept of idle workloads", len(b.loads))
	}
}

func TestPickSpreadsEvenly(t *testing.T) {
	b := New()
	of := candidates("a", "b", "c", "d", "e")
	count := map[string]int{}
	for range 500 {
		w := b.Pick(of, nil)
		b.Begin(w.Key)
		count[w.Name]++
	}
	for name, n := range count {
		if n < 85 || n > 115 {
			t.Errorf("%s got %d of 500", name, n)
		}
	}
}

func TestPickLeavesOutTried(t *testing.T) {
	b := New()
	of := candidates("a", "b")
	if got := b.Pick(of, []mesh.Key{of[0].Key}); got != of[1] {
		t.Errorf("picked %v", got)
	}
	if got := b.Pick(of, []mesh.Key{of[0].Key, of[1].Key}); got != nil {
		t.Errorf("picked %v, want none", got)
	}
	if got := b.Pick(nil, nil); got != nil {
		t.Errorf("picked %v of none", got)
	}
}

func TestUnreachableComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New()
		of := candidates("dead", "well")
		b.Unreachable(of[0].Key)
		for range 50 {
			if b.Pick(of, nil) == of[0] {
				t.Fatal("picked the unreachable one")
			}
		}
		if b.Pick(of[:1], nil) != of[0] {
			t.Error("the only candidate must be tried, avoided or not")
		}
		time.Sleep(minEject)
		seen := map[string]bool{}
		for range 100 {
			seen[b.Pick(of, nil).Name] = true
		}
		if len(seen) != 2 {
			t.Errorf("after its time: only %v", seen)
		}
		for range 40 { // the pause grows to its bound and no further
			b.Unreachable(of[0].Key)
		}
		if wait := time.Until(b.loads[of[0].Key].until); wait > maxEject || wait < maxEject/2 {
			t.Errorf("avoided for %v", wait)
		}
		b.Reached(of[0].Key)
		if len(b.loads) != 0 {
			t.Error("a reached workload is still avoided")
		}
	})
}

// TestADozenMayGoToOneOfTwo: of connections that are made one after the other all of a
// dozen go to one of two workloads while the other was not reached a moment ago, or has
// connections that have not ended yet. When that is over both get some, but for one
// dozen in 2,048, by chance: who wants to see both has to look again.
func TestADozenMayGoToOneOfTwo(t *testing.T) {
	of := candidates("one", "two")
	dozen := func(b *Balancer) map[string]int {
		went := map[string]int{}
		for range 12 {
			w := b.Pick(of, nil)
			b.Begin(w.Key)
			b.End(w.Key)
			went[w.Name]++
		}
		return went
	}
	for name, spoil := range map[string]func(*Balancer) (over func()){
		"not reached": func(b *Balancer) func() {
			b.Unreachable(of[0].Key)
			return func() { time.Sleep(minEject) }
		},
		"not ended": func(b *Balancer) func() {
			b.Begin(of[0].Key)
			b.Begin(of[0].Key)
			return func() { b.End(of[0].Key); b.End(of[0].Key) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := New()
				over := spoil(b)
				if went := dozen(b); went["two"] != 12 {
					t.Errorf("connections went to %v", went)
				}
				over()
				went := map[string]int{}
				for range 10 {
					for name, n := range dozen(b) {
						went[name] += n
					}
				}
				if len(went) != 2 {
					t.Errorf("afterwards, connections went to %v", went)
				}
			})
		})
	}
	t.Run("by chance", func(t *testing.T) {
		b, all := New(), 0
		for range 1 << 16 {
			if len(dozen(b)) == 1 {
				all++
			}
		}
		// 32 are expected, with a deviation of 6.
		if all < 4 || all > 90 {
			t.Errorf("%d of %d dozens went to one of two", all, 1<<16)
		}
	})
}
