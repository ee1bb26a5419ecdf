package mesh_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
)

// drawChange draws objects of few names, addresses, nodes and labels, so that they have
// to do with each other often, and sometimes what no View may have.
func drawChange(t *rapid.T, most int) mesh.Change {
	namespace := rapid.SampledFrom([]string{"shop", "bank"})
	name := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"})
	key := rapid.Custom(func(t *rapid.T) mesh.Key {
		return mesh.Key{Namespace: namespace.Draw(t, "namespace"), Name: name.Draw(t, "name")}
	})
	address := func(t *rapid.T, k mesh.Key, kind int) []netip.Addr {
		if rapid.IntRange(0, 30).Draw(t, "somebody's address") == 0 {
			return []netip.Addr{netip.MustParseAddr("10.0.0.1")}
		}
		var addrs []netip.Addr
		for range rapid.IntRange(0, 2).Draw(t, "addresses") {
			addr := netip.MustParseAddr(fmt.Sprintf("10.%d.%d.%d", kind, int(k.Name[0]-'a')*2+int(k.Namespace[0]), rapid.IntRange(1, 3).Draw(t, "address")))
			if !slices.Contains(addrs, addr) {
				addrs = append(addrs, addr)
			}
		}
		return addrs
	}
	var c mesh.Change
	keys := func(what string) []mesh.Key { return rapid.SliceOfNDistinct(key, 0, most, rapid.ID).Draw(t, what) }
	for _, k := range keys("workloads") {
		w := genWorkload(k.Namespace, k.Name, "10.0.0.9").Draw(t, "workload")
		w.Addresses, w.Node, w.Zone = address(t, k, 1), rapid.SampledFrom([]string{"n1", "n2", "n3"}).Draw(t, "node"), rapid.SampledFrom([]string{"", "z1"}).Draw(t, "zone")
		w.Ready, w.Leaving = rapid.Bool().Draw(t, "ready"), rapid.Bool().Draw(t, "leaving")
		c.Workloads = append(c.Workloads, &w)
	}
	for _, k := range keys("services") {
		s := &mesh.Service{Key: k, Addresses: address(t, k, 2), Endpoints: keys("endpoints"), Prefer: mesh.Nearness(rapid.IntRange(0, 3).Draw(t, "prefer")),
			Waypoint: rapid.SampledFrom([]mesh.Key{{}, {}, {Namespace: "shop", Name: "a"}, {Namespace: "shop", Name: "b"}, {Namespace: "bank", Name: "a"}}).Draw(t, "waypoint"),
			Bypass:   rapid.Bool().Draw(t, "bypass"),
			Sticky:   rapid.Bool().Draw(t, "sticky"), Unready: rapid.IntRange(0, 4).Draw(t, "unready") == 0, External: address(t, mesh.Key{Namespace: "shop", Name: "a"}, 3), Ports: []mesh.ServicePort{{Port: 80, TargetPort: 8080}}}
		if rapid.Bool().Draw(t, "some") {
			s.Ports = append(s.Ports, mesh.ServicePort{Port: 81, TargetPort: 15008, Only: mesh.SortedKeys(keys("only"))})
			if rapid.Bool().Draw(t, "elsewhere") {
				s.Ports[1].Elsewhere = []mesh.PortElsewhere{{TargetPort: 81, Endpoints: mesh.SortedKeys(keys("elsewhere"))}}
			}
		}
		c.Services = append(c.Services, s)
	}
	for _, k := range keys("policies") {
		p := genPolicy(t)
		p.Key = k
		c.Policies = append(c.Policies, &p)
	}
	c.GoneWorkloads, c.GoneServices, c.GonePolicies = keys("gone workloads"), keys("gone services"), keys("gone policies")
	if rapid.IntRange(0, 9).Draw(t, "settings") == 0 {
		s := settings()
		s.Egress = mesh.EgressMode(rapid.IntRange(0, 1).Draw(t, "egress"))
		s.RevokedIdentities = append(s.RevokedIdentities, genIdentity(t))
		c.Settings = &s
	}
	if rapid.IntRange(0, 5).Draw(t, "network") == 0 {
		c.Network = &mesh.Network{Policies: []netpolicy.Policy{{Name: netpolicy.Name(key.Draw(t, "of")), Ingress: &netpolicy.Direction{}}}}
	}
	return c
}

