package mesh_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
)

func key(name string) mesh.Key { return mesh.Key{Namespace: "shop", Name: name} }

func behindWaypoint(s mesh.Service, waypoint string, bypass bool) mesh.Service {
	s.Waypoint, s.Bypass = key(waypoint), bypass
	return s
}

// waypointView has services behind waypoints of every state.
func waypointView(t testing.TB, policies ...mesh.Policy) *mesh.View {
	slow, plain := workload("shop", "slow", "10.0.0.6"), workload("shop", "plain", "10.0.0.7")
	slow.Ready, plain.Enrolled = false, false
	other := workload("shop", "w2", "10.0.0.5")
	other.Node = "n2"
	external := behindWaypoint(service("external", "10.96.0.9", 80, 8080, "db"), "waypoint", false)
	external.External = []netip.Addr{netip.MustParseAddr("192.0.2.9")}
	local := service("local", "", 80, mesh.WaypointPort, "w1", "w2")
	local.Prefer = mesh.OnlyNode
	return mustView(t, settings(), []mesh.Workload{
		workload("shop", "web", "10.0.0.1"), workload("shop", "db", "10.0.0.2"), workload("bank", "web", "10.0.0.3"),
		workload("shop", "w1", "10.0.0.4"), other, slow, plain,
	}, []mesh.Service{
		service("waypoint", "10.96.0.1", 80, mesh.WaypointPort, "w1", "w2", "slow"),
		service("mixed", "", 80, mesh.WaypointPort, "plain", "w1"),
		service("down", "", 80, mesh.WaypointPort, "slow", "plain"),
		local,
		behindWaypoint(service("db", "10.96.0.2", 80, 8080, "db"), "waypoint", false),
		behindWaypoint(service("mix", "10.96.0.3", 80, 8080, "db"), "mixed", false),
		behindWaypoint(service("closed", "10.96.0.4", 80, 8080, "db"), "down", false),
		behindWaypoint(service("open", "10.96.0.5", 80, 8080, "db"), "down", true),
		behindWaypoint(service("lost", "10.96.0.6", 80, 8080, "db"), "nobody", false),
		behindWaypoint(service("empty", "10.96.0.7", 80, 8080), "waypoint", false),
		behindWaypoint(service("near", "10.96.0.8", 80, 8080, "db"), "local", false),
		behindWaypoint(service("headless", "", 80, 8080, "db"), "waypoint", false),
		external,
	}, policies)
}

