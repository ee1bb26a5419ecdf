package discovery

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
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

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// waypointCaller is testCaller, and takes a name like a waypoint's for one.
func waypointCaller(ctx context.Context) (Caller, error) {
	c, err := testCaller(ctx)
	if name, ok := strings.CutPrefix(c.Node, "waypoint/"); ok {
		namespace, service, _ := strings.Cut(name, "/")
		c.Waypoint, c.Replica = mesh.Key{Namespace: namespace, Name: service}, "pod-1"
	}
	return c, err
}

func startRouted(t testing.TB) *operatorEnd {
	return startOperator(t, func(c *ServerConfig) { c.Authenticate, c.Keys = waypointCaller, keysOf(1)() })
}

// waypointEnd is the client of a waypoint in this process.
type waypointEnd struct {
	*agentEnd
	state struct {
		sync.Mutex
		view   *mesh.View
		routes []*route.Route
		refuse error
		keys   []string
		roots  []string
	}
}

func startWaypoint(t testing.TB, o *operatorEnd, name string, change func(*ClientConfig)) *waypointEnd {
	t.Helper()
	w := &waypointEnd{}
	take := &Waypoint{
		Apply: func(v *mesh.View, routes []*route.Route) error {
			w.state.Lock()
			defer w.state.Unlock()
			if w.state.refuse != nil {
				return w.state.refuse
			}
			w.state.view, w.state.routes = v, routes
			return nil
		},
		Learn: func(keys, roots []string) error {
			w.state.Lock()
			defer w.state.Unlock()
			w.state.keys, w.state.roots = keys, roots
			return nil
		},
	}
	w.agentEnd = startAgent(t, o, name, func(c *ClientConfig) {
		c.Store, c.Waypoint = nil, take
		if change != nil {
			change(c)
		}
	})
	return w
}

func (w *waypointEnd) now() (*mesh.View, []*route.Route) {
	w.state.Lock()
	defer w.state.Unlock()
	return w.state.view, w.state.routes
}

func (w *waypointEnd) refuse(why error) {
	w.state.Lock()
	defer w.state.Unlock()
	w.state.refuse = why
}

// shop is a mesh: cart and pay have the waypoint shop/gate, mail has none; cart's route
// leads to other/pay as well, and mirrors to mail.
type shop struct {
	ready bool // cart's workload
	path  string
}

func (s shop) view(t testing.TB) *mesh.View {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString("test.example")
	gate := mesh.Key{Namespace: "shop", Name: "gate"}
	var workloads []mesh.Workload
	var services []mesh.Service
	var policies []mesh.Policy
	for i, key := range []mesh.Key{{Namespace: "shop", Name: "cart"}, {Namespace: "shop", Name: "pay"}, {Namespace: "shop", Name: "mail"}, gate,
		{Namespace: "other", Name: "pay"}, {Namespace: "other", Name: "apart"}} {
		id, err := mesh.IdentityFor(td, key.Namespace, key.Name)
		if err != nil {
			t.Fatal(err)
		}
		workloads = append(workloads, mesh.Workload{Key: mesh.Key{Namespace: key.Namespace, Name: key.Name + "-1"}, ServiceAccount: key.Name, Node: "n1", Identity: id,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})}, Labels: map[string]string{"app": key.Name}, Enrolled: true,
			Ready: i > 0 || s.ready, NetNS: "/run/netns/secret", UID: "uid", ProbePorts: []uint16{9}, DNS: mesh.DNSCapture, PortModes: map[uint16]mesh.Mode{9090: mesh.ModePermissive}})
		service := mesh.Service{Key: key, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(i + 1)})}, Ports: []mesh.ServicePort{{Port: 80, TargetPort: 8080}},
			Endpoints: []mesh.Key{workloads[i].Key}}
		if i < 2 {
			service.Waypoint = gate
		}
		services = append(services, service)
		policies = append(policies, mesh.Policy{Key: mesh.Key{Namespace: key.Namespace, Name: "to-" + key.Name}, Action: mesh.ActionAllow, Selector: map[string]string{"app": key.Name}})
	}
	view, err := mesh.NewView(fmt.Sprintf("shop-%+v", s), mesh.Settings{TrustDomain: td}, workloads, services, policies)
	if err != nil {
		t.Fatal(err)
	}
	return view
}

