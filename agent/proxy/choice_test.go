package proxy_test

import (
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// TestEndpointsWithPortsOfTheirOwn: each is connected to at its own number of the
// service's port, through the tunnel and on the client's own node.
func TestEndpointsWithPortsOfTheirOwn(t *testing.T) {
	w := newWorld(t)
	w.workload("web", "a", "198.18.1.1")
	w.workload("near", "a", "198.18.1.2")
	w.workload("far", "b", "198.18.2.1")
	w.service("db", "198.18.9.1", 7000, 7001, "far", "near")
	w.services[0].Ports[0].Only = []mesh.Key{{Namespace: "shop", Name: "near"}}
	w.services[0].Ports[0].Elsewhere = []mesh.PortElsewhere{{TargetPort: 7002, Endpoints: []mesh.Key{{Namespace: "shop", Name: "far"}}}}
	w.publish()
	application(t, "198.18.1.2:7001", echo)
	application(t, "198.18.2.1:7002", echo)
	a, b := w.node("a"), w.node("b")
	client := a.serve("web", "198.18.1.1", podOptions{outbound: []string{vip}})
	a.serve("near", "198.18.1.2", podOptions{})
	b.serve("far", "198.18.2.1", podOptions{})
	const connections = 40
	for range connections {
		c := client.client(vip)
		greeting(t, c)
		c.Close()
	}
	went := map[string]int{}
	for _, r := range a.flows.wait(t, connections) {
		if r.Verdict != mesh.VerdictAllow {
			t.Errorf("%v %v to %v", r.Verdict, r.Reason, r.Destination)
		}
		went[r.Destination.Workload.Name+" "+r.Destination.Addr.String()]++
	}
	if len(went) != 2 || went["near 198.18.1.2:7001"] == 0 || went["far 198.18.2.1:7002"] == 0 {
		t.Errorf("connections went to %v", went)
	}
}

// TestStickyClientStaysWithWhoAnswers: a client of a sticky service whose workload does
// not answer is given another, and then stays with that one.
func TestStickyClientStaysWithWhoAnswers(t *testing.T) {
	w := newWorld(t)
	w.workload("web", "a", "198.18.1.1")
	w.workload("one", "b", "198.18.2.1")
	w.workload("two", "b", "198.18.2.2")
	w.service("db", "198.18.9.1", 7000, 7001, "one", "two")
	w.services[0].Sticky, w.services[0].StickyFor = true, time.Hour
	w.publish()
	application(t, "198.18.2.1:7001", echo)
	application(t, "198.18.2.2:7001", echo)
	a, b := w.node("a"), w.node("b")
	client := a.serve("web", "198.18.1.1", podOptions{outbound: []string{vip}})
	pods := map[string]*pod{"one": b.serve("one", "198.18.2.1", podOptions{}), "two": b.serve("two", "198.18.2.2", podOptions{})}
	const connections = 10
	all := 0
	dial := func() (with string) {
		t.Helper()
		for range connections {
			c := client.client(vip)
			greeting(t, c)
			c.Close()
		}
		all += connections
		for _, r := range a.flows.wait(t, all)[all-connections:] {
			if r.Verdict != mesh.VerdictAllow || with != "" && r.Destination.Workload.Name != with {
				t.Errorf("%v %v: from %s to %s", r.Verdict, r.Reason, with, r.Destination.Workload.Name)
			}
			with = r.Destination.Workload.Name
		}
		return with
	}
	first := dial()
	if err := pods[first].stop(nil); err != nil {
		t.Fatal(err)
	}
	if second := dial(); second == first {
		t.Errorf("connections go to %s, which does not answer", second)
	}
}

// TestAServerReachesItself: a server that calls a service which it is of, while it answers
// who made it call, reaches itself as well as the other one.
func TestAServerReachesItself(t *testing.T) {
	w := newWorld(t)
	w.workload("web", "a", "198.18.1.1")
	w.workload("near", "a", "198.18.1.2")
	w.workload("far", "b", "198.18.2.1")
	w.service("db", "198.18.9.1", 7000, 7001, "far", "near")
	w.publish()
	application(t, "198.18.1.2:7001", echo)
	application(t, "198.18.2.1:7001", echo)
	a, b := w.node("a"), w.node("b")
	const direct = "198.18.1.2:7002"
	client := a.serve("web", "198.18.1.1", podOptions{outbound: []string{direct}})
	near := a.serve("near", "198.18.1.2", podOptions{outbound: []string{vip}, apps: map[uint16]uint16{7002: 7001}})
	b.serve("far", "198.18.2.1", podOptions{})
	asking := client.client(direct) // until the test's end
	greeting(t, asking)
	const connections = 25
	went := map[string]int{}
	for n := range connections {
		c := near.client(vip)
		greeting(t, c)
		c.Close()
		went[a.flows.wait(t, n+1)[n].Destination.Workload.Name]++ // it has ended
	}
	if len(went) != 2 {
		t.Errorf("connections went to %v", went)
	}
}
