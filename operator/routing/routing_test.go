package routing

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/internal/kube/routes"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator/cluster"
	"github.com/heddle-mesh/heddle/operator/clustertest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const (
	gateway = "/apis/gateway.networking.k8s.io/v1"
	own     = "/api/v1/namespaces/heddle-system/configmaps"
)

func ptr[T any](v T) *T { return &v }

// httpRoute is one of shop/cart, with a backend of its own namespace.
func httpRoute(name string, generation int64, backend string) *gatewayv1.HTTPRoute {
	return &gatewayv1.HTTPRoute{TypeMeta: metav1.TypeMeta{APIVersion: "gateway.networking.k8s.io/v1", Kind: "HTTPRoute"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name), Generation: generation, ResourceVersion: "7"},
		Spec: gatewayv1.HTTPRouteSpec{
			CommonRouteSpec: gatewayv1.CommonRouteSpec{ParentRefs: []gatewayv1.ParentReference{{Group: ptr(gatewayv1.Group("")), Kind: ptr(gatewayv1.Kind("Service")), Name: "cart"}}},
			Rules:           []gatewayv1.HTTPRouteRule{{BackendRefs: []gatewayv1.HTTPBackendRef{{BackendRef: gatewayv1.BackendRef{BackendObjectReference: gatewayv1.BackendObjectReference{Name: gatewayv1.ObjectName(backend), Port: ptr(gatewayv1.PortNumber(80))}}}}}}},
		Status: gatewayv1.HTTPRouteStatus{RouteStatus: gatewayv1.RouteStatus{Parents: []gatewayv1.RouteParentStatus{{ControllerName: "example.com/other"}}}}}
}

func goodOf(all ...*gatewayv1.HTTPRoute) routes.Good {
	good := routes.Good{}
	for _, r := range all {
		good[idOf(route.HTTP, &r.ObjectMeta)] = routes.GoodRoute{HTTP: r}
	}
	return good
}

// newStore is a store on an API server, whose log is returned.
func newStore(t *testing.T, s *clustertest.Server) (*Store, *testenv.Log) {
	t.Helper()
	client, err := typedcorev1.NewForConfig(s.Config())
	if err != nil {
		t.Fatal(err)
	}
	log := &testenv.Log{}
	return NewStore(client, "heddle-system", slog.New(slog.NewTextHandler(log, nil))), log
}