// world is the end state, kept as plainly as possible.
type world struct {
	settings  mesh.Settings
	network   mesh.Network
	workloads map[mesh.Key]*mesh.Workload
	services  map[mesh.Key]*mesh.Service
	policies  map[mesh.Key]*mesh.Policy
}

func newWorld() world {
	return world{settings(), mesh.Network{}, map[mesh.Key]*mesh.Workload{}, map[mesh.Key]*mesh.Service{}, map[mesh.Key]*mesh.Policy{}}
}

func changed[T any](was map[mesh.Key]*T, put []*T, gone []mesh.Key, key func(*T) mesh.Key) map[mesh.Key]*T {
	is := map[mesh.Key]*T{}
	for k, v := range was {
		if !slices.Contains(gone, k) {
			is[k] = v
		}
	}
	for _, v := range put {
		is[key(v)] = v
	}
	return is
}

func (w world) with(c mesh.Change) world {
	if c.Settings != nil {
		w.settings = *c.Settings
	}
	if c.Network != nil {
		w.network = *c.Network
	}
	w.workloads = changed(w.workloads, c.Workloads, c.GoneWorkloads, func(v *mesh.Workload) mesh.Key { return v.Key })
	w.services = changed(w.services, c.Services, c.GoneServices, func(v *mesh.Service) mesh.Key { return v.Key })
	w.policies = changed(w.policies, c.Policies, c.GonePolicies, func(v *mesh.Policy) mesh.Key { return v.Key })
	return w
}

func values[T any](of map[mesh.Key]*T) (all []*T) {
	for _, v := range of {
		all = append(all, v)
	}
	return all
}

func (w world) view() (*mesh.View, error) {
	return mesh.ViewOf("r", w.settings, values(w.workloads), values(w.services), values(w.policies), w.network)
}

// answers are what a View says to everything that is asked in these tests. Objects are
// told apart by their places in memory: both Views have the same ones.
func answers(v *mesh.View) map[string]string {
	said := map[string]string{"all": fmt.Sprint(*v.Settings(), v.Revision(), len(v.Network().Policies()), pointers(v.Workloads()), pointers(v.Services()), pointers(v.Policies()))}
	addrs := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.9.9.9"), netip.MustParseAddr("192.0.2.1")}
	for _, w := range v.Workloads() {
		addrs = append(addrs, w.Addresses...)
		found, _ := v.Workload(w.Key)
		said["workload "+w.Key.String()] = fmt.Sprintf("%p %v", found, v.IsWaypoint(w))
		for _, peer := range []spiffeid.ID{{}, identity("shop", "web"), identity("bank", "web")} {
			for _, port := range []uint16{80, 443} {
				_, decision := v.Authorize(mesh.Connection{Destination: w, Port: port, Source: netip.MustParseAddr("10.1.2.3"), Peer: peer})
				said[fmt.Sprint("authorize ", w.Key, peer, port)] = fmt.Sprint(decision)
			}
		}
		for _, from := range v.Workloads() {
			for _, port := range []uint16{8080} {
				_, decision := v.Authorize(mesh.Connection{Destination: w, Port: port, Peer: from.Identity})
				said[fmt.Sprint("from ", from.Key, " to ", w.Key, port)] = fmt.Sprint(decision, v.SentOn(w, from.Identity, port), v.MaySendOn(w, from.Identity, netip.MustParseAddr("10.1.2.3")))
			}
		}
	}
	for _, s := range v.Services() {
		addrs = append(append(addrs, s.Addresses...), s.External...)
		found, _ := v.Service(s.Key)
		said["service "+s.Key.String()] = fmt.Sprintf("%p", found)
	}
	for _, node := range []string{"n1", "n2", "n3", "n4"} {
		said["on "+node] = fmt.Sprint(pointers(v.OnNode(node)))
		said["vacant on "+node] = fmt.Sprint(v.Vacant(node))
		said["sent on "+node] = fmt.Sprint(v.Sent(node))
	}
	for _, addr := range addrs {
		w, _ := v.WorkloadAt(addr)
		s, _ := v.ServiceAt(addr)
		said["at "+addr.String()] = fmt.Sprintf("%p %p", w, s)
		for _, w := range v.Workloads() {
			said[fmt.Sprint("behind ", addr, w.Key)] = fmt.Sprintf("%p", v.Behind(netip.AddrPortFrom(addr, 80), w.Key))
		}
		for _, src := range append([]*mesh.Workload{nil}, v.Workloads()...) {
			for _, port := range []uint16{80, 81, 15008} {
				r := v.Route(src, netip.AddrPortFrom(addr, port))
				said[fmt.Sprintf("route %p %v %d", src, addr, port)] = fmt.Sprintf("%v %p %p %d %v %v", r.Kind, r.Service, r.Waypoint, r.Port, r.Reason, pointers(r.Candidates))
			}
		}
	}
	return said
}

