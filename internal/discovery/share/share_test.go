package share

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/discovery/resources"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func key(i int, what string) mesh.Key {
	return mesh.Key{Namespace: fmt.Sprintf("ns%d", i%40), Name: fmt.Sprintf("%s-%d", what, i)}
}

func gate(i int) mesh.Key { return mesh.Key{Namespace: fmt.Sprintf("ns%d", i), Name: "gate"} }

// large is a mesh of 40 namespaces, each with a waypoint and its share of workloads, ten to a
// service, and a route to each service.
func large(t testing.TB, workloads int) Source {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString("test.example")
	var list []mesh.Workload
	services := map[mesh.Key]*mesh.Service{}
	for i := range 40 {
		services[gate(i)] = &mesh.Service{Key: gate(i)}
	}
	for i := range workloads {
		w := key(i, "w")
		id, err := mesh.IdentityFor(td, w.Namespace, "a")
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, mesh.Workload{Key: w, ServiceAccount: "a", Node: "n", Identity: id, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})},
			Labels: map[string]string{"app": "a"}, Enrolled: true, Ready: true})
		s := mesh.Key{Namespace: w.Namespace, Name: fmt.Sprintf("s-%d", i/400)}
		if services[s] == nil {
			services[s] = &mesh.Service{Key: s, Waypoint: gate(i % 40)}
		}
		services[s].Endpoints = append(services[s].Endpoints, w)
	}
	var all []mesh.Service
	var routes []*route.Route
	for _, s := range services {
		all = append(all, *s)
		if s.Waypoint != (mesh.Key{}) {
			routes = append(routes, &route.Route{ID: route.ID{Key: s.Key}, Parents: []route.Parent{{Service: s.Key, Port: 80}}})
		}
	}
	view, err := mesh.NewView("large", mesh.Settings{TrustDomain: td}, list, all, nil)
	if err != nil {
		t.Fatal(err)
	}
	from := Source{View: view}
	var untold []error
	if from.Routes, untold = NewRoutes(routes); untold != nil {
		t.Fatal(untold)
	}
	var shared []*resources.Resource
	for _, s := range view.Services() {
		r, err := resources.EncodeService(s)
		if err != nil {
			t.Fatal(err)
		}
		shared = append(shared, r)
	}
	settings, err := resources.EncodeSettings(view.Settings())
	if err != nil {
		t.Fatal(err)
	}
	shared = append(shared, settings)
	resources.Sort(shared)
	from.Shared, from.Rest = resources.NewShared(shared), resources.NewShared(nil)
	return from
}

// with is a configuration after a change of workloads.
func (from Source) with(t testing.TB, c mesh.Change) Source {
	t.Helper()
	view, err := from.View.With("", c)
	if err != nil {
		t.Fatal(err)
	}
	from.View = view
	return from
}

// unready is the change by which a workload is ready no more.
func unready(from Source, w mesh.Key) mesh.Change {
	was, _ := from.View.Workload(w)
	is := *was
	is.Ready = !was.Ready
	return mesh.Change{Workloads: []*mesh.Workload{&is}}
}

// TestAWaypointThatIsNotConcernedIsTheSame: nothing of it is made anew, however much it is told.
func TestAWaypointThatIsNotConcernedIsTheSame(t *testing.T) {
	from := large(t, 4000)
	all := NewWaypoints()
	before := map[int]*Waypoint{}
	for i := range 40 {
		before[i] = all.Of(from, gate(i))
		if n := len(before[i].All()); n != 1+1+10+10+100 { // settings, its own Service, services, routes, workloads
			t.Fatalf("waypoint %d is told %d resources", i, n)
		}
	}
	c := unready(from, key(7, "w"))
	to := from.with(t, c)
	next := all.Next(New(to), &Changes{Change: &c, Was: from.View})
	for i := range 40 {
		if is := next.Of(to, gate(i)); (is == before[i]) != (i != 7) {
			t.Errorf("waypoint %d is the same: %v", i, is == before[i])
		}
	}
	name := key(7, "w").String()
	changed := next.Of(to, gate(7))
	if changed.Find(resources.KindWorkload, name).Version == before[7].Find(resources.KindWorkload, name).Version {
		t.Error("the workload is told as it was")
	}
	for _, r := range changed.All() {
		if was := before[7].Find(r.Kind, r.Name); was != r && r.Name != name {
			t.Errorf("%s %s was encoded anew", r.Kind, r.Name)
		}
	}
	if fresh := New(to).Waypoint(gate(7)); !bytes.Equal(fresh.Hash(), changed.Hash()) {
		t.Error("it is told something else than one that asks now")
	}
	// A waypoint whose Service is gone is forgotten.
	gone := mesh.Change{GoneServices: []mesh.Key{gate(3)}}
	last := to.with(t, gone)
	after := next.Next(New(last), &Changes{Change: &gone, Was: to.View})
	if _, known := after.byKey[gate(3)]; known || len(after.byKey) != 39 {
		t.Errorf("%d waypoints are known", len(after.byKey))
	}
}

