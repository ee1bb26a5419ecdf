package proxy_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/agent/engine"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
	"github.com/heddle-mesh/heddle/internal/proxyheader"
)

const behindVIP = "198.18.9.7:7000"

// behind is a mesh with a service behind a waypoint, on node b: web is far from it, near
// beside it. The service's one workload, db, is on node a, and admits nobody but web.
type behind struct {
	w                   *world
	a, b                *node
	web, near, waypoint *pod
	// headers are those that the waypoint has read.
	headers chan proxyheader.Header
	stop    func()
}

func newBehind(t *testing.T, engines map[string]string, change func(*world)) *behind {
	w := newWorld(t)
	w.engines = engines
	w.workload("web", "a", "198.18.1.1")
	w.workload("waypoint", "b", "198.18.2.1")
	w.workload("near", "b", "198.18.2.2")
	w.workload("db", "a", "198.18.1.2")
	w.service("waypoint", "198.18.9.8", 7000, mesh.WaypointPort, "waypoint")
	w.service("db", "198.18.9.7", 7000, 7001, "db")
	w.services[1].Waypoint = mesh.Key{Namespace: "shop", Name: "waypoint"}
	w.policies = append(w.policies, mesh.Policy{Key: mesh.Key{Namespace: "shop", Name: "web-may"}, Action: mesh.ActionAllow,
		Rules: []mesh.Rule{{From: []mesh.Source{{Identities: []mesh.IdentityPattern{"spiffe://example.test/ns/shop/sa/web"}}}}}})
	if change != nil {
		change(w)
	}
	w.publish()
	n := &behind{w: w, a: w.node("a"), b: w.node("b"), headers: make(chan proxyheader.Header, 64)}
	application(t, "198.18.1.2:17001", echo)
	n.web = n.a.serve("web", "198.18.1.1", podOptions{outbound: []string{behindVIP, "198.18.2.1:15009"}})
	n.a.serve("db", "198.18.1.2", podOptions{apps: map[uint16]uint16{7001: 17001}})
	n.near = n.b.serve("near", "198.18.2.2", podOptions{outbound: []string{"198.18.9.9:7000"}})
	n.waypoint = n.b.serve("waypoint", "198.18.2.1", podOptions{apps: map[uint16]uint16{15009: 25009}, outbound: []string{"198.18.1.2:7001"}})
	n.stop = stoppable(t, "198.18.2.1:25009", func(c *net.TCPConn) { n.forward(c) })
	return n
}

// stoppable is application, that may also end at once.
func stoppable(t testing.TB, addr string, serve func(*net.TCPConn)) (stop func()) {
	t.Helper()
	l := listen(t, addr)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); serve(c.(*net.TCPConn)) })
		}
	})
	stop = sync.OnceFunc(func() { l.Close() })
	t.Cleanup(func() { stop(); wg.Wait() })
	return stop
}

// forward is what a waypoint does: it reads the header, byte by byte as nothing says where
// it ends, and connects to a workload.
func (n *behind) forward(c *net.TCPConn) {
	var read []byte
	for b := make([]byte, 1); ; {
		if _, err := c.Read(b); err != nil {
			return
		}
		read = append(read, b[0])
		h, _, err := proxyheader.Parse(read)
		if errors.Is(err, proxyheader.ErrMore) {
			continue
		}
		if err != nil {
			n.w.t.Errorf("header: %v", err)
			return
		}
		n.headers <- h
		break
	}
	to, err := n.waypoint.dial("198.18.1.2:7001")
	if err != nil {
		return
	}
	defer to.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		io.Copy(to, c)
		to.CloseWrite()
	})
	io.Copy(c, to)
	c.CloseWrite()
	wg.Wait()
}

// header returns what the waypoint was told.
func (n *behind) header(t *testing.T) proxyheader.Header {
	t.Helper()
	select {
	case h := <-n.headers:
		return h
	case <-time.After(5 * time.Second):
		t.Fatal("the waypoint was told nothing")
		return proxyheader.Header{}
	}
}

func TestWaypoint(t *testing.T) { eachPair(t, throughWaypoint) }

