package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/cniwire"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// enroller is what stands behind a Server in tests: it enrolls whatever has a
// place, unless told otherwise.
type enroller struct {
	mu      sync.Mutex
	places  *Places
	fail    error
	hang    bool
	awaited int
	most    int // at once
	now     int
}

func (e *enroller) Await(ctx context.Context, key mesh.Key, netNS string) error {
	e.mu.Lock()
	e.awaited++
	e.now++
	e.most = max(e.most, e.now)
	fail, hang := e.fail, e.hang
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		e.now--
		e.mu.Unlock()
	}()
	if hang {
		<-ctx.Done()
		return fmt.Errorf("wait: %w", ctx.Err())
	}
	if place, ok := e.places.Get(key); !ok || place.NetNS != netNS {
		return errors.New("it has no place")
	}
	return fail
}

func (e *enroller) set(fail error, hang bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.fail, e.hang = fail, hang
}

// world is a Server that runs.
type world struct {
	*Server
	store    *mesh.Store
	places   *Places
	enroller *enroller
	log      *bytes.Buffer
	stale    func(error)
}

func newWorld(t testing.TB, change func(*Config)) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{store: mesh.NewStore(), places: NewPlaces(), log: &bytes.Buffer{}}
	w.enroller = &enroller{places: w.places}
	var mu sync.Mutex
	var stale error
	w.stale = func(err error) {
		mu.Lock()
		defer mu.Unlock()
		stale = err
	}
	cfg := Config{
		Node: "n1", Socket: filepath.Join(dir, "cni.sock"), List: filepath.Join(dir, "state", "namespaces.json"),
		Pass: []string{"heddle-system", "kube-system"}, Store: w.store, Places: w.places, Enroller: w.enroller,
		Current:     func() error { mu.Lock(); defer mu.Unlock(); return stale },
		OutsideWait: 50 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if w.Server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx, false) }()
	var following sync.WaitGroup
	following.Go(func() { w.Follow(ctx) })
	t.Cleanup(func() {
		cancel()
		following.Wait()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	testenv.Eventually(t, 5*time.Second, "the socket is served", func() bool {
		_, err := os.Stat(cfg.Socket)
		return err == nil
	})
	return w
}

func (w *world) ask(t testing.TB, r cniwire.Request) cniwire.Response {
	t.Helper()
	conn, err := net.Dial("unix", w.cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var response cniwire.Response
	if err := errors.Join(cniwire.Write(conn, r), cniwire.Read(conn, &response)); err != nil {
		t.Fatal(err)
	}
	return response
}

func (w *world) want(t *testing.T, r cniwire.Request, want cniwire.Verdict, says ...string) {
	t.Helper()
	got := w.ask(t, r)
	if got.Verdict != want {
		t.Errorf("%s of %s/%s: %s (%s), want %s", r.Op, r.Namespace, r.Name, got.Verdict, got.Reason, want)
	}
	for _, s := range says {
		if !strings.Contains(got.Reason, s) {
			t.Errorf("%s of %s/%s: %q does not say %q", r.Op, r.Namespace, r.Name, got.Reason, s)
		}
	}
}

func request(op cniwire.Op, pod string, ns *testenv.NetNS) cniwire.Request {
	namespace, name, _ := strings.Cut(pod, "/")
	return cniwire.Request{
		Version: cniwire.Version, Op: op, ContainerID: "sandbox-of-" + name, NetNS: ns.Path, IfName: "eth0",
		Namespace: namespace, Name: name, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Timeout: 500 * time.Millisecond,
	}
}

func (w *world) configure(t testing.TB, workloads ...mesh.Workload) {
	t.Helper()
	view, err := mesh.NewView("1", mesh.Settings{TrustDomain: spiffeid.RequireTrustDomainFromString("example.test")}, workloads, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.store.Replace(view)
}

func pod(name string, enrolled bool, addrs ...string) mesh.Workload {
	namespace, name, _ := strings.Cut(name, "/")
	id, err := mesh.IdentityFor(spiffeid.RequireTrustDomainFromString("example.test"), namespace, "web")
	if err != nil {
		panic(err)
	}
	w := mesh.Workload{Key: mesh.Key{Namespace: namespace, Name: name}, ServiceAccount: "web", Node: "n1", Identity: id, Enrolled: enrolled}
	for _, a := range addrs {
		w.Addresses = append(w.Addresses, netip.MustParseAddr(a))
	}
	return w
}

func TestNewPod(t *testing.T) {
	w, ns := newWorld(t, nil), testenv.NewNetNS(t, "cni")
	r := request(cniwire.OpAdd, "shop/web", ns)
	w.want(t, r, cniwire.Wait, "no configuration")
	w.configure(t, pod("shop/other", true, "10.9.9.9"))
	w.want(t, r, cniwire.Wait, "shop/web", "10.0.0.1", "n1")
	// A pod of that name with another address is its predecessor.
	w.configure(t, pod("shop/web", true, "10.0.0.2"))
	w.want(t, r, cniwire.Wait, "has not told")
	if _, ok := w.places.Get(mesh.Key{Namespace: "shop", Name: "web"}); ok {
		t.Error("a pod that must wait is known")
	}
	w.configure(t, pod("shop/web", true))
	for range 2 { // it may be repeated
		w.want(t, r, cniwire.Protected)
	}
	w.want(t, request(cniwire.OpCheck, "shop/web", ns), cniwire.Protected)
	if place, _ := w.places.Get(mesh.Key{Namespace: "shop", Name: "web"}); place.NetNS != ns.Path || place.Addresses[0].String() != "10.0.0.1" {
		t.Errorf("known as %+v", place)
	}
	// Another pod cannot have its namespace, and deleting another sandbox of it
	// does not open it.
	w.configure(t, pod("shop/web", true), pod("shop/thief", true))
	w.want(t, request(cniwire.OpAdd, "shop/thief", ns), cniwire.Refused, ns.Path, "shop/web")
	earlier := r
	earlier.Op, earlier.ContainerID = cniwire.OpDel, "earlier-sandbox"
	w.want(t, earlier, cniwire.Outside)
	w.want(t, request(cniwire.OpCheck, "shop/web", ns), cniwire.Protected)
	for range 2 {
		w.want(t, request(cniwire.OpDel, "shop/web", ns), cniwire.Outside)
	}
	w.want(t, request(cniwire.OpCheck, "shop/web", ns), cniwire.Wait, "does not know")
}

// TestWaitsForDiscovery: the operator may be a moment behind the scheduler.
func TestWaitsForDiscovery(t *testing.T) {
	w, ns := newWorld(t, nil), testenv.NewNetNS(t, "cni")
	go func() {
		time.Sleep(100 * time.Millisecond)
		w.configure(t, pod("shop/web", true))
	}()
	r := request(cniwire.OpAdd, "shop/web", ns)
	r.Timeout = 5 * time.Second
	w.want(t, r, cniwire.Protected)
}

func TestPodOutsideTheMesh(t *testing.T) {
	w, ns := newWorld(t, nil), testenv.NewNetNS(t, "cni")
	w.want(t, request(cniwire.OpAdd, "kube-system/coredns", ns), cniwire.Outside)
	// The first pod of a namespace that nobody knew: nothing but the pod itself says so.
	w.configure(t, pod("shop/web", true, "10.9.9.9"))
	w.want(t, request(cniwire.OpAdd, "fresh/first", testenv.NewNetNS(t, "cni")), cniwire.Wait, "fresh/first")
	w.configure(t, pod("shop/web", true, "10.9.9.9"), pod("fresh/first", false))
	w.want(t, request(cniwire.OpAdd, "fresh/first", testenv.NewNetNS(t, "cni")), cniwire.Outside)
	w.configure(t, pod("default/a", false, "10.0.0.1"), pod("default/b", false, "10.0.0.7"))
	w.want(t, request(cniwire.OpAdd, "default/a", testenv.NewNetNS(t, "cni")), cniwire.Outside)
	if _, ok := w.places.Get(mesh.Key{Namespace: "default", Name: "a"}); !ok {
		t.Error("a pod outside the mesh must be known, so that it can join without a restart")
	}
	testenv.Eventually(t, 5*time.Second, "the namespace is known", func() bool { return w.list.standing("default") == cniwire.NotEnrolled })
	w.want(t, request(cniwire.OpAdd, "default/new", testenv.NewNetNS(t, "cni")), cniwire.Outside)
	// With no operator, the namespace decides; what it enrolls must wait.
	w.stale(errors.New("no route to it"))
	w.want(t, request(cniwire.OpAdd, "default/newer", testenv.NewNetNS(t, "cni")), cniwire.Outside)
	w.want(t, request(cniwire.OpAdd, "shop/web", testenv.NewNetNS(t, "cni")), cniwire.Wait, "operator", "no route to it", "heddle-operator")
	// One that has a place of another pod is not kept from running.
	w.configure(t, pod("default/a", false), pod("default/b", false))
	w.want(t, request(cniwire.OpAdd, "default/b", ns), cniwire.Outside)
}

// TestPodOfAnOperatorThatLags: a pod that is in the mesh by its own label, in a namespace
// without another, does not start outside because the operator takes two seconds.
func TestPodOfAnOperatorThatLags(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.OutsideWait = 0 })
	w.configure(t, pod("default/a", false, "10.0.0.1"))
	testenv.Eventually(t, 5*time.Second, "the namespace is known", func() bool { return w.list.standing("default") == cniwire.NotEnrolled })
	view, err := mesh.NewView("2", mesh.Settings{TrustDomain: spiffeid.RequireTrustDomainFromString("example.test")},
		[]mesh.Workload{pod("default/a", false, "10.0.0.1"), pod("default/own-label", true)}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(2*time.Second, func() { w.store.Replace(view) }).Stop()
	r := request(cniwire.OpAdd, "default/own-label", testenv.NewNetNS(t, "cni"))
	r.Timeout = 20 * time.Second
	w.want(t, r, cniwire.Protected)
}

func TestRefusesWhatIsNoPodsNamespace(t *testing.T) {
	w, ns := newWorld(t, nil), testenv.NewNetNS(t, "cni")
	w.configure(t, pod("shop/web", true))
	for path, says := range map[string]string{
		"/proc/self/ns/net": "hostNetwork",
		"/proc/self/ns/mnt": "not of the network kind",
		"/etc/hostname":     "not a network namespace",
		"/run/netns/none-x": "is gone",
		"relative":          "absolute path",
	} {
		r := request(cniwire.OpAdd, "shop/web", ns)
		r.NetNS = path
		w.want(t, r, cniwire.Refused, says)
	}
	r := request(cniwire.OpAdd, "shop/web", ns)
	r.NetNS = strings.Replace(ns.Path, "/run", "/var/run", 1) // as containerd says it
	w.want(t, r, cniwire.Protected)
}

func TestEnrollingFails(t *testing.T) {
	w, ns := newWorld(t, nil), testenv.NewNetNS(t, "cni")
	w.configure(t, pod("shop/web", true))
	key, r := mesh.Key{Namespace: "shop", Name: "web"}, request(cniwire.OpAdd, "shop/web", ns)
	gone := func(when string) {
		t.Helper()
		testenv.Eventually(t, 5*time.Second, "nothing is left "+when, func() bool { _, ok := w.places.Get(key); return !ok })
	}
	w.enroller.set(errors.New("XDP is on its veth"), false)
	w.want(t, r, cniwire.Wait, "XDP is on its veth")
	gone("after a failure")
	w.enroller.set(nil, true)
	w.want(t, r, cniwire.Wait, "took too long")
	gone("after running out of time")
	// The plugin is killed while it waits.
	r.Timeout = time.Minute
	conn, err := net.Dial("unix", w.cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := cniwire.Write(conn, r); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 5*time.Second, "it is waited for", func() bool { _, ok := w.places.Get(key); return ok })
	conn.Close()
	gone("of a plugin that was killed")
	// A pod that runs does not lose its place to a question that is repeated.
	w.enroller.set(nil, false)
	w.want(t, r, cniwire.Protected)
	w.enroller.set(errors.New("busy"), false)
	w.want(t, r, cniwire.Wait, "busy")
	if _, ok := w.places.Get(key); !ok {
		t.Error("a pod that runs lost its place")
	}
}

func TestManyAtOnce(t *testing.T) {
	const atOnce, pods = 4, 32
	w := newWorld(t, func(c *Config) { c.AtOnce = atOnce })
	var workloads []mesh.Workload
	for i := range pods {
		workloads = append(workloads, pod(fmt.Sprintf("shop/web-%d", i), true))
	}
	w.configure(t, workloads...)
	var all sync.WaitGroup
	for i := range pods {
		ns := testenv.NewNetNS(t, "cni")
		r := request(cniwire.OpAdd, fmt.Sprintf("shop/web-%d", i), ns)
		r.Timeout = 20 * time.Second
		all.Go(func() { w.want(t, r, cniwire.Protected) })
	}
	all.Wait()
	if w.enroller.most > atOnce || w.enroller.awaited != pods {
		t.Errorf("%d at once, %d in all; want at most %d and %d", w.enroller.most, w.enroller.awaited, atOnce, pods)
	}
}

func TestNonsenseIsAnswered(t *testing.T) {
	w := newWorld(t, nil)
	w.want(t, cniwire.Request{Version: 9, Op: cniwire.OpAdd}, cniwire.Refused, "version 9")
	w.want(t, cniwire.Request{Version: 1, Op: "steal"}, cniwire.Refused, "steal")
	conn, err := net.Dial("unix", w.cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("\xff\xff\xff\xffGET / HTTP/1.1")); err != nil {
		t.Fatal(err)
	}
	var response cniwire.Response
	if err := cniwire.Read(conn, &response); err != nil || response.Verdict != cniwire.Refused {
		t.Errorf("%+v, %v", response, err)
	}
}

// TestListOutlivesTheAgent: what an agent knew, the plugin and the next agent
// know, until there is a configuration.
func TestListOutlivesTheAgent(t *testing.T) {
	w := newWorld(t, nil)
	path := w.cfg.List
	saved := func(want *cniwire.Namespaces) {
		t.Helper()
		testenv.Eventually(t, 5*time.Second, fmt.Sprintf("%v is on disk", want), func() bool {
			got, err := cniwire.LoadNamespaces(path)
			return err == nil && got.Equal(want)
		})
	}
	w.configure(t, pod("shop/web", true), pod("shop/off", false), pod("default/a", false))
	saved(&cniwire.Namespaces{Enrolled: []string{"shop"}, NotEnrolled: []string{"default"}})
	next := newWorld(t, func(c *Config) { c.List = path })
	next.stale(errors.New("down"))
	ns := testenv.NewNetNS(t, "cni")
	next.want(t, request(cniwire.OpAdd, "default/b", ns), cniwire.Outside)
	next.want(t, request(cniwire.OpAdd, "shop/web", ns), cniwire.Wait)
	saved(&cniwire.Namespaces{Enrolled: []string{"shop"}, NotEnrolled: []string{"default"}}) // not emptied
	next.configure(t, pod("default/a", true))
	saved(&cniwire.Namespaces{Enrolled: []string{"default"}})
}

func TestListCannotBeWritten(t *testing.T) {
	var w *world
	dir := t.TempDir()
	blocked := filepath.Join(dir, "blocked")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w = newWorld(t, func(c *Config) { c.List = filepath.Join(blocked, "namespaces.json") })
	w.configure(t, pod("default/a", false))
	testenv.Eventually(t, 5*time.Second, "the problem is seen", func() bool { return !w.Check().GetOk() })
	if w.list.standing("default") != cniwire.NotEnrolled {
		t.Error("the agent itself does not know what it could not write")
	}
}

func TestPlaces(t *testing.T) {
	a, b := testenv.NewNetNS(t, "cni"), testenv.NewNetNS(t, "cni")
	open := func(ns *testenv.NetNS, name, sandbox, uid string) Place {
		t.Helper()
		handle, err := openNetNS(ns.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer handle.Close()
		return Place{Key: mesh.Key{Namespace: "shop", Name: name}, Sandbox: sandbox, UID: uid, NetNS: ns.Path, Namespace: handle.ID(), Created: time.Now()}
	}
	p := NewPlaces()
	web := open(a, "web", "s1", "u1")
	find := func(uid string) string {
		netNS, _, _ := p.Find(&mesh.Workload{Key: web.Key, UID: uid})
		return netNS
	}
	put := func(place Place) error { _, err := p.Put(place); return err }
	if err := put(web); err != nil {
		t.Fatal(err)
	}
	if find("u1") != a.Path || find("") != a.Path || find("u2") != "" {
		t.Error("not found by its own UID only")
	}
	// The runtime does not show it yet; then it does, by another path.
	p.Update(nil)
	shown := web
	shown.NetNS = "/proc/1/ns/net"
	if corrected := p.Update([]Place{shown}); len(corrected) > 0 || find("u1") != a.Path {
		t.Errorf("the same namespace by another path: %v, in %s", corrected, find("u1"))
	}
	// What is verified is not changed by a question.
	if put(open(b, "web", "s1", "u1")) == nil || put(open(a, "web", "s1", "u2")) == nil {
		t.Error("a question changed what the kernel had shown")
	}
	// A word that does not hold is corrected.
	shown = open(b, "web", "s1", "u1")
	if corrected := p.Update([]Place{shown}); len(corrected) != 1 || find("u1") != b.Path {
		t.Errorf("contradiction: %v, in %s", corrected, find("u1"))
	}
	// The pod's next sandbox, while the runtime still shows the one before.
	if err := put(open(a, "web", "s2", "u1")); err != nil {
		t.Fatal(err)
	}
	p.Update([]Place{shown})
	if find("u1") != a.Path {
		t.Error("the sandbox before took the place of the next one")
	}
	// A look that began before a sandbox was deleted does not bring it back.
	p.Forget("s2")
	p.Update([]Place{open(a, "web", "s2", "u1")})
	if find("u1") != "" {
		t.Error("a deleted sandbox came back")
	}
	// What is gone without a word is forgotten, not before its namespace is.
	there, gone := open(a, "db", "s3", "u3"), open(b, "mail", "s4", "u4")
	gone.NetNS = "/run/netns/gone"
	p.Update([]Place{there, gone})
	p.Update(nil)
	if _, ok := p.Get(there.Key); !ok {
		t.Error("a namespace that is still there lost its pod")
	}
	if _, ok := p.Get(gone.Key); ok {
		t.Error("a sandbox that no longer runs is still known")
	}
}

// runtime is a Runtime that a test fills.
type runtime struct {
	mu     sync.Mutex
	places []Place
	err    error
	looks  int
}

func (r *runtime) Running(context.Context) ([]Place, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.looks++
	return slices.Clone(r.places), r.err
}

func (r *runtime) set(places []Place, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.places, r.err = places, err
}

func TestRunningPodsAreFound(t *testing.T) {
	r := &runtime{err: errors.New("containerd is being restarted")}
	w := newWorld(t, func(c *Config) { c.Runtime, c.ScanEvery = r, 20*time.Millisecond })
	place := Place{Key: mesh.Key{Namespace: "shop", Name: "web"}, Sandbox: "s1", UID: "u1", NetNS: "/run/netns/x"}
	time.Sleep(50 * time.Millisecond)
	if w.places.Synced() {
		t.Fatal("places are known without a runtime")
	}
	r.set([]Place{place}, nil)
	testenv.Eventually(t, 5*time.Second, "it is found", func() bool { _, ok := w.places.Get(place.Key); return ok && w.places.Synced() })
	r.set(nil, errors.New("containerd is being restarted"))
	w.ask(t, cniwire.Request{Version: 1, Op: cniwire.OpGC})
	time.Sleep(50 * time.Millisecond)
	if _, ok := w.places.Get(place.Key); !ok {
		t.Error("a runtime that does not answer unenrolled a pod")
	}
	r.set(nil, nil)
	testenv.Eventually(t, 5*time.Second, "it is gone", func() bool { _, ok := w.places.Get(place.Key); return !ok })
}

// TestFirstLooksAreClose: a pod that the agent before has answered for a moment
// ago is shown a moment later, and a hand-over waits for it.
func TestFirstLooksAreClose(t *testing.T) {
	r := &runtime{}
	w := newWorld(t, func(c *Config) { c.Runtime, c.ScanEvery = r, time.Hour })
	testenv.Eventually(t, 5*time.Second, "the first look", w.places.Synced)
	place := Place{Key: mesh.Key{Namespace: "shop", Name: "web"}, Sandbox: "s1", UID: "u1", NetNS: "/run/netns/x"}
	r.set([]Place{place}, nil)
	testenv.Eventually(t, 5*time.Second, "it is found", func() bool { _, ok := w.places.Get(place.Key); return ok })
}

// TestPodOfTheWindowIsFound: a pod of the mesh that has started without heddle-cni, while
// another tool had taken it out of the chain, is found long before the next regular look.
func TestPodOfTheWindowIsFound(t *testing.T) {
	r := &runtime{}
	w := newWorld(t, func(c *Config) { c.Runtime, c.ScanEvery, c.FirstLooks = r, time.Hour, time.Nanosecond })
	testenv.Eventually(t, 5*time.Second, "the first look", w.places.Synced)
	starts := func(name string) {
		t.Helper()
		place := Place{Key: mesh.Key{Namespace: "shop", Name: name}, Sandbox: "s-" + name, UID: "u-" + name, NetNS: "/run/netns/" + name}
		r.mu.Lock()
		r.places = append(r.places, place)
		r.mu.Unlock()
		began := time.Now()
		testenv.Eventually(t, 10*time.Second, name+" is found", func() bool { _, ok := w.places.Get(place.Key); return ok })
		if took := time.Since(began); took > 700*time.Millisecond && !testenv.Overloaded(t) {
			t.Errorf("%s was found after %v", name, took)
		}
	}
	// The operator has told of it; its sandbox takes a second.
	w.configure(t, pod("shop/told", true), pod("shop/outside", false))
	time.Sleep(time.Second)
	starts("told")
	// One that is not the mesh's makes nobody look.
	time.Sleep(2 * lookPause)
	r.mu.Lock()
	before := r.looks
	r.mu.Unlock()
	time.Sleep(5 * lookPause)
	r.mu.Lock()
	after := r.looks
	r.mu.Unlock()
	if after != before {
		t.Errorf("looked %d times for nobody", after-before)
	}
	// It runs when it is labelled.
	r.set([]Place{{Key: mesh.Key{Namespace: "shop", Name: "outside"}, Sandbox: "s-outside", UID: "u-outside", NetNS: "/run/netns/outside"}}, nil)
	w.configure(t, pod("shop/outside", true))
	testenv.Eventually(t, 10*time.Second, "the one that is labelled is found", func() bool {
		_, ok := w.places.Get(mesh.Key{Namespace: "shop", Name: "outside"})
		return ok
	})
}

// TestLooksAreFewer for a pod that does not start, until somebody says that the chain was
// open.
func TestLooksAreFewer(t *testing.T) {
	s := &Server{cfg: Config{ScanEvery: 30 * time.Second}}
	missing := map[mesh.Key]bool{{Namespace: "shop", Name: "web"}: true}
	sought := search{of: map[mesh.Key]bool{}}
	if got := s.pause(&sought, false); got != s.cfg.ScanEvery {
		t.Errorf("looks for nobody every %v", got)
	}
	if got := s.pause(&sought, true); got != lookRetry {
		t.Errorf("the first looks are every %v", got)
	}
	if !sought.renew(missing) || sought.renew(missing) {
		t.Error("a pod is new once")
	}
	for ago, want := range map[time.Duration]time.Duration{0: 0, 10 * time.Second: time.Second, time.Hour: s.cfg.ScanEvery} {
		sought.since = time.Now().Add(-ago)
		if got := s.pause(&sought, false); got < want || got > want+100*time.Millisecond {
			t.Errorf("after %v the pause is %v, want %v", ago, got, want)
		}
	}
	if sought.renew(map[mesh.Key]bool{}); s.pause(&sought, false) != s.cfg.ScanEvery {
		t.Error("what is found is looked for")
	}
}

// TestLookIsClose: after a put-back, a pod that was looked for in vain for long is looked
// for closely again.
func TestLookIsClose(t *testing.T) {
	r := &runtime{}
	w := newWorld(t, func(c *Config) { c.Runtime, c.ScanEvery, c.FirstLooks = r, time.Hour, time.Nanosecond })
	w.configure(t, pod("shop/web", true))
	time.Sleep(4 * time.Second) // from now on it is looked for every 400 ms, and ever less often
	r.mu.Lock()
	before := r.looks
	r.mu.Unlock()
	w.Look()
	time.Sleep(1500 * time.Millisecond)
	r.mu.Lock()
	looks := r.looks - before
	r.mu.Unlock()
	if looks < 5 && !testenv.Overloaded(t) {
		t.Errorf("looked %d times within 1.5 s", looks)
	}
}
