package rotation

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func config() identity.AuthorityConfig {
	return identity.AuthorityConfig{TrustDomain: spiffeid.RequireTrustDomainFromString("mesh.test")}
}

func begun(t testing.TB) *Keyring {
	t.Helper()
	texts, err := identity.NewAuthorityTexts(config())
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, texts)
}

func parse(t testing.TB, texts Texts) *Keyring {
	t.Helper()
	k, err := Parse(texts, config())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// step parses what a step returns.
func step(t testing.TB, texts Texts, err error) *Keyring {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, texts)
}

func advance(t testing.TB, k *Keyring) *Keyring {
	t.Helper()
	texts, _, err := k.Advance(time.Now())
	return step(t, texts, err)
}

func begin(t testing.TB, k *Keyring, kind string) *Keyring {
	t.Helper()
	texts, err := k.Begin(kind, time.Now())
	return step(t, texts, err)
}

// is says which root signs, which the operator proves itself by, and how many are trusted.
func is(t testing.TB, k *Keyring, what string, signs, own *x509.Certificate, roots int) {
	t.Helper()
	if !k.Signing.Root().Equal(signs) || !k.Own.Root().Equal(own) || len(k.Signing.Roots()) != roots || len(k.Own.Roots()) != roots {
		t.Errorf("%s: signs %s, own %s, %d and %d roots; want %s, %s, %d", what, k.Signing.Root().SerialNumber.Text(16), k.Own.Root().SerialNumber.Text(16),
			len(k.Signing.Roots()), len(k.Own.Roots()), signs.SerialNumber.Text(16), own.SerialNumber.Text(16), roots)
	}
}

func TestStagesOfARoot(t *testing.T) {
	first := begun(t)
	old := first.Signing.Root()
	distribute := begin(t, first, KindRoot)
	is(t, distribute, "distribute", old, old, 2)
	next := distribute.Next.Root()
	reissue := advance(t, distribute)
	is(t, reissue, "reissue", next, old, 2)
	done := advance(t, reissue)
	is(t, done, "done", next, next, 1)
	if done.Active() || done.How != "completed" || !distribute.Active() {
		t.Errorf("%+v", done.Record)
	}
	for name := range done.texts {
		if strings.HasPrefix(name, "next.") || strings.HasPrefix(name, "previous.") {
			t.Errorf("%s is left", name)
		}
	}
	for _, k := range []*Keyring{distribute, reissue} {
		if _, err := k.Begin(KindRoot, time.Now()); !errors.Is(err, ErrRefused) {
			t.Errorf("a second rotation: %v", err)
		}
		// A version that knows no rotation signs and trusts the same.
		older := Texts{}
		for _, name := range []string{"tls.crt", "tls.key", "ca.crt", "configuration.key"} {
			older[name] = k.texts[name]
		}
		is(t, parse(t, older), "older version", k.Signing.Root(), k.Signing.Root(), 2)
	}
	if _, err := done.Abort(time.Now()); !errors.Is(err, ErrRefused) {
		t.Errorf("abort of nothing: %v", err)
	}
	if _, _, err := done.Advance(time.Now()); err == nil {
		t.Error("nothing was advanced")
	}
}

func TestAbort(t *testing.T) {
	first := begun(t)
	old := first.Signing.Root()
	distribute := begin(t, first, KindRoot)
	texts, err := distribute.Abort(time.Now())
	back := step(t, texts, err)
	is(t, back, "aborted at once", old, old, 1)
	if back.Active() || back.How != "aborted" {
		t.Errorf("%+v", back.Record)
	}
	reissue := advance(t, distribute)
	texts, err = reissue.Abort(time.Now())
	back = step(t, texts, err)
	is(t, back, "aborting", old, old, 2)
	if !back.Aborting || back.Stage != StageReissue {
		t.Errorf("%+v", back.Record)
	}
	if _, err := back.Abort(time.Now()); !errors.Is(err, ErrRefused) {
		t.Errorf("abort twice: %v", err)
	}
	is(t, advance(t, back), "aborted", old, old, 1)
}

