package mesh_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

func routeView(t testing.TB) *mesh.View {
	api, slow, plain := workload("shop", "api", "10.0.0.1", "fd00::1"), workload("shop", "slow", "10.0.0.2"), workload("shop", "plain", "10.0.0.3")
	slow.Ready = false
	plain.Enrolled = false
	tunnelled := service("tunnel", "10.96.0.4", 80, mesh.TunnelPort, "api")
	mixed := service("mixed", "10.96.0.5", 80, mesh.TunnelPort, "api", "plain")
	s := settings()
	s.EgressNamespaces = map[string]mesh.EgressMode{"closed": mesh.EgressDeny}
	s.RevokedIdentities = []spiffeid.ID{identity("stolen", "api")}
	left := workload("stolen", "left", "10.0.0.6") // of the same account
	left.ServiceAccount, left.Identity, left.Enrolled = "api", identity("stolen", "api"), false
	return mustView(t, s, []mesh.Workload{api, slow, plain, workload("closed", "api", "10.0.0.4"), workload("stolen", "api", "10.0.0.5"), left}, []mesh.Service{
		service("web", "10.96.0.1", 80, 8080, "api", "slow", "plain", "unknown"),
		service("down", "10.96.0.2", 80, 8080, "slow"),
		service("empty", "10.96.0.3", 80, 8080),
		tunnelled, mixed,
	}, nil)
}

func TestRoute(t *testing.T) {
	v := routeView(t)
	for _, test := range []struct {
		name, from, to string
		kind           mesh.RouteKind
		reason         mesh.Reason
		port           uint16
		service        string
		candidates     []string
	}{
		{"workload", "shop", "10.0.0.1:5432", mesh.RouteWorkload, 0, 5432, "", []string{"api"}},
		{"workload, mapped", "shop", "[::ffff:10.0.0.1]:5432", mesh.RouteWorkload, 0, 5432, "", []string{"api"}},
		{"workload, IPv6", "shop", "[fd00::1]:5432", mesh.RouteWorkload, 0, 5432, "", []string{"api"}},
		{"itself", "shop", "10.0.0.1:1", mesh.RouteWorkload, 0, 1, "", []string{"api"}},
		{"unready workload directly", "shop", "10.0.0.2:1", mesh.RouteWorkload, 0, 1, "", []string{"slow"}},
		{"service", "shop", "10.96.0.1:80", mesh.RouteWorkload, 0, 8080, "web", []string{"api", "plain"}},
		{"service, no such port", "shop", "10.96.0.1:81", mesh.RouteReject, mesh.ReasonServicePortUndefined, 81, "web", nil},
		{"service, none ready", "shop", "10.96.0.2:80", mesh.RouteReject, mesh.ReasonNoEndpoint, 8080, "down", nil},
		{"service, none at all", "shop", "10.96.0.3:80", mesh.RouteReject, mesh.ReasonNoEndpoint, 8080, "empty", nil},
		{"unknown address inside", "shop", "10.7.7.7:80", mesh.RouteHold, mesh.ReasonUnknownDestination, 80, "", nil},
		{"unknown address inside, mapped", "shop", "[::ffff:10.7.7.7]:80", mesh.RouteHold, mesh.ReasonUnknownDestination, 80, "", nil},
		{"unknown address inside, IPv6", "closed", "[fd00::7]:80", mesh.RouteHold, mesh.ReasonUnknownDestination, 80, "", nil},
		{"unknown address inside, with a zone", "shop", "[fd00::7%eth0]:80", mesh.RouteHold, mesh.ReasonUnknownDestination, 80, "", nil},
		{"outside", "shop", "192.0.2.1:443", mesh.RouteEgress, mesh.ReasonEgressAllowed, 443, "", nil},
		{"outside, closed namespace", "closed", "192.0.2.1:443", mesh.RouteReject, mesh.ReasonEgressDenied, 443, "", nil},
		{"outside, revoked", "stolen", "192.0.2.1:443", mesh.RouteReject, mesh.ReasonIdentityRevoked, 443, "", nil},
		{"inside, revoked: the other end says", "stolen", "10.0.0.1:80", mesh.RouteWorkload, 0, 80, "", []string{"api"}},
		{"outside, nobody", "", "192.0.2.1:443", mesh.RouteEgress, mesh.ReasonEgressAllowed, 443, "", nil},
		{"tunnel port of an enrolled workload", "shop", "10.0.0.1:15008", mesh.RouteReject, mesh.ReasonReservedPort, 15008, "", nil},
		{"outbound port of itself", "shop", "10.0.0.1:15001", mesh.RouteReject, mesh.ReasonReservedPort, 15001, "", nil},
		{"that port of another", "shop", "10.0.0.3:15008", mesh.RouteWorkload, 0, 15008, "", []string{"plain"}},
		{"service to the tunnel port", "shop", "10.96.0.4:80", mesh.RouteReject, mesh.ReasonReservedPort, 15008, "tunnel", nil},
		{"service to that port, mixed", "shop", "10.96.0.5:80", mesh.RouteWorkload, 0, 15008, "mixed", []string{"plain"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var src *mesh.Workload
			if test.from != "" {
				src = mustWorkload(t, v, test.from, "api")
			}
			r := v.Route(src, netip.MustParseAddrPort(test.to))
			if r.Kind != test.kind || r.Reason != test.reason || r.Port != test.port {
				t.Errorf("kind %v, reason %v, port %d", r.Kind, r.Reason, r.Port)
			}
			if (r.Service == nil) != (test.service == "") || r.Service != nil && r.Service.Name != test.service {
				t.Errorf("service %v, want %q", r.Service, test.service)
			}
			if len(r.Candidates) != len(test.candidates) {
				t.Fatalf("candidates %v, want %v", r.Candidates, test.candidates)
			}
			for i, c := range r.Candidates {
				if c.Name != test.candidates[i] {
					t.Errorf("candidate %d is %v, want %v", i, c.Key, test.candidates[i])
				}
			}
		})
	}
}