func (s shop) routes(t testing.TB) *Routes {
	t.Helper()
	at := func(namespace, name string) mesh.Key { return mesh.Key{Namespace: namespace, Name: name} }
	cart := route.Route{ID: route.ID{Key: at("shop", "cart")}, Parents: []route.Parent{{Service: at("shop", "cart"), Port: 80}}, Rules: []route.Rule{{
		Matches: []route.Match{{Path: route.PathMatch{Value: s.path}, Headers: []route.ValueMatch{{Name: "X-Upper", Value: "a"}}}},
		Filters: []route.Filter{{Mirror: &route.Mirror{Service: at("shop", "mail"), Port: 80, Numerator: 1, Denominator: 1}}},
		Backends: []route.Backend{{Service: at("other", "pay"), Port: 80, Weight: 1},
			{Service: at("other", "apart"), Port: 80, Weight: 1, Broken: "no grant"}}}}}
	consumer := route.Route{ID: route.ID{Key: at("other", "consumer")}, Parents: []route.Parent{{Service: at("shop", "pay"), Port: 80}}}
	apart := route.Route{ID: route.ID{Key: at("shop", "apart")}, Parents: []route.Parent{{Service: at("shop", "mail"), Port: 80}}}
	routes, untold := NewRoutes([]route.Route{cart, consumer, apart})
	if untold != nil {
		t.Fatal(untold)
	}
	return routes
}

func (s shop) snapshot(t testing.TB, epoch uint64) *Snapshot {
	t.Helper()
	snapshot, err := NewRoutedSnapshot(s.view(t), s.routes(t), epoch, testKey(1))
	if err != nil {
		t.Fatal(err)
	}
	return snapshot
}

func names[T interface{ Self() mesh.Key }](all []T) (names []string) {
	for _, one := range all {
		names = append(names, one.Self().String())
	}
	return names
}

// TestWaypointIsToldWhatItNeeds, and nothing else.
func TestWaypointIsToldWhatItNeeds(t *testing.T) {
	o := startRouted(t)
	o.Publish(shop{path: "/"}.snapshot(t, 1))
	w := startWaypoint(t, o, "waypoint/shop/gate", nil)
	w.awaitEpoch(t, 1)
	view, routes := w.now()
	if got, want := names(view.Services()), []string{"other/pay", "shop/cart", "shop/gate", "shop/mail", "shop/pay"}; !slices.Equal(got, want) {
		t.Errorf("services %v, want %v", got, want)
	}
	if got, want := names(view.Workloads()), []string{"other/pay-1", "shop/cart-1", "shop/gate-1", "shop/mail-1", "shop/pay-1"}; !slices.Equal(got, want) {
		t.Errorf("workloads %v, want %v", got, want)
	}
	if got, want := names(view.Policies()), []string{"other/to-pay", "shop/to-cart", "shop/to-gate", "shop/to-mail", "shop/to-pay"}; !slices.Equal(got, want) {
		t.Errorf("policies %v, want %v", got, want)
	}
	var got []string
	for _, r := range routes {
		got = append(got, r.ID.String())
	}
	if want := []string{"HTTPRoute other/consumer", "HTTPRoute shop/cart"}; !slices.Equal(got, want) {
		t.Errorf("routes %v, want %v", got, want)
	}
	for _, workload := range view.Workloads() {
		if workload.NetNS+workload.UID != "" || len(workload.ProbePorts)+len(workload.Datagrams) > 0 || workload.DNS != mesh.DNSDefault {
			t.Errorf("%s is told what only its node needs: %+v", workload.Key, workload)
		}
		if workload.Labels["app"] == "" || workload.ModeOf(9090) != mesh.ModePermissive {
			t.Errorf("%s: policies cannot be judged by %+v", workload.Key, workload)
		}
	}
	if s, _ := view.Service(mesh.Key{Namespace: "shop", Name: "cart"}); s == nil || s.Waypoint != (mesh.Key{Namespace: "shop", Name: "gate"}) {
		t.Errorf("cart is %+v", s)
	}
	if view.Settings().TrustDomain.Name() != "test.example" || view.Revision() == "" {
		t.Errorf("settings %+v of revision %q", view.Settings(), view.Revision())
	}
	if len(w.state.keys) != 1 || w.state.keys[0] != string(publicOf(testKey(1))) {
		t.Errorf("the waypoint is told %d keys", len(w.state.keys))
	}
	// It is no node, and no node is told of it. What it has applied, the operator hears a little later.
	testenv.Eventually(t, time.Minute, "the operator hears", func() bool { all := o.Waypoints(); return len(all) == 1 && all[0].Epoch == 1 })
	all := o.Waypoints()
	if len(o.Nodes()) != 0 || len(all) != 1 || all[0].Replica != "pod-1" || all[0].Epoch != 1 {
		t.Errorf("nodes %+v, waypoints %+v", o.Nodes(), all)
	}
	apart := startWaypoint(t, o, "waypoint/shop/nobody", nil)
	apart.awaitEpoch(t, 1)
	if view, routes := apart.now(); len(view.Services())+len(view.Workloads())+len(view.Policies())+len(routes) > 0 {
		t.Error("a waypoint of nothing is told something")
	}
}