func throughWaypoint(t *testing.T, engines map[string]string) {
	n := newBehind(t, engines, func(w *world) { // two services, as a listener belongs to one pod here
		w.service("db2", "198.18.9.9", 7000, 7001, "db")
		w.services[2].Waypoint = w.services[1].Waypoint
	})
	for _, c := range []struct {
		from    *pod
		dialled string
		at      *node
		way     flow.Transport
	}{{n.web, behindVIP, n.a, flow.TransportTunnel}, {n.near, "198.18.9.9:7000", n.b, flow.TransportSplice}} {
		t.Run(c.from.name, func(t *testing.T) {
			before, beforeB := len(n.a.flows.all()), len(n.b.flows.all())
			conn := c.from.client(c.dialled)
			conn.Write([]byte("question")) // before the waypoint has read the header
			if got := greeting(t, conn); got != "hello 198.18.2.1" {
				t.Errorf("application greeted %q, want the waypoint", got)
			}
			conn.CloseWrite()
			if got, err := io.ReadAll(conn); string(got) != "question" || err != nil {
				t.Fatalf("read %q, %v", got, err)
			}
			h := n.header(t)
			if h.Client.Addr() != c.from.addr || c.way == flow.TransportTunnel && h.Client != addrPort(conn.LocalAddr()) {
				t.Errorf("client %v, want %v", h.Client, conn.LocalAddr())
			}
			if h.Service.String() != c.dialled || h.Identity != "spiffe://example.test/ns/shop/sa/"+c.from.name {
				t.Errorf("header %+v", h)
			}
			// The client's record, that of the waypoint's node where that is another, and both of the second hop.
			records := 3
			if c.way == flow.TransportTunnel {
				records = 4
			}
			n.records(t, before, beforeB, records, c.from.name, c.dialled, c.way)
		})
	}
}

func (n *behind) records(t *testing.T, before, beforeB, want int, client, dialled string, way flow.Transport) {
	t.Helper()
	var all []flow.Record
	for deadline := time.Now().Add(5 * time.Second); len(all) < want && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		all = append(append([]flow.Record{}, n.a.flows.all()[before:]...), n.b.flows.all()[beforeB:]...)
	}
	if len(all) != want {
		t.Fatalf("%d records, want %d: %+v", len(all), want, all)
	}
	for _, r := range all {
		if r.Source.Workload.Name == client {
			if r.Verdict != mesh.VerdictAllow || r.Transport != way || r.Waypoint.Name != "waypoint" || r.Service.Namespace != "shop" ||
				r.Destination.Workload.Name != "waypoint" || r.Destination.Addr.String() != dialled || r.Destination.Identity.Path() != "/ns/shop/sa/waypoint" {
				t.Errorf("to the waypoint: %+v", r)
			}
			if r.Direction != flow.DirectionOutbound && r.Reason != mesh.ReasonWaypoint {
				t.Errorf("to the waypoint, %v: %v", r.Direction, r.Reason)
			}
			continue
		}
		if r.Verdict != mesh.VerdictAllow || r.Source.Workload.Name != "waypoint" || r.Source.Identity.Path() != "/ns/shop/sa/waypoint" ||
			r.Destination.Workload.Name != "db" || r.Waypoint != (mesh.Key{}) {
			t.Errorf("from the waypoint: %+v", r)
		}
		if r.Direction == flow.DirectionInbound && r.Reason != mesh.ReasonWaypoint {
			t.Errorf("from the waypoint: %v, though a policy admits web only", r.Reason)
		}
	}
}

