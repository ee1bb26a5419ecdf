package gated

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity/trustfeed"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func workload(node, name, uid string, addrs ...string) *mesh.Workload {
	w := &mesh.Workload{Key: mesh.Key{Namespace: "shop", Name: name}, Node: node, UID: uid, Enrolled: true}
	for _, a := range addrs {
		w.Addresses = append(w.Addresses, netip.MustParseAddr(a))
	}
	return w
}

// says is what an agent says of pods.
func says(node string, at int64, complete bool, pods ...*mesh.Workload) *meshpb.NodeGates {
	said := &meshpb.NodeGates{Node: node, ReportedNs: at, Gated: &meshpb.GatedPods{Complete: complete}}
	for _, w := range pods {
		p := &meshpb.GatedPod{Namespace: w.Namespace, Name: w.Name, Uid: w.UID, NetworkNamespace: w.NetNS}
		for _, a := range w.Addresses {
			p.Addresses = append(p.Addresses, a.AsSlice())
		}
		said.Gated.Pods = append(said.Gated.Pods, p)
	}
	return said
}

// ledger is one whose time is given.
func ledger(t *testing.T, kept Prints) *Ledger {
	t.Helper()
	l, err := New(Config{Reports: func() ([]*meshpb.NodeGates, <-chan struct{}) { return nil, nil }, Kept: kept})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// hear has a ledger hear what replicas have, at a time after its start; it reports whether
// it said that something changed.
func (l *Ledger) hear(after time.Duration, own, others []*meshpb.NodeGates) bool {
	changed := l.Changed()
	l.state.Lock()
	l.state.own, l.state.others = own, others
	l.takeLocked(time.Now().Add(after))
	l.state.Unlock()
	select {
	case <-changed:
		return true
	default:
		return false
	}
}

// soon is until when what is kept holds: for as long as anything does, nearly.
func soon() time.Time { return time.Now().Add(Grace - time.Minute).Truncate(time.Second) }

func all(said ...*meshpb.NodeGates) []*meshpb.NodeGates { return said }

// TestOnlyTheNodesAgentSpeaks: a workload is behind its gate when the agent of its own node
// has said so of it, as it is.
func TestOnlyTheNodesAgentSpeaks(t *testing.T) {
	w := workload("n1", "web", "u1", "10.0.0.1", "fd00::1")
	netns := *w
	netns.UID, netns.NetNS = "", "/run/netns/web"
	moved, other := netns, *w
	moved.NetNS, other.UID = "/run/netns/elsewhere", "u2"
	for what, c := range map[string]struct {
		said *meshpb.NodeGates
		of   *mesh.Workload
		want bool
	}{
		"it":                       {says("n1", 1, true, w), w, true},
		"before the agent is done": {says("n1", 1, false, w), w, true},
		"another node's agent":     {says("n2", 1, true, w), w, false},
		"another pod":              {says("n1", 1, true, workload("n1", "db", "u1", "10.0.0.1", "fd00::1")), w, false},
		"a later pod of the name":  {says("n1", 1, true, w), &other, false},
		"an address less":          {says("n1", 1, true, workload("n1", "web", "u1", "10.0.0.1")), w, false},
		"an address more":          {says("n1", 1, true, workload("n1", "web", "u1", "10.0.0.1", "10.0.0.2", "fd00::1")), w, true},
		"no address yet":           {says("n1", 1, true, w), workload("n1", "web", "u1"), false},
		"by its namespace":         {says("n1", 1, true, &netns), &netns, true},
		"in another namespace":     {says("n1", 1, true, &netns), &moved, false},
		"an older agent":           {&meshpb.NodeGates{Node: "n1", ReportedNs: 1}, w, false},
		"nobody":                   {says("n1", 1, true), w, false},
	} {
		l := ledger(t, nil)
		l.hear(0, all(c.said), nil)
		if got := l.Gated(c.of); got != c.want {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
		// What another replica has heard counts alike.
		l = ledger(t, nil)
		l.hear(0, nil, all(c.said))
		if got := l.Gated(c.of); got != c.want {
			t.Errorf("%s, from another replica: %v, want %v", what, got, c.want)
		}
	}
}

// TestWhatWasSaidHoldsForAWhile: without the agent, for Grace; and an agent that begins anew
// takes nothing back until it is done.
func TestWhatWasSaidHoldsForAWhile(t *testing.T) {
	web, db := workload("n1", "web", "u1", "10.0.0.1"), workload("n1", "db", "u2", "10.0.0.2")
	l := ledger(t, nil)
	step := func(what string, changes bool, wantWeb, wantDB bool, changed bool) {
		t.Helper()
		if changes != changed || l.Gated(web) != wantWeb || l.Gated(db) != wantDB {
			t.Fatalf("%s: web %v, want %v; db %v, want %v; changed %v, want %v", what, l.Gated(web), wantWeb, l.Gated(db), wantDB, changes, changed)
		}
	}
	step("nothing", false, false, false, l.hear(0, nil, nil))
	step("both", true, true, true, l.hear(1, all(says("n1", 1, true, db, web)), nil))
	step("away", false, true, true, l.hear(Grace-time.Minute, nil, nil))
	anew := says("n1", 2, false, web)
	step("anew", false, true, true, l.hear(Grace-time.Minute, all(anew), nil))
	step("the same again", false, true, true, l.hear(Grace-time.Minute, all(anew), nil))
	step("done, without db", true, true, false, l.hear(Grace-time.Minute, all(says("n1", 3, true, web)), nil))
	step("it is elsewhere by now", true, true, true, l.hear(Grace, all(says("n1", 3, true, web)), all(says("n1", 4, true, web, db))))
	step("away again", false, true, true, l.hear(2*Grace-time.Minute, nil, nil))
	step("and not back", true, false, false, l.hear(2*Grace+time.Minute, nil, nil))
	// An agent that does not say is as one that is away.
	step("back", true, true, false, l.hear(3*Grace, all(says("n1", 5, true, web)), nil))
	silent := all(&meshpb.NodeGates{Node: "n1", ReportedNs: 6})
	step("an older agent", false, true, false, l.hear(3*Grace+time.Minute, silent, nil))
	step("for long", true, false, false, l.hear(4*Grace+time.Minute, silent, nil))
}

// TestTakenBack: an agent that is not done takes back what was said before of a pod by saying
// it without addresses, also of what was kept; and what nobody says again runs out, however
// often it says something.
func TestTakenBack(t *testing.T) {
	web, db := workload("n1", "web", "u1", "10.0.0.1"), workload("n1", "db", "u2", "10.0.0.2")
	cache, not := workload("n1", "cache", "u3", "10.0.0.3"), workload("n1", "web", "")
	l := ledger(t, nil)
	l.hear(0, all(says("n1", 1, true, web, db)), nil)
	anew := func(at int64, pods ...*mesh.Workload) []*meshpb.NodeGates { return all(says("n1", at, false, pods...)) }
	if l.hear(time.Minute, anew(2, cache), nil); !l.Gated(web) || !l.Gated(db) || !l.Gated(cache) {
		t.Error("an agent that has begun takes back what was said before")
	}
	if !l.hear(time.Minute, anew(3, not, cache), nil) || l.Gated(web) || !l.Gated(db) {
		t.Error("what is taken back holds, or what is not does not")
	}
	at := int64(4)
	for after := 2 * time.Minute; after < Grace; after += time.Minute {
		if l.hear(after, anew(at, not, cache), nil); !l.Gated(db) || l.Gated(web) {
			t.Fatalf("after %v: db %v, web %v", after, l.Gated(db), l.Gated(web))
		}
		at++
	}
	if !l.hear(Grace+time.Minute, anew(at, not, cache), nil) || l.Gated(db) || l.Gated(web) || !l.Gated(cache) {
		t.Error("what was said before holds for ever while an agent is not done")
	}
	l = ledger(t, Prints{printOf(web): soon(), printOf(db): soon()})
	if !l.hear(0, anew(1, not), nil) || l.Gated(web) || !l.Gated(db) {
		t.Error("what was kept cannot be taken back")
	}
}

// TestNewestByTheAgentsClock: of what two replicas have of a node that counts which its agent
// said later, whatever their clocks say.
func TestNewestByTheAgentsClock(t *testing.T) {
	web, db := workload("n1", "web", "u1", "10.0.0.1"), workload("n1", "db", "u2", "10.0.0.2")
	numbered := func(began int64, change uint64, at int64, w *mesh.Workload) []*meshpb.NodeGates {
		said := says("n1", at, true, w)
		said.Gated.AgentBeganNs, said.Gated.Change = began, change
		return all(said)
	}
	for what, later := range map[string][]*meshpb.NodeGates{"a later word": numbered(5, 8, 1, db), "a later agent": numbered(6, 1, 1, db), "the same, come later": numbered(5, 7, 101, db)} {
		for _, swapped := range []bool{false, true} {
			l, own, others := ledger(t, nil), numbered(5, 7, 100, web), later
			if swapped {
				own, others = others, own
			}
			if l.hear(0, own, others); !l.Gated(db) || l.Gated(web) {
				t.Errorf("%s, swapped %v: it does not count", what, swapped)
			}
		}
	}
}

// TestNodeIsBounded: other names in each report are not all remembered.
func TestNodeIsBounded(t *testing.T) {
	l := ledger(t, nil)
	for report := range 4 {
		said := &meshpb.NodeGates{Node: "n1", ReportedNs: int64(report), Gated: &meshpb.GatedPods{}}
		for i := range maxPods - 1 {
			said.Gated.Pods = append(said.Gated.Pods, &meshpb.GatedPod{Name: fmt.Sprint(report, "-", i), Addresses: [][]byte{{10, 0, 0, 1}}})
		}
		l.hear(time.Duration(report), all(said), nil)
		if n := len(l.state.nodes["n1"].pods); n > maxPods {
			t.Fatalf("%d pods are remembered after report %d", n, report)
		}
		w := workload("n1", said.Gated.Pods[0].GetName(), "", "10.0.0.1")
		if w.Namespace = ""; !l.Gated(w) {
			t.Error("what is said now is not taken")
		}
	}
}

// TestWhatWasKept holds until the agent says otherwise, or has not for Grace.
func TestWhatWasKept(t *testing.T) {
	web, db := workload("n1", "web", "u1", "10.0.0.1"), workload("n2", "db", "u2", "10.0.0.2")
	kept := Prints{printOf(web): soon(), printOf(db): soon()}
	later, moved := *web, *web
	later.UID, moved.Addresses = "u3", db.Addresses
	l := ledger(t, kept)
	for _, w := range []*mesh.Workload{&later, &moved, workload("n2", "web", "u1", "10.0.0.1")} {
		if l.Gated(w) {
			t.Errorf("%v on %s with UID %s and %v was not kept", w.Key, w.Node, w.UID, w.Addresses)
		}
	}
	if !l.Gated(web) || !l.Gated(db) {
		t.Fatal("what was kept does not hold")
	}
	if l.hear(0, all(says("n1", 1, false)), nil); !l.Gated(web) {
		t.Error("an agent that has begun takes back what was kept")
	}
	if !l.hear(0, all(says("n1", 2, true)), nil) || l.Gated(web) || !l.Gated(db) {
		t.Error("an agent that is done does not take back what was kept, or another node's")
	}
	if l.hear(0, all(says("n1", 3, false)), nil); l.Gated(web) {
		t.Error("an agent that begins anew brings back what was kept")
	}
	if !l.hear(Grace+time.Minute, nil, nil) || l.Gated(db) {
		t.Error("what was kept holds for ever")
	}
}

// TestRestartsDoNotRenew: what is kept runs out when it would have without restarts, however
// many there are; and without a time that can be, nothing is believed.
func TestRestartsDoNotRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		web, db := workload("n1", "web", "u1", "10.0.0.1"), workload("n2", "db", "u2", "10.0.0.2")
		store := NewStore(fake.NewClientset().CoreV1(), "heddle-system", slog.New(slog.DiscardHandler))
		view := viewOf(t, web, db)
		l := ledger(t, nil)
		l.hear(0, all(says("n1", 1, true, web), says("n2", 1, true, db)), nil)
		began := time.Now()
		for l.Gated(web) {
			if time.Since(began) > Grace {
				t.Fatal("it holds for ever")
			}
			if err := store.Save(t.Context(), PrintsOf(view, l)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			kept, err := store.Load(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			l = ledger(t, kept)
			if l.hear(0, all(says("n2", 1, false, db)), nil); !l.Gated(db) {
				t.Fatal("whom its agent speaks for is not kept")
			}
		}
		if lasted := time.Since(began); lasted < Grace-untilStep-time.Minute {
			t.Errorf("it held for %v", lasted)
		}
		for what, until := range map[string]time.Time{"none": {}, "it has been": time.Now(), "it cannot be": time.Now().Add(Grace + time.Second)} {
			if ledger(t, Prints{printOf(web): until}).Gated(web) {
				t.Errorf("until %s: it holds", what)
			}
		}
		if !ledger(t, Prints{printOf(web): time.Now().Add(time.Second)}).Gated(web) {
			t.Error("what has not run out does not hold")
		}
	})
}

// viewOf is a View of workloads that are behind their gates.
func viewOf(t *testing.T, all ...*mesh.Workload) *mesh.View {
	t.Helper()
	var workloads []mesh.Workload
	for _, w := range all {
		is := *w
		is.Gated, is.ServiceAccount, is.Identity = true, w.Name, spiffeid.RequireFromString("spiffe://mesh.test/ns/shop/sa/"+w.Name)
		workloads = append(workloads, is)
	}
	view, err := mesh.NewView("r1", mesh.Settings{TrustDomain: spiffeid.RequireTrustDomainFromString("mesh.test")}, workloads, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return view
}

// TestStore: what is kept is read as it was written, and what somebody has spoiled is nothing.
func TestStore(t *testing.T) {
	client, ctx := fake.NewClientset(), t.Context()
	path := filepath.Join(t.TempDir(), "gates")
	spoil := map[string]func(data []byte) error{
		"ConfigMap": func(data []byte) error {
			_, err := client.CoreV1().ConfigMaps("heddle-system").Update(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "heddle-system", Name: ConfigMapName},
				BinaryData: map[string][]byte{printsEntry: data}}, metav1.UpdateOptions{})
			return err
		},
		"file": func(data []byte) error { return os.WriteFile(path, data, 0o600) },
	}
	for what, store := range map[string]*Store{"ConfigMap": NewStore(client.CoreV1(), "heddle-system", slog.New(slog.DiscardHandler)), "file": NewFileStore(path, slog.New(slog.DiscardHandler))} {
		load := func() Prints {
			t.Helper()
			p, err := store.Load(ctx)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			return p
		}
		if err := store.Save(ctx, nil); err != nil || len(load()) != 0 {
			t.Fatalf("%s: nothing is kept: %v", what, err)
		}
		list, err := client.CoreV1().ConfigMaps("heddle-system").List(ctx, metav1.ListOptions{})
		if _, none := os.Stat(path); err != nil || what == "ConfigMap" && len(list.Items) > 0 || what == "file" && none == nil {
			t.Fatalf("%s: made for nothing: %v", what, err)
		}
		many := Prints{}
		for i := range maxKept/keptBytes + 10 {
			many[print{byte(i), byte(i >> 8), byte(i >> 16)}] = soon()
		}
		web, until := workload("n1", "web", "u1", "10.0.0.1"), soon()
		for _, p := range []Prints{{printOf(web): until}, many, {printOf(web): until}, {}} {
			if err := store.Save(ctx, p); err != nil {
				t.Fatal(err)
			}
			if got := load(); len(got) != min(len(p), maxKept/keptBytes) || len(p) == 1 && !got[printOf(web)].Equal(until) {
				t.Fatalf("%s: %d are kept of %d", what, len(got), len(p))
			}
		}
		if err := spoil[what](make([]byte, keptBytes+1)); err != nil {
			t.Fatal(err)
		}
		if got := load(); len(got) > 0 {
			t.Errorf("%s: %d of what is spoiled", what, len(got))
		}
		if err := store.Save(ctx, Prints{printOf(web): until}); err != nil || len(load()) != 1 {
			t.Errorf("%s: what is spoiled stays: %v", what, err)
		}
	}
}