func TestStagesOfAnIntermediate(t *testing.T) {
	first := begun(t)
	root := first.Signing.Root()
	reissue := begin(t, first, KindIntermediate)
	is(t, reissue, "reissue", root, root, 1)
	if reissue.Stage != StageReissue || identity.IsRoot(reissue.Signing.Signing()) || !identity.IsRoot(reissue.Own.Signing()) {
		t.Errorf("%+v", reissue.Record)
	}
	one := advance(t, reissue)
	two := advance(t, begin(t, one, KindIntermediate))
	is(t, two, "second", root, root, 1)
	if one.Signing.Signing().Equal(two.Signing.Signing()) {
		t.Error("the intermediate is the same")
	}
	texts, err := begin(t, one, KindIntermediate).Abort(time.Now())
	if back := advance(t, step(t, texts, err)); !back.Signing.Signing().Equal(one.Signing.Signing()) {
		t.Error("an abort led elsewhere")
	}
	// A new root has an intermediate, too, and can have another.
	three := advance(t, advance(t, begin(t, two, KindRoot)))
	if identity.IsRoot(three.Signing.Signing()) || three.Signing.Root().Equal(root) || len(three.Signing.Roots()) != 1 {
		t.Error("the new root signs itself, or the old one is there still")
	}
	is(t, advance(t, begin(t, three, KindIntermediate)), "after all", three.Signing.Root(), three.Signing.Root(), 1)
}

// TestFurtherRootsStay keeps what people put into ca.crt.
func TestFurtherRootsStay(t *testing.T) {
	first, other := begun(t), begun(t)
	texts := maps.Clone(first.texts)
	texts["ca.crt"] = other.Signing.BundleText()
	k := parse(t, texts)
	for _, kind := range []string{KindRoot, KindIntermediate, KindRoot} {
		for k = begin(t, k, kind); k.Active(); k = advance(t, k) {
			continue
		}
		if roots := k.Signing.Roots(); len(roots) != 2 || !roots[1].Equal(other.Signing.Root()) {
			t.Fatalf("%d roots", len(roots))
		}
	}
}

// TestFurtherRootsOfPeopleMayGo: a root of roots.crt is trusted throughout rotations, and
// no longer than its owner leaves it there, whatever stage it is taken out in.
func TestFurtherRootsOfPeopleMayGo(t *testing.T) {
	first, other := begun(t), begun(t)
	texts := maps.Clone(first.texts)
	texts["roots.crt"] = other.Signing.BundleText()
	gone := other.Signing.Root().Equal
	check := func(k *Keyring) {
		t.Helper()
		if !slices.ContainsFunc(k.Signing.Roots(), gone) || !slices.ContainsFunc(k.Own.Roots(), gone) {
			t.Errorf("not trusted in %+v", k.Record)
		}
		without := maps.Clone(k.texts)
		delete(without, "roots.crt")
		if left := parse(t, without); slices.ContainsFunc(left.Signing.Roots(), gone) || len(left.Signing.Roots()) != len(k.Signing.Roots())-1 {
			t.Errorf("still trusted in %+v, %d of %d roots left", k.Record, len(left.Signing.Roots()), len(k.Signing.Roots()))
		}
	}
	k := parse(t, texts)
	for _, kind := range []string{KindRoot, KindIntermediate, KindRoot} {
		for k = begin(t, k, kind); k.Active(); k = advance(t, k) {
			check(k)
			texts, err := k.Abort(time.Now())
			check(step(t, texts, err))
		}
		check(k)
	}
}

// TestRootOfRotationInRoots: one that is in roots.crt is not retired, and one that is
// taken out of there meanwhile stays until the rotation is at its end.
func TestRootOfRotationInRoots(t *testing.T) {
	first := begun(t)
	old := first.Signing.Root()
	texts := maps.Clone(first.texts)
	texts["roots.crt"] = first.Signing.BundleText()
	reissue := advance(t, begin(t, parse(t, texts), KindRoot))
	kept := advance(t, reissue)
	is(t, kept, "left in roots.crt", kept.Signing.Root(), kept.Signing.Root(), 2)
	withdrawn := maps.Clone(reissue.texts)
	delete(withdrawn, "roots.crt")
	going := parse(t, withdrawn)
	is(t, going, "withdrawn meanwhile", going.Signing.Root(), old, 2)
	done := advance(t, going)
	is(t, done, "after that", done.Signing.Root(), done.Signing.Root(), 1)
}

