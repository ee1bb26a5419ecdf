package proxy_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/engine"
	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

const dbAddress = "198.18.1.2:7001"

// changing is a mesh in which the waypoint of a service changes: its workload db, which
// admits nobody but web, is on node a; the waypoint is on node b, or beside it. What is not
// the waypoint and of the same namespace is the pod near. A node may be told of changes late.
type changing struct {
	w        *world
	a, b     *node
	late     *mesh.Store // a's, where it is another than b's
	waypoint *pod
}

func newChanging(t *testing.T, engines map[string]string, beside, late bool, change ...func(*proxy.Config)) *changing {
	w := newWorld(t)
	w.engines = engines
	place := "b"
	if beside {
		place = "a"
	}
	w.workload("web", "a", "198.18.1.1")
	w.workload("waypoint", place, "198.18.2.1")
	w.workload("near", place, "198.18.2.2")
	w.workload("db", "a", "198.18.1.2")
	w.service("waypoint", "198.18.9.8", 7000, mesh.WaypointPort, "waypoint")
	w.service("db", "198.18.9.7", 7000, 7001, "db")
	w.policies = append(w.policies, mesh.Policy{Key: mesh.Key{Namespace: "shop", Name: "web-may"}, Action: mesh.ActionAllow,
		Rules: []mesh.Rule{{From: []mesh.Source{{Identities: []mesh.IdentityPattern{"spiffe://example.test/ns/shop/sa/web"}}}}}})
	w.publish()
	n := &changing{w: w, late: w.store}
	ofA := change
	if late {
		n.late = mesh.NewStore()
		n.late.Replace(w.store.View())
		ofA = append(ofA, func(c *proxy.Config) { c.Store = n.late })
	}
	application(t, "198.18.1.2:17001", echo)
	n.a = w.node("a", ofA...)
	n.a.serve("db", "198.18.1.2", podOptions{apps: map[uint16]uint16{7001: 17001}})
	if n.b = n.a; !beside {
		n.b = w.node("b", change...)
	}
	n.waypoint = n.b.serve("waypoint", "198.18.2.1", podOptions{outbound: []string{dbAddress}})
	return n
}

// put names the waypoint of db, or "" for none.
func (n *changing) put(waypoint string) {
	n.w.services[1].Waypoint = mesh.Key{}
	if waypoint != "" {
		n.w.services[1].Waypoint = mesh.Key{Namespace: "shop", Name: waypoint}
	}
	n.w.publish()
}

func (n *changing) denies(client string) {
	n.w.policies = append(n.w.policies, n.w.denies("never", client))
	n.w.publish()
}

func hold(d time.Duration) func(*proxy.Config) {
	return func(c *proxy.Config) { c.Timeouts.Hold = d }
}

func grace(d time.Duration) func(*proxy.Config) {
	return func(c *proxy.Config) { c.Timeouts.Grace = d }
}

// eachPlace runs a test with the waypoint on another node, by each pair of engines, and
// beside the workload.
func eachPlace(t *testing.T, test func(t *testing.T, engines map[string]string, beside bool)) {
	eachPair(t, func(t *testing.T, engines map[string]string) { test(t, engines, false) })
	t.Run("splice", func(t *testing.T) { test(t, nil, true) })
}

// TestWaypointThatAWorkloadIsNotToldOfYet: the waypoint is told sooner that it is one than
// the workload's node, or sooner than its own.
func TestWaypointThatAWorkloadIsNotToldOfYet(t *testing.T) {
	for _, denied := range []bool{false, true} {
		t.Run(fmt.Sprint("denied ", denied), func(t *testing.T) {
			eachPlace(t, func(t *testing.T, engines map[string]string, beside bool) { notToldOfYet(t, engines, beside, denied) })
		})
	}
}

func notToldOfYet(t *testing.T, engines map[string]string, beside, denied bool) {
	n := newChanging(t, engines, beside, true, hold(10*time.Second))
	if denied {
		n.denies("waypoint")
		n.late.Replace(n.w.store.View())
	}
	n.put("waypoint")
	c := n.waypoint.client(dbAddress)
	testenv.Eventually(t, 8*time.Second, "it is charged for while it waits", func() bool { return n.a.proxy.Charges().Connections == 1 })
	n.late.Replace(n.w.store.View())
	if got := greeting(t, c); got != "hello 198.18.2.1" {
		t.Errorf("application greeted %q", got)
	}
}

