package enroll

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// fake is the Datapath, the Server and the Identities of a Reconciler, and
// remembers what it was asked, in order.
type fake struct {
	mu       sync.Mutex
	did      []string
	fail     map[string]error // by what is asked
	enrolled map[mesh.Key]bool
	changed  chan struct{}
	noSVID   bool
	wanted   []spiffeid.ID
	broken   chan error // makes a Serve return
}

func newFake() *fake {
	return &fake{fail: map[string]error{}, enrolled: map[mesh.Key]bool{}, changed: make(chan struct{}), broken: make(chan error)}
}

func (f *fake) note(what string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.did = append(f.did, what)
	return f.fail[what]
}

// took returns what was done since the last call.
func (f *fake) took() string {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	did := f.did
	f.did = nil
	return strings.Join(did, "; ")
}

func (f *fake) setFail(what string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail[what] = err
}

func (f *fake) Enroll(_ context.Context, w *mesh.Workload, revoked bool) (proxy.Pod, error) {
	what := "enroll " + w.Name
	if w.Mode == mesh.ModePermissive {
		what += " permissive"
	}
	if w.DNS == mesh.DNSCapture {
		what += " captured"
	}
	if revoked {
		what += " revoked"
	}
	return proxy.Pod{Key: w.Key}, f.note(what)
}

func (f *fake) Unenroll(_ context.Context, key mesh.Key) error { return f.note("unenroll " + key.Name) }

func (f *fake) Prune(_ context.Context, keep []mesh.Key) error {
	names := make([]string, 0, len(keep))
	for _, k := range keep {
		if !slices.Contains(names, k.Name) {
			names = append(names, k.Name)
		}
	}
	slices.Sort(names)
	return f.note(fmt.Sprint("prune but ", names))
}

func (f *fake) Serve(ctx context.Context, pod proxy.Pod) error {
	if err := f.note("serve " + pod.Key.Name); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		if errors.Is(context.Cause(ctx), proxy.ErrUnenrolled) {
			return f.note("drain " + pod.Key.Name)
		}
		return f.note("stop " + pod.Key.Name)
	case err := <-f.broken:
		return err
	}
}

func (f *fake) Want(ids []spiffeid.ID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wanted = slices.Clone(ids)
	return nil
}

func (f *fake) Certificate(spiffeid.ID) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.noSVID {
		return nil, errors.New("none yet")
	}
	return &tls.Certificate{}, nil
}

func (f *fake) Changed() <-chan struct{} { return f.changed }

// reconciled runs a Reconciler over a fake in a bubble of its own time.
func reconciled(t *testing.T, change func(*Config), test func(f *fake, r *Reconciler, store *mesh.Store, stop func())) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f, store := newFake(), mesh.NewStore()
		cfg := Config{Node: "n1", Store: store, Datapath: f, Server: f, Identities: f, Log: slog.New(slog.DiscardHandler)}
		if change != nil {
			change(&cfg)
		}
		r := New(cfg)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		stop := sync.OnceFunc(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
		defer stop()
		test(f, r, store, stop)
	})
}

func workload(name, netns string, last byte) mesh.Workload {
	td := spiffeid.RequireTrustDomainFromString("example.test")
	id, err := mesh.IdentityFor(td, "shop", name)
	if err != nil {
		panic(err)
	}
	return mesh.Workload{
		Key: mesh.Key{Namespace: "shop", Name: name}, ServiceAccount: name, Node: "n1", Identity: id,
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, last})}, Enrolled: true, Ready: true, NetNS: netns,
	}
}