// report is what a node reports that is in a keyring's stage.
func report(k *Keyring) *meshpb.TrustReport {
	issuer := sha256.Sum256(k.Signing.Signing().Raw)
	return &meshpb.TrustReport{Roots: sums(k.Signing.Roots()), Certificates: []*meshpb.HeldCertificate{
		{Identity: "spiffe://mesh.test/node/n1", Issuer: issuer[:]}, {Identity: "spiffe://mesh.test/ns/shop/sa/web", Issuer: issuer[:]}}}
}

func replica(k *Keyring) Replica {
	issuer := sha256.Sum256(k.Signing.Signing().Raw)
	return Replica{Name: "other", Roots: sums(k.Signing.Roots()), Issuer: issuer[:]}
}

func TestGate(t *testing.T) {
	first := begun(t)
	distribute := begin(t, first, KindRoot)
	reissue := advance(t, distribute)
	half := proto.CloneOf(report(reissue))
	half.Certificates[1].Issuer, half.Certificates[1].Error = report(distribute).Certificates[1].Issuer, "operator is away"
	node := func(r *meshpb.TrustReport) []Node { return []Node{{Name: "n1", Connected: true, Report: r}} }
	for name, c := range map[string]struct {
		k        *Keyring
		f        Fleet
		says     string // "" when nobody holds it
		forcible bool
	}{
		"no rotation":                 {first, Fleet{Nodes: node(nil)}, "", false},
		"nobody there":                {distribute, Fleet{}, "", false},
		"has both roots":              {distribute, Fleet{Nodes: node(report(distribute))}, "", false},
		"has one root":                {distribute, Fleet{Nodes: node(report(first))}, "trusts other roots (1) than these (2)", false},
		"never reported":              {distribute, Fleet{Nodes: node(nil)}, "of a version before", false},
		"away":                        {distribute, Fleet{Nodes: []Node{{Name: "n1"}}}, "not connected; remedy", true},
		"away, and had both":          {distribute, Fleet{Nodes: []Node{{Name: "n1", Since: time.Unix(0, 0), Report: report(distribute)}}}, "since 1970", true},
		"replica behind":              {distribute, Fleet{Nodes: node(report(distribute)), Replicas: []Replica{replica(first)}}, "newest keys", false},
		"replica with another signer": {reissue, Fleet{Nodes: node(report(reissue)), Replicas: []Replica{replica(distribute)}}, "newest keys", false},
		"replica silent":              {distribute, Fleet{Replicas: []Replica{{Name: "other", Err: errors.New("timeout")}}}, "delete its pod", false},
		"replica":                     {distribute, Fleet{Nodes: node(report(distribute)), Replicas: []Replica{replica(distribute)}}, "", false},
		"not reissued":                {reissue, Fleet{Nodes: node(report(distribute))}, "2 of its 2 certificates", false},
		"half reissued":               {reissue, Fleet{Nodes: node(half)}, "1 of its 2 certificates are not of the new issuer yet, such as spiffe://mesh.test/ns/shop/sa/web: operator is away", false},
		"waypoints learn":             {distribute, Fleet{Nodes: node(report(distribute)), Waypoints: time.Hour}, "to learn of the new root", false},
		"waypoints have learned":      {distribute, Fleet{Nodes: node(report(distribute)), Waypoints: time.Nanosecond}, "", false},
		"waypoints, later":            {reissue, Fleet{Nodes: node(report(reissue)), Waypoints: time.Hour}, "", false},
		"reissued":                    {reissue, Fleet{Nodes: node(report(reissue))}, "", false},
	} {
		p := c.k.Progress(c.f)
		if c.says == "" {
			if len(p.Waiting) != 0 || p.Done != p.Nodes {
				t.Errorf("%s: %+v", name, p)
			}
			continue
		}
		if len(p.Waiting) != 1 || !strings.Contains(p.Waiting[0].Reason, c.says) || p.Waiting[0].Forcible != c.forcible {
			t.Errorf("%s: %+v, want %q", name, p, c.says)
		}
	}
	texts, err := reissue.goOnWithout([]string{"n1", "n1"})
	if p := step(t, texts, err).Progress(Fleet{Nodes: node(nil)}); p.Nodes != 0 || len(p.Waiting) != 0 {
		t.Errorf("without n1: %+v", p)
	}
}