// TestKeep: it is kept what is served and said, for longer as it is said again, and nothing
// where nobody is asked; what fails is tried again.
func TestKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		var fails atomic.Bool
		fails.Store(true)
		client.PrependReactor("get", "configmaps", func(k8stesting.Action) (bool, runtime.Object, error) {
			if fails.Load() {
				return true, nil, errors.New("no")
			}
			return false, nil, nil
		})
		store := NewStore(client.CoreV1(), "heddle-system", slog.New(slog.DiscardHandler))
		web := workload("n1", "web", "u1", "10.0.0.1")
		view := viewOf(t, web)
		served := func() (*mesh.View, <-chan struct{}) { return view, nil }
		said := all(says("n1", 1, true, web))
		l, err := New(Config{Reports: func() ([]*meshpb.NodeGates, <-chan struct{}) { return said, nil }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { l.Run(ctx) })
		running.Go(func() { store.Keep(ctx, l, served) })
		time.Sleep(time.Minute)
		fails.Store(false)
		for range 30 {
			time.Sleep(time.Minute)
			kept, err := store.Load(ctx)
			if err != nil || time.Until(kept[printOf(web)]) < Grace-untilStep-time.Minute {
				t.Fatalf("kept: %v, %v", kept, err)
			}
		}
		writes := 0
		for _, a := range client.Actions() {
			if a.GetVerb() == "update" {
				writes++
			}
		}
		if most := int(30*time.Minute/untilStep) + 1; writes > most {
			t.Errorf("written %d times, more than %d", writes, most)
		}
		cancel()
		running.Wait()
		fails.Store(true)
		running.Go(func() { store.Keep(t.Context(), nil, served) })
		time.Sleep(time.Minute)
		fails.Store(false)
		running.Wait()
		if kept, err := store.Load(t.Context()); err != nil || len(kept) > 0 {
			t.Errorf("kept where nobody is asked: %v, %v", kept, err)
		}
	})
}