// TestWaypointFollows: what changes comes alone, what does not, not at all, and routes that
// are as they were are the same list.
func TestWaypointFollows(t *testing.T) {
	o := startRouted(t)
	first := shop{path: "/"}.snapshot(t, 1)
	o.Publish(first)
	w := startWaypoint(t, o, "waypoint/shop/gate", nil)
	w.awaitEpoch(t, 1)
	_, before := w.now()
	told, _, _ := w.wire.counts()

	second, err := first.Next(shop{path: "/", ready: true}.view(t), 2)
	if err != nil {
		t.Fatal(err)
	}
	o.Publish(second)
	w.awaitEpoch(t, 2)
	view, routes := w.now()
	if is, _, _ := w.wire.counts(); is != told+1 {
		t.Errorf("one workload became ready: %d resources came", is-told)
	}
	if cart, _ := view.Workload(mesh.Key{Namespace: "shop", Name: "cart-1"}); cart == nil || !cart.Ready {
		t.Errorf("cart is %+v", cart)
	}
	if &routes[0] != &before[0] {
		t.Error("routes that are as they were are another list")
	}
	third, err := second.NextRouted(second.View(), shop{path: "/new"}.routes(t), 3)
	if err != nil {
		t.Fatal(err)
	}
	o.Publish(third)
	w.awaitEpoch(t, 3)
	if _, routes := w.now(); routes[1].Rules[0].Matches[0].Path.Value != "/new" {
		t.Errorf("the route is %+v", routes[1])
	}
	if is, _, _ := w.wire.counts(); is != told+2 {
		t.Errorf("one route changed: %d resources came in all", is-told)
	}
	// Only the waypoint's own services make a difference to it.
	other, untold := NewRoutes([]route.Route{})
	if untold != nil {
		t.Fatal(untold)
	}
	fourth, err := third.NextRouted(third.View(), other, 4)
	if err != nil {
		t.Fatal(err)
	}
	o.Publish(fourth)
	w.awaitEpoch(t, 4)
	view, routes = w.now()
	if got, want := names(view.Services()), []string{"shop/cart", "shop/gate", "shop/pay"}; len(routes) != 0 || !slices.Equal(got, want) {
		t.Errorf("without routes there are %v, and the services %v, want %v", routes, got, want)
	}
}

