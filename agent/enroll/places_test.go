package enroll

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// somewhere is a Places that a test fills.
type somewhere struct {
	mu      sync.Mutex
	netNS   map[string]string // by pod name
	synced  bool
	changed chan struct{}
}

func (s *somewhere) Find(w *mesh.Workload) (string, []netip.Addr, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	netNS, ok := s.netNS[w.Name]
	return netNS, []netip.Addr{netip.MustParseAddr("10.0.0.9")}, ok
}

func (s *somewhere) Synced() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.synced
}

func (s *somewhere) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *somewhere) change(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

// inPlaces runs a Reconciler whose pods are found by a Places.
func inPlaces(t *testing.T, test func(f *fake, r *Reconciler, store *mesh.Store, s *somewhere)) {
	s := &somewhere{netNS: map[string]string{}, changed: make(chan struct{})}
	reconciled(t, func(c *Config) {
		s.changed = make(chan struct{}) // of the test's own time
		c.Places = s
	}, func(f *fake, r *Reconciler, store *mesh.Store, _ func()) { test(f, r, store, s) })
}

func TestPodIsEnrolledWhereItIsFound(t *testing.T) {
	inPlaces(t, func(f *fake, r *Reconciler, store *mesh.Store, s *somewhere) {
		store.Replace(view(t, workload("web", "", 1)))
		if did := f.took(); did != "" {
			t.Errorf("nobody knows where it is, and did %q", did)
		}
		s.change(func() { s.netNS["web"] = "/run/netns/a" })
		if did := f.took(); did != "enroll web; serve web" {
			t.Errorf("found: %q", did)
		}
		if w := r.Status()[0].Workload; w.NetNS != "/run/netns/a" || w.Addresses[0] != netip.MustParseAddr("10.0.0.9") {
			t.Errorf("enrolled in %s with %v, not as the place says", w.NetNS, w.Addresses)
		}
		s.change(func() { delete(s.netNS, "web") })
		if did := f.took(); did != "drain web; unenroll web" {
			t.Errorf("its sandbox is deleted: %q", did)
		}
	})
}

// TestReadyPodThatNobodyFinds: it runs, outside the mesh, and is one that failed, as long as that is so. One that
// has not started, or is being deleted, is none, and neither is any before it is known what runs.
func TestReadyPodThatNobodyFinds(t *testing.T) {
	inPlaces(t, func(f *fake, r *Reconciler, store *mesh.Store, s *somewhere) {
		web, begins, leaves, out := workload("web", "", 1), workload("begins", "", 2), workload("leaves", "", 3), workload("out", "", 4)
		begins.Ready, leaves.Leaving, out.Enrolled = false, true, false
		store.Replace(view(t, web, begins, leaves, out))
		failed := func(when, want string) {
			t.Helper()
			synctest.Wait()
			got := ""
			for _, one := range r.Status() {
				if one.State == Failed && one.Err != nil {
					got += one.Key.Name
				}
			}
			if got != want {
				t.Errorf("%s: failed are %q, want %q", when, got, want)
			}
		}
		time.Sleep(time.Minute)
		failed("before places are known", "")
		s.change(func() { s.synced = true })
		time.Sleep(time.Second)
		failed("at first", "")
		time.Sleep(2 * time.Second)
		failed("later", "web")
		if !r.Settled() {
			t.Error("the agent waits for a pod that it does not find")
		}
		if pods, _, _ := r.Gated(); len(pods) != 0 {
			t.Errorf("behind their gates, or looked at, are %+v", pods)
		}
		begins.Ready = true
		store.Replace(view(t, web, begins, leaves, out))
		time.Sleep(3 * time.Second)
		failed("when the other is Ready", "beginsweb")
		s.change(func() { s.netNS["web"] = "/run/netns/a" })
		failed("one is found", "begins")
		s.change(func() { delete(s.netNS, "web") })
		time.Sleep(3 * time.Second)
		failed("it is lost again", "beginsweb")
		s.change(func() { s.netNS["web"] = "/run/netns/a" })
		store.Replace(view(t, web))
		failed("the other is deleted", "")
		if all := r.Status(); len(all) != 1 || all[0].State != Enrolled {
			t.Errorf("%+v", all)
		}
	})
}

// TestCertificatesOfPodsThatAreNotFoundYet: those that an earlier agent left are
// needed, and would be forgotten, before the runtime has said where pods run.
func TestCertificatesOfPodsThatAreNotFoundYet(t *testing.T) {
	inPlaces(t, func(f *fake, r *Reconciler, store *mesh.Store, s *somewhere) {
		w := workload("web", "", 1)
		elsewhere, outside := workload("far", "", 2), workload("out", "", 3)
		elsewhere.Node, outside.Enrolled = "n2", false
		store.Replace(view(t, w, elsewhere, outside))
		if did := f.took(); did != "" {
			t.Errorf("did %q", did)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.wanted) != 1 || f.wanted[0] != w.Identity {
			t.Errorf("wants %v, not %v alone", f.wanted, w.Identity)
		}
	})
}

// TestNothingIsPrunedBeforePlacesAreKnown: an agent that has just started would
// open every pod of the one before.
func TestNothingIsPrunedBeforePlacesAreKnown(t *testing.T) {
	inPlaces(t, func(f *fake, r *Reconciler, store *mesh.Store, s *somewhere) {
		store.Replace(view(t, workload("web", "", 1)))
		time.Sleep(time.Hour)
		if did := f.took(); did != "" || r.Settled() {
			t.Fatalf("without places: %q, settled: %v", did, r.Settled())
		}
		s.change(func() { s.netNS["web"], s.synced = "/run/netns/a", true })
		time.Sleep(time.Minute)
		if did := f.took(); !strings.Contains(did, "prune but [web]") || !strings.Contains(did, "enroll web") || !r.Settled() {
			t.Errorf("with places: %q, settled: %v", did, r.Settled())
		}
	})
}

// TestDeletedPodStaysClosedWhileItRuns: a pod may be deleted by force, and its
// processes go on.
func TestDeletedPodStaysClosedWhileItRuns(t *testing.T) {
	inPlaces(t, func(f *fake, r *Reconciler, store *mesh.Store, s *somewhere) {
		s.change(func() { s.netNS["web"] = "/run/netns/a" })
		store.Replace(view(t, workload("web", "", 1)))
		f.took()
		elsewhere := workload("web", "", 1)
		elsewhere.Node, elsewhere.Enrolled = "n2", false
		for _, now := range []*mesh.View{view(t), view(t, elsewhere)} {
			store.Replace(now)
			time.Sleep(time.Minute)
			if did := f.took(); did != "" {
				t.Errorf("it still runs: %q", did)
			}
		}
		s.change(func() { delete(s.netNS, "web") })
		if did := f.took(); did != "drain web; unenroll web" {
			t.Errorf("it does not run any more: %q", did)
		}
	})
}

// TestPodWithoutAPlaceKeepsItsGate: what the agent before has enrolled may not
// be shown by the runtime yet.
func TestPodWithoutAPlaceKeepsItsGate(t *testing.T) {
	inPlaces(t, func(f *fake, _ *Reconciler, store *mesh.Store, s *somewhere) {
		s.change(func() { s.synced = true })
		store.Replace(view(t, workload("web", "", 1)))
		if did := f.took(); did != "prune but [web]" {
			t.Errorf("at first: %q", did)
		}
		store.Replace(view(t))
		time.Sleep(time.Minute)
		if did := f.took(); !strings.Contains(did, "prune but []") {
			t.Errorf("when it is gone: %q", did)
		}
		time.Sleep(time.Hour)
		if did := f.took(); did != "" {
			t.Errorf("pruned again for nothing: %q", did)
		}
	})
}

func TestAwait(t *testing.T) {
	inPlaces(t, func(f *fake, r *Reconciler, store *mesh.Store, s *somewhere) {
		key := mesh.Key{Namespace: "shop", Name: "web"}
		brief := func(netNS string) error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second) // made in the bubble
			defer cancel()
			return r.Await(ctx, key, netNS)
		}
		if err := brief("/run/netns/a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("unknown pod: %v", err)
		}
		broken := errors.New("no way out")
		f.setFail("enroll web", broken)
		store.Replace(view(t, workload("web", "", 1)))
		s.change(func() { s.netNS["web"] = "/run/netns/a" })
		if err := brief("/run/netns/a"); !errors.Is(err, broken) {
			t.Errorf("failing pod: %v", err)
		}
		f.setFail("enroll web", nil)
		time.Sleep(time.Minute)
		if err := brief("/run/netns/a"); err != nil {
			t.Errorf("enrolled pod: %v", err)
		}
		// What was said of the sandbox before is not said of the next one.
		if err := brief("/run/netns/b"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("another sandbox: %v", err)
		}
		s.change(func() { s.netNS["web"] = "/run/netns/b" })
		if err := brief("/run/netns/b"); err != nil {
			t.Errorf("moved pod: %v", err)
		}
	})
}