// TestRun: what agents of this replica and of others say is known soon.
func TestRun(t *testing.T) {
	web, db := workload("n1", "web", "u1", "10.0.0.1"), workload("n2", "db", "u2", "10.0.0.2")
	var mu sync.Mutex
	own, changed := all(), make(chan struct{})
	l, err := New(Config{
		Reports: func() ([]*meshpb.NodeGates, <-chan struct{}) {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(own), changed
		},
		Peers: func(context.Context) []*meshpb.NodeGates { return all(says("n2", 1, true, db)) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	testenv.Eventually(t, 5*time.Second, "another replica's", func() bool { return l.Gated(db) })
	mu.Lock()
	own = all(says("n1", 1, true, web))
	close(changed)
	changed = make(chan struct{})
	mu.Unlock()
	testenv.Eventually(t, 5*time.Second, "its own", func() bool { return l.Gated(web) })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestReply: what another replica knows is not sent again, and agents that are gone are not
// spoken for.
func TestReply(t *testing.T) {
	now := time.Now()
	said := &meshpb.TrustReport{Gated: says("n1", 1, true, workload("n1", "web", "u1", "10.0.0.1")).GetGated()}
	reports := []trustfeed.Report{{Node: "n1", Connected: true, Received: now, Report: said}, {Node: "n2", Received: now, Report: said}, {Node: "n3", Connected: true}}
	first, err := Reply(&meshpb.GatesRequest{}, Connected(reports))
	if err != nil || len(first.GetNodes()) != 1 || first.GetNodes()[0].GetNode() != "n1" || len(first.GetNodes()[0].GetGated().GetPods()) != 1 {
		t.Fatalf("%v, %v", first, err)
	}
	again, err := Reply(&meshpb.GatesRequest{Digest: first.GetDigest()}, Connected(reports))
	if err != nil || len(again.GetNodes()) != 0 || string(again.GetDigest()) != string(first.GetDigest()) {
		t.Errorf("the same again: %v, %v", again, err)
	}
	reports[0].Received = now.Add(time.Second)
	if later, err := Reply(&meshpb.GatesRequest{Digest: first.GetDigest()}, Connected(reports)); err != nil || len(later.GetNodes()) != 0 {
		t.Errorf("the same, reported again: %v, %v", later, err)
	}
	reports[1].Connected, reports[1].Since = true, now.Add(time.Second)
	if earlier := Connected(reports); len(earlier) != 1 {
		t.Errorf("of an earlier stream: %v", earlier)
	}
	reports[1].Received = now.Add(2 * time.Second)
	if other, err := Reply(&meshpb.GatesRequest{Digest: first.GetDigest()}, Connected(reports)); err != nil || len(other.GetNodes()) != 2 {
		t.Errorf("another: %v, %v", other, err)
	}
}
