package snapshot_test

import (
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/keyed"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/snapshot"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var cart = mesh.Key{Namespace: "shop", Name: "cart"}

func view(t *testing.T, revision string) *mesh.View {
	t.Helper()
	v, err := mesh.NewView(revision, mesh.Settings{TrustDomain: spiffeid.RequireTrustDomainFromString("test.example")}, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// routes are one rule with two backends that share by halves.
func routes(path string) []route.Route {
	return []route.Route{{
		ID: route.ID{Key: keyed.Key(cart)}, Parents: []route.Parent{{Service: cart, Port: 80}},
		Rules: []route.Rule{{Name: "half", Matches: []route.Match{{Path: route.PathMatch{Value: path}}},
			Backends: []route.Backend{{Service: mesh.Key{Namespace: "shop", Name: "a"}, Port: 80, Weight: 1}, {Service: mesh.Key{Namespace: "shop", Name: "b"}, Port: 80, Weight: 1}}}},
	}}
}

// turn is the backend of the next request.
func turn(t *testing.T, s *snapshot.Snapshot) string {
	t.Helper()
	r := &route.Request{To: route.Parent{Service: cart, Port: 80}, Host: "cart", Method: "GET", Path: "/"}
	d := s.Table.Match(r)
	if d.Outcome != route.Routed {
		t.Fatalf("the request is %s", d.Outcome)
	}
	b, _ := s.Splits.Backend(d.Target)
	return b.Service.Name
}

func TestSet(t *testing.T) {
	store := snapshot.NewStore(cart)
	first, changed := store.Changed()
	if first.Synced() || first.Waypoint != cart {
		t.Fatalf("a new store has %+v", first)
	}
	if err := store.Set("1", view(t, "v1"), routes("/")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told of a new snapshot")
	}
	one := store.Load()
	if !one.Synced() || one.Revision != "1" || one.View.Revision() != "v1" || one.Waypoint != cart {
		t.Fatalf("the snapshot is %+v", one)
	}
	// A snapshot that is taken stays as it is.
	if err := store.Set("2", view(t, "v2"), nil); err != nil {
		t.Fatal(err)
	}
	if one.View.Revision() != "v1" || len(one.Routes) != 1 {
		t.Errorf("a snapshot has changed: %+v", one)
	}
	if d := store.Load().Table.Match(&route.Request{To: route.Parent{Service: cart, Port: 80}, Path: "/"}); d.Outcome != route.Unrouted {
		t.Errorf("a route that is gone decides: %s", d.Outcome)
	}
}

// TestTurnsGoOn: of two backends by halves, a new snapshot in the middle leaves the order.
func TestTurnsGoOn(t *testing.T) {
	store := snapshot.NewStore(cart)
	before := ""
	for i := range 100 {
		if err := store.Set("r", view(t, "v"), routes("/")); err != nil {
			t.Fatal(err)
		}
		now := turn(t, store.Load())
		if now == before {
			t.Fatalf("request %d goes to %s, as the one before", i, now)
		}
		before = now
	}
}

// TestLastGoodStays: what is wrong is told, and changes nothing.
func TestLastGoodStays(t *testing.T) {
	store := snapshot.NewStore(cart)
	if err := store.Set("good", view(t, "v1"), routes("/")); err != nil {
		t.Fatal(err)
	}
	good, changed := store.Changed()
	twice := append(routes("/"), routes("/")...)
	if err := store.Set("bad", view(t, "v2"), twice); err == nil || !strings.Contains(err.Error(), "shop/cart is given twice") || !strings.Contains(err.Error(), `"bad"`) {
		t.Errorf("a route that is given twice: %v", err)
	}
	if err := store.Set("bad", view(t, "v2"), routes("no path")); err == nil || !strings.Contains(err.Error(), "rules[0].matches[0]") {
		t.Errorf("a path that is none: %v", err)
	}
	if err := store.Set("bad", nil, nil); err == nil {
		t.Error("a snapshot without a view")
	}
	select {
	case <-changed:
		t.Error("a refused snapshot was announced")
	default:
	}
	if store.Load() != good {
		t.Error("a refused snapshot is current")
	}
}

// TestSameRoutes: a new View with the routes as they are costs no compilation, and loading nothing.
func TestSameRoutes(t *testing.T) {
	store := snapshot.NewStore(cart)
	r := routes("/")
	for _, revision := range []string{"1", "2"} {
		if err := store.Set(revision, view(t, revision), r); err != nil {
			t.Fatal(err)
		}
	}
	two := store.Load()
	if err := store.Set("3", view(t, "3"), two.Routes); err != nil {
		t.Fatal(err)
	}
	if three := store.Load(); three.Table != two.Table || three.Splits != two.Splits || three.View.Revision() != "3" {
		t.Error("routes that are the same were compiled anew")
	}
	if n := testing.AllocsPerRun(100, func() { _ = store.Load() }); n != 0 {
		t.Errorf("loading allocates %v times", n)
	}
}

// TestLeft: which services had this waypoint and have it no more, whatever is still known of them.
func TestLeft(t *testing.T) {
	gate := mesh.Key{Namespace: "shop", Name: "gate"}
	store := snapshot.NewStore(gate)
	set := func(waypoints map[string]string) map[mesh.Key]time.Time {
		t.Helper()
		var services []mesh.Service
		for name, waypoint := range waypoints {
			s := mesh.Service{Key: mesh.Key{Namespace: "shop", Name: name}}
			if waypoint != "" {
				s.Waypoint = mesh.Key{Namespace: "shop", Name: waypoint}
			}
			services = append(services, s)
		}
		v, err := mesh.NewView("v", mesh.Settings{TrustDomain: spiffeid.RequireTrustDomainFromString("test.example")}, nil, services, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Set("v", v, nil); err != nil {
			t.Fatal(err)
		}
		return store.Load().Left
	}
	cartKey, pay := mesh.Key{Namespace: "shop", Name: "cart"}, mesh.Key{Namespace: "shop", Name: "pay"}
	if left := set(map[string]string{"cart": "gate", "pay": "gate", "mail": "", "post": "other"}); len(left) != 0 {
		t.Errorf("at first, %v have left", left)
	}
	before := time.Now()
	first := set(map[string]string{"cart": "other", "mail": "", "post": ""})
	if len(first) != 2 || first[cartKey].Before(before) || first[pay].Before(before) {
		t.Fatalf("one moved, one gone: %v", first)
	}
	taken := store.Load()
	again := set(map[string]string{"cart": "", "pay": "gate"})
	if len(again) != 1 || again[cartKey] != first[cartKey] {
		t.Errorf("one is back, the other has moved on: %v, before %v", again, first)
	}
	if len(taken.Left) != 2 {
		t.Errorf("a snapshot has changed: %v", taken.Left)
	}
}
