package proxy_test

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/agent/engine"
	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// The ports of leaving's server, and its addresses as services, by port.
const (
	leaveStrict    = 7001
	leaveOpen      = 7002 // PERMISSIVE
	leavePrincipal = 7003 // PERMISSIVE, for whom an ALLOW policy names by identity
)

func leaveAddr(port int) string { return fmt.Sprintf("198.18.2.1:%d", port) }

// leaving is a mesh of two clients of one service account and a server.
type leaving struct {
	w         *world
	a, server *node
	web, twin *pod
	db        *pod
	late      *mesh.Store // of the server's node, when that is another; nil for the world's
}

func newLeaving(t *testing.T, engines map[string]string, serverNode string, late *mesh.Store) *leaving {
	w := newWorld(t)
	w.engines = engines
	w.workload("web", "a", "198.18.1.1")
	twin := w.workload("web-2", "a", "198.18.1.2")
	twin.ServiceAccount, twin.Identity = "web", w.workloads[0].Identity
	w.workload("db", serverNode, "198.18.2.1").PortModes = map[uint16]mesh.Mode{leaveOpen: mesh.ModePermissive, leavePrincipal: mesh.ModePermissive}
	w.policies = []mesh.Policy{{Key: mesh.Key{Namespace: "shop", Name: "who"}, Action: mesh.ActionAllow, Rules: []mesh.Rule{
		{To: []mesh.Destination{{Ports: []uint16{leaveStrict, leaveOpen}}}},
		{From: []mesh.Source{{Identities: []mesh.IdentityPattern{mesh.IdentityPattern(w.workloads[0].Identity.String())}}}, To: []mesh.Destination{{Ports: []uint16{leavePrincipal}}}},
	}}}
	w.publish()
	n := &leaving{w: w, late: late}
	n.a = w.node("a")
	n.server = n.a
	if serverNode != "a" {
		n.server = w.node(serverNode, func(c *proxy.Config) {
			if late != nil {
				c.Store = late
			}
		})
	}
	n.db = n.server.serve("db", "198.18.2.1", podOptions{apps: map[uint16]uint16{leaveStrict: 17001, leaveOpen: 17001, leavePrincipal: 17001}})
	application(t, "198.18.2.1:17001", echo)
	n.web = n.a.serve("web", "198.18.1.1", podOptions{outbound: []string{leaveAddr(leaveStrict), leaveAddr(leaveOpen), leaveAddr(leavePrincipal)}})
	n.twin = n.a.serve("web-2", "198.18.1.2", podOptions{outbound: []string{"198.18.9.2:7000"}})
	return n
}

// open connects, and has something said.
func (p *pod) open(dst string) *net.TCPConn {
	p.n.w.t.Helper()
	c := p.client(dst)
	greeting(p.n.w.t, c)
	return c
}

// goesOn fails when a connection has ended.
func goesOn(t *testing.T, what string, c *net.TCPConn) {
	t.Helper()
	c.Write([]byte("still here\n"))
	if got := greeting(t, c); got != "still here" {
		t.Errorf("%s: %q", what, got)
	}
}

// TestLeavingEndsExactlyWhatPlaintextMayNot: of a client that has left the mesh, those
// connections end at once that it could not open as one outside; of another of the same
// identity none does, and the rest has until its drain is over.
func TestLeavingEndsExactlyWhatPlaintextMayNot(t *testing.T) {
	eachPair(t, func(t *testing.T, engines map[string]string) { clientLeaves(t, engines, "b") })
	t.Run("splice", func(t *testing.T) { clientLeaves(t, nil, "a") })
}

func clientLeaves(t *testing.T, engines map[string]string, serverNode string) {
	n := newLeaving(t, engines, serverNode, nil)
	w := n.w
	w.service("db", "198.18.9.2", 7000, leaveStrict, "db")
	w.publish()
	strict, open, principal := n.web.open(leaveAddr(leaveStrict)), n.web.open(leaveAddr(leaveOpen)), n.web.open(leaveAddr(leavePrincipal))
	twin := n.twin.open("198.18.9.2:7000")
	w.publish() // an equal View changes nothing

	w.workloads[0].Enrolled = false
	began := time.Now()
	w.publish()
	refused(t, strict)
	refused(t, principal)
	if took := time.Since(began); took > time.Second && !testenv.Overloaded(t) {
		t.Errorf("they ended after %v", took)
	}
	for _, r := range n.server.flows.wait(t, 2) {
		if r.Reason != mesh.ReasonUnenrolled || r.Verdict != mesh.VerdictDeny || r.Source.Workload.Name != "web" || r.Destination.Addr.Port() == leaveOpen {
			t.Errorf("%v %v of %v to %v", r.Verdict, r.Reason, r.Source.Workload, r.Destination.Addr)
		}
	}
	if n.server != n.a && engines["a"] == engine.Loop && engines["b"] == engine.Loop {
		for _, r := range n.a.flows.wait(t, 2) {
			if r.Reason != mesh.ReasonUnenrolled || r.Direction != flow.DirectionOutbound {
				t.Errorf("the client's node: %v %v", r.Verdict, r.Reason)
			}
		}
	}
	w.publish() // nor does one that says nothing new
	goesOn(t, "to a PERMISSIVE port", open)
	goesOn(t, "of another of the identity", twin)

	if err := n.web.stop(proxy.ErrUnenrolled); err != nil {
		t.Error(err)
	}
	refused(t, open)
	goesOn(t, "of another of the identity", twin)
}

