package publish

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/delta"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// said are Gates that a test says.
type said struct {
	sync.Mutex
	of      map[mesh.Key]bool
	changed chan struct{}
}

func (s *said) say(of map[mesh.Key]bool) {
	s.Lock()
	defer s.Unlock()
	s.of = of
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *said) Gated(w *mesh.Workload) bool {
	s.Lock()
	defer s.Unlock()
	return s.of[w.Key]
}

func (s *said) Changed() <-chan struct{} {
	s.Lock()
	defer s.Unlock()
	return s.changed
}

func newServer(t *testing.T) *discovery.Server {
	t.Helper()
	server, err := discovery.NewServer(discovery.ServerConfig{
		Authenticate: func(context.Context) (discovery.Caller, error) { return discovery.Caller{}, os.ErrPermission }, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return server
}

// behind are the workloads of a View that are behind their gates.
func behind(view *mesh.View) string {
	var names []string
	for _, w := range view.Workloads() {
		if w.Gated {
			names = append(names, w.Key.String())
		}
	}
	return strings.Join(names, " ")
}

// follows runs follow until the test ends.
func follows(t *testing.T, follow func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- follow(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestGatesOfAFolder: of a folder's workloads those are behind their gates of which it is
// said, also while the folder is refused, and each time under a revision and epoch of its own.
func TestGatesOfAFolder(t *testing.T) {
	archive, err := txtar.ParseFile("../../internal/kube/testdata/good/udp.txtar")
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	for _, f := range archive.Files {
		if filepath.Ext(f.Name) == ".yaml" {
			if err := os.WriteFile(filepath.Join(folder, f.Name), f.Data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	state, err := OpenState(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	gates, store := &said{changed: make(chan struct{})}, mesh.NewStore()
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	p := New(Config{Folder: folder, Debounce: time.Millisecond, Relist: 20 * time.Millisecond, UDPByIdentity: true, Gates: gates, State: state, Key: key,
		Store: store, Server: newServer(t), Logger: slog.New(slog.DiscardHandler)})
	if err := p.Begin(Load(folder, true)); err != nil {
		t.Fatal(err)
	}
	if got := behind(store.View()); got != "" {
		t.Fatalf("before anybody has said so: %s", got)
	}
	follows(t, p.Follow)
	first, second := store.View().Workloads()[0].Key, store.View().Workloads()[1].Key
	last := p.Status()
	step := func(what string, of map[mesh.Key]bool, want string) {
		t.Helper()
		gates.say(of)
		testenv.Eventually(t, 10*time.Second, what, func() bool { return behind(store.View()) == want })
		testenv.Eventually(t, 10*time.Second, what+": revision and epoch", func() bool {
			now := p.Status()
			return now.Revision != last.Revision && now.Epoch > last.Epoch
		})
		last = p.Status()
	}
	step("one", map[mesh.Key]bool{first: true}, first.String())
	step("another", map[mesh.Key]bool{second: true}, second.String())
	step("both", map[mesh.Key]bool{first: true, second: true}, first.String()+" "+second.String())
	time.Sleep(100 * time.Millisecond) // it is read again, and nothing is different
	if now := p.Status(); now.Revision != last.Revision || now.Epoch != last.Epoch {
		t.Errorf("published again: %+v, then %+v", last, now)
	}
	if err := os.WriteFile(filepath.Join(folder, "bad.yaml"), []byte("kind: Nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 10*time.Second, "the folder is refused", func() bool { return len(p.Status().Problems) > 0 })
	step("while the folder is refused", map[mesh.Key]bool{first: true}, first.String())
	if view, _, err := discovery.LoadView(state.lastGood(), key.Public().(ed25519.PublicKey)); err != nil || behind(view) == "" {
		t.Fatalf("nobody is behind a gate in the last good configuration: %v", err)
	}
	again := mesh.NewStore()
	if err := New(Config{Folder: folder, UDPByIdentity: true, Gates: &said{changed: make(chan struct{})}, State: state, Key: key, Store: again, Server: newServer(t), Logger: slog.New(slog.DiscardHandler)}).Begin(Load(folder, true)); err != nil {
		t.Fatal(err)
	}
	if view := again.View(); !view.Synced() || behind(view) != "" {
		t.Errorf("after a start: %d workloads, behind their gates: %s", len(view.Workloads()), behind(view))
	}
}

// cluster is a Source of a few objects.
type cluster struct {
	sync.Mutex
	objects kube.Objects
	recent  []delta.Change
	mark    uint64
	changed chan struct{}
}

func (c *cluster) change(pods []*kube.Pod, change delta.Change) {
	c.Lock()
	defer c.Unlock()
	c.objects.Pods, c.recent, c.mark = pods, append(c.recent, change), c.mark+1
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *cluster) Changed() <-chan struct{} { c.Lock(); defer c.Unlock(); return c.changed }
func (c *cluster) Synced() error            { return nil }
func (c *cluster) Objects() (*kube.Objects, uint64) {
	c.Lock()
	defer c.Unlock()
	objs := c.objects
	objs.Mark = c.mark
	return &objs, 1 + c.mark
}
func (c *cluster) Since(mark uint64) ([]delta.Change, uint64, uint64, bool) {
	c.Lock()
	defer c.Unlock()
	return c.recent[mark:], 1 + c.mark, c.mark, true
}

// TestGatesOfACluster: a pod is behind its gate when that is said of it, however it is
// compiled: with everything, alone, or not at all.
func TestGatesOfACluster(t *testing.T) {
	pod := func(i int, uid string) *kube.Pod {
		return &kube.Pod{Namespace: "shop", Name: fmt.Sprint("p", i), UID: uid, Node: "n1", ServiceAccount: "a", Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})}}
	}
	key := func(i int) mesh.Key { return pod(i, "").Key() }
	source := &cluster{changed: make(chan struct{})}
	source.objects = kube.Objects{
		Meshes: []kube.Sourced[v1alpha1.Mesh]{{Value: &v1alpha1.Mesh{ObjectMeta: metav1.ObjectMeta{Name: "default"},
			Spec: v1alpha1.MeshSpec{TrustDomain: "example.org", ClusterRanges: []v1alpha1.AddressBlock{"10.0.0.0/8"}}}}},
		Namespaces: []kube.Sourced[corev1.Namespace]{{Value: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{v1alpha1.LabelMesh: v1alpha1.MeshEnabled}}}}},
		Pods:       []*kube.Pod{pod(1, "a"), pod(2, "b")},
	}
	for udp, both := range map[bool]string{true: "shop/p1 shop/p3", false: ""} {
		gates, store := &said{changed: make(chan struct{})}, mesh.NewStore()
		cfg := ClusterConfig{Source: source, TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), UDPByIdentity: udp,
			Quiet: time.Millisecond, Limit: time.Millisecond, Key: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), Store: store, Server: newServer(t), Logger: slog.New(slog.DiscardHandler)}
		if udp {
			cfg.Gates = gates
		}
		c := NewCluster(cfg)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Follow(ctx) }()
		published := func(what, want string, pods int) {
			t.Helper()
			testenv.Eventually(t, 10*time.Second, fmt.Sprintf("UDP %v: %s", udp, what), func() bool {
				view := store.View()
				return view.Synced() && len(view.Workloads()) == pods && behind(view) == want
			})
		}
		published("nobody yet", "", 2)
		gates.say(map[mesh.Key]bool{key(1): true, key(3): true})
		if udp {
			published("one", "shop/p1", 2)
		}
		before := source.objects.Pods
		source.change(append(before[:2:2], pod(3, "c")), delta.Change{Is: pod(3, "c")})
		published("one that comes later", both, 3)
		source.change(before, delta.Change{Was: pod(3, "c")})
		published("it goes", strings.TrimSuffix(both, " shop/p3"), 2)
		gates.say(nil)
		published("nobody", "", 2)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
