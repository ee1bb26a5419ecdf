package enroll

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// gates is what is said of pods' gates, as text.
func gates(r *Reconciler) string {
	pods, complete, _ := r.Gated()
	var said []string
	for _, s := range pods {
		if s.Gated == nil {
			said = append(said, "not "+s.Key.Name)
			continue
		}
		said = append(said, fmt.Sprintf("%s %s %v %s", s.Key.Name, s.Gated.NetNS, s.Gated.Addresses, s.Gated.UID))
	}
	if !complete {
		said = append(said, "and more")
	}
	return strings.Join(said, "; ")
}

// observed is a Datapath that notes what was said of gates while it is at work.
type observed struct {
	*fake
	said func() string
	saw  atomic.Pointer[string]
}

func (o *observed) see() {
	said := o.said()
	o.saw.Store(&said)
}

func (o *observed) Enroll(ctx context.Context, w *mesh.Workload, revoked bool) (proxy.Pod, error) {
	o.see()
	return o.fake.Enroll(ctx, w, revoked)
}

func (o *observed) Unenroll(ctx context.Context, key mesh.Key) error {
	o.see()
	return o.fake.Unenroll(ctx, key)
}

// TestWhoIsBehindAGate: a pod is said to be behind its gate from when it is enrolled, as what
// it was enrolled as, and no more from before that is changed, or fails.
func TestWhoIsBehindAGate(t *testing.T) {
	o := &observed{}
	reconciled(t, func(c *Config) { o.fake, c.Datapath = c.Datapath.(*fake), o }, func(f *fake, r *Reconciler, store *mesh.Store, stop func()) {
		o.said = func() string { return gates(r) }
		step := func(what, during, after string) {
			t.Helper()
			synctest.Wait()
			if saw := o.saw.Swap(nil); saw == nil && during != "-" || saw != nil && *saw != during {
				t.Errorf("%s: said meanwhile: %v, want %q", what, saw, during)
			}
			if got := gates(r); got != after {
				t.Errorf("%s: said: %q, want %q", what, got, after)
			}
		}
		step("nothing yet", "-", "and more")
		web := workload("web", "/ns/web", 1)
		web.UID = "u1"
		store.Replace(view(t, web))
		step("enrolled", "and more", "web /ns/web [10.0.0.1] u1")
		web.Mode = mesh.ModePermissive
		store.Replace(view(t, web))
		step("of another mode", "web /ns/web [10.0.0.1] u1", "web /ns/web [10.0.0.1] u1")
		web.Addresses = workload("web", "", 9).Addresses
		store.Replace(view(t, web))
		step("of another address", "", "web /ns/web [10.0.0.9] u1")
		web.UID = "u2"
		store.Replace(view(t, web))
		step("another pod", "", "web /ns/web [10.0.0.9] u2")
		r.Gone(web.Key, errors.New("its link is gone"))
		step("lost, and enrolled anew", "", "web /ns/web [10.0.0.9] u2")
		f.setFail("enroll web", errors.New("no"))
		web.Mode = mesh.ModeStrict
		store.Replace(view(t, web))
		step("it fails", "web /ns/web [10.0.0.9] u2", "")
		f.setFail("enroll web", nil)
		time.Sleep(time.Minute)
		step("it works again", "", "web /ns/web [10.0.0.9] u2")
		_, _, changed := r.Gated()
		store.Replace(view(t))
		step("it leaves", "", "")
		select {
		case <-changed:
		default:
			t.Error("nobody is told that it left")
		}
		stop()
	})
}

// TestGatesAreCompleteWhenAllWereLookedAt: of a configuration that the operator has
// confirmed, and once for all.
func TestGatesAreCompleteWhenAllWereLookedAt(t *testing.T) {
	var confirmed atomic.Bool
	reconciled(t, func(c *Config) { c.Confirmed = confirmed.Load }, func(f *fake, r *Reconciler, store *mesh.Store, _ func()) {
		expect := func(what, want string) {
			t.Helper()
			synctest.Wait()
			if got := gates(r); got != want {
				t.Errorf("%s: %q, want %q", what, got, want)
			}
		}
		store.Replace(view(t))
		time.Sleep(time.Minute)
		expect("the configuration is from disk", "and more")
		f.mu.Lock()
		f.noSVID = true // so that it takes its time
		f.mu.Unlock()
		store.Replace(view(t, workload("web", "/ns/web", 1)))
		confirmed.Store(true)
		time.Sleep(time.Second)
		expect("one is being looked at", "and more")
		time.Sleep(time.Minute)
		expect("it was", "web /ns/web [10.0.0.1] ")
		store.Replace(view(t, workload("web", "/ns/web", 1), workload("db", "/ns/db", 2)))
		expect("another one is new", "web /ns/web [10.0.0.1] ")
		time.Sleep(time.Minute)
		expect("it was looked at", "db /ns/db [10.0.0.2] ; web /ns/web [10.0.0.1] ")
	})
}