// TestEgressIsAboutWhoIsInTheMesh: what is revoked is an identity, which a workload outside has not.
func TestEgressIsAboutWhoIsInTheMesh(t *testing.T) {
	v := routeView(t)
	for _, c := range []struct {
		namespace, name string
		want            mesh.Reason
	}{{"shop", "api", mesh.ReasonEgressAllowed}, {"closed", "api", mesh.ReasonEgressDenied}, {"stolen", "api", mesh.ReasonIdentityRevoked}, {"stolen", "left", mesh.ReasonEgressAllowed}} {
		if got := v.Egress(mustWorkload(t, v, c.namespace, c.name)); got != c.want {
			t.Errorf("%s/%s: %v, want %v", c.namespace, c.name, got, c.want)
		}
	}
}

// TestVacant: the list is what Route says of each service, its ports and addresses.
func TestVacant(t *testing.T) {
	here, there := workload("shop", "here", "10.0.0.1"), workload("shop", "there", "10.0.0.2")
	there.Node = "other"
	dual := service("dual", "10.96.0.6", 80, 8080)
	dual.Addresses = append(dual.Addresses, netip.MustParseAddr("fd00:96::6"))
	local := service("local", "10.96.0.7", 80, 8080, "there")
	local.Prefer = mesh.OnlyNode
	ports := service("ports", "10.96.0.8", 80, 8080, "here")
	ports.Ports = append(ports.Ports, mesh.ServicePort{Name: "b", Port: 81, TargetPort: 81, Only: []mesh.Key{{Namespace: "shop", Name: "gone"}}})
	v := mustView(t, settings(), []mesh.Workload{here, there}, []mesh.Service{
		dual, local, ports, service("served", "10.96.0.9", 80, 8080, "here"), service("reserved", "10.96.0.10", 80, mesh.TunnelPort, "here"),
	}, nil)
	for node, want := range map[string][]string{
		here.Node:  {"10.96.0.6:80", "[fd00:96::6]:80", "10.96.0.7:80", "10.96.0.8:81"},
		there.Node: {"10.96.0.6:80", "[fd00:96::6]:80", "10.96.0.8:81"},
	} {
		listed := map[netip.AddrPort]bool{}
		for _, at := range v.Vacant(node) {
			listed[at] = true
		}
		if len(listed) != len(want) {
			t.Errorf("at %s nobody serves %v, want %v", node, v.Vacant(node), want)
		}
		for _, at := range want {
			if !listed[netip.MustParseAddrPort(at)] {
				t.Errorf("at %s nobody serves %v, want %v among them", node, v.Vacant(node), at)
			}
		}
		for _, s := range v.Services() {
			for _, addr := range s.Addresses {
				for _, port := range s.Ports {
					at := netip.AddrPortFrom(addr, port.Port)
					if reason := v.Route(v.OnNode(node)[0], at).Reason; (reason == mesh.ReasonNoEndpoint) != listed[at] {
						t.Errorf("at %s a connection to %v gets %v, and is listed: %v", node, at, reason, listed[at])
					}
				}
			}
		}
	}
}

func TestRouteBeforeConfiguration(t *testing.T) {
	r := mesh.NewStore().View().Route(nil, netip.MustParseAddrPort("192.0.2.1:443"))
	if r.Kind != mesh.RouteHold || r.Reason != mesh.ReasonNotSynced {
		t.Errorf("%+v", r)
	}
}