// TestWaypointResumes: a connection that is made anew, to an operator that has begun anew,
// brings no resource when nothing has changed.
func TestWaypointResumes(t *testing.T) {
	o := startRouted(t)
	o.Publish(shop{path: "/"}.snapshot(t, 5))
	w := startWaypoint(t, o, "waypoint/shop/gate", nil)
	w.awaitEpoch(t, 5)
	told, commits, _ := w.wire.counts()
	again := startRouted(t)
	again.Publish(shop{path: "/"}.snapshot(t, 5))
	w.wire.Lock()
	w.wire.dial = func(ctx context.Context) (net.Conn, error) { return again.listener.DialContext(ctx) }
	w.wire.Unlock()
	o.stop()
	testenv.Eventually(t, time.Minute, "connected again", func() bool { s := w.Status(); return s.Connects == 2 && s.Current })
	if is, now, empty := w.wire.counts(); is != told || now != commits || empty == 0 {
		t.Errorf("%d resources and %d commits came again", is-told, now-commits)
	}
	// One whose state went back is refused, and what is applied goes on.
	again.Publish(shop{path: "/old"}.snapshot(t, 4))
	testenv.Eventually(t, time.Minute, "an older epoch is refused", func() bool { return w.Status().Refused == 1 })
	if s := w.Status(); s.Epoch != 5 || !strings.Contains(s.LastError, "epoch 4 is older") {
		t.Errorf("%+v", s)
	}
}

// TestWaypointRefuses: a configuration that the waypoint cannot use leaves the one before, and
// the next one is applied on top of that.
func TestWaypointRefuses(t *testing.T) {
	o := startRouted(t)
	o.Publish(shop{path: "/"}.snapshot(t, 1))
	w := startWaypoint(t, o, "waypoint/shop/gate", nil)
	w.awaitEpoch(t, 1)
	w.refuse(errors.New("no such route"))
	o.Publish(shop{path: "/bad"}.snapshot(t, 2))
	testenv.Eventually(t, time.Minute, "refused", func() bool { return w.Status().Refused == 1 })
	testenv.Eventually(t, time.Minute, "the operator knows", func() bool { return strings.Contains(o.Waypoints()[0].LastError, "no such route") })
	if _, routes := w.now(); w.Status().Epoch != 1 || routes[1].Rules[0].Matches[0].Path.Value != "/" {
		t.Error("what was refused is applied")
	}
	w.refuse(nil)
	o.Publish(shop{path: "/good", ready: true}.snapshot(t, 3))
	w.awaitEpoch(t, 3)
	if view, routes := w.now(); routes[1].Rules[0].Matches[0].Path.Value != "/good" || view.Revision() != "shop-{ready:true path:/good}" {
		t.Error("what came after a refusal is not what is applied")
	}
}

// TestWaypointBootsFromLastGood, of its own and signed, without an operator.
func TestWaypointBootsFromLastGood(t *testing.T) {
	dir := t.TempDir()
	o := startRouted(t)
	o.Publish(shop{path: "/"}.snapshot(t, 1))
	w := startWaypoint(t, o, "waypoint/shop/gate", lastGoodIn(dir))
	w.awaitEpoch(t, 1)
	// What is applied may be used for a Table, which must leave it as it is.
	_, routes := w.now()
	if _, err := route.NewTable([]route.Route{*routes[0], *routes[1]}); err != nil {
		t.Fatal(err)
	}
	w.stop()
	o.stop()
	if s := w.Status(); s.UnsavedError != "" {
		t.Fatal(s.UnsavedError)
	}
	back := startWaypoint(t, nil, "waypoint/shop/gate", lastGoodIn(dir))
	testenv.Eventually(t, time.Minute, "booted", func() bool { return back.Status().FromLastGood })
	if view, routes := back.now(); len(view.Services()) != 5 || len(routes) != 2 {
		t.Errorf("it boots with %d services and %d routes", len(view.Services()), len(routes))
	}
	back.stop()
	// Another waypoint does not take it.
	saved, err := os.ReadFile(filepath.Join(dir, "last-good"))
	if err != nil {
		t.Fatal(err)
	}
	stolen := t.TempDir()
	if err := os.WriteFile(filepath.Join(stolen, "last-good"), saved, 0o600); err != nil {
		t.Fatal(err)
	}
	other := startWaypoint(t, nil, "waypoint/shop/other", lastGoodIn(stolen))
	testenv.Eventually(t, time.Minute, "refused", func() bool { return other.Status().LastGoodRefused == 1 })
}