// TestNobodySpeaksToAWaypointForSomebodyElse, by whatever way they come to its port.
func TestNobodySpeaksToAWaypointForSomebodyElse(t *testing.T) {
	for _, kind := range []string{engine.Loop, engine.Reference} {
		t.Run(kind, func(t *testing.T) {
			n := newBehind(t, map[string]string{"a": kind, "b": kind}, func(w *world) {
				w.service("other", "198.18.9.10", 7000, 7001, "db")
				w.workloads[1].PortModes = map[uint16]mesh.Mode{15009: mesh.ModePermissive}
				w.workloads[1].ProbePorts = []uint16{15009}
			})
			last := func(at *node, from int) flow.Record { return at.flows.wait(t, from+1)[from] }
			t.Run("dialled by a pod of another node", func(t *testing.T) {
				seen := len(n.a.flows.all())
				n.web.refused("198.18.2.1:15009")
				if r := last(n.a, seen); r.Reason != mesh.ReasonReservedPort {
					t.Errorf("%v (%s)", r.Reason, r.Detail)
				}
			})
			for name, c := range map[string]struct {
				target string
				code   int
				reason mesh.Reason
			}{
				"the waypoint's own port":         {"198.18.2.1:15009", 401, mesh.ReasonReservedPort},
				"a service without a waypoint":    {"198.18.9.10:7000", 400, mesh.ReasonAuthorityMismatch},
				"a port that the service has not": {"198.18.9.7:7002", 400, mesh.ReasonAuthorityMismatch},
				"somebody's address":              {"198.18.1.2:7001", 400, mesh.ReasonAuthorityMismatch},
			} {
				t.Run("by a tunnel to "+name, func(t *testing.T) {
					seen := len(n.b.flows.all())
					var status *hbone.StatusError
					if err := connectAs(t, n.w, n.a, c.target, ""); !errors.As(err, &status) || status.Code != c.code {
						t.Errorf("answered %v, want %d", err, c.code)
					}
					if r := last(n.b, seen); r.Reason != c.reason {
						t.Errorf("%v (%s), want %v", r.Reason, r.Detail, c.reason)
					}
				})
			}
			t.Run("by a tunnel that lies about the client", func(t *testing.T) {
				if err := connectAs(t, n.w, n.a, behindVIP, "198.18.7.7:1234"); err == nil {
					t.Error("it was let in")
				}
			})
			if len(n.headers) > 0 {
				t.Errorf("the waypoint was told of %+v", <-n.headers)
			}
		})
	}
	for name, probe := range map[string]func(local, remote netip.AddrPort) bool{"plaintext": nil, "probe": func(_, _ netip.AddrPort) bool { return true }} {
		t.Run(name, func(t *testing.T) {
			n := newBehind(t, nil, func(w *world) {
				w.workload("second", "b", "198.18.2.3").PortModes = map[uint16]mesh.Mode{15009: mesh.ModePermissive}
				w.workloads[4].ProbePorts = []uint16{15009}
				w.services[0].Endpoints = append(w.services[0].Endpoints, mesh.Key{Namespace: "shop", Name: "second"})
			})
			n.b.serve("second", "198.18.2.3", podOptions{inbound: []string{"198.18.2.3:15009"}, probe: probe})
			seen := len(n.b.flows.all())
			n.web.refused("198.18.2.3:15009")
			if r := n.b.flows.wait(t, seen+1)[seen]; r.Reason != mesh.ReasonReservedPort || r.Transport != flow.TransportNone {
				t.Errorf("%v by %v (%s)", r.Reason, r.Transport, r.Detail)
			}
		})
	}
	t.Run("dialled on the same node", func(t *testing.T) {
		n := newBehind(t, nil, nil)
		n.w.workload("sly", "a", "198.18.1.4")
		n.w.workload("beside", "a", "198.18.1.5")
		n.w.services[0].Endpoints = append(n.w.services[0].Endpoints, mesh.Key{Namespace: "shop", Name: "beside"})
		n.w.publish()
		sly := n.a.serve("sly", "198.18.1.4", podOptions{outbound: []string{"198.18.1.5:15009"}})
		n.a.serve("beside", "198.18.1.5", podOptions{})
		seen := len(n.a.flows.all())
		sly.refused("198.18.1.5:15009")
		if r := n.a.flows.wait(t, seen+1)[seen]; r.Reason != mesh.ReasonReservedPort {
			t.Errorf("%v (%s)", r.Reason, r.Detail)
		}
	})
}

