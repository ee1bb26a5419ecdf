package e2e

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/testbed"
)

// egressYAML is a mesh of one node with two enrolled namespaces, and what may leave it.
func egressYAML(mesh, egress string) string {
	all := meshYAML(mesh,
		pod{"shop", "client", "n1", []string{"10.244.1.10", "fd00:244:1::10"}},
		pod{"vault", "client", "n1", []string{"10.244.1.20", "fd00:244:1::20"}},
		pod{"plain", "listener", "n1", []string{"10.244.1.90"}})
	all = strings.Replace(all, "spec:\n  trustDomain", "spec:\n  egress: "+egress+"\n  trustDomain", 1)
	return all + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: vault, labels: {heddle.dev/mesh: enabled}}\n"
}

// TestEgress: each namespace's mode decides what reaches a server outside the cluster's
// ranges, and workloads that are not enrolled; what leaves and what may not is a flow,
// and a change of the mode acts on what is open.
func TestEgress(t *testing.T) {
	const (
		name             = "e2e-egress"
		outside4         = "100.64.0.1:7600"
		outside6         = "[fd00:64::1]:7600"
		shop, vault      = "shop/client", "vault/client"
		shopOnly         = "{namespaces: [{namespace: shop, mode: ALLOW}, {namespace: vault, mode: DENY}]}"
		vaultOnly        = "{mode: ALLOW, namespaces: [{namespace: shop, mode: DENY}]}"
		listener, inMesh = "10.244.1.90:7600", "10.244.1.20:7601"
	)
	b := testbed.Up(t, "..", name, egressYAML(name, shopOnly))
	server := b.ListenOutside(t, ":7600")
	came := make(chan string, 1000) // more than a try every 10 ms
	go serveOutside(t, server, came)
	go echo(t, b.Listen(t, "plain/listener", ":7600"))
	go echo(t, b.Listen(t, vault, ":7601"))

	for _, address := range []string{outside4, outside6, listener} {
		becomes(t, b, true, shop, address)
		leftAs(t, b, "allow", "EgressAllowed", shop, address)
		becomes(t, b, false, vault, address)
		leftAs(t, b, "deny", "EgressDenied", vault, address)
		explained(t, b, shop, address, "", "", "EgressAllowed")
		explained(t, b, vault, address, "EgressDenied", "", "EgressDenied")
	}
	// Not a byte of the other got there: nor did the agent connect in its name.
	for len(came) > 0 {
		if from := <-came; from != "10.244.1.10" && from != "fd00:244:1::10" {
			t.Errorf("a connection came from %s", from)
		}
	}

	within := b.MustDial(t, shop, inMesh)
	roundTrip(t, within, []byte(secret))
	open := openOutside(t, b, shop, outside4, outside6, listener)
	b.Write(t, "mesh.yaml", egressYAML(name, vaultOnly))
	changedAway(t, b, shop, open)
	for _, address := range []string{outside4, outside6, listener} {
		if reaches(b, shop, address) {
			t.Errorf("%s reaches %s after its connections were ended", shop, address)
		}
		leftAs(t, b, "deny", "EgressDenied", shop, address)
		becomes(t, b, true, vault, address)
		leftAs(t, b, "allow", "EgressAllowed", vault, address)
	}
	roundTrip(t, within, []byte(secret))

	open = openOutside(t, b, vault, outside4)
	b.Write(t, "mesh.yaml", egressYAML(name, "{mode: DENY, namespaces: [{namespace: shop, mode: ALLOW}]}"))
	changedAway(t, b, vault, open)
	if reaches(b, vault, outside4) {
		t.Errorf("%s reaches %s, which the mesh's own mode denies", vault, outside4)
	}
	becomes(t, b, true, shop, outside4)
	roundTrip(t, within, []byte(secret))
}

// serveOutside is echo that tells from where connections come.
func serveOutside(t *testing.T, l *net.TCPListener, came chan<- string) {
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			t.Errorf("accept outside: %v", err)
			return
		}
		came <- c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().String()
		go echoOne(c)
	}
}

// openOutside opens connections that a pod keeps, by where they go.
func openOutside(t *testing.T, b *testbed.Bed, from string, addresses ...string) map[string]*net.TCPConn {
	t.Helper()
	open := map[string]*net.TCPConn{}
	for _, address := range addresses {
		open[address] = b.MustDial(t, from, address)
		roundTrip(t, open[address], []byte(secret))
	}
	return open
}

// changedAway waits until a pod's connections have ended, with the reason in their flows.
func changedAway(t *testing.T, b *testbed.Bed, from string, open map[string]*net.TCPConn) {
	t.Helper()
	for address, c := range open {
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the connection of %s to %s, which may not leave any more, did not end: %v", from, address, err)
		}
		leftAs(t, b, "deny", "PolicyChanged", from, address)
	}
}

// leftAs waits for the flow of a connection that left the mesh, or was to.
func leftAs(t *testing.T, b *testbed.Bed, verdict, reason, from, address string) {
	t.Helper()
	waitFlow(t, b, reason+" of "+from+" to "+address, func(f testbed.Flow) bool {
		return f.Verdict == verdict && f.Reason == reason && f.Direction == "outbound" && f.Source.Workload == from && f.Destination.Address == address &&
			strings.HasPrefix(f.Source.Identity, "spiffe://e2e.heddle.dev/ns/") && (f.Sent > 0) == (reason != "EgressDenied") && f.Sent == f.Received
	})
}