func TestRouteAllocatesNothing(t *testing.T) {
	v := routeView(t)
	src := v.Workloads()[0]
	for _, to := range []string{"10.0.0.1:1", "10.96.0.1:80", "10.96.0.5:80", "192.0.2.1:443", "10.7.7.7:80"} {
		dst := netip.MustParseAddrPort(to)
		if n := testing.AllocsPerRun(100, func() { v.Route(src, dst) }); n != 0 {
			t.Errorf("%s: %v allocations, want none", to, n)
		}
	}
}

func TestAddressFor(t *testing.T) {
	dual, v4, v6 := workload("a", "dual", "10.0.0.1", "fd00::1", "fd00::2"), workload("a", "v4", "10.0.0.2"), workload("a", "v6", "fd00::3")
	addr := netip.MustParseAddr
	for _, test := range []struct {
		dst, src *mesh.Workload
		dialled  string
		want     string
	}{
		{&dual, &v4, "10.0.0.1", "10.0.0.1"},
		{&dual, &v6, "fd00::2", "fd00::2"},
		{&dual, &v4, "10.96.0.1", "10.0.0.1"},
		{&dual, &dual, "fd00:96::1", "fd00::1"},
		{&dual, &v6, "10.96.0.1", "fd00::1"}, // dialled by a v6 pod through a v4 service
		{&v6, nil, "10.96.0.1", "fd00::3"},
		{&v6, &v4, "10.96.0.1", ""},
	} {
		got, ok := test.dst.AddressFor(addr(test.dialled), test.src)
		if ok != (test.want != "") || ok && got != addr(test.want) {
			t.Errorf("%s for %s: %v %v, want %q", test.dst.Name, test.dialled, got, ok, test.want)
		}
	}
	if !v4.HasAddress(addr("::ffff:10.0.0.2")) || v4.HasAddress(addr("10.0.0.3")) {
		t.Error("HasAddress")
	}
}

func BenchmarkRoute(b *testing.B) {
	v := routeView(b)
	src, dst := v.Workloads()[0], netip.MustParseAddrPort("10.96.0.1:80")
	b.ReportAllocs()
	for b.Loop() {
		v.Route(src, dst)
	}
}

// TestPortsThatDiffer: each workload is reached at its own number of a port, wherever it
// is; one at which that is the agent's own gets nothing, unless it is not enrolled.
func TestPortsThatDiffer(t *testing.T) {
	names := []string{"a", "b", "c", "plain", "reserved", "without"}
	var workloads []mesh.Workload
	for i, name := range names {
		w := workload("shop", name, fmt.Sprintf("10.0.0.%d", i+1))
		w.Enrolled, w.Zone = name != "plain", string("zy"[i%2])
		workloads = append(workloads, w)
	}
	keys := func(names ...string) (keys []mesh.Key) {
		for _, name := range names {
			keys = append(keys, mesh.Key{Namespace: "shop", Name: name})
		}
		return keys
	}
	s := service("web", "10.96.0.1", 80, 8080, names...)
	s.Ports[0].Only = keys("a", "b")
	s.Ports[0].Elsewhere = []mesh.PortElsewhere{{TargetPort: 9090, Endpoints: keys("c")}, {TargetPort: mesh.TunnelPort, Endpoints: keys("plain", "reserved")}}
	for prefer, want := range map[mesh.Nearness]string{mesh.AnyDistance: "a:8080 b:8080 c:9090 plain:15008", mesh.SameZone: "a:8080 c:9090"} {
		s.Prefer = prefer
		v := mustView(t, settings(), workloads, []mesh.Service{s}, nil)
		src := mustWorkload(t, v, "shop", "a")
		r := v.Route(src, netip.MustParseAddrPort("10.96.0.1:80"))
		var to []string
		for _, w := range r.Candidates {
			to = append(to, fmt.Sprintf("%s:%d", w.Name, r.PortOf(w)))
		}
		if got := strings.Join(to, " "); got != want {
			t.Errorf("prefer %d: connections go to %s, want %s", prefer, got, want)
		}
		if n := testing.AllocsPerRun(100, func() {
			r := v.Route(src, netip.MustParseAddrPort("10.96.0.1:80"))
			r.PortOf(r.Candidates[0])
		}); n != 0 {
			t.Errorf("a route makes %v allocations", n)
		}
	}
	// An endpoint that is not there yet counts as soon as it is.
	s.Ports[0].Elsewhere[0].Endpoints = keys("later")
	v := mustView(t, settings(), workloads, []mesh.Service{s}, nil)
	later := workload("shop", "later", "10.0.0.99")
	next, err := v.With("", mesh.Change{Workloads: []*mesh.Workload{&later}})
	if err != nil {
		t.Fatal(err)
	}
	r := next.Route(nil, netip.MustParseAddrPort("10.96.0.1:80"))
	if w, _ := next.Workload(later.Key); len(r.Candidates) != 4 || r.PortOf(w) != 9090 {
		t.Errorf("%d candidates, the new one at port %d", len(r.Candidates), r.PortOf(w))
	}
	s.Ports[0].Elsewhere[0].TargetPort = 0
	if _, err := mesh.NewView("", settings(), workloads, []mesh.Service{s}, nil); err == nil {
		t.Error("port 0 is accepted")
	}
}