// TestWaypointThatIsGone: connections are refused, or go past it where that is allowed.
func TestWaypointThatIsGone(t *testing.T) {
	for _, c := range []struct {
		name   string
		bypass bool
		gone   func(n *behind)
		reason mesh.Reason
	}{
		{"its process, closed", false, func(n *behind) { n.stop() }, mesh.ReasonAppUnreachable},
		{"its process, past it", true, func(n *behind) { n.stop() }, 0},
		{"its pod, closed", false, func(n *behind) { n.w.workloads[1].Ready = false; n.w.publish() }, mesh.ReasonNoEndpoint},
		{"its pod, past it", true, func(n *behind) { n.w.workloads[1].Ready = false; n.w.publish() }, 0},
		{"its node, closed", false, func(n *behind) { n.waypoint.stop(nil) }, mesh.ReasonPeerUnreachable},
		{"its node, past it", true, func(n *behind) { n.waypoint.stop(nil) }, 0},
		{"outside the mesh, closed", false, func(n *behind) { n.w.workloads[1].Enrolled = false; n.w.publish() }, mesh.ReasonNoEndpoint},
		{"revoked, closed", true, func(n *behind) {
			n.w.settings.RevokedIdentities = append(n.w.settings.RevokedIdentities, n.w.workloads[1].Identity)
			n.w.publish()
		}, mesh.ReasonIdentityRevoked},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newBehind(t, nil, func(w *world) { w.services[1].Bypass = c.bypass })
			c.gone(n)
			seen := len(n.a.flows.all())
			if c.reason != 0 {
				n.web.refused(behindVIP)
				if r := n.a.flows.wait(t, seen+1)[seen]; r.Reason != c.reason || r.Service.Name != "db" {
					t.Errorf("%v of %v (%s)", r.Reason, r.Service, r.Detail)
				}
				return
			}
			conn := n.web.client(behindVIP)
			if got := greeting(t, conn); got != "hello 198.18.1.1" {
				t.Errorf("application greeted %q, want the client itself", got)
			}
			conn.Close()
			if r := n.a.flows.wait(t, seen+1)[seen]; r.Destination.Workload.Name != "db" || r.Waypoint != (mesh.Key{}) || r.Service.Name != "db" {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestWaypointThatAnotherStandsInFor: one that does not answer is not the only one.
func TestWaypointThatAnotherStandsInFor(t *testing.T) {
	n := newBehind(t, nil, func(w *world) {
		w.workload("gone", "b", "198.18.2.5")
		w.services[0].Endpoints = []mesh.Key{{Namespace: "shop", Name: "gone"}, {Namespace: "shop", Name: "waypoint"}}
	})
	for range 8 {
		greeting(t, n.web.client(behindVIP))
		n.header(t)
	}
}

// TestWaypointThatIsNotToldYet: the client's node may know sooner what a waypoint is for.
func TestWaypointThatIsNotToldYet(t *testing.T) { eachPair(t, notToldYet) }

func notToldYet(t *testing.T, engines map[string]string) {
	n := newBehind(t, engines, func(w *world) {
		w.workload("early", "a", "198.18.1.3")
		w.service("early", "198.18.9.11", 7000, 7001, "db")
		w.services[1].Waypoint = mesh.Key{}
	})
	ahead := mesh.NewStore()
	behind := n.w.store
	n.w.store = ahead
	n.w.services[2].Waypoint = mesh.Key{Namespace: "shop", Name: "waypoint"}
	n.w.publish()
	early := n.w.node("a").serve("early", "198.18.1.3", podOptions{outbound: []string{"198.18.9.11:7000"}})
	view := ahead.View()
	time.AfterFunc(100*time.Millisecond, func() { behind.Replace(view) })
	if got := greeting(t, early.client("198.18.9.11:7000")); got != "hello 198.18.2.1" {
		t.Errorf("application greeted %q", got)
	}
}

// TestConnectionsToAWaypointMove, with those that come from it, and others go the same way.
func TestConnectionsToAWaypointMove(t *testing.T) {
	n := newBehind(t, map[string]string{"a": engine.Loop, "b": engine.Loop}, func(w *world) {
		w.service("db2", "198.18.9.9", 7000, 7001, "db")
		w.services[2].Waypoint = w.services[1].Waypoint
	})
	far, near := talk(t, n.web.client(behindVIP)), talk(t, n.near.client("198.18.9.9:7000"))
	n.header(t)
	n.header(t)
	renewed := n.w.node("b")
	h, _ := n.b.takeOver(t, renewed, n.waypoint, n.near)
	h.move()
	time.Sleep(50 * time.Millisecond)
	n.w.publish() // they are judged anew
	greeting(t, n.web.client(behindVIP))
	for name, k := range map[string]*talker{"far": far, "near": near} {
		if k.end(t) == 0 {
			t.Errorf("%s said nothing", name)
		}
	}
	for _, r := range renewed.flows.wait(t, 4) {
		if r.Verdict != mesh.VerdictAllow {
			t.Errorf("%+v", r)
		}
		if r.Destination.Workload.Name == "waypoint" && (r.Waypoint.Name != "waypoint" || r.Reason != mesh.ReasonWaypoint) {
			t.Errorf("to the waypoint: %v, by %v", r.Reason, r.Waypoint)
		}
	}
	if left := n.b.flows.all(); len(left) > 0 {
		t.Errorf("the old proxy made records: %+v", left)
	}
}

// TestPolicyAboutWaypoints: those that are open go on while the service has another
// waypoint, or none; an identity that is revoked ends, and so does what a NetworkPolicy of the
// waypoint's pod does not admit.
func TestPolicyAboutWaypoints(t *testing.T) {
	for name, ends := range map[string]func(n *behind){
		"revoked": func(n *behind) {
			n.w.settings.RevokedIdentities = append(n.w.settings.RevokedIdentities, n.w.workloads[0].Identity)
		},
		"a NetworkPolicy": func(n *behind) { n.w.network = append(n.w.network, isolates("only-waypoint", false, "198.18.2.1/32")) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newBehind(t, nil, nil)
			c := n.web.client(behindVIP)
			greeting(t, c)
			goesOn := func() {
				t.Helper()
				c.Write([]byte("x"))
				if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
					t.Fatalf("it ended with its waypoint: %v", err)
				}
			}
			n.w.services[1].Waypoint = mesh.Key{Namespace: "shop", Name: "another"}
			n.w.policies = nil
			n.w.publish()
			goesOn()
			n.w.network = []netpolicy.Policy{isolates("both", false, "198.18.2.1/32", "198.18.1.1/32")}
			n.w.publish()
			goesOn()
			n.w.network = nil
			ends(n)
			n.w.publish()
			refused(t, c)
		})
	}
}