// TestWhoIsNoWaypointIsRefused at the end of the hold, or at once.
func TestWhoIsNoWaypointIsRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		beside bool
		change func(n *changing)
		waits  bool
		reason mesh.Reason
	}{
		{"by ALLOW policies", false, func(*changing) {}, true, mesh.ReasonPolicyNoMatch},
		{"by ALLOW policies, beside it", true, func(*changing) {}, true, mesh.ReasonPolicyNoMatch},
		{"by a DENY policy", false, func(n *changing) { n.denies("waypoint") }, true, mesh.ReasonPolicyDeny},
		{"a pod of no waypoint's Service", false, func(n *changing) { n.w.services[0].Endpoints = nil; n.w.publish() }, false, mesh.ReasonPolicyNoMatch},
		{"revoked", false, func(n *changing) {
			n.w.settings.RevokedIdentities = append(n.w.settings.RevokedIdentities, n.w.workloads[1].Identity)
			n.w.publish()
		}, false, mesh.ReasonIdentityRevoked},
	} {
		t.Run(c.name, func(t *testing.T) {
			const held = 2 * time.Second
			n := newChanging(t, nil, c.beside, false, hold(held))
			c.change(n)
			begin := time.Now()
			n.waypoint.refused(dbAddress)
			if took := time.Since(begin); c.waits != (took >= held) {
				t.Errorf("refused after %v; waits: %v", took, c.waits)
			}
			if c.reason == mesh.ReasonIdentityRevoked {
				return // before anything is opened
			}
			if r := n.a.flows.wait(t, 1)[0]; r.Reason != c.reason || r.Verdict != mesh.VerdictDeny {
				t.Errorf("%v %v (%s)", r.Verdict, r.Reason, r.Detail)
			}
			if got := n.a.proxy.Charges(); got.Connections != 0 {
				t.Errorf("still charged: %+v", got)
			}
		})
	}
}

// TestWaitingIsBounded: those that wait are no more than an eighth of a pod's connections,
// and others of the pod go on.
func TestWaitingIsBounded(t *testing.T) {
	n := newChanging(t, nil, false, false, hold(3*time.Second), func(c *proxy.Config) { c.Budget.Connections = 16 })
	web := n.a.serve("web", "198.18.1.1", podOptions{outbound: []string{"198.18.9.7:7000"}})
	begin := time.Now()
	var some []net.Conn
	for range 8 {
		if c, err := n.waypoint.dial(dbAddress); err == nil {
			some = append(some, c)
		} else if !errors.Is(err, unix.ECONNRESET) { // which may be there before connect returns
			t.Fatal(err)
		}
	}
	early := func() (n2 int) {
		for _, r := range n.a.flows.all() {
			if r.Reason == mesh.ReasonPolicyNoMatch {
				n2++
			}
		}
		return n2
	}
	testenv.Eventually(t, 2*time.Second, "six of eight are refused at once", func() bool { return early() == 6 })
	if got := greeting(t, web.client("198.18.9.7:7000")); got != "hello 198.18.1.1" {
		t.Errorf("%q", got)
	}
	testenv.Eventually(t, 10*time.Second, "the other two are refused in the end", func() bool { return early() == 8 })
	if took := time.Since(begin); took < 3*time.Second {
		t.Errorf("after %v", took)
	}
	for _, c := range some {
		c.Close()
	}
}

// TestFormerWaypoint: what it has with workloads goes on for the grace, and so does what it
// begins meanwhile. Then both end.
func TestFormerWaypoint(t *testing.T) {
	eachPlace(t, func(t *testing.T, engines map[string]string, beside bool) {
		const lasts = 3 * time.Second
		n := newChanging(t, engines, beside, false, hold(100*time.Millisecond), grace(lasts))
		n.put("waypoint")
		before := n.waypoint.client(dbAddress)
		greeting(t, before)
		gone := time.Now()
		n.put("")
		meanwhile := n.waypoint.client(dbAddress)
		if got := greeting(t, meanwhile); got != "hello 198.18.2.1" {
			t.Errorf("in its grace: application greeted %q", got)
		}
		n.w.publish() // more changes move no deadline
		for _, c := range []net.Conn{before, meanwhile} {
			c.Write([]byte("x"))
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatalf("in its grace: %v", err)
			}
		}
		for name, c := range map[string]net.Conn{"before": before, "meanwhile": meanwhile} {
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("%s: %v, want a reset", name, err)
			}
			if took := time.Since(gone); took < lasts || took > lasts+5*time.Second {
				t.Errorf("%s: ended after %v", name, took)
			}
		}
		n.waypoint.refused(dbAddress)
		for i, r := range n.a.flows.wait(t, 3) {
			if want := []mesh.Reason{mesh.ReasonPolicyChanged, mesh.ReasonPolicyChanged, mesh.ReasonPolicyNoMatch}[i]; r.Reason != want || r.Verdict != mesh.VerdictDeny {
				t.Errorf("record %d: %v %v, want %v", i, r.Verdict, r.Reason, want)
			}
		}
	})
}