// TestAChangeCostsWhatChanged: of a waypoint that is told much, and of the others, which are
// not concerned, the work is that of a waypoint that is told little. It is counted by
// allocations, of which looking at everything would take some for each object.
func TestAChangeCostsWhatChanged(t *testing.T) {
	took := map[int]float64{}
	for _, workloads := range []int{1000, 10000} {
		from := large(t, workloads)
		all := NewWaypoints()
		for i := range 40 {
			all.Of(from, gate(i))
		}
		c := unready(from, key(7, "w"))
		to := from.with(t, c)
		took[workloads] = testing.AllocsPerRun(20, func() { all.Next(New(to), &Changes{Change: &c, Was: from.View}) })
	}
	t.Logf("allocations for a workload's readiness, of 40 waypoints: %v", took)
	if took[10000] > 1.5*took[1000] {
		t.Errorf("with ten times as many workloads a change of one takes %v allocations in place of %v", took[10000], took[1000])
	}
}

func BenchmarkNext(b *testing.B) {
	from := large(b, 20000)
	all := NewWaypoints()
	for i := range 40 {
		all.Of(from, gate(i))
	}
	one := func(b *testing.B, c mesh.Change) {
		to := from.with(b, c)
		for b.Loop() {
			for i := range 40 {
				all.asked.note(gate(i)) // they ask each time
			}
			all.Next(New(to), &Changes{Change: &c, Was: from.View})
		}
	}
	b.Run("readiness", func(b *testing.B) { one(b, unready(from, key(7, "w"))) })
	b.Run("endpoint", func(b *testing.B) {
		s, _ := from.View.Service(mesh.Key{Namespace: "ns7", Name: "s-0"})
		less := *s
		less.Endpoints = s.Endpoints[1:]
		one(b, mesh.Change{Services: []*mesh.Service{&less}, GoneWorkloads: s.Endpoints[:1]})
	})
	b.Run("elsewhere", func(b *testing.B) {
		one(b, mesh.Change{Workloads: []*mesh.Workload{{Key: mesh.Key{Namespace: "apart", Name: "x"}, ServiceAccount: "a", Node: "n",
			Identity: spiffeid.RequireFromString("spiffe://test.example/ns/apart/sa/a"), Addresses: []netip.Addr{netip.MustParseAddr("10.255.0.1")}}}})
	})
}

// TestAWaypointIsToldNothingOfOthersWorkloads: a service that has another namespace's workload
// among its endpoints, as anybody may write its address down, tells its waypoint neither who
// that is nor what policies select it; what is in no mesh it is told.
func TestAWaypointIsToldNothingOfOthersWorkloads(t *testing.T) {
	from := large(t, 400)
	s, _ := from.View.Service(mesh.Key{Namespace: "ns7", Name: "s-0"})
	foreign, outside := key(8, "w"), mesh.Key{Namespace: mesh.ExternalNamespace, Name: "192.0.2.1"}
	more := *s
	more.Endpoints = mesh.SortedKeys(append([]mesh.Key{foreign, outside}, s.Endpoints...))
	taken, _ := from.View.Service(gate(7))
	own := *taken
	own.Endpoints = []mesh.Key{foreign}
	c := mesh.Change{Services: []*mesh.Service{&more, &own}, Workloads: []*mesh.Workload{{Key: outside, ServiceAccount: "none", Node: "n",
		Identity: spiffeid.RequireFromString("spiffe://test.example/ns/EXTERNAL/sa/none"), Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}}}
	to := from.with(t, c)
	told := New(to).Waypoint(gate(7))
	for k, want := range map[mesh.Key]bool{foreign: false, outside: true, s.Endpoints[0]: true} {
		if is := told.Find(resources.KindWorkload, k.String()) != nil; is != want {
			t.Errorf("%v is told: %v, want %v", k, is, want)
		}
	}
	if told.spaces[foreign.Namespace] {
		t.Errorf("policies of namespace %s concern it", foreign.Namespace)
	}
}