// TestFlappingLabel: a pod joins at once every time, and leaves ever later.
func TestFlappingLabel(t *testing.T) {
	inPlaces(t, func(f *fake, r *Reconciler, store *mesh.Store, s *somewhere) {
		in, out := workload("web", "", 1), workload("web", "", 1)
		in.Mode, out.Mode, out.Enrolled = mesh.ModePermissive, mesh.ModePermissive, false
		s.change(func() { s.netNS["web"], s.synced = "/run/netns/a", true })
		store.Replace(view(t, in))
		time.Sleep(time.Second)
		f.took()
		store.Replace(view(t, out))
		if did := f.took(); did != "drain web; unenroll web" {
			t.Fatalf("first: %q", did)
		}
		changes := 0
		for range 100 { // 50 s of a label that changes twice a second
			store.Replace(view(t, in))
			time.Sleep(250 * time.Millisecond)
			if state := r.Status()[0].State; state != Enrolled {
				t.Fatalf("labelled pod is %s: joining is not to be slowed", state)
			}
			store.Replace(view(t, out))
			time.Sleep(250 * time.Millisecond)
			if strings.Contains(f.took(), "unenroll") {
				changes++
			}
		}
		if changes > 0 {
			t.Errorf("left %d times while its label flapped", changes)
		}
		time.Sleep(29 * time.Second)
		if did := f.took(); did != "" {
			t.Errorf("left before it had settled: %q", did)
		}
		time.Sleep(2 * time.Second)
		if did := f.took(); did != "drain web; unenroll web" {
			t.Errorf("settled: %q", did)
		}
		// Deleting it is no flapping.
		store.Replace(view(t, in))
		f.took()
		s.change(func() { delete(s.netNS, "web") })
		if did := f.took(); did != "drain web; unenroll web" {
			t.Errorf("deleted: %q", did)
		}
	})
}