// TestLeavingServerEndsWhatMayNotLeave: connections to a server that has left end at once
// where their clients' namespace may not leave the mesh, and else drain.
func TestLeavingServerEndsWhatMayNotLeave(t *testing.T) {
	for name, egress := range map[string]mesh.EgressMode{"denied": mesh.EgressDeny, "allowed": mesh.EgressAllow} {
		for _, serverNode := range []string{"a", "b"} {
			t.Run(name+" "+serverNode, func(t *testing.T) {
				n := newLeaving(t, nil, serverNode, nil)
				n.w.settings.EgressNamespaces = map[string]mesh.EgressMode{"shop": egress}
				n.w.publish()
				c := n.web.open(leaveAddr(leaveOpen))
				n.w.workloads[2].Enrolled = false
				n.w.publish()
				if egress == mesh.EgressAllow {
					time.Sleep(100 * time.Millisecond)
					goesOn(t, "allowed", c)
					return
				}
				refused(t, c)
				for _, node := range []*node{n.a, n.server} {
					for _, r := range node.flows.wait(t, 1) {
						if r.Reason != mesh.ReasonUnenrolled {
							t.Errorf("%v: %v %v", r.Direction, r.Verdict, r.Reason)
						}
					}
				}
			})
		}
	}
}

// tell publishes to one Store alone.
func (w *world) tell(store *mesh.Store) {
	w.t.Helper()
	kept := w.store
	w.store = store
	w.publish()
	w.store = kept
}

// TestLeavingBetweenTwoAgents: an end leaves while an agent hands over, so that the successor has
// never seen it in the mesh: it ends what the one before would have, and nothing else.
func TestLeavingBetweenTwoAgents(t *testing.T) {
	for name, c := range map[string]struct {
		serverNode, moves string
		leaves            int // of the world's workloads
		egress            mesh.EgressMode
		ends              []int // ports of the server
	}{
		"the client":             {"b", "b", 0, mesh.EgressAllow, []int{leaveStrict, leavePrincipal}},
		"the client of a splice": {"a", "a", 0, mesh.EgressAllow, []int{leaveStrict, leavePrincipal}},
		"the server":             {"b", "a", 2, mesh.EgressDeny, []int{leaveStrict, leaveOpen, leavePrincipal}},
		"the server of a splice": {"a", "a", 2, mesh.EgressDeny, []int{leaveStrict, leaveOpen, leavePrincipal}},
		"a server that may":      {"b", "a", 2, mesh.EgressAllow, nil},
	} {
		t.Run(name, func(t *testing.T) {
			n := newLeaving(t, nil, c.serverNode, nil)
			n.w.settings.EgressNamespaces = map[string]mesh.EgressMode{"shop": c.egress}
			n.w.publish()
			open := map[int]*net.TCPConn{}
			for _, port := range []int{leaveStrict, leaveOpen, leavePrincipal} {
				open[port] = n.web.open(leaveAddr(port))
			}
			n.w.workloads[c.leaves].Enrolled = false
			told := mesh.NewStore()
			n.w.tell(told)
			renewed := n.w.node(c.moves, func(cfg *proxy.Config) { cfg.Store = told })
			old, pods := n.a, []*pod{n.web, n.twin}
			switch {
			case c.serverNode == "a":
				pods = append(pods, n.db)
			case c.moves == "b":
				old, pods = n.server, []*pod{n.db}
			}
			h, _ := old.takeOver(t, renewed, pods...)
			h.move()
			for _, port := range c.ends {
				refused(t, open[port])
				delete(open, port)
			}
			for _, r := range renewed.flows.wait(t, len(c.ends)) {
				if r.Reason != mesh.ReasonUnenrolled || r.Verdict != mesh.VerdictDeny {
					t.Errorf("%v %v to %v", r.Verdict, r.Reason, r.Destination.Addr)
				}
			}
			time.Sleep(100 * time.Millisecond)
			for port, conn := range open {
				goesOn(t, leaveAddr(port), conn)
			}
		})
	}
}

// TestWhoJoinsHasNotLeft: a client that proves who it is, and of whom the server's node is
// not told yet that it has joined, is not taken for one that left; once it is told, it is.
func TestWhoJoinsHasNotLeft(t *testing.T) {
	late := mesh.NewStore()
	n := newLeaving(t, nil, "b", late)
	before := func(enrolled bool) {
		t.Helper()
		n.w.workloads[0].Enrolled = enrolled
		n.w.tell(late)
	}
	before(false)
	c := n.web.open(leaveAddr(leaveStrict))
	before(false)
	time.Sleep(100 * time.Millisecond)
	goesOn(t, "of one that joins", c)
	before(true)
	time.Sleep(100 * time.Millisecond)
	goesOn(t, "of one that has joined", c)
	before(false)
	refused(t, c)
	if r := n.server.flows.wait(t, 1)[0]; r.Reason != mesh.ReasonUnenrolled {
		t.Errorf("%v %v", r.Verdict, r.Reason)
	}
}

// TestLeavingThroughAWaypoint: nobody outside the mesh is at a waypoint.
func TestLeavingThroughAWaypoint(t *testing.T) {
	n := newBehind(t, nil, nil)
	c := n.web.open(behindVIP)
	n.header(t)
	n.w.publish()
	goesOn(t, "through a waypoint", c)
	n.w.workloads[0].Enrolled = false
	n.w.publish()
	refused(t, c)
	testenv.Eventually(t, 5*time.Second, "the waypoint's node says why", func() bool {
		for _, r := range n.b.flows.all() {
			if r.Reason == mesh.ReasonUnenrolled && r.Verdict == mesh.VerdictDeny && r.Waypoint.Name == "waypoint" {
				return true
			}
		}
		return false
	})
}