// TestOverlapCountsFromTheLastReplica: as long as one is behind, it gives out the bundle
// without the new root, and nobody has time to ask for that.
func TestOverlapCountsFromTheLastReplica(t *testing.T) {
	first := begun(t)
	texts, err := first.Begin(KindRoot, time.Now().Add(-time.Hour))
	k := step(t, texts, err)
	f := Fleet{Overlap: 15 * time.Minute}
	r, err := NewRotator(RotatorConfig{Live: &Live{}, Fleet: func(context.Context) Fleet { return f }, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	held := func(what string, parts ...string) {
		t.Helper()
		var got []string
		for _, w := range r.look(t.Context(), k).Waiting {
			got = append(got, w.Part)
			if w.Part == "bundle" && !strings.Contains(w.Reason, "another 15m0s") {
				t.Errorf("%s: %s", what, w.Reason)
			}
		}
		if !slices.Equal(got, parts) {
			t.Errorf("%s: held by %v, want %v", what, got, parts)
		}
	}
	f.Replicas = []Replica{replica(first)}
	held("one is behind", "bundle", "replica")
	f.Replicas = []Replica{replica(k)}
	held("it has just followed", "bundle")
	r.even.since = time.Now().Add(-20 * time.Minute)
	held("it followed long ago")
	f.Replicas = []Replica{{Name: "other", Err: errors.New("timeout")}}
	held("it is silent", "bundle", "replica")
	f.Replicas = nil
	held("it is gone", "bundle")
}

// stuck is a Store that answers when its caller has had enough.
type stuck struct {
	Store
	asked chan struct{}
}

func (s stuck) Load(ctx context.Context) (Texts, string, error) {
	s.asked <- struct{}{}
	<-ctx.Done()
	return nil, "", ctx.Err()
}

// TestChangeWaitsNoLongerThanAsked: while another change waits for the Store.
func TestChangeWaitsNoLongerThanAsked(t *testing.T) {
	live, err := OpenDir(t.Context(), t.TempDir(), LiveConfig{Authority: config(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	store := stuck{Store: live.cfg.Store, asked: make(chan struct{}, 2)}
	live.cfg.Store = store
	first, end := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer end()
	change := func(ctx context.Context) error {
		return live.Change(ctx, func(*Keyring) (Texts, error) { return nil, errors.New("it came to a change") })
	}
	running.Go(func() {
		if err := change(first); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	<-store.asked
	second, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	running.Go(func() { done <- change(second) })
	select {
	case err := <-done:
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "another change goes on") || len(store.asked) > 0 {
			t.Errorf("the second is told %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the second waits for the first")
	}
}

// TestDirFinishesWhatACrashInterrupted writes a change up to its journal.
func TestDirFinishesWhatACrashInterrupted(t *testing.T) {
	dir := t.TempDir()
	cfg := LiveConfig{Authority: config(), Logger: slog.New(slog.DiscardHandler)}
	live, err := OpenDir(t.Context(), dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	old := live.Keyring().Signing.Root()
	d := NewDir(dir)
	texts, version, err := d.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	after, err := live.Keyring().Begin(KindRoot, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Save(t.Context(), after, "another"); !errors.Is(err, ErrConflict) {
		t.Errorf("save of another version: %v", err)
	}
	if err := d.Save(t.Context(), after, version); err != nil {
		t.Fatal(err)
	}
	// Half of it is as before, and the journal is there: what a crash leaves.
	d2 := NewDir(dir)
	saved, _, err := d2.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	writeJournal(t, dir, saved)
	for _, name := range []string{"next.key", "ca.crt"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	again, err := OpenDir(t.Context(), dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if k := again.Keyring(); k.Stage != StageDistribute || len(k.Signing.Roots()) != 2 || !k.Signing.Root().Equal(old) {
		t.Errorf("%+v", k.Record)
	}
	if info, err := os.Stat(filepath.Join(dir, "next.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("next.key: %v, %v", info, err)
	}
	if _, err := os.Stat(filepath.Join(dir, journalFile)); err == nil {
		t.Error("the journal is left")
	}
	if bytes.Equal(texts["ca.crt"], saved["ca.crt"]) {
		t.Error("ca.crt is as before")
	}
}

// TestDirAfterARotation is opened again: no further root is left in it.
func TestDirAfterARotation(t *testing.T) {
	dir := t.TempDir()
	cfg := LiveConfig{Authority: config(), Logger: slog.New(slog.DiscardHandler)}
	live, err := OpenDir(t.Context(), dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	d := NewDir(dir)
	for _, next := range []Texts{begin(t, live.Keyring(), KindIntermediate).texts, nil} {
		_, version, err := d.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if next == nil {
			next = advance(t, live.Keyring()).texts
		}
		if err := d.Save(t.Context(), next, version); err != nil {
			t.Fatal(err)
		}
		if err := live.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	again, err := OpenDir(t.Context(), dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	is(t, again.Keyring(), "opened again", live.Keyring().Signing.Root(), live.Keyring().Signing.Root(), 1)
}

// memory is a Store.
type memory struct {
	mu      sync.Mutex
	texts   Texts
	version int
}

func (m *memory) String() string { return "memory" }

func (m *memory) Keeper() string { return "" }

func (m *memory) Load(context.Context) (Texts, string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.texts), string(rune('a' + m.version)), nil
}

func (m *memory) Save(_ context.Context, texts Texts, version string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if version != string(rune('a'+m.version)) {
		return ErrConflict
	}
	m.texts, m.version = maps.Clone(texts), m.version+1
	return nil
}

func (m *memory) set(name, text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.texts = maps.Clone(m.texts)
	m.texts[name] = []byte(text)
	m.version++
}

// TestBadTextsAreNotTaken goes on with those before.
func TestBadTextsAreNotTaken(t *testing.T) {
	store := &memory{texts: begun(t).texts}
	live, err := Open(t.Context(), LiveConfig{Store: store, Authority: config(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	root, good := live.Keyring().Signing.Root(), string(store.texts["tls.crt"])
	for name, text := range map[string]string{"tls.crt": "nonsense", "rotation.json": `{"stage": "unheard of"}`, "ca.crt": "x"} {
		before := string(store.texts[name])
		store.set(name, text)
		if err := live.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "remedy") || live.Problem() == nil {
			t.Errorf("%s: %v", name, err)
		}
		if !live.Keyring().Signing.Root().Equal(root) {
			t.Errorf("%s: another root signs", name)
		}
		store.set(name, before)
	}
	store.set("tls.crt", good)
	if err := live.Reload(t.Context()); err != nil || live.Problem() != nil {
		t.Errorf("%v, %v", err, live.Problem())
	}
}

// TestRotatorWaitsAndForces has a node that is away hold a rotation, which another
// rotator goes on with.
func TestRotatorWaitsAndForces(t *testing.T) {
	store := &memory{texts: begun(t).texts}
	open := func() *Live {
		live, err := Open(t.Context(), LiveConfig{Store: store, Authority: config(), Logger: slog.New(slog.DiscardHandler), Poll: 5 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		return live
	}
	live := open()
	old := live.Keyring().Signing.Root()
	fleet := func(live *Live) func(context.Context) Fleet {
		return func(context.Context) Fleet { // n1 does what it is told, n2 is away
			return Fleet{Nodes: []Node{{Name: "n1", Connected: true, Report: report(live.Keyring())}, {Name: "n2"}}}
		}
	}
	run := func(live *Live) (*Rotator, func()) {
		r, err := NewRotator(RotatorConfig{Live: live, Fleet: fleet(live), Interval: 5 * time.Millisecond, Settle: time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() { _ = r.Run(ctx) })
		all.Go(func() { _ = live.Run(ctx) })
		return r, func() { cancel(); all.Wait() }
	}
	r, stop := run(live)
	if _, p, err := r.Begin(t.Context(), KindRoot, true); err != nil || len(p.Waiting) != 1 || live.Keyring().Active() {
		t.Errorf("dry run: %+v, %v", p, err)
	}
	if _, _, err := r.Force(t.Context(), false); !errors.Is(err, ErrRefused) {
		t.Errorf("force of nothing: %v", err)
	}
	if record, p, err := r.Begin(t.Context(), KindRoot, false); err != nil || record.Stage != StageDistribute || len(p.Waiting) != 1 || p.Waiting[0].Name != "n2" {
		t.Fatalf("%+v, %+v, %v", record, p, err)
	}
	stop()
	live = open() // another process
	r, stop = run(live)
	defer stop()
	if record, p := r.Now(t.Context()); record.Stage != StageDistribute || len(p.Waiting) != 1 {
		t.Fatalf("%+v, %+v", record, p)
	}
	if _, _, err := r.Force(t.Context(), true); err != nil {
		t.Errorf("dry: %v", err)
	}
	if record, p := r.Now(t.Context()); record.Stage != StageDistribute || len(p.Waiting) != 1 {
		t.Fatalf("a dry run did something: %+v, %+v", record, p)
	}
	if _, _, err := r.Force(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 10*time.Second, "the rotation is complete", func() bool { return !live.Keyring().Active() })
	if k := live.Keyring(); k.Signing.Root().Equal(old) || len(k.Signing.Roots()) != 1 || k.How != "completed" {
		t.Errorf("%+v", k.Record)
	}
}

func writeJournal(t *testing.T, dir string, texts Texts) {
	t.Helper()
	text, err := json.Marshal(texts)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, journalFile), text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestReplacedByItsOwner: an intermediate that its owner issues anew below a root that
// is trusted is taken at once; one of another root when that has been trusted before,
// by roots.crt, and not else.
func TestReplacedByItsOwner(t *testing.T) {
	intermediate := func(root Texts) Texts {
		t.Helper()
		made, err := identity.NewIntermediateTexts(root, config())
		if err != nil {
			t.Fatal(err)
		}
		made["configuration.key"] = root["configuration.key"]
		return made
	}
	one, other := begun(t), begun(t)
	store := &memory{texts: intermediate(one.texts)}
	live, err := Open(t.Context(), LiveConfig{Store: store, Authority: config(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	replace := func(what string, with Texts, takes bool) {
		t.Helper()
		store.mu.Lock()
		store.texts, store.version = with, store.version+1
		store.mu.Unlock()
		before := live.Keyring().Signing.Signing()
		err := live.Reload(t.Context())
		switch now := live.Keyring().Signing.Signing(); {
		case takes && (err != nil || now.Equal(before) || live.Problem() != nil):
			t.Errorf("%s: %v, %v", what, err, live.Problem())
		case !takes && (!errors.Is(err, ErrNoOverlap) || !now.Equal(before) || live.Problem() == nil || !strings.Contains(err.Error(), "roots.crt")):
			t.Errorf("%s: %v, %v", what, err, live.Problem())
		}
	}
	replace("a renewal below the same root", intermediate(one.texts), true)
	replace("another root", intermediate(other.texts), false)
	trusting := intermediate(one.texts)
	trusting["roots.crt"] = other.Signing.BundleText()
	replace("the other root trusted", trusting, true)
	if n := len(live.Keyring().Signing.Roots()); n != 2 {
		t.Errorf("%d roots are trusted", n)
	}
	replace("the other root alone: SVIDs of the first are still in use", intermediate(other.texts), false)
	next := intermediate(other.texts)
	next["roots.crt"] = one.Signing.BundleText()
	replace("the other root, trusted before", next, true)
	if n := len(live.Keyring().Signing.Roots()); n != 2 || !live.Keyring().Signing.Root().Equal(other.Signing.Root()) {
		t.Errorf("%d roots are trusted", n)
	}
}

// TestRootIssuedAnew: a root that its owner issues anew with the same key is taken at
// once, since each verifies what the other has signed.
func TestRootIssuedAnew(t *testing.T) {
	first := begun(t)
	store := &memory{texts: first.texts}
	live, err := Open(t.Context(), LiveConfig{Store: store, Authority: config(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	old := first.Signing.Root()
	block, _ := pem.Decode(first.texts["tls.key"])
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	again := *old
	again.SerialNumber, again.NotAfter = big.NewInt(1), old.NotAfter.Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, &again, &again, old.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	store.set("tls.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	if err := live.Reload(t.Context()); err != nil || live.Keyring().Signing.Root().Equal(old) || live.Problem() != nil {
		t.Errorf("%v, %v", err, live.Problem())
	}
}

// TestReplicaThatMissedAStage takes the rotation's end: the others have waited for nodes.
func TestReplicaThatMissedAStage(t *testing.T) {
	distribute := begin(t, begun(t), KindRoot)
	store := &memory{texts: distribute.texts}
	live, err := Open(t.Context(), LiveConfig{Store: store, Authority: config(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	done := advance(t, advance(t, distribute))
	if err := store.Save(t.Context(), done.texts, "a"); err != nil {
		t.Fatal(err)
	}
	if err := live.Reload(t.Context()); err != nil || !live.Keyring().Signing.Root().Equal(done.Signing.Root()) {
		t.Errorf("%v", err)
	}
}