// TestFlappingLabelOfAStrictPod: once its label is settled it is soon as the label says,
// however often that has changed: until then nobody reaches it.
func TestFlappingLabelOfAStrictPod(t *testing.T) {
	for name, refuse := range map[string]func(w *mesh.Workload){
		"pod":  func(w *mesh.Workload) { w.Mode = mesh.ModeStrict },
		"port": func(w *mesh.Workload) { w.PortModes = map[uint16]mesh.Mode{80: mesh.ModeStrict} },
	} {
		t.Run(name, func(t *testing.T) {
			inPlaces(t, func(f *fake, r *Reconciler, store *mesh.Store, s *somewhere) {
				in, out := workload("web", "", 1), workload("web", "", 1)
				in.Mode, out.Mode, out.Enrolled = mesh.ModePermissive, mesh.ModePermissive, false
				refuse(&in)
				refuse(&out)
				s.change(func() { s.netNS["web"], s.synced = "/run/netns/a", true })
				for range 50 { // 25 s
					store.Replace(view(t, in))
					time.Sleep(250 * time.Millisecond)
					store.Replace(view(t, out))
					time.Sleep(250 * time.Millisecond)
				}
				if state, did := r.Status()[0].State, f.took(); state != Enrolled || strings.Count(did, "unenroll") > 1 {
					t.Fatalf("while the label flapped: %s, did %q", state, did)
				}
				time.Sleep(time.Second)
				if did := f.took(); did != "drain web; unenroll web" {
					t.Errorf("a second after the label was settled: %q", did)
				}
			})
		})
	}
}

// TestStayIsSaid: that a pod is kept in is in its status, and in the log once a minute
// at most.
func TestStayIsSaid(t *testing.T) {
	var log bytes.Buffer
	s := &somewhere{netNS: map[string]string{"web": "/run/netns/a"}, synced: true}
	reconciled(t, func(c *Config) {
		s.changed = make(chan struct{}) // of the test's own time
		c.Places, c.Log = s, slog.New(slog.NewTextHandler(&log, nil))
	}, func(f *fake, r *Reconciler, store *mesh.Store, _ func()) {
		in, out := workload("web", "", 1), workload("web", "", 1)
		in.Mode, out.Mode, out.Enrolled = mesh.ModePermissive, mesh.ModePermissive, false
		put := func(w mesh.Workload) {
			store.Replace(view(t, w))
			time.Sleep(250 * time.Millisecond)
			f.took()
		}
		said := func() int { return strings.Count(log.String(), "pod leaves the mesh again and again") }
		put(in)
		put(out)
		put(in)
		if s := r.Status()[0]; said() != 0 || !s.Stays.IsZero() {
			t.Errorf("left once, and is kept: %+v\n%s", s, &log)
		}
		for n := range 100 { // 50 s
			put(out)
			if s := r.Status()[0]; s.State != Enrolled || !s.Stays.After(time.Now()) || said() != 1 {
				t.Fatalf("round %d: %+v, want to see until when it stays\n%s", n, s, &log)
			}
			put(in)
			if s := r.Status()[0]; !s.Stays.IsZero() {
				t.Fatalf("put back: %+v", s)
			}
		}
		for range 40 { // 20 s
			put(out)
			put(in)
		}
		if n := said(); n != 2 || !strings.Contains(log.String(), "workload=shop/web times=2 stays=1s") {
			t.Errorf("said %d times in 70 s:\n%s", n, &log)
		}
	})
}
