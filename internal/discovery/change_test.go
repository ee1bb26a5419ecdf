package discovery

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/internal/discovery/resources"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// drawWorkload draws a workload of few names, nodes and labels, with an address that
// nobody else has.
func drawWorkload(t *rapid.T, key mesh.Key, number int) *mesh.Workload {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	id, err := mesh.IdentityFor(td, key.Namespace, "a")
	if err != nil {
		t.Fatal(err)
	}
	w := &mesh.Workload{Key: key, ServiceAccount: "a", Identity: id, Node: rapid.SampledFrom([]string{"n1", "n2", "n3"}).Draw(t, "node"),
		Enrolled: rapid.Bool().Draw(t, "enrolled"), Ready: rapid.Bool().Draw(t, "ready"), UID: rapid.SampledFrom([]string{"", "1", "2"}).Draw(t, "uid"),
		Labels: rapid.SampledFrom([]map[string]string{nil, {"app": "a"}, {"app": "b"}, {"app": "a", "tier": "1"}}).Draw(t, "labels")}
	if rapid.IntRange(0, 4).Draw(t, "set up") > 0 {
		w.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 1, byte(number)})}
	}
	return w
}

// drawChange draws a change of objects of few names.
func drawChange(t *rapid.T) (c mesh.Change) {
	const names = 6
	for i := range 2 * names {
		key := mesh.Key{Namespace: []string{"shop", "bank"}[i/names], Name: string(rune('a' + i%names))}
		what := rapid.SliceOfN(rapid.IntRange(0, 8), 3, 3).Draw(t, key.String())
		switch what[0] {
		case 0:
			c.GoneWorkloads = append(c.GoneWorkloads, key)
		case 1, 2:
			c.Workloads = append(c.Workloads, drawWorkload(t, key, i))
		}
		switch what[1] {
		case 0:
			c.GoneServices = append(c.GoneServices, key)
		case 1:
			c.Services = append(c.Services, &mesh.Service{Key: key, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 2, byte(i)})},
				Endpoints: []mesh.Key{{Namespace: key.Namespace, Name: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "endpoint")}},
				Waypoint:  rapid.SampledFrom([]mesh.Key{{}, {Namespace: "shop", Name: "a"}, {Namespace: "bank", Name: "b"}}).Draw(t, "waypoint"),
				Bypass:    rapid.Bool().Draw(t, "bypass")})
		}
		switch what[2] {
		case 0:
			c.GonePolicies = append(c.GonePolicies, key)
		case 1:
			c.Policies = append(c.Policies, &mesh.Policy{Key: key, Action: mesh.Action(rapid.IntRange(0, 2).Draw(t, "action")),
				Selector: rapid.SampledFrom([]map[string]string{nil, {"app": "a"}, {"app": "b"}, {"tier": "1", "app": "a"}}).Draw(t, "selector")})
		}
	}
	if rapid.IntRange(0, 6).Draw(t, "settings") == 0 {
		s := mesh.Settings{TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Egress: mesh.EgressMode(rapid.IntRange(0, 1).Draw(t, "egress"))}
		c.Settings = &s
	}
	if rapid.IntRange(0, 3).Draw(t, "network") == 0 {
		c.Network = drawNetwork(t)
	}
	return c
}

// drawRoutes draws routes of few names, about few services.
func drawRoutes(t *rapid.T) *Routes {
	var list []route.Route
	service := rapid.SampledFrom([]mesh.Key{{Namespace: "shop", Name: "a"}, {Namespace: "shop", Name: "b"}, {Namespace: "shop", Name: "c"}, {Namespace: "bank", Name: "a"}})
	for _, name := range []string{"x", "y"} {
		if rapid.Bool().Draw(t, name) {
			r := route.Route{Parents: []route.Parent{{Service: service.Draw(t, "parent"), Port: 80}}, Rules: []route.Rule{{
				Backends: []route.Backend{{Service: service.Draw(t, "backend"), Port: 80, Weight: 1, Broken: rapid.SampledFrom([]string{"", "", "gone"}).Draw(t, "broken")}},
				Filters:  []route.Filter{{Mirror: &route.Mirror{Service: service.Draw(t, "mirror"), Port: 80}}}}}}
			r.Namespace, r.Name = "shop", name
			list = append(list, r)
		}
	}
	routes, untold := NewRoutes(list)
	if untold != nil {
		t.Fatal(untold)
	}
	return routes
}

func drawNetwork(t *rapid.T) *mesh.Network {
	n := &mesh.Network{}
	for _, name := range []string{"x", "y"} {
		p := netpolicy.Policy{Name: netpolicy.Name{Namespace: "shop", Name: name}, Ingress: &netpolicy.Direction{Rules: []netpolicy.Rule{{Peers: []netpolicy.Peer{{Set: "set-" + name}}}}}}
		if rapid.Bool().Draw(t, "selects") {
			p.Selector = netpolicy.Selector{{Key: "app", Operator: netpolicy.In, Values: []string{rapid.SampledFrom([]string{"a", "b"}).Draw(t, "value")}}}
		}
		n.Policies = append(n.Policies, p)
		n.Sets = append(n.Sets, netpolicy.Shard{Set: "set-" + name, Count: 1, Members: []netpolicy.Member{{Addr: netip.AddrFrom4([4]byte{10, 0, 1, byte(rapid.IntRange(1, 3).Draw(t, "member"))})}}})
	}
	return n
}