func TestRouteThroughWaypoints(t *testing.T) {
	v := waypointView(t)
	for _, c := range []struct {
		from, to, want string
	}{
		{"shop/web", "10.96.0.2:80", "db by waypoint: w1 w2 at 15009"},
		{"bank/web", "10.96.0.2:80", "db by waypoint: w1 w2 at 15009"},
		{"", "10.96.0.2:80", "db by waypoint: w1 w2 at 15009"},
		{"shop/web", "[::ffff:10.96.0.2]:80", "db by waypoint: w1 w2 at 15009"},
		{"shop/web", "10.96.0.2:81", "db: ServicePortUndefined"},
		{"shop/db", "10.96.0.2:80", "db by waypoint: w1 w2 at 15009"}, // also to itself
		{"shop/w1", "10.96.0.2:80", "db: db at 8080"},
		{"shop/slow", "10.96.0.2:80", "db: db at 8080"}, // a waypoint that is about to start
		{"shop/w1", "10.96.0.3:80", "mix: db at 8080"},  // another service's
		{"shop/web", "10.96.0.3:80", "mix by mixed: w1 at 15009"},
		{"shop/web", "10.96.0.4:80", "closed by down: NoEndpoint"},
		{"shop/web", "10.96.0.5:80", "open: db at 8080"},
		{"shop/web", "10.96.0.6:80", "lost: NoEndpoint"},
		{"shop/web", "10.96.0.7:80", "empty by waypoint: w1 w2 at 15009"}, // the waypoint says why not
		{"shop/w1", "10.96.0.7:80", "empty: NoEndpoint"},
		{"shop/web", "10.96.0.8:80", "near by local: w1 at 15009"},
		{"shop/web", "192.0.2.9:80", "external by waypoint: w1 w2 at 15009"},
		{"shop/web", "10.0.0.2:8080", "db at 8080"}, // a pod's own address
		{"shop/web", "10.0.0.4:80", "w1 at 80"},
		{"shop/web", "10.0.0.4:15009", "ReservedPort"},
		{"shop/web", "10.0.0.7:15009", "plain at 15009"},
		{"shop/web", "10.96.0.1:80", "waypoint: ReservedPort"},
	} {
		t.Run(c.from+" to "+c.to, func(t *testing.T) {
			var src *mesh.Workload
			if c.from != "" {
				src = mustWorkload(t, v, c.from[:4], c.from[5:])
			}
			if got := described(v.Route(src, netip.MustParseAddrPort(c.to))); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	if got := described(v.Past(mustWorkload(t, v, "shop", "web"), netip.MustParseAddrPort("10.96.0.2:80"))); got != "db: db at 8080" {
		t.Errorf("past the waypoint: %q", got)
	}
	src, dst := mustWorkload(t, v, "shop", "web"), netip.MustParseAddrPort("10.96.0.2:80")
	if n := testing.AllocsPerRun(100, func() { v.Route(src, dst) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func described(r mesh.Route) string {
	text := ""
	if r.Service != nil {
		text = r.Service.Name
		if r.Waypoint != nil {
			text += " by " + r.Waypoint.Name
		}
		text += ":"
	}
	if r.Kind != mesh.RouteWorkload {
		return trim(text + " " + r.Reason.String())
	}
	for _, w := range r.Candidates {
		text += " " + w.Name
	}
	return trim(fmt.Sprintf("%s at %d", text, r.Port))
}

func trim(s string) string {
	if s != "" && s[0] == ' ' {
		return s[1:]
	}
	return s
}

// TestBehind: a workload is the waypoint of the services that have it, at their own ports.
func TestBehind(t *testing.T) {
	v := waypointView(t)
	for to, want := range map[string]string{
		"10.96.0.2:80": "db", "10.96.0.2:81": "", "10.96.0.3:80": "mix", "10.96.0.4:80": "", "10.96.0.9:80": "external", "192.0.2.9:80": "external", "192.0.2.9:81": "",
		"10.96.0.1:80": "", "10.0.0.2:8080": "", "10.7.7.7:80": "", "192.0.2.1:80": "",
	} {
		got := ""
		if s := v.Behind(netip.MustParseAddrPort(to), key("w1")); s != nil {
			got = s.Name
		}
		if got != want {
			t.Errorf("%s: %q, want %q", to, got, want)
		}
	}
	if s := v.Behind(netip.MustParseAddrPort("10.96.0.2:80"), key("web")); s != nil {
		t.Errorf("web is a waypoint of %v", s.Key)
	}
}

// TestAuthorizeAtWaypoints: what a waypoint is asked for is not judged by the policies that
// select it, and nobody else gets to its port.
func TestAuthorizeAtWaypoints(t *testing.T) {
	nobody := mesh.Policy{Key: key("nobody"), Action: mesh.ActionAllow}
	v := waypointView(t, nobody)
	w1 := mustWorkload(t, v, "shop", "w1")
	db := netip.MustParseAddrPort("10.96.0.2:80")
	for _, c := range []struct {
		name   string
		change func(*mesh.Connection)
		want   mesh.Reason
	}{
		{"as it is", func(*mesh.Connection) {}, mesh.ReasonWaypoint},
		{"at its own port", func(c *mesh.Connection) { c.Behind, c.Port = netip.AddrPort{}, 80 }, mesh.ReasonPolicyNoMatch},
		{"directly", func(c *mesh.Connection) { c.Behind = netip.AddrPort{} }, mesh.ReasonReservedPort},
		{"directly, as a probe", func(c *mesh.Connection) { *c = mesh.Connection{Destination: w1, Port: 15009, Probe: true} }, mesh.ReasonReservedPort},
		{"in plaintext", func(c *mesh.Connection) { c.Peer = mesh.Connection{}.Peer }, mesh.ReasonAuthorityMismatch},
		{"at another port", func(c *mesh.Connection) { c.Port = 80 }, mesh.ReasonAuthorityMismatch},
		{"for a service of another waypoint", func(c *mesh.Connection) { c.Behind = netip.MustParseAddrPort("10.96.0.4:80") }, mesh.ReasonAuthorityMismatch},
		{"for a pod", func(c *mesh.Connection) { c.Behind = netip.MustParseAddrPort("10.0.0.2:8080") }, mesh.ReasonAuthorityMismatch},
		{"of somebody who is no waypoint", func(c *mesh.Connection) { c.Destination = mustWorkload(t, v, "shop", "web") }, mesh.ReasonAuthorityMismatch},
		{"of a waypoint outside the mesh", func(c *mesh.Connection) {
			c.Destination, c.Behind = mustWorkload(t, v, "shop", "plain"), netip.MustParseAddrPort("10.96.0.3:80")
		}, mesh.ReasonAuthorityMismatch},
	} {
		connection := mesh.Connection{Peer: identity("bank", "web"), Source: netip.MustParseAddr("10.0.0.3"), Destination: w1, Port: mesh.WaypointPort, Behind: db}
		c.change(&connection)
		permit, d := v.Authorize(connection)
		if d.Reason != c.want || permit.Valid() != (c.want == mesh.ReasonWaypoint) {
			t.Errorf("%s: %v, %v; want %v", c.name, d.Verdict, d.Reason, c.want)
		}
		if permit.Valid() && (permit.Behind() != db || permit.Port() != mesh.WaypointPort) {
			t.Errorf("%s: permit for %v at %d", c.name, permit.Behind(), permit.Port())
		}
	}
}

// TestIdentitiesAtWaypoints: who is asked for what says nothing of who asks. An identity that
// is revoked, or no longer federated, is refused as such when the service has left the
// waypoint, too: what is refused for that alone is left to end by itself.
func TestIdentitiesAtWaypoints(t *testing.T) {
	web, foreign := identity("bank", "web"), spiffeid.RequireFromString("spiffe://other.org/ns/shop/sa/web")
	v := waypointView(t)
	s := *v.Settings()
	s.RevokedIdentities = []spiffeid.ID{web}
	v, err := v.With("r2", mesh.Change{Settings: &s})
	if err != nil {
		t.Fatal(err)
	}
	for _, behind := range []string{"10.96.0.2:80", "10.96.0.4:80", "10.7.7.7:80"} {
		for peer, want := range map[spiffeid.ID]mesh.Reason{web: mesh.ReasonIdentityRevoked, foreign: mesh.ReasonNotFederated} {
			permit, d := v.Authorize(mesh.Connection{Peer: peer, Source: netip.MustParseAddr("10.0.0.3"), Destination: mustWorkload(t, v, "shop", "w1"), Port: mesh.WaypointPort, Behind: netip.MustParseAddrPort(behind)})
			if d.Reason != want || permit.Valid() {
				t.Errorf("%v for %s: %v, want %v", peer, behind, d.Reason, want)
			}
		}
	}
}

// TestAuthorizeBehindWaypoints: a workload admits the waypoint of its services to the ports
// that these lead to, whatever its policies say of identities.
func TestAuthorizeBehindWaypoints(t *testing.T) {
	nobody := mesh.Policy{Key: key("nobody"), Action: mesh.ActionAllow, Selector: map[string]string{"app": "db"}}
	never := mesh.Policy{Key: key("never"), Action: mesh.ActionDeny, Selector: map[string]string{"app": "db"}, Rules: []mesh.Rule{{}}}
	for name, policies := range map[string][]mesh.Policy{"allow": {nobody}, "deny": {never}} {
		v := waypointView(t, policies...)
		db := mustWorkload(t, v, "shop", "db")
		for _, c := range []struct {
			peer string
			port uint16
			ok   bool
		}{
			{"shop/w1", 8080, true}, {"shop/w2", 8080, true}, {"shop/slow", 8080, true}, // a waypoint that leaves
			{"shop/w1", 8081, false}, {"shop/web", 8080, false}, {"bank/web", 8080, false}, {"shop/plain", 8080, false}, {"bank/w1", 8080, false},
		} {
			_, d := v.Authorize(mesh.Connection{Peer: identity(c.peer[:4], c.peer[5:]), Source: netip.MustParseAddr("10.9.9.9"), Destination: db, Port: c.port})
			if got := d.Verdict == mesh.VerdictAllow; got != c.ok || c.ok != (d.Reason == mesh.ReasonWaypoint) {
				t.Errorf("%s: %s to %d: %v, %v", name, c.peer, c.port, d.Verdict, d.Reason)
			}
		}
		connection := mesh.Connection{Peer: identity("shop", "w1"), Source: netip.MustParseAddr("10.0.0.4"), Destination: db, Port: 8080}
		if n := testing.AllocsPerRun(100, func() { v.Authorize(connection) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
	v := waypointView(t)
	if _, d := v.Authorize(mesh.Connection{Peer: identity("shop", "w1"), Source: netip.MustParseAddr("10.0.0.4"), Destination: mustWorkload(t, v, "shop", "db"), Port: 8080}); d.Reason != mesh.ReasonNoPolicy {
		t.Errorf("without policies: %v", d.Reason)
	}
}

// TestFormerWaypoints: who is a waypoint no more is let in for a while as if an ALLOW policy
// named it. It is no other than it was: whoever denies it, revokes it or keeps it away by a
// NetworkPolicy still does.
func TestFormerWaypoints(t *testing.T) {
	nobody := mesh.Policy{Key: key("nobody"), Action: mesh.ActionAllow, Selector: map[string]string{"app": "db"}}
	never := mesh.Policy{Key: key("never"), Action: mesh.ActionDeny, Selector: map[string]string{"app": "db"}, Rules: []mesh.Rule{{}}}
	w1 := identity("shop", "w1")
	revoked := settings()
	revoked.RevokedIdentities = []spiffeid.ID{w1}
	away := mesh.Network{Policies: []netpolicy.Policy{{Name: netpolicy.Name(key("away")), Ingress: &netpolicy.Direction{}}}}
	for _, c := range []struct {
		name   string
		with   mesh.Change
		former bool
		want   mesh.Reason
	}{
		{"an ALLOW policy that names it not", mesh.Change{Policies: []*mesh.Policy{&nobody}}, true, mesh.ReasonWaypoint},
		{"the same of one that never was", mesh.Change{Policies: []*mesh.Policy{&nobody}}, false, mesh.ReasonPolicyNoMatch},
		{"a DENY policy", mesh.Change{Policies: []*mesh.Policy{&nobody, &never}}, true, mesh.ReasonPolicyDeny},
		{"no policy", mesh.Change{}, true, mesh.ReasonNoPolicy},
		{"revoked", mesh.Change{Policies: []*mesh.Policy{&nobody}, Settings: &revoked}, true, mesh.ReasonIdentityRevoked},
		{"a NetworkPolicy", mesh.Change{Policies: []*mesh.Policy{&nobody}, Network: &away}, true, mesh.ReasonNetworkPolicyIngress},
	} {
		v, err := mustView(t, settings(), []mesh.Workload{workload("shop", "db", "10.0.0.2"), workload("shop", "w1", "10.0.0.4")}, nil, nil).With("r2", c.with)
		if err != nil {
			t.Fatal(err)
		}
		permit, d := v.Authorize(mesh.Connection{Peer: w1, Source: netip.MustParseAddr("10.0.0.4"), Destination: mustWorkload(t, v, "shop", "db"), Port: 8080, Former: c.former})
		if d.Reason != c.want || permit.Valid() != (c.want == mesh.ReasonWaypoint || c.want == mesh.ReasonNoPolicy) {
			t.Errorf("%s: %v, %v; want %v", c.name, d.Verdict, d.Reason, c.want)
		}
	}
}

// TestMaySendOn: a node waits for what it may be told next of who may be a waypoint, and of
// nobody else.
func TestMaySendOn(t *testing.T) {
	v := waypointView(t)
	db := mustWorkload(t, v, "shop", "db")
	for _, c := range []struct {
		name   string
		client spiffeid.ID
		source string
		want   bool
	}{
		{"of a Service that leads to the waypoints' port", identity("shop", "w1"), "10.0.0.4", true},
		{"not ready yet", identity("shop", "slow"), "10.0.0.6", true},
		{"a pod that is not known yet", identity("shop", "w9"), "10.0.9.9", true},
		{"at the address of one that was", identity("shop", "w9"), "10.0.0.1", true},
		{"any other of the namespace", identity("shop", "web"), "10.0.0.1", false},
		{"of another namespace", identity("bank", "web"), "10.0.0.3", false},
		{"of another namespace, not known yet", identity("bank", "w9"), "10.0.9.9", false},
		{"of another trust domain", spiffeid.RequireFromString("spiffe://other.org/ns/shop/sa/w1"), "10.0.9.9", false},
		{"nobody", spiffeid.ID{}, "10.0.9.9", false},
	} {
		if got := v.MaySendOn(db, c.client, netip.MustParseAddr(c.source)); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// TestWaypointsAndNetworkPolicies: each hop is a connection between two pods.
func TestWaypointsAndNetworkPolicies(t *testing.T) {
	v := waypointView(t)
	isolated := func(name string) netpolicy.Policy {
		return netpolicy.Policy{Name: netpolicy.Name(key(name)), Selector: []netpolicy.Requirement{{Key: "app", Operator: netpolicy.In, Values: []string{name}}},
			Ingress: &netpolicy.Direction{Rules: []netpolicy.Rule{{Peers: []netpolicy.Peer{{Block: netip.MustParsePrefix("10.0.0.1/32")}}}}}}
	}
	v, err := v.With("r2", mesh.Change{Network: &mesh.Network{Policies: []netpolicy.Policy{isolated("w1"), isolated("db")}}})
	if err != nil {
		t.Fatal(err)
	}
	w1, db := mustWorkload(t, v, "shop", "w1"), mustWorkload(t, v, "shop", "db")
	for source, want := range map[string]mesh.Reason{"10.0.0.1": mesh.ReasonWaypoint, "10.0.0.3": mesh.ReasonNetworkPolicyIngress} {
		c := mesh.Connection{Peer: identity("shop", "web"), Source: netip.MustParseAddr(source), Destination: w1, Port: mesh.WaypointPort, Behind: netip.MustParseAddrPort("10.96.0.2:80")}
		if source == "10.0.0.3" {
			c.Peer = identity("bank", "web")
		}
		if _, d := v.Authorize(c); d.Reason != want {
			t.Errorf("%s to the waypoint: %v, want %v", source, d.Reason, want)
		}
	}
	if _, d := v.Authorize(mesh.Connection{Peer: identity("shop", "w1"), Source: netip.MustParseAddr("10.0.0.4"), Destination: db, Port: 8080}); d.Reason != mesh.ReasonNetworkPolicyIngress {
		t.Errorf("the waypoint, whom db's NetworkPolicy does not name: %v", d.Reason)
	}
}

// TestWaypointsOfMany counts the services of a waypoint as they come and go.
func TestWaypointsOfMany(t *testing.T) {
	v := waypointView(t)
	w1, dst := mustWorkload(t, v, "shop", "w1"), netip.MustParseAddrPort("10.96.0.2:80")
	for i, c := range []struct {
		change mesh.Change
		is     bool
	}{
		{mesh.Change{GoneServices: []mesh.Key{key("empty"), key("headless"), key("external"), key("mix"), key("near")}}, true},
		{mesh.Change{Services: []*mesh.Service{ptr(service("db", "10.96.0.2", 80, 8080, "db"))}}, false},
		{mesh.Change{Services: []*mesh.Service{ptr(behindWaypoint(service("db", "10.96.0.2", 80, 8080, "db"), "waypoint", true))}}, true},
		{mesh.Change{Services: []*mesh.Service{ptr(behindWaypoint(service("db", "10.96.0.2", 80, 8080, "db"), "nobody", true))}}, false},
		{mesh.Change{Services: []*mesh.Service{ptr(behindWaypoint(service("db", "10.96.0.2", 80, 8080, "db"), "waypoint", true))}}, true},
		{mesh.Change{GoneServices: []mesh.Key{key("waypoint")}}, false},
	} {
		var err error
		if v, err = v.With("r", c.change); err != nil {
			t.Fatal(err)
		}
		if v.IsWaypoint(w1) != c.is || (v.Behind(dst, w1.Key) != nil) != c.is {
			t.Errorf("after change %d: a waypoint: %v, of db: %v; want %v", i, v.IsWaypoint(w1), v.Behind(dst, w1.Key) != nil, c.is)
		}
	}
}

func ptr[T any](v T) *T { return &v }

// foreignView is a mesh in which namespace evil has services with endpoints of namespace shop,
// which denies it everything: x behind w, whose workload is evil's own, and y behind taken, whose
// endpoint is shop's victim.
func foreignView(t testing.TB) *mesh.View {
	evil := func(s mesh.Service, waypoint string) mesh.Service {
		s.Namespace = "evil"
		if waypoint != "" {
			s.Waypoint = mesh.Key{Namespace: "evil", Name: waypoint}
		}
		return s
	}
	across := service("across", "10.96.1.6", 80, 8080, "victim") // shop's own, behind evil's waypoint
	across.Waypoint = mesh.Key{Namespace: "evil", Name: "w"}
	w := evil(service("w", "", 80, mesh.WaypointPort), "")
	w.Endpoints = []mesh.Key{{Namespace: "evil", Name: "pod"}}
	mixed := evil(service("mixed", "", 80, mesh.WaypointPort, "victim"), "")
	mixed.Endpoints = append(mixed.Endpoints, mesh.Key{Namespace: "evil", Name: "pod"})
	return mustView(t, settings(), []mesh.Workload{
		workload("evil", "pod", "10.0.1.1"), workload("shop", "victim", "10.0.1.2"), workload("shop", "db", "10.0.1.3"), workload("shop", "w1", "10.0.1.4"),
	}, []mesh.Service{
		w, evil(service("taken", "", 80, mesh.WaypointPort, "victim"), ""), mixed, across,
		evil(service("x", "10.96.1.1", 80, 8080, "victim"), "w"),
		evil(service("y", "10.96.1.2", 80, 8080, "victim"), "taken"),
		evil(service("z", "10.96.1.3", 80, 8080, "victim"), "mixed"),
		service("waypoint", "10.96.1.4", 80, mesh.WaypointPort, "w1"),
		behindWaypoint(service("db", "10.96.1.5", 80, 8080, "db"), "waypoint", false),
	}, []mesh.Policy{{Key: key("no-evil"), Action: mesh.ActionDeny, Rules: []mesh.Rule{{From: []mesh.Source{{Namespaces: []string{"evil"}}}}}}})
}

// TestWaypointsOfOthersWorkloads: a Service whose endpoints are another namespace's makes these
// neither waypoints nor reachable past the policies of their own namespace.
func TestWaypointsOfOthersWorkloads(t *testing.T) {
	v := foreignView(t)
	pod, victim := mustWorkload(t, v, "evil", "pod"), mustWorkload(t, v, "shop", "victim")
	if !v.IsWaypoint(pod) || v.IsWaypoint(victim) {
		t.Errorf("evil's own pod is a waypoint: %v; the victim: %v", v.IsWaypoint(pod), v.IsWaypoint(victim))
	}
	for _, port := range []uint16{8080, mesh.WaypointPort} {
		if v.SentOn(victim, pod.Identity, port) {
			t.Errorf("evil's pod is sent on to shop's victim at %d", port)
		}
	}
	for _, c := range []struct {
		from *mesh.Workload
		to   string
		want string
	}{
		{victim, "10.96.1.5:80", "db by waypoint: w1 at 15009"},
		{victim, "10.96.1.1:80", "x by w: pod at 15009"},
		{victim, "10.96.1.2:80", "y by taken: NoEndpoint"},
		{victim, "10.96.1.3:80", "z by mixed: pod at 15009"},
		{victim, "10.96.1.6:80", "across: NoEndpoint"},
	} {
		if got := described(v.Route(c.from, netip.MustParseAddrPort(c.to))); got != c.want {
			t.Errorf("%v to %s: %q, want %q", c.from.Key, c.to, got, c.want)
		}
	}
	for _, to := range []string{"10.96.1.1:80", "10.96.1.2:80", "10.96.1.3:80", "10.96.1.5:80", "10.96.1.6:80"} {
		behind := netip.MustParseAddrPort(to)
		if s := v.Behind(behind, victim.Key); s != nil {
			t.Errorf("the victim is a waypoint of %v", s.Key)
		}
		c := mesh.Connection{Peer: pod.Identity, Source: pod.Addresses[0], Destination: victim, Port: mesh.WaypointPort, Behind: behind}
		if _, d := v.Authorize(c); d.Reason != mesh.ReasonAuthorityMismatch {
			t.Errorf("evil's pod is let to the victim for %s: %v", to, d.Reason)
		}
	}
	if s := v.Behind(netip.MustParseAddrPort("10.96.1.6:80"), pod.Key); s != nil {
		t.Errorf("evil's pod is a waypoint of %v", s.Key)
	}
	_, d := v.Authorize(mesh.Connection{Peer: pod.Identity, Source: pod.Addresses[0], Destination: victim, Port: 8080})
	if d.Reason != mesh.ReasonPolicyDeny {
		t.Errorf("evil's pod to the victim: %v", d.Reason)
	}
}