func view(t *testing.T, workloads ...mesh.Workload) *mesh.View {
	t.Helper()
	v, err := mesh.NewView("r", mesh.Settings{TrustDomain: spiffeid.RequireTrustDomainFromString("example.test")}, workloads, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func expect(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("did  %q\nwant %q", got, want)
	}
}

func TestNothingIsTakenBeforeTheFirstView(t *testing.T) {
	reconciled(t, nil, func(f *fake, r *Reconciler, store *mesh.Store, _ func()) {
		time.Sleep(time.Hour)
		expect(t, f.took(), "")
		if r.Settled() {
			t.Error("ready without a configuration")
		}
		store.Replace(view(t))
		expect(t, f.took(), "prune but []")
		if !r.Settled() {
			t.Error("not ready")
		}
	})
}

func TestPodsComeAndGo(t *testing.T) {
	reconciled(t, nil, func(f *fake, r *Reconciler, store *mesh.Store, stop func()) {
		web := workload("web", "/ns/web", 1)
		outside, elsewhere := workload("outside", "/ns/o", 2), workload("elsewhere", "", 3)
		outside.Enrolled = false
		elsewhere.Node = "n2"
		store.Replace(view(t, web, outside, elsewhere))
		expect(t, f.took(), "prune but [web]; enroll web; serve web")
		if s := r.Status(); len(s) != 1 || s[0].State != Enrolled || s[0].Err != nil {
			t.Errorf("%+v", s)
		}
		store.Replace(view(t, web))
		expect(t, f.took(), "")
		web.Mode = mesh.ModePermissive
		store.Replace(view(t, web))
		expect(t, f.took(), "enroll web permissive")
		web.DNS = mesh.DNSCapture
		store.Replace(view(t, web))
		expect(t, f.took(), "enroll web permissive captured")
		web.NetNS = "/ns/other"
		store.Replace(view(t, web))
		expect(t, f.took(), "drain web; enroll web permissive captured; serve web")
		store.Replace(view(t))
		expect(t, f.took(), "drain web; unenroll web")
		if s := r.Status(); len(s) != 0 {
			t.Errorf("%+v", s)
		}
		store.Replace(view(t, web))
		expect(t, f.took(), "enroll web permissive captured; serve web")
		stop()
		expect(t, f.took(), "stop web")
	})
}

// TestRevokedIsEnrolledAsThat: a pod whose identity is revoked is enrolled as one at once,
// and no other; and as another again when it is no longer.
func TestRevokedIsEnrolledAsThat(t *testing.T) {
	reconciled(t, nil, func(f *fake, r *Reconciler, store *mesh.Store, stop func()) {
		stolen, good := workload("stolen", "/ns/stolen", 1), workload("good", "/ns/good", 2)
		revoked := func(ids ...spiffeid.ID) *mesh.View {
			v, err := mesh.NewView("r", mesh.Settings{TrustDomain: stolen.Identity.TrustDomain(), RevokedIdentities: ids}, []mesh.Workload{stolen, good}, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		store.Replace(revoked())
		f.took()
		store.Replace(revoked(stolen.Identity))
		expect(t, f.took(), "enroll stolen revoked")
		store.Replace(revoked())
		expect(t, f.took(), "enroll stolen")
	})
}

func TestFailuresAreRetriedAndShown(t *testing.T) {
	reconciled(t, nil, func(f *fake, r *Reconciler, store *mesh.Store, _ func()) {
		f.fail["enroll web"] = errors.New("network namespace /ns/web is gone")
		store.Replace(view(t, workload("web", "/ns/web", 1), workload("db", "/ns/db", 2)))
		synctest.Wait()
		states := map[string]State{}
		for _, s := range r.Status() {
			states[s.Key.Name] = s.State
		}
		if states["web"] != Failed || states["db"] != Enrolled {
			t.Errorf("%v: one pod's failure must be its own", states)
		}
		if did := f.took(); strings.Count(did, "enroll web") != 1 || r.Failures() != 1 {
			t.Errorf("did %q, counted %d failures, want one try", did, r.Failures())
		}
		time.Sleep(10 * time.Minute)
		tries := strings.Count(f.took(), "enroll web")
		if tries < 15 || tries > 30 {
			t.Errorf("%d tries in 10 minutes, want one in 30 s after a quicker start", tries)
		}
		if r.Failures() != uint64(tries)+1 {
			t.Errorf("%d failures counted of %d", r.Failures(), tries+1)
		}
		f.setFail("enroll web", nil)
		time.Sleep(31 * time.Second)
		if got := f.took(); !strings.HasSuffix(got, "serve web") {
			t.Errorf("did %q", got)
		}
	})
}

func TestUnenrollIsRetried(t *testing.T) {
	reconciled(t, nil, func(f *fake, r *Reconciler, store *mesh.Store, _ func()) {
		store.Replace(view(t, workload("web", "/ns/web", 1)))
		f.took()
		f.setFail("unenroll web", errors.New("busy"))
		store.Replace(view(t))
		expect(t, f.took(), "drain web; unenroll web")
		if s := r.Status(); len(s) != 1 || s[0].State != Failed {
			t.Errorf("%+v", s)
		}
		f.setFail("unenroll web", nil)
		time.Sleep(time.Second)
		expect(t, f.took(), "unenroll web")
	})
}

// TestAnotherUID: a pod that takes the place of another is enrolled and served anew, since
// what is served is of a UID.
func TestAnotherUID(t *testing.T) {
	reconciled(t, nil, func(f *fake, _ *Reconciler, store *mesh.Store, _ func()) {
		for _, step := range []struct{ uid, want string }{
			{"1", "enroll web; serve web"},
			{"", ""},
			{"1", ""},
			{"", ""},
			{"2", "drain web; enroll web; serve web"},
		} {
			w := workload("web", "/run/netns/a", 1)
			w.UID = step.uid
			store.Replace(view(t, w))
			did := f.took()
			if rest, ok := strings.CutPrefix(did, "prune but [web]; "); ok { // at first
				did = rest
			}
			expect(t, did, step.want)
		}
	})
}

func TestGonePodsAreEnrolledAnew(t *testing.T) {
	reconciled(t, nil, func(f *fake, r *Reconciler, store *mesh.Store, _ func()) {
		store.Replace(view(t, workload("web", "/ns/web", 1)))
		f.took()
		r.Gone(mesh.Key{Namespace: "shop", Name: "web"}, errors.New("the namespace is another one"))
		expect(t, f.took(), "drain web; enroll web; serve web")
		f.broken <- errors.New("listener failed")
		expect(t, f.took(), "enroll web; serve web")
	})
}

// TestGonePodsStayClosed: what cannot be enrolled anew keeps its gate, is not
// called enrolled, and is taken out when the configuration says so.
func TestGonePodsStayClosed(t *testing.T) {
	reconciled(t, nil, func(f *fake, r *Reconciler, store *mesh.Store, _ func()) {
		store.Replace(view(t, workload("web", "/ns/web", 1)))
		f.took()
		f.setFail("enroll web", errors.New("network namespace /ns/web is gone"))
		r.Gone(mesh.Key{Namespace: "shop", Name: "web"}, errors.New("the namespace is gone"))
		expect(t, f.took(), "drain web; enroll web")
		time.Sleep(time.Minute)
		if got := f.took(); strings.Contains(got, "unenroll") || !strings.Contains(got, "enroll web") {
			t.Errorf("did %q, want tries to enroll alone", got)
		}
		if s := r.Status(); len(s) != 1 || s[0].State != Failed {
			t.Errorf("%+v", s)
		}
		store.Replace(view(t))
		expect(t, f.took(), "unenroll web")
	})
}

func TestOneNamespaceForTwoWorkloads(t *testing.T) {
	reconciled(t, nil, func(f *fake, r *Reconciler, store *mesh.Store, _ func()) {
		store.Replace(view(t, workload("a", "/ns/x", 1), workload("b", "/ns/x", 2)))
		expect(t, f.took(), "prune but [a b]; enroll a; serve a")
		s := r.Status()
		if len(s) != 2 || s[1].State != Failed || !strings.Contains(s[1].Err.Error(), "belongs to shop/a") {
			t.Errorf("%+v", s)
		}
	})
}

// TestConflictKeepsThePodClosed: an enrolled pod whose namespace is given to
// another workload too is not taken out of the mesh, and is served again when
// the mistake is mended.
func TestConflictKeepsThePodClosed(t *testing.T) {
	reconciled(t, nil, func(f *fake, r *Reconciler, store *mesh.Store, _ func()) {
		b := workload("b", "/ns/x", 2)
		store.Replace(view(t, b))
		expect(t, f.took(), "prune but [b]; enroll b; serve b")
		f.setFail("enroll a", errors.New("pod shop_b is enrolled in this network namespace still"))
		store.Replace(view(t, workload("a", "/ns/x", 1), b))
		time.Sleep(time.Minute)
		if did := f.took(); !strings.Contains(did, "drain b") || strings.Contains(did, "unenroll") || strings.Contains(did, "enroll b") {
			t.Errorf("did %q, want b closed and still enrolled", did)
		}
		if s := r.Status(); len(s) != 2 || s[1].State != Failed || !strings.Contains(s[1].Err.Error(), "belongs to shop/a") {
			t.Errorf("%+v", s)
		}
		store.Replace(view(t, b))
		expect(t, f.took(), "enroll b; serve b")
	})
}

func TestEnrollingWaitsForTheFirstCertificate(t *testing.T) {
	reconciled(t, nil, func(f *fake, r *Reconciler, store *mesh.Store, _ func()) {
		f.noSVID = true
		store.Replace(view(t, workload("web", "/ns/web", 1)))
		expect(t, f.took(), "prune but [web]")
		time.Sleep(5 * time.Second)
		expect(t, f.took(), "enroll web; serve web")
	})
}

// A label that is taken away again while the certificate is waited for: none comes.
func TestEnrollingEndsWithItsReason(t *testing.T) {
	reconciled(t, nil, func(f *fake, r *Reconciler, store *mesh.Store, _ func()) {
		f.noSVID = true
		store.Replace(view(t, workload("web", "/ns/web", 1)))
		time.Sleep(time.Second)
		store.Replace(view(t))
		time.Sleep(10 * time.Millisecond)
		expect(t, f.took(), "prune but [web]")
		if s := r.Status(); len(s) != 0 {
			t.Errorf("after a second: %+v", s)
		}
		store.Replace(view(t, workload("web", "/ns/web", 1)))
		time.Sleep(time.Second)
		f.mu.Lock()
		f.noSVID = false
		f.mu.Unlock()
		f.changed <- struct{}{}
		time.Sleep(10 * time.Millisecond)
		expect(t, f.took(), "enroll web; serve web")
	})
}

// backIn is a context of which a worker asks Err as soon as a step is done.
type backIn struct {
	context.Context
	stepped func()
}

func (c backIn) Err() error {
	c.stepped()
	return c.Context.Err()
}

// TestNotEnrolledIsNotShownAsEnrolled: a pod that is to leave before it has joined, and
// to join again as soon as that step is over, which did nothing, has no gate yet. The
// pause keeps the next step from giving it one.
func TestNotEnrolledIsNotShownAsEnrolled(t *testing.T) {
	reconciled(t, nil, func(f *fake, r *Reconciler, _ *mesh.Store, _ func()) {
		f.noSVID = true
		web := workload("web", "/ns/web", 1)
		to := &target{workload: &web}
		w := newWorker(r, web.Key, to)
		ctx, cancel := context.WithCancel(context.Background()) // made in the bubble
		defer cancel()
		var leaves atomic.Bool
		r.pods.Lock()
		r.pods.workers[web.Key] = w
		r.pods.Unlock()
		go w.run(backIn{ctx, func() {
			if !leaves.CompareAndSwap(true, false) {
				return
			}
			if err := r.Pause(context.Background()); err != nil {
				t.Error(err)
			}
			w.aim(to)
		}})
		synctest.Wait() // for a certificate
		leaves.Store(true)
		w.aim(nil)
		synctest.Wait()
		brief, end := context.WithTimeout(ctx, time.Second)
		defer end()
		if err := r.Await(brief, web.Key, "/ns/web"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a pod without a gate is said to be enrolled: %v, %+v", err, r.Status())
		}
		expect(t, f.took(), "")
		r.Resume()
		time.Sleep(5 * time.Second)
		expect(t, f.took(), "enroll web; serve web")
		if err := r.Await(ctx, web.Key, "/ns/web"); err != nil {
			t.Error(err)
		}
	})
}

func TestPruneIsRetried(t *testing.T) {
	reconciled(t, nil, func(f *fake, _ *Reconciler, store *mesh.Store, _ func()) {
		f.fail["prune but []"] = errors.New("busy")
		store.Replace(view(t))
		expect(t, f.took(), "prune but []")
		f.setFail("prune but []", nil)
		time.Sleep(time.Minute)
		expect(t, f.took(), "prune but []")
		store.Replace(view(t))
		expect(t, f.took(), "")
	})
}

// TestPruneWaitsForTheOperator: the configuration from disk may be older than
// what an earlier agent enrolled, and what it does not name keeps its gate.
func TestPruneWaitsForTheOperator(t *testing.T) {
	var confirmed atomic.Bool
	change := func(c *Config) { c.Confirmed = confirmed.Load }
	reconciled(t, change, func(f *fake, _ *Reconciler, store *mesh.Store, _ func()) {
		store.Replace(view(t, workload("web", "/ns/web", 1)))
		expect(t, f.took(), "enroll web; serve web")
		time.Sleep(time.Hour)
		expect(t, f.took(), "")
		confirmed.Store(true)
		time.Sleep(time.Second)
		expect(t, f.took(), "prune but [web]")
	})
}

func TestUnenrollOnExit(t *testing.T) {
	reconciled(t, func(c *Config) { c.UnenrollOnExit = true }, func(f *fake, _ *Reconciler, store *mesh.Store, stop func()) {
		store.Replace(view(t, workload("web", "/ns/web", 1)))
		f.took()
		stop()
		expect(t, f.took(), "drain web; unenroll web")
	})
}