// TestUnasked: what a waypoint is told that asks for nothing any more is not made for ever, and is told all the same when
// it asks again.
func TestUnasked(t *testing.T) {
	from := large(t, 80)
	all := NewWaypoints()
	first := all.Of(from, gate(1))
	all.Of(from, gate(2))
	for range maxUnasked + 1 {
		all = all.Next(New(from), &Changes{Change: &mesh.Change{}, Was: from.View})
		all.Of(from, gate(2))
	}
	if len(all.byKey) != 1 || all.byKey[gate(2)] == nil {
		t.Errorf("%d are made, want that of the one that asks", len(all.byKey))
	}
	if again := all.Of(from, gate(1)); again == first || !bytes.Equal(again.Hash(), first.Hash()) {
		t.Error("one that asks again is told something else")
	}
}

// TestAServiceThatLeavesIsToldForAWhile, with its workloads, policies and routes as they are now; by each replica,
// whoever has asked it.
func TestAServiceThatLeavesIsToldForAWhile(t *testing.T) {
	from := large(t, 800)
	all := NewWaypoints()
	all.Grace = time.Second
	all.Of(from, gate(7))
	apart := NewWaypoints() // of a replica that nobody has asked
	apart.Grace = all.Grace
	leaving := mesh.Key{Namespace: "ns7", Name: "s-0"}
	moves := func(to mesh.Key) mesh.Change {
		was, _ := from.View.Service(leaving)
		is := *was
		is.Waypoint = to
		return mesh.Change{Services: []*mesh.Service{&is}}
	}
	step := func(c mesh.Change) *Waypoint {
		t.Helper()
		to := from.with(t, c)
		var put []*resources.Resource
		for _, s := range c.Services {
			r, err := resources.EncodeService(s)
			if err != nil {
				t.Fatal(err)
			}
			put = append(put, r)
		}
		to.Shared = to.Shared.With(put, nil)
		changes := &Changes{Change: &c, Was: from.View}
		all, apart = all.Next(New(to), changes), apart.Next(New(to), changes)
		from = to
		told := all.Of(to, gate(7))
		fresh := New(to).Waypoint(gate(7), all.leftFrom(gate(7))...)
		if !bytes.Equal(told.Hash(), fresh.Hash()) {
			t.Fatal("it is told something else than one that asks now")
		}
		if other := newOf(apart, to, gate(7)); !bytes.Equal(told.Hash(), other.Hash()) {
			t.Fatal("another replica tells something else")
		}
		return told
	}
	has := func(w *Waypoint) [3]bool {
		return [3]bool{w.Find(resources.KindService, leaving.String()) != nil, w.Find(resources.KindWorkload, key(7, "w").String()) != nil, w.Find(resources.KindRoute, "HTTPRoute/ns7/s-0") != nil}
	}
	whole, nothing := [3]bool{true, true, true}, [3]bool{}
	for _, to := range []mesh.Key{{}, {Namespace: "ns7", Name: "other"}} {
		began := time.Now()
		gone := step(moves(to))
		if got := has(gone); got != whole {
			t.Fatalf("to %v: when it has left, it is told %v", to, got)
		}
		version := gone.Find(resources.KindWorkload, key(7, "w").String()).Version
		changed := step(unready(from, key(7, "w")))
		if got := has(changed); time.Since(began) < all.Grace && got != whole {
			t.Errorf("to %v: it is told %v when something of it changes", to, got)
		} else if got == whole && changed.Find(resources.KindWorkload, key(7, "w").String()).Version == version {
			t.Errorf("to %v: its workload is told as it was", to)
		}
		time.Sleep(time.Until(began.Add(all.Grace + 10*time.Millisecond)))
		if got := has(step(unready(from, key(8, "w")))); got != nothing {
			t.Errorf("to %v: after a while it is told %v", to, got)
		}
		if got := has(step(moves(gate(7)))); got != whole || len(all.leftFrom(gate(7))) != 0 {
			t.Fatalf("to %v: when it is back, it is told %v", to, got)
		}
	}
	step(moves(mesh.Key{}))
	if step(moves(gate(7))); len(all.leftFrom(gate(7))) != 0 {
		t.Error("one that is back at once has left still")
	}
}

// newOf is what is told to a waypoint that asks for the first time.
func newOf(w *Waypoints, from Source, key mesh.Key) *Waypoint {
	return (&Waypoints{Grace: w.Grace, byKey: map[mesh.Key]*Waypoint{}, asked: &asked{keys: map[mesh.Key]int{}}, left: w.left}).Of(from, key)
}