func pointers[T any](of []*T) (all []string) {
	for _, o := range of {
		all = append(all, fmt.Sprintf("%p", o))
	}
	return all
}

// Changes that are made to a View, whatever they are, give what is made anew of
// the end state: the same answers, and the same errors.
func TestWithIsTheSameAsANewView(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		is := newWorld().with(drawChange(t, 10))
		view, err := is.view()
		if err != nil {
			is = newWorld()
			if view, err = is.view(); err != nil {
				t.Fatal(err)
			}
		}
		for range rapid.IntRange(1, 6).Draw(t, "changes") {
			c := drawChange(t, 3)
			next := is.with(c)
			before := answers(view)
			want, wrong := next.view()
			got, err := view.With("r", c)
			if (err == nil) != (wrong == nil) || err != nil && err.Error() != wrong.Error() {
				t.Fatalf("error %v, want %v", err, wrong)
			}
			if diff := cmp.Diff(before, answers(view)); diff != "" {
				t.Fatalf("the View before has changed:\n%s", diff)
			}
			if err != nil {
				continue
			}
			if diff := cmp.Diff(answers(want), answers(got)); diff != "" {
				t.Fatalf("(-made anew +changed):\n%s", diff)
			}
			is, view = next, got
		}
	})
}

// A change of one workload of a large mesh allocates what it copies.
func BenchmarkWith(b *testing.B) {
	for _, many := range []int{10_000, 50_000} {
		var c mesh.Change
		for i := range many {
			w := workload(fmt.Sprintf("team-%d", i%50), fmt.Sprintf("app-%d", i), fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255))
			w.Node = fmt.Sprintf("node-%d", i/30)
			c.Workloads = append(c.Workloads, &w)
			if i%10 == 0 {
				c.Services = append(c.Services, &mesh.Service{Key: w.Key, Ports: []mesh.ServicePort{{Port: 80, TargetPort: 80}}})
			}
			s := c.Services[len(c.Services)-1]
			s.Endpoints = append(s.Endpoints, w.Key)
		}
		v, err := mesh.ViewOf("r", settings(), c.Workloads, c.Services, nil, mesh.Network{})
		if err != nil {
			b.Fatal(err)
		}
		for what, with := range map[string]func(w *mesh.Workload) (*mesh.View, error){
			"one": func(w *mesh.Workload) (*mesh.View, error) {
				return v.With("r", mesh.Change{Workloads: []*mesh.Workload{w}})
			},
			"anew": func(*mesh.Workload) (*mesh.View, error) {
				return mesh.ViewOf("r", settings(), c.Workloads, c.Services, nil, mesh.Network{})
			},
		} {
			b.Run(fmt.Sprint(what, "/", many), func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					w := *c.Workloads[i%many]
					w.Ready = !w.Ready
					if _, err := with(&w); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