// after returns a View made anew of the objects of one with a change.
func after(t *rapid.T, v *mesh.View, c mesh.Change) *mesh.View {
	settings, network := *v.Settings(), mesh.Network{}
	for _, p := range v.Network().Policies() {
		network.Policies = append(network.Policies, *p)
	}
	for _, s := range v.Network().Shards() {
		network.Sets = append(network.Sets, *s)
	}
	if c.Settings != nil {
		settings = *c.Settings
	}
	if c.Network != nil {
		network = *c.Network
	}
	next, err := mesh.ViewOf("", settings, changed(v.Workloads(), c.Workloads, c.GoneWorkloads), changed(v.Services(), c.Services, c.GoneServices),
		changed(v.Policies(), c.Policies, c.GonePolicies), network)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func changed[T interface{ Self() mesh.Key }](was, put []T, gone []mesh.Key) []T {
	is := slices.Clone(put)
	for _, o := range was {
		if !slices.Contains(gone, o.Self()) && !slices.ContainsFunc(put, func(p T) bool { return p.Self() == o.Self() }) {
			is = append(is, o)
		}
	}
	return is
}

// applied is an agent's end: what it holds, and what it was told last.
type applied struct {
	set *resources.Set
	own *nodeSet
}

// apply brings an agent to a set as its client does. What it decides by is the same as
// if it were made anew of all that it holds.
func (a *applied) apply(t *rapid.T, node string, to *nodeSet) {
	held, before := resources.NewHeld(nil), (*resources.Commit)(nil)
	held.Seal()
	if a.set != nil {
		held, before = resources.HeldOf(a.own.Own), &a.set.Commit
	}
	diff, staged := resources.Difference(held, to.Own), resources.NewStaging(a.set)
	for _, r := range diff.Upserts {
		if err := staged.Add(r.Kind, r.Name, r.Version, r.Body); err != nil {
			t.Fatal(err)
		}
	}
	for _, ref := range diff.Removed {
		if err := staged.Remove(ref.Kind, ref.Name); err != nil {
			t.Fatal(err)
		}
	}
	set, view, refused := staged.Close(&to.commit, node, []ed25519.PublicKey{testKey(1).Public().(ed25519.PublicKey)}, before)
	if refused != nil {
		t.Fatalf("%s refuses: %v", node, refused.Reason)
	}
	copied := *set
	anew, err := copied.View()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(view.Workloads(), anew.Workloads()) || !slices.Equal(view.Services(), anew.Services()) || !slices.Equal(view.Policies(), anew.Policies()) ||
		!slices.Equal(view.OnNode(node), anew.OnNode(node)) || !reflect.DeepEqual(view.Settings(), anew.Settings()) ||
		!reflect.DeepEqual(view.Network().Policies(), anew.Network().Policies()) || !reflect.DeepEqual(view.Network().Shards(), anew.Network().Shards()) {
		t.Fatalf("%s decides by another View than one that is made anew", node)
	}
	*a = applied{set, to}
}

// Whatever changes, and however it is told, the sets of every node are those of a
// snapshot that is made anew, and agents decide by what they hold.
func TestWithIsTheSameAsANewSnapshot(t *testing.T) {
	anew := func(t *rapid.T, v *mesh.View, routes *Routes) *Snapshot {
		s, err := NewRoutedSnapshot(v, routes, 1, testKey(1))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	rapid.Check(t, func(t *rapid.T) {
		begin, err := mesh.NewView("", mesh.Settings{TrustDomain: spiffeid.RequireTrustDomainFromString("example.org")}, nil, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		is := anew(t, begin, nil)
		is.waypoints.Grace = 0 // of what a waypoint is told for a while, one that is made anew knows nothing
		waypoint := func(namespace, name string) told {
			key := mesh.Key{Namespace: namespace, Name: name}
			return told{node: WaypointName(key), newer: true, waypoint: key}
		}
		all := []told{{node: "n1", newer: true}, {node: "n1"}, {node: "n2", newer: true}, {node: "n3", newer: true}, {node: "apart", newer: true}, waypoint("shop", "a"), waypoint("bank", "b")}
		last, agents := map[told]*nodeSet{}, map[string]*applied{"n1": {}, "n2": {}, "apart": {}, "waypoint/shop/a": {}}
		for i := range rapid.IntRange(1, 6).Draw(t, "changes") {
			c := drawChange(t)
			view := after(t, is.View(), c)
			routes := is.Routes()
			if rapid.Bool().Draw(t, "rerouted") {
				routes = drawRoutes(t)
			}
			want := anew(t, view, routes)
			if rapid.Bool().Draw(t, "by a View") {
				is, err = is.NextRouted(view, routes, 1)
			} else {
				is, err = is.WithRouted(c, routes, 1)
			}
			if err != nil {
				t.Fatal(err)
			}
			if is.View().Revision() != want.View().Revision() {
				t.Fatalf("change %d: revision %s, want %s", i, is.View().Revision(), want.View().Revision())
			}
			for _, to := range all {
				if to.waypoint.Name != "" && rapid.Bool().Draw(t, "asks later") {
					continue
				}
				got, oracle := is.forNode(to, last[to]), want.forNode(to, nil)
				if fmt.Sprint(resources.RefsOf(got.All())) != fmt.Sprint(resources.RefsOf(oracle.All())) || !bytes.Equal(got.Hash(), oracle.Hash()) {
					t.Fatalf("change %d: %v is told\n%v, want\n%v", i, to, resources.RefsOf(got.All()), resources.RefsOf(oracle.All()))
				}
				if rapid.Bool().Draw(t, "took it") {
					last[to] = got
				}
				if a := agents[to.node]; a != nil && to.newer && rapid.IntRange(0, 3).Draw(t, "there") > 0 {
					a.apply(t, to.node, got)
				}
			}
		}
	})
}