// TestGraceIsNoMore than an ALLOW policy that names the former waypoint would be, and nobody
// else's.
func TestGraceIsNoMore(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(n *changing)
		reason mesh.Reason
	}{
		{"a DENY policy", func(n *changing) { n.denies("waypoint") }, mesh.ReasonPolicyChanged},
		{"revoked", func(n *changing) {
			n.w.settings.RevokedIdentities = append(n.w.settings.RevokedIdentities, n.w.workloads[1].Identity)
			n.w.publish()
		}, mesh.ReasonIdentityRevoked},
		{"a NetworkPolicy", func(n *changing) {
			n.w.network = append(n.w.network, isolates("only-web", false, "198.18.1.1/32"))
			n.w.publish()
		}, mesh.ReasonPolicyChanged},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newChanging(t, nil, false, false, hold(100*time.Millisecond), grace(time.Minute))
			n.put("waypoint")
			conn := n.waypoint.client(dbAddress)
			greeting(t, conn)
			n.put("")
			conn.Write([]byte("x"))
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			changed := time.Now()
			c.change(n)
			refused(t, conn)
			if took := time.Since(changed); took > 5*time.Second {
				t.Errorf("ended after %v", took)
			}
			if r := n.a.flows.wait(t, 1)[0]; r.Reason != c.reason && (c.name != "revoked" || r.Reason != mesh.ReasonReset) { // its own node may be first
				t.Errorf("%v, want %v", r.Reason, c.reason)
			}
			n.waypoint.refused(dbAddress)
		})
	}
	t.Run("somebody else", func(t *testing.T) {
		n := newChanging(t, nil, false, false, hold(100*time.Millisecond), grace(time.Minute))
		n.put("waypoint")
		n.put("")
		n.waypoint.stop(nil)
		near := n.b.serve("near", "198.18.2.2", podOptions{outbound: []string{dbAddress}})
		near.refused(dbAddress)
		if r := n.a.flows.wait(t, 1)[0]; r.Reason != mesh.ReasonPolicyNoMatch {
			t.Errorf("%v", r.Reason)
		}
	})
}

// TestClientsNodeIsNotToldThatAWaypointIsNoMore: a connection that the former waypoint's node
// refuses goes where the client's node learns that it goes now.
func TestClientsNodeIsNotToldThatAWaypointIsNoMore(t *testing.T) {
	for _, kind := range []string{engine.Loop, engine.Reference} {
		for _, told := range []bool{true, false} {
			t.Run(fmt.Sprint(kind, " told ", told), func(t *testing.T) {
				n := newChanging(t, map[string]string{"a": kind}, false, true, func(c *proxy.Config) {
					if c.Timeouts.Hold = 100 * time.Millisecond; c.Node == "a" {
						c.Timeouts.Hold = 3 * time.Second
					}
				})
				n.put("waypoint")
				n.late.Replace(n.w.store.View())
				n.put("")
				web := n.a.serve("web", "198.18.1.1", podOptions{outbound: []string{behindVIP}})
				if told {
					view := n.w.store.View()
					timer := time.AfterFunc(300*time.Millisecond, func() { n.late.Replace(view) })
					defer timer.Stop()
					if got := greeting(t, web.client(behindVIP)); got != "hello 198.18.1.1" {
						t.Errorf("application greeted %q", got)
					}
					return
				}
				web.refused(behindVIP)
				for _, r := range n.a.flows.wait(t, 1) {
					if r.Reason != mesh.ReasonPeerRefused || r.Verdict != mesh.VerdictDeny || r.Direction != flow.DirectionOutbound {
						t.Errorf("%v %v (%s)", r.Verdict, r.Reason, r.Detail)
					}
				}
			})
		}
	}
}

// TestWhatWaitsForItsWaypointIsCharged: a stream that a node does not know yet what it is for.
func TestWhatWaitsForItsWaypointIsCharged(t *testing.T) {
	for _, kind := range []string{engine.Loop, engine.Reference} {
		t.Run(kind, func(t *testing.T) {
			n := newChanging(t, map[string]string{"a": kind, "b": kind}, false, false, hold(3*time.Second))
			answer, begin := make(chan error, 1), time.Now()
			go func() { answer <- connectAs(t, n.w, n.a, behindVIP, "") }()
			testenv.Eventually(t, 2500*time.Millisecond, "it is charged for while it waits", func() bool { return n.b.proxy.Charges().Connections == 1 })
			var status *hbone.StatusError
			if err := <-answer; !errors.As(err, &status) || status.Code != 400 || time.Since(begin) < 3*time.Second {
				t.Errorf("answered %v after %v", err, time.Since(begin))
			}
			testenv.Eventually(t, 5*time.Second, "nothing is charged any more", func() bool {
				got := n.b.proxy.Charges()
				return got.Connections == 0 && got.Sockets == 0
			})
		})
	}
}

// TestGraceThatIsOverAtOnce: a grace that ends while connections are looked at, and before anybody waits for its
// end, is no grace for ever: they end without another change.
func TestGraceThatIsOverAtOnce(t *testing.T) {
	for _, kind := range []string{engine.Loop, engine.Reference} {
		t.Run(kind, func(t *testing.T) {
			n := newChanging(t, map[string]string{"a": kind}, false, false, hold(10*time.Millisecond), grace(time.Nanosecond))
			for range 20 {
				n.put("waypoint")
				c := n.waypoint.client(dbAddress)
				greeting(t, c)
				n.put("")
				refused(t, c)
			}
		})
	}
}