// TestNodesAreToldNoRoutes: an agent asks for none, and may not; a waypoint may not have what
// is an agent's.
func TestNodesAreToldNoRoutes(t *testing.T) {
	o := startRouted(t)
	o.Publish(shop{path: "/"}.snapshot(t, 1))
	a := startAgent(t, o, "n1", nil)
	a.awaitEpoch(t, 1)
	if len(a.store.View().Services()) != 6 || a.Status().Resources != 1+6+6+6 {
		t.Errorf("a node is told %d resources", a.Status().Resources)
	}
	take := &Waypoint{Apply: func(*mesh.View, []*route.Route) error { return nil }, Learn: func(_, _ []string) error { return nil }}
	for name, change := range map[string]func(*ClientConfig){
		"n2":                 func(c *ClientConfig) { c.Store, c.Waypoint = nil, take },
		"waypoint/shop/gate": func(*ClientConfig) {},
	} {
		impostor := startAgent(t, o, name, change)
		testenv.Eventually(t, time.Minute, name+" is refused", func() bool { return strings.Contains(impostor.Status().LastError, "there is none for "+name) })
		impostor.stop()
	}
}

// TestLastGoodOfTheOperatorHasRoutes: what it saves is what it goes on with.
func TestLastGoodOfTheOperatorHasRoutes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "last-good")
	s := shop{path: "/"}.snapshot(t, 1)
	if err := s.Save(path); err != nil {
		t.Fatal(err)
	}
	view, routes, err := LoadView(path, publicOf(testKey(1)))
	if err != nil || len(view.Services()) != 6 || !routes.Equal(s.Routes()) {
		t.Errorf("%d services, the routes are equal: %v; %v", len(view.Services()), routes.Equal(s.Routes()), err)
	}
}

// TestWaypointIsToldOfRoots as soon as there are others, and not before.
func TestWaypointIsToldOfRoots(t *testing.T) {
	var now struct {
		sync.Mutex
		roots   []*x509.Certificate
		changed chan struct{}
	}
	set := func(roots ...*x509.Certificate) {
		now.Lock()
		defer now.Unlock()
		now.roots = roots
		if now.changed != nil {
			close(now.changed)
		}
		now.changed = make(chan struct{})
	}
	one, other := &x509.Certificate{Raw: []byte("one")}, &x509.Certificate{Raw: []byte("other")}
	set(one)
	o := startOperator(t, func(c *ServerConfig) {
		c.Authenticate, c.Keys = waypointCaller, keysOf(1)()
		c.Roots = func() []*x509.Certificate { now.Lock(); defer now.Unlock(); return now.roots }
		c.RootsChanged = func() <-chan struct{} { now.Lock(); defer now.Unlock(); return now.changed }
	})
	o.Publish(shop{path: "/"}.snapshot(t, 1))
	w, node := startWaypoint(t, o, "waypoint/shop/gate", nil), startAgent(t, o, "n1", nil)
	w.awaitEpoch(t, 1)
	node.awaitEpoch(t, 1)
	set(one) // as it was: the next epoch comes by the same stream
	o.Publish(shop{path: "/2"}.snapshot(t, 2))
	w.awaitEpoch(t, 2)
	if n := w.Status().Connects; n != 1 {
		t.Errorf("connected %d times", n)
	}
	set(one, other)
	testenv.Eventually(t, 10*time.Second, "told of both roots", func() bool {
		w.state.Lock()
		defer w.state.Unlock()
		return slices.Equal(w.state.roots, []string{"one", "other"})
	})
	if n := node.Status().Connects; n != 1 {
		t.Errorf("the node, which is told otherwise, connected %d times", n)
	}
}