func TestKept(t *testing.T) {
	s := clustertest.Start(t)
	store, log := newStore(t, s)
	if good, err := store.Load(t.Context()); err != nil || len(good) != 0 {
		t.Fatalf("of nothing: %v, %v", good, err)
	}
	good := routes.Good{}
	for i := range 40 {
		r := httpRoute(fmt.Sprintf("route-%d", i), int64(i), "cart-v2")
		good[idOf(route.HTTP, &r.ObjectMeta)] = routes.GoodRoute{HTTP: r}
	}
	call := &gatewayv1.GRPCRoute{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "route-1", UID: "g", Generation: 3}}
	good[idOf(route.GRPC, &call.ObjectMeta)] = routes.GoodRoute{GRPC: call}
	if err := store.Save(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	back, err := store.Load(t.Context())
	if err != nil || len(back) != len(good) {
		t.Fatalf("%d of %d are back: %v", len(back), len(good), err)
	}
	for id, g := range good {
		was, is := metaOf(g), metaOf(back[id])
		if is == nil || is.UID != was.UID || is.Generation != was.Generation {
			t.Fatalf("%s: %+v is back as %+v", id, was, is)
		}
		if g.HTTP != nil && (len(back[id].HTTP.Spec.Rules) != 1 || back[id].HTTP.Spec.Rules[0].BackendRefs[0].Name != "cart-v2") {
			t.Errorf("%s is back as %+v", id, back[id].HTTP.Spec)
		}
		if g.HTTP != nil && (len(back[id].HTTP.Status.Parents) > 0 || is.ResourceVersion != "") {
			t.Errorf("%s is kept with what is of no use: %+v", id, back[id].HTTP)
		}
	}
	writes := func() (n int) {
		for request, times := range s.Requests() {
			if verb, _, _ := strings.Cut(request, " "); verb == "create" || verb == "update" {
				n += times
			}
		}
		return n
	}
	before := writes()
	if err := store.Save(t.Context(), good); err != nil || writes() != before {
		t.Errorf("the same is written again: %d writes more, %v", writes()-before, err)
	}
	// Another replica has seen a later generation.
	id := route.ID{Key: keyed.Key{Namespace: "shop", Name: "route-5"}}
	good[id] = routes.GoodRoute{HTTP: httpRoute("route-5", 9, "cart-v3")}
	if err := store.Save(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	good[id] = routes.GoodRoute{HTTP: httpRoute("route-5", 5, "cart-v2")}
	if err := store.Save(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	if back, err = store.Load(t.Context()); err != nil || back[id].HTTP.Generation != 9 {
		t.Errorf("generation %d is kept, %v", back[id].HTTP.Generation, err)
	}
	// One of that name that is another object has nothing to do with it.
	again := httpRoute("route-5", 1, "cart-v2")
	again.UID = "another"
	good[id] = routes.GoodRoute{HTTP: again}
	if err := store.Save(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	if back, err = store.Load(t.Context()); err != nil || back[id].HTTP.UID != "another" {
		t.Errorf("%+v is kept, %v", back[id].HTTP, err)
	}
	// What somebody spoils is as if it had not been kept, and is kept anew.
	for _, name := range Names() {
		o := s.Get(own, name)
		if o == nil {
			continue
		}
		o["binaryData"] = clustertest.Object{entry: "c3BvaWxlZA=="}
		s.Put(t, own, o)
	}
	if back, err = store.Load(t.Context()); err != nil || len(back) != 0 || !strings.Contains(log.String(), "cannot be read") {
		t.Errorf("spoiled: %d, %v, %s", len(back), err, log)
	}
	if err := store.Save(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	if back, err = store.Load(t.Context()); err != nil || len(back) != len(good) {
		t.Errorf("kept anew: %d of %d, %v", len(back), len(good), err)
	}
	// What is gone is kept no more.
	if err := store.Save(t.Context(), routes.Good{}); err != nil {
		t.Fatal(err)
	}
	if back, err = store.Load(t.Context()); err != nil || len(back) != 0 {
		t.Errorf("gone: %v, %v", back, err)
	}
}

// TestKeptIsBounded: where there is no room for all, the namespace that takes most loses its
// largest, and it is said.
func TestKeptIsBounded(t *testing.T) {
	s := clustertest.Start(t)
	store, log := newStore(t, s)
	store.max = 8 << 10
	random := rand.New(rand.NewPCG(1, 2))
	text := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte('a' + random.IntN(26))
		}
		return string(b)
	}
	good := routes.Good{}
	for i := range 200 {
		r := httpRoute(fmt.Sprintf("greedy-%d", i), 1, text(60))
		r.Namespace = "greedy"
		for range 8 {
			r.Spec.Rules[0].Matches = append(r.Spec.Rules[0].Matches, gatewayv1.HTTPRouteMatch{Path: &gatewayv1.HTTPPathMatch{Value: ptr("/" + text(100))}})
		}
		good[idOf(route.HTTP, &r.ObjectMeta)] = routes.GoodRoute{HTTP: r}
	}
	modest := goodOf(httpRoute("a", 1, "a"), httpRoute("b", 1, "b"), httpRoute("c", 1, "c"))
	for id, g := range modest {
		good[id] = g
	}
	if err := store.Save(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	back, err := store.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for id := range modest {
		if _, ok := back[id]; !ok {
			t.Errorf("%s has no room beside another namespace's", id)
		}
	}
	if len(back) == len(good) || len(back) < 20 || !strings.Contains(log.String(), "more routes than can be kept") {
		t.Errorf("%d of %d are kept; log: %s", len(back), len(good), log)
	}
	for _, name := range Names() {
		if o := s.Get(own, name); o != nil {
			if n := len(o["binaryData"].(map[string]any)[entry].(string)) * 3 / 4; n > store.max {
				t.Errorf("%s has %d octets", name, n)
			}
		}
	}
}

func TestDecodeIsBounded(t *testing.T) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	for range maxText>>20 + 2 {
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := decode(b.Bytes()); err == nil || !strings.Contains(err.Error(), "more than 64 MiB") {
		t.Error(err)
	}
}

// FuzzDecode: what is kept may be anything by the time it is read.
func FuzzDecode(f *testing.F) {
	data, _, err := encode([]routes.GoodRoute{{HTTP: httpRoute("a", 1, "b")}}, maxKept)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	for _, text := range []string{`[{}]`, `[{"http":{"metadata":{"name":"a","namespace":"b"}},"grpc":{}}]`, `null`, `[null]`, `{}`} {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		if _, err := w.Write([]byte(text)); err != nil {
			f.Fatal(err)
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := decode(data)
		if err != nil {
			return
		}
		good := routes.Good{}
		for _, g := range list {
			if id, ok := identify(g); ok {
				good[id] = g
			}
		}
		compiled := routes.Compile(&routes.Objects{}, good)
		if len(compiled.Good) > 0 || len(compiled.Routes) > 0 {
			t.Fatalf("routes that are not there: %+v", compiled)
		}
		again, _, err := encode(list, maxKept)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decode(again); err != nil {
			t.Fatal(err)
		}
	})
}

// world is a mirror of an API server, whose routes are compiled at each look, and a Writer.
type world struct {
	*clustertest.Server
	source *cluster.Source
	store  *Store

	state struct {
		sync.Mutex
		good     routes.Good
		compiled *routes.Compiled
		changed  <-chan struct{} // what was compiled is not what there is
	}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{Server: clustertest.Start(t)}
	w.Serve("gateway.networking.k8s.io/v1", "gatewayclasses", "gateways", "httproutes", "grpcroutes", "referencegrants")
	for _, name := range []string{"cart", "cart-v2"} {
		w.Put(t, "/api/v1/namespaces/shop/services", &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
			Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Port: 80}}}})
	}
	w.source = cluster.NewSource(w.Config(), false, slog.New(slog.DiscardHandler))
	w.store, _ = newStore(t, w.Server)
	w.run(t, w.source.Run)
	testenv.Eventually(t, 20*time.Second, "everything is read", func() bool { return w.source.Synced() == nil })
	return w
}