// TestManyShareAnExternalAddress: finding one costs no more for that.
func TestManyShareAnExternalAddress(t *testing.T) {
	shared := netip.MustParseAddr("192.0.2.1")
	var services []mesh.Service
	for i := range 1000 {
		s := service(fmt.Sprintf("s%d", i), fmt.Sprintf("10.96.%d.%d", i/200, i%200), uint16(1000+i), 80)
		s.External = []netip.Addr{shared}
		services = append(services, s)
	}
	v := mustView(t, settings(), nil, services, nil)
	for i := range 1000 {
		at := netip.AddrPortFrom(shared, uint16(1000+i))
		if n := v.LookedAt(at); n > 100 { // of 64 buckets or more
			t.Fatalf("%d services are looked at", n)
		}
		if r := v.Route(nil, at); r.Service == nil || r.Service.Name != fmt.Sprintf("s%d", i) {
			t.Fatalf("%v leads to %v", at, r.Service)
		}
	}
	if n := len(v.Vacant("n")); n != 2000 {
		t.Errorf("%d addresses are vacant", n)
	}
	next, err := v.With("2", mesh.Change{GoneServices: []mesh.Key{services[1].Key}})
	if err != nil {
		t.Fatal(err)
	}
	if r := next.Route(nil, netip.AddrPortFrom(shared, 1001)); r.Service != nil {
		t.Errorf("a service that is gone: %v", r.Service.Key)
	}
}

// TestExternalAddresses: those lead to services at their ports, whoever has them
// otherwise, and to any node's workloads.
func TestExternalAddresses(t *testing.T) {
	here, there := workload("shop", "here", "10.0.0.1"), workload("shop", "there", "10.0.0.2")
	there.Node = "other"
	node := workload("shop", "node", "192.0.2.1")
	external := func(s mesh.Service, addrs ...string) mesh.Service {
		for _, a := range addrs {
			s.External = append(s.External, netip.MustParseAddr(a))
		}
		return s
	}
	local := external(service("local", "10.96.0.2", 81, 8081, "there"), "192.0.2.1", "::ffff:192.0.2.2")
	local.Prefer = mesh.OnlyNode
	services := []mesh.Service{
		external(service("web", "10.96.0.1", 80, 8080, "here"), "192.0.2.1", "2001:db8::1", "10.9.9.9"), local,
		external(service("web-too", "10.96.0.3", 80, 8080, "there"), "192.0.2.1"),
		external(service("nobody", "10.96.0.4", 82, 82), "192.0.2.1"),
	}
	v := mustView(t, settings(), []mesh.Workload{here, there, node}, services, nil)
	src := mustWorkload(t, v, "shop", "here")
	for to, want := range map[string]string{
		"192.0.2.1:80": "web 8080 here", "[::ffff:192.0.2.1]:80": "web 8080 here", "[2001:db8::1]:80": "web 8080 here", "10.9.9.9:80": "web 8080 here",
		"192.0.2.1:81": "local 8081 there", "192.0.2.2:81": "local 8081 there", "10.96.0.2:81": "local 8081 NoEndpoint", "192.0.2.1:82": "nobody 82 NoEndpoint",
		"192.0.2.1:8080": "8080 node", "192.0.2.2:80": "80 EgressAllowed", "10.9.9.9:81": "81 UnknownDestination",
	} {
		r := v.Route(src, netip.MustParseAddrPort(to))
		got := fmt.Sprint(r.Port, " ")
		if r.Service != nil {
			got = r.Service.Name + " " + got
		}
		if len(r.Candidates) > 0 {
			got += r.Candidates[0].Name
		} else {
			got += r.Reason.String()
		}
		if got != want {
			t.Errorf("%s leads to %s, want %s", to, got, want)
		}
	}
	if got, want := fmt.Sprint(v.Vacant(here.Node)), "[10.96.0.2:81 10.96.0.4:82 192.0.2.1:82]"; got != want {
		t.Errorf("nobody serves %s, want %s", got, want)
	}
	bad := external(service("bad", "10.96.0.5", 80, 80), "127.0.0.1", "192.0.2.9", "192.0.2.9")
	if _, err := mesh.NewView("r", settings(), nil, []mesh.Service{bad}, nil); err == nil || !strings.Contains(err.Error(), "127.0.0.1 is not a unicast address") || !strings.Contains(err.Error(), "192.0.2.9 is given twice") {
		t.Errorf("addresses that cannot be: %v", err)
	}
}
