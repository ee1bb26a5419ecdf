package agent_test

import (
	"bufio"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// old is a connection that was open before its pods were enrolled, from its client's end.
type old struct {
	*net.TCPConn
	from *bufio.Reader
}

func (w *world) old(t *testing.T, from, to string) old {
	t.Helper()
	c, err := w.pods[from].dial(net.JoinHostPort(w.pods[to].v4, "7001"))
	if err != nil {
		t.Fatal(err)
	}
	o := old{c, bufio.NewReader(c)}
	if _, err := o.from.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return o
}

// asks sends a line and waits for its echo, for up to a second.
func (o old) asks() error {
	if err := o.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(o, "question"); err != nil {
		return err
	}
	got, err := o.from.ReadString('\n')
	if err == nil && got != "question\n" {
		err = fmt.Errorf("echoed %q", got)
	}
	return err
}

// TestRevokedLosesOldConnections: when an identity is revoked, what its pod had open before
// it was enrolled ends with a flow each, whoever opened it, and what others had goes on.
func TestRevokedLosesOldConnections(t *testing.T) {
	w := newWorld(t)
	for _, pod := range w.pods {
		pod.serve(7001, echo)
	}
	ends := map[flow.Direction]old{flow.DirectionOutbound: w.old(t, "web", "db"), flow.DirectionInbound: w.old(t, "db", "web")}
	others := w.old(t, "api", "db")
	for _, n := range []*node{w.n1, w.n2} {
		n.start()
		t.Cleanup(n.leave)
	}
	w.n1.await("enrolled")
	w.n2.await("enrolled")
	for direction, o := range ends {
		if err := o.asks(); err != nil {
			t.Fatalf("%v, before: %v", direction, err)
		}
	}
	w.settings("  revokedIdentities: [\"spiffe://test.heddle.dev/ns/shop/sa/web\"]\n")
	for direction, o := range ends {
		testenv.Eventually(t, 10*time.Second, direction.String()+" has ended", func() bool { return o.asks() != nil })
		local, remote := o.LocalAddr().String(), o.RemoteAddr().String()
		r := w.n1.expectFlow("of what ended", func(r *flow.Record) bool {
			return r.Reason == mesh.ReasonIdentityRevoked && r.Source.Addr.String() == local && r.Destination.Addr.String() == remote
		})
		own, other := r.Source, r.Destination
		if direction == flow.DirectionInbound {
			own, other = other, own
		}
		if r.Verdict != mesh.VerdictDeny || r.Direction != direction || r.Transport != flow.TransportPlaintext || own.Workload.Name != "web" ||
			own.Identity.String() != "spiffe://test.heddle.dev/ns/shop/sa/web" || other.Workload.Name != "db" {
			t.Errorf("%v: %+v", direction, r)
		}
	}
	if err := others.asks(); err != nil {
		t.Errorf("a connection of another pod: %v", err)
	}
	if all := w.n1.flows(func(r *flow.Record) bool {
		return r.Reason == mesh.ReasonIdentityRevoked && r.Transport == flow.TransportPlaintext
	}); len(all) != len(ends) {
		t.Errorf("%d records of %d connections: %+v", len(all), len(ends), all)
	}
}