// run runs f until the test ends, or what it returns is called.
func (w *world) run(t *testing.T, f func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// compiled compiles what there is, as a publisher does.
func (w *world) compiled() (*routes.Compiled, <-chan struct{}) {
	w.state.Lock()
	defer w.state.Unlock()
	select {
	case <-w.state.changed:
		w.state.compiled = nil
	default:
	}
	if w.state.compiled == nil {
		w.state.changed = w.source.RoutingChanged()
		routing := w.source.Routing()
		w.state.compiled = routes.Compile(&routing.Objects, w.state.good)
		w.state.good = w.state.compiled.Good
	}
	return w.state.compiled, w.state.changed
}

// lead runs a Writer.
func (w *world) lead(t *testing.T, log *testenv.Log) (stop func()) {
	t.Helper()
	client, err := cluster.GatewayClient(w.Config())
	if err != nil {
		t.Fatal(err)
	}
	events, err := typedcorev1.NewForConfig(w.Config())
	if err != nil {
		t.Fatal(err)
	}
	writer, err := NewWriter(WriterConfig{Routing: w.source.Routing, Compiled: w.compiled, Save: w.store.Save, Gateway: client, Events: events, Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return w.run(t, writer.Run)
}

// condition is "STATUS REASON GENERATION" of one of our conditions of a route.
func (w *world) condition(name, kind string) (text, since string) {
	o := w.Get(gateway+"/namespaces/shop/httproutes", name)
	status, _ := o["status"].(map[string]any)
	parents, _ := status["parents"].([]any)
	for _, p := range parents {
		parent := p.(map[string]any)
		if parent["controllerName"] != string(routes.ControllerName) {
			continue
		}
		for _, c := range parent["conditions"].([]any) {
			if c := c.(map[string]any); c["type"] == kind {
				return fmt.Sprint(c["status"], " ", c["reason"], " ", c["observedGeneration"]), fmt.Sprint(c["lastTransitionTime"])
			}
		}
	}
	return "", ""
}

func (w *world) patches() int {
	return w.Requests()["patch gateway.networking.k8s.io/httproutes/status web"]
}

func (w *world) await(t *testing.T, kind, want string) {
	t.Helper()
	testenv.Eventually(t, 10*time.Second, kind+" is "+want, func() bool { got, _ := w.condition("web", kind); return got == want })
}

// TestStatuses: what became of a route is on it, beside what others say, of the generation
// that is meant, and is written when it changes and not otherwise.
func TestStatuses(t *testing.T) {
	w, log := newWorld(t), &testenv.Log{}
	path := gateway + "/namespaces/shop/httproutes"
	stop := w.lead(t, log)
	w.Put(t, path, httpRoute("web", 0, "cart-v2"))
	w.await(t, "Accepted", "True Accepted 1")
	w.await(t, "ResolvedRefs", "True ResolvedRefs 1")
	parents := w.Get(path, "web")["status"].(map[string]any)["parents"].([]any)
	if len(parents) != 2 || parents[0].(map[string]any)["controllerName"] != "example.com/other" {
		t.Errorf("the other controller's entry is not there: %v", parents)
	}
	_, since := w.condition("web", "Accepted")
	w.read(t)
	n := w.patches()
	time.Sleep(3 * interval)
	if w.patches() != n {
		t.Errorf("written %d times more, and nothing had changed", w.patches()-n)
	}
	time.Sleep(1100 * time.Millisecond) // times are in seconds
	// Nothing leads there: the condition changes, the other keeps its time.
	w.Put(t, path, keepStatus(w, httpRoute("web", 0, "nothing")))
	w.await(t, "ResolvedRefs", "False BackendNotFound 2")
	if _, now := w.condition("web", "Accepted"); now != since {
		t.Errorf("Accepted since %s, before %s, and its status is the same", now, since)
	}
	if _, now := w.condition("web", "ResolvedRefs"); now == since {
		t.Error("ResolvedRefs has another status since the same time")
	}
	testenv.Eventually(t, 10*time.Second, "an event says so", func() bool {
		return slices.ContainsFunc(w.List("events"), func(e clustertest.Object) bool {
			return e["reason"] == EventReason && strings.Contains(fmt.Sprint(e["message"]), "there is no Service shop/nothing")
		})
	})
	// A rule that cannot be served: what was last good goes on, and the condition has its
	// generation.
	bad := httpRoute("web", 0, "cart-v2")
	bad.Spec.Rules[0].Matches = []gatewayv1.HTTPRouteMatch{{Path: &gatewayv1.HTTPPathMatch{Type: ptr(gatewayv1.PathMatchRegularExpression), Value: ptr("(")}}}
	bad.Spec.Rules = append(bad.Spec.Rules, httpRoute("web", 0, "cart-v2").Spec.Rules...)
	w.Put(t, path, keepStatus(w, bad))
	w.await(t, "Accepted", "True Accepted 2")
	w.await(t, "PartiallyInvalid", "True UnsupportedValue 3")
	// The same after a restart: it was kept.
	w.read(t)
	stop()
	w.state.Lock()
	w.state.compiled = nil
	good, err := w.store.Load(t.Context())
	w.state.good = good
	w.state.Unlock()
	if err != nil || len(good) != 1 {
		t.Fatalf("kept: %v, %v", good, err)
	}
	n = w.patches()
	w.lead(t, log)
	time.Sleep(3 * interval)
	w.await(t, "Accepted", "True Accepted 2")
	if w.patches() != n {
		t.Error("another leader has written what was there")
	}
	// A route that has no Service for a parent any more has none of our entries.
	gone := httpRoute("web", 0, "cart-v2")
	gone.Spec.ParentRefs[0] = gatewayv1.ParentReference{Name: "ingress"}
	w.Put(t, path, keepStatus(w, gone))
	testenv.Eventually(t, 10*time.Second, "our entry is gone, the other's is not", func() bool {
		parents := w.Get(path, "web")["status"].(map[string]any)["parents"].([]any)
		return len(parents) == 1 && parents[0].(map[string]any)["controllerName"] == "example.com/other"
	})
}

// read waits until what was written is what the mirror has.
func (w *world) read(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, 10*time.Second, "what was written is read", func() bool {
		o := w.Get(gateway+"/namespaces/shop/httproutes", "web")
		return w.source.Routing().HTTPRoutes[0].ResourceVersion == o["metadata"].(map[string]any)["resourceVersion"]
	})
}

// keepStatus is a route as somebody writes it who does not touch its status.
func keepStatus(w *world, r *gatewayv1.HTTPRoute) clustertest.Object {
	o := clustertest.Object{"apiVersion": r.APIVersion, "kind": r.Kind, "metadata": clustertest.Object{"namespace": r.Namespace, "name": r.Name, "uid": string(r.UID)},
		"spec": r.Spec, "status": w.Get(gateway+"/namespaces/shop/httproutes", r.Name)["status"]}
	return o
}

// TestStatusIsWrittenOfThePresentVersion: what somebody else has changed meanwhile is not
// written over, and what cannot be written is tried again.
func TestStatusIsWrittenOfThePresentVersion(t *testing.T) {
	w, log := newWorld(t), &testenv.Log{}
	path := gateway + "/namespaces/shop/httproutes"
	w.Put(t, path, httpRoute("web", 0, "cart-v2"))
	testenv.Eventually(t, 10*time.Second, "it is read", func() bool { return len(w.source.Routing().HTTPRoutes) == 1 })
	client, err := cluster.GatewayClient(w.Config())
	if err != nil {
		t.Fatal(err)
	}
	events, err := typedcorev1.NewForConfig(w.Config())
	if err != nil {
		t.Fatal(err)
	}
	stale := w.source.Routing()
	writer, err := NewWriter(WriterConfig{Routing: w.source.Routing, Compiled: w.compiled, Save: w.store.Save, Gateway: client, Events: events, Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	compiled, _ := w.compiled()
	o := w.Get(path, "web")
	o["status"].(map[string]any)["parents"].([]any)[0].(map[string]any)["controllerName"] = "example.com/changed"
	w.Put(t, path, o)
	if !writer.pass(t.Context(), compiled, &stale) || w.patches() != 1 {
		t.Errorf("%d patches", w.patches())
	}
	if got, _ := w.condition("web", "Accepted"); got != "" {
		t.Errorf("a status of an older version is written: %s", got)
	}
	w.Forbid(func(r clustertest.Request) bool { return r.Verb == "patch" })
	fresh := w.source.Routing()
	if writer.pass(t.Context(), compiled, &fresh) {
		t.Error("a status that could not be written is not tried again")
	}
	w.Forbid(nil)
	testenv.Eventually(t, 10*time.Second, "it is written", func() bool {
		fresh := w.source.Routing()
		got, _ := w.condition("web", "Accepted")
		return writer.pass(t.Context(), compiled, &fresh) && got == "True Accepted 1"
	})
	if parents := w.Get(path, "web")["status"].(map[string]any)["parents"].([]any); parents[0].(map[string]any)["controllerName"] != "example.com/changed" {
		t.Errorf("the other's change is lost: %v", parents)
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	if _, err := NewWriter(WriterConfig{}); err == nil || errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestThroughIsKept(t *testing.T) {
	s := clustertest.Start(t)
	store, log := newStore(t, s)
	if all, err := store.LoadThrough(t.Context()); err != nil || len(all) != 0 {
		t.Fatalf("of nothing: %v, %v", all, err)
	}
	all := map[mesh.Key]mesh.Key{}
	for i := range 50 {
		all[mesh.Key{Namespace: "shop", Name: fmt.Sprint("s", i)}] = mesh.Key{Namespace: "shop", Name: "waypoint"}
	}
	for range 2 {
		if err := store.SaveThrough(t.Context(), all); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.Requests()["update configmaps "+ThroughName]; n != 0 {
		t.Errorf("the same is written %d times more", n)
	}
	delete(all, mesh.Key{Namespace: "shop", Name: "s7"})
	if err := store.SaveThrough(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	if back, err := store.LoadThrough(t.Context()); err != nil || !maps.Equal(back, all) {
		t.Errorf("%v is back, %v", back, err)
	}
	o := s.Get(own, ThroughName)
	o["binaryData"] = clustertest.Object{throughEntry: "c3BvaWxlZA=="}
	s.Put(t, own, o)
	if back, err := store.LoadThrough(t.Context()); err != nil || len(back) != 0 || !strings.Contains(log.String(), "what is kept of waypoints cannot be read") {
		t.Errorf("spoiled: %v, %v", back, err)
	}
}

// meddled is a client that does something after each read.
type meddled struct {
	typedcorev1.ConfigMapsGetter
	typedcorev1.ConfigMapInterface
	then func()
}

func (m *meddled) ConfigMaps(namespace string) typedcorev1.ConfigMapInterface {
	return &meddled{ConfigMapInterface: m.ConfigMapsGetter.ConfigMaps(namespace), then: m.then}
}

func (m *meddled) Get(ctx context.Context, name string, options metav1.GetOptions) (*corev1.ConfigMap, error) {
	out, err := m.ConfigMapInterface.Get(ctx, name, options)
	m.then()
	return out, err
}

// TestTwoKeepThrough: a replica that has begun to lead, and does not know all that the one before has kept, changes what
// it knows to be different, and nothing else; also when both write at once.
func TestTwoKeepThrough(t *testing.T) {
	s := clustertest.Start(t)
	before, _ := newStore(t, s)
	next, _ := newStore(t, s)
	of := func(pairs ...string) map[mesh.Key]mesh.Key {
		all := map[mesh.Key]mesh.Key{}
		for i := 0; i < len(pairs); i += 2 {
			all[mesh.Key{Namespace: "shop", Name: pairs[i]}] = mesh.Key{Namespace: "shop", Name: pairs[i+1]}
		}
		return all
	}
	save := func(store *Store, pairs ...string) {
		t.Helper()
		if err := store.SaveThrough(t.Context(), of(pairs...)); err != nil {
			t.Fatal(err)
		}
	}
	kept := func(pairs ...string) {
		t.Helper()
		reader, _ := newStore(t, s)
		if all, err := reader.LoadThrough(t.Context()); err != nil || !maps.Equal(all, of(pairs...)) {
			t.Errorf("%v is kept, %v; want %v", all, err, of(pairs...))
		}
	}
	save(before, "a", "w", "b", "w")
	if _, err := next.LoadThrough(t.Context()); err != nil {
		t.Fatal(err)
	}
	save(before, "a", "w", "b", "w2", "c", "w") // the next one does not hear of it
	save(next, "a", "w", "b", "w")
	kept("a", "w", "b", "w2", "c", "w")
	save(next, "b", "w", "d", "w") // a has none any more
	kept("b", "w2", "c", "w", "d", "w")
	save(next, "b", "w", "d", "w3")
	kept("b", "w2", "c", "w", "d", "w3")

	meddling := 0
	next.client = &meddled{ConfigMapsGetter: next.client, then: func() {
		if meddling++; meddling == 1 { // between its reading and its writing
			save(before, "a", "w", "b", "w2", "c", "w", "e", "w")
		}
	}}
	save(next, "b", "w", "d", "w4")
	if kept("b", "w2", "c", "w", "d", "w4", "e", "w"); meddling != 2 {
		t.Errorf("it was read %d times, want 2", meddling)
	}
	s.Delete(own, ThroughName)
	meddling = 0
	save(next, "b", "w") // and before makes what somebody has deleted anew, at the same time
	kept("a", "w", "b", "w2", "c", "w", "e", "w")
}

// FuzzDecodeThrough: what is kept may be anything by the time it is read.
func FuzzDecodeThrough(f *testing.F) {
	data, err := encodeThrough(map[mesh.Key]mesh.Key{{Namespace: "a", Name: "b"}: {Namespace: "a", Name: "c"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := decodeThrough(data)
		if err != nil {
			return
		}
		again, err := encodeThrough(all)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decodeThrough(again); err != nil || !maps.Equal(back, all) {
			t.Fatalf("%v is back as %v: %v", all, back, err)
		}
	})
}