// TestTakenBackBeforeAllWereLookedAt: what an earlier agent said of a pod holds until it is
// known that it is not so, and not until everything else is known, too.
func TestTakenBackBeforeAllWereLookedAt(t *testing.T) {
	inPlaces(t, func(f *fake, r *Reconciler, store *mesh.Store, s *somewhere) {
		expect := func(what, want string) {
			t.Helper()
			synctest.Wait()
			if got := gates(r); got != want {
				t.Errorf("%s: %q, want %q", what, got, want)
			}
		}
		changes := func(what string, change func()) {
			t.Helper()
			_, _, changed := r.Gated()
			change()
			synctest.Wait()
			select {
			case <-changed:
			default:
				t.Errorf("%s: nobody is told", what)
			}
		}
		elsewhere := func(names ...string) func() {
			return func() {
				clear(s.netNS)
				s.synced = true
				for _, name := range names {
					s.netNS[name] = "/ns/" + name
				}
			}
		}
		all := []mesh.Workload{workload("db", "", 1), workload("late", "", 2), workload("web", "", 3)}
		f.setFail("enroll db", errors.New("no"))
		store.Replace(view(t, all...))
		s.change(elsewhere("db", "web"))
		expect("one has no place yet, and one fails", "not db; web /ns/web [10.0.0.9] ; and more")
		changes("it is lost", func() {
			f.setFail("enroll web", errors.New("no"))
			r.Gone(all[2].Key, errors.New("its link is gone"))
		})
		expect("it is lost", "not db; not web; and more")
		f.setFail("enroll web", nil)
		time.Sleep(time.Minute)
		expect("it is back", "not db; web /ns/web [10.0.0.9] ; and more")
		changes("it leaves", func() { store.Replace(view(t, all[:2]...)); s.change(elsewhere("db")) })
		expect("it has left", "not db; not web; and more")
		f.mu.Lock()
		f.noSVID = true // so that it takes its time
		f.mu.Unlock()
		store.Replace(view(t, all...))
		s.change(elsewhere("db", "web"))
		expect("it is looked at anew", "not db; not web; and more")
		time.Sleep(time.Minute)
		expect("it is enrolled anew", "not db; web /ns/web [10.0.0.9] ; and more")
		s.change(elsewhere("db", "late", "web"))
		expect("the last is being looked at", "not db; web /ns/web [10.0.0.9] ; and more")
		changes("the last has gone again", func() { store.Replace(view(t, all[0], all[2])); s.change(elsewhere("db", "web")) })
		expect("the last has gone again", "web /ns/web [10.0.0.9] ")
		for i := range mostLeft + 1 {
			r.pods.gating.seen = false
			r.pods.gating.leftLocked(mesh.Key{Name: fmt.Sprint(i)})
		}
		if n := len(r.pods.gating.left); n != mostLeft || r.pods.gating.left[0].Name != "1" {
			t.Errorf("%d that have left are remembered", n)
		}
	})
}

// TestWhoHasLeftIsTold: also when that is all that happens.
func TestWhoHasLeftIsTold(t *testing.T) {
	reconciled(t, nil, func(f *fake, r *Reconciler, store *mesh.Store, _ func()) {
		f.mu.Lock()
		f.noSVID = true // so that it takes its time
		f.mu.Unlock()
		store.Replace(view(t, workload("web", "/ns/web", 1)))
		synctest.Wait()
		_, complete, changed := r.Gated()
		store.Replace(view(t))
		synctest.Wait()
		select {
		case <-changed:
		default:
			t.Error("nobody is told")
		}
		if _, now, _ := r.Gated(); complete || !now {
			t.Errorf("complete: %v, then %v", complete, now)
		}
	})
}

// TestPrunedIsTakenBack: what an earlier agent said of a pod does not hold once its gate may
// have been taken back, also when the pod is to be in the mesh again.
func TestPrunedIsTakenBack(t *testing.T) {
	inPlaces(t, func(f *fake, r *Reconciler, store *mesh.Store, s *somewhere) {
		db, late, web := workload("db", "", 1), workload("late", "", 2), workload("web", "", 3)
		f.setFail("prune but [db late]", errors.New("no")) // halfway, perhaps
		store.Replace(view(t, db, late))
		s.change(func() { s.synced, s.netNS["db"], s.netNS["web"] = true, "/ns/db", "/ns/web" })
		synctest.Wait()
		f.mu.Lock()
		f.noSVID = true // so that it takes its time
		f.mu.Unlock()
		store.Replace(view(t, db, late, web))
		synctest.Wait()
		if got, want := gates(r), "db /ns/db [10.0.0.9] ; not web; and more"; got != want {
			t.Errorf("said: %q, want %q", got, want)
		}
		time.Sleep(time.Minute)
		if got, want := gates(r), "db /ns/db [10.0.0.9] ; web /ns/web [10.0.0.9] ; and more"; got != want {
			t.Errorf("said: %q, want %q", got, want)
		}
	})
}
