package proxy_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/agent/relay"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/secured"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

const vip = "198.18.9.1:7000"

// twoNodes is a client on node a and a server "db" on node b, behind a service.
func twoNodes(t *testing.T, app func(*net.TCPConn)) (w *world, a, b *node, client, server *pod) {
	return twoNodesWith(t, nil, app)
}

func twoNodesWith(t *testing.T, engines map[string]string, app func(*net.TCPConn)) (w *world, a, b *node, client, server *pod) {
	w = newWorld(t)
	w.engines = engines
	w.workload("web", "a", "198.18.1.1")
	w.workload("db", "b", "198.18.2.1")
	w.service("db", "198.18.9.1", 7000, 7001, "db")
	w.publish()
	application(t, "198.18.2.1:7001", app)
	a, b = w.node("a"), w.node("b")
	client = a.serve("web", "198.18.1.1", podOptions{outbound: []string{vip}})
	server = b.serve("db", "198.18.2.1", podOptions{})
	return w, a, b, client, server
}

func TestTunnelCarriesAndRecordsOnBothNodes(t *testing.T) { eachPair(t, tunnelCarries) }

func tunnelCarries(t *testing.T, engines map[string]string) {
	w, a, b, client, _ := twoNodesWith(t, engines, echo)
	c := client.client(vip)
	if got := greeting(t, c); got != "hello 198.18.1.1" {
		t.Errorf("application greeted %q, want the client's own address", got)
	}
	c.Write([]byte("question"))
	c.CloseWrite()
	if got, err := io.ReadAll(c); string(got) != "question" || err != nil {
		t.Fatalf("read %q, %v", got, err)
	}
	out, in := a.flows.wait(t, 1)[0], b.flows.wait(t, 1)[0]
	greeted := uint64(len("hello 198.18.1.1\n"))
	for name, r := range map[string]flow.Record{"outbound": out, "inbound": in} {
		if r.Verdict != mesh.VerdictAllow || r.Reason != mesh.ReasonNoPolicy || r.Transport != flow.TransportTunnel || r.Direction.String() != name {
			t.Errorf("%s: %v %v %v %v (%s)", name, r.Direction, r.Verdict, r.Reason, r.Transport, r.Detail)
		}
		if r.BytesSent != 8 || r.BytesReceived != 8+greeted {
			t.Errorf("%s: sent %d received %d", name, r.BytesSent, r.BytesReceived)
		}
		if r.Source.Workload.Name != "web" || r.Destination.Workload.Name != "db" {
			t.Errorf("%s: from %v to %v", name, r.Source.Workload, r.Destination.Workload)
		}
		if r.Source.Identity.Path() != "/ns/shop/sa/web" || r.Destination.Identity.Path() != "/ns/shop/sa/db" {
			t.Errorf("%s: from %v to %v", name, r.Source.Identity, r.Destination.Identity)
		}
		if r.Source.Addr != addrPort(c.LocalAddr()) || r.Destination.Addr.String() != "198.18.2.1:7001" {
			t.Errorf("%s: from %v to %v", name, r.Source.Addr, r.Destination.Addr)
		}
		if r.Timing.Handshake <= 0 || r.Timing.RTT <= 0 || r.Timing.Connect <= 0 || r.Duration < r.Timing.Connect {
			t.Errorf("%s: %+v in %v", name, r.Timing, r.Duration)
		}
	}
	if out.Service.Name != "db" {
		t.Errorf("service %v", out.Service)
	}
	for r, peer := range map[*flow.Record]flow.Endpoint{&out: out.Destination, &in: in.Source} {
		cert, err := w.ca.Certificate(peer.Identity)
		if err != nil {
			t.Fatal(err)
		}
		if by := secured.Of(tls.X25519MLKEM768, cert.Leaf); r.Secured != by {
			t.Errorf("%v is secured by %v, want %v", r.Direction, r.Secured, by)
		}
	}
}

func addrPort(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }

func TestResetGoesThroughTheTunnel(t *testing.T) { eachPair(t, resetGoesThrough) }

func resetGoesThrough(t *testing.T, engines map[string]string) {
	ended := make(chan error, 1)
	_, a, b, client, _ := twoNodesWith(t, engines, func(c *net.TCPConn) {
		c.Write([]byte("hi\n"))
		_, err := io.Copy(io.Discard, c)
		ended <- err
	})
	c := client.client(vip)
	greeting(t, c)
	relay.Reset(c)
	if err := <-ended; err == nil {
		t.Error("the application saw a FIN, want a reset")
	}
	for _, n := range []*node{a, b} {
		if r := n.flows.wait(t, 1)[0]; r.Reason != mesh.ReasonReset || r.Verdict != mesh.VerdictAllow {
			t.Errorf("%v: %v %v", r.Direction, r.Verdict, r.Reason)
		}
	}
}

func TestApplicationsResetGoesBack(t *testing.T) {
	_, _, _, client, _ := twoNodes(t, func(c *net.TCPConn) { relay.Reset(c) })
	client.refused(vip)
}

func TestManyConnectionsShareATunnel(t *testing.T) {
	_, a, b, client, _ := twoNodes(t, echo)
	const n = 50
	var wg sync.WaitGroup
	for range n {
		c := client.client(vip)
		wg.Go(func() {
			greeting(t, c)
			c.Write([]byte("x"))
			c.CloseWrite()
			io.ReadAll(c)
		})
	}
	wg.Wait()
	a.flows.wait(t, n)
	handshakes := map[time.Duration]bool{}
	for _, r := range b.flows.wait(t, n) {
		handshakes[r.Timing.Handshake] = true
	}
	if len(handshakes) > 5 {
		t.Errorf("%d tunnel connections for %d streams", len(handshakes), n)
	}
}

// sameNode is a client and a server on one node.
func sameNode(t *testing.T, app func(*net.TCPConn)) (w *world, a *node, client *pod) {
	w = newWorld(t)
	w.workload("web", "a", "198.18.1.1")
	w.workload("db", "a", "198.18.2.1")
	w.service("db", "198.18.9.1", 7000, 7001, "db")
	w.publish()
	application(t, "198.18.2.1:7001", app)
	a = w.node("a")
	client = a.serve("web", "198.18.1.1", podOptions{outbound: []string{vip}})
	a.serve("db", "198.18.2.1", podOptions{})
	return w, a, client
}

func TestSpliceWithinANode(t *testing.T) {
	_, a, client := sameNode(t, echo)
	c := client.client(vip)
	if got := greeting(t, c); got != "hello 198.18.1.1" {
		t.Errorf("application greeted %q", got)
	}
	testenv.Eventually(t, time.Second, "it is live, with its bytes so far", func() bool {
		live := a.proxy.Live()
		return len(live) == 1 && live[0].Transport == flow.TransportSplice && live[0].BytesReceived > 0
	})
	payload := make([]byte, 8<<20)
	go func() { c.Write(payload); c.CloseWrite() }()
	sum := sha256.New()
	if n, err := io.Copy(sum, c); n != int64(len(payload)) || err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
	r := a.flows.wait(t, 1)[0]
	if r.Direction != flow.DirectionLocal || r.Transport != flow.TransportSplice || r.Verdict != mesh.VerdictAllow || r.BytesSent != uint64(len(payload)) {
		t.Errorf("%+v", r)
	}
	if r.Source.Identity.IsZero() || r.Destination.Identity.IsZero() {
		t.Errorf("identities %v, %v", r.Source.Identity, r.Destination.Identity)
	}
	if len(a.proxy.Live()) != 0 {
		t.Error("the registry still has it")
	}
}

func TestSpliceAuthorizesAsInbound(t *testing.T) {
	w, a, client := sameNode(t, echo)
	w.policies = append(w.policies, w.denies("no-web", "web"))
	w.publish()
	client.refused(vip)
	r := a.flows.wait(t, 1)[0]
	if r.Verdict != mesh.VerdictDeny || r.Reason != mesh.ReasonPolicyDeny || r.Policy.Name != "no-web" || r.Rule != 0 || r.Transport != flow.TransportNone {
		t.Errorf("%+v", r)
	}
}

func TestSpliceNeedsBothCertificates(t *testing.T) {
	for _, missing := range []string{"web", "db"} {
		t.Run(missing, func(t *testing.T) {
			w, a, client := sameNode(t, echo)
			id, err := mesh.IdentityFor(trustDomain, "shop", missing)
			if err != nil {
				t.Fatal(err)
			}
			w.ca.withhold(id)
			client.refused(vip)
			if r := a.flows.wait(t, 1)[0]; r.Reason != mesh.ReasonNoCertificate || r.Verdict != mesh.VerdictDeny {
				t.Errorf("%v (%s)", r.Reason, r.Detail)
			}
		})
	}
}

func TestSpliceRefusesRevoked(t *testing.T) {
	w, a, client := sameNode(t, echo)
	w.settings.RevokedIdentities = append(w.settings.RevokedIdentities, w.workloads[1].Identity)
	w.publish()
	client.refused(vip)
	if r := a.flows.wait(t, 1)[0]; r.Reason != mesh.ReasonIdentityRevoked {
		t.Errorf("%v (%s)", r.Reason, r.Detail)
	}
}

// TestSpliceToADeletedPodEndsForRevoked: it goes on while the pod's processes do, but not when
// its client's identity is revoked.
func TestSpliceToADeletedPodEndsForRevoked(t *testing.T) {
	w, a, client := sameNode(t, echo)
	c := client.client(vip)
	greeting(t, c)
	w.workloads, w.services = w.workloads[:1], nil
	w.publish()
	c.Write([]byte("still here\n"))
	if got := greeting(t, c); got != "still here" {
		t.Fatalf("%q", got)
	}
	w.settings.RevokedIdentities = append(w.settings.RevokedIdentities, w.workloads[0].Identity)
	w.publish()
	refused(t, c)
	if r := a.flows.wait(t, 1)[0]; r.Transport != flow.TransportSplice || r.Reason != mesh.ReasonIdentityRevoked || r.Verdict != mesh.VerdictDeny {
		t.Errorf("%+v", r)
	}
}

func TestEgressAndPlainWorkloads(t *testing.T) {
	w := newWorld(t)
	w.workload("web", "a", "198.18.1.1")
	w.workload("legacy", "", "198.18.3.1").Enrolled = false
	w.workloads[1].Node = "b"
	w.service("legacy", "198.18.9.2", 7000, 7001, "legacy")
	w.publish()
	application(t, "198.18.3.1:7001", echo)
	a := w.node("a")
	// 203.0.113.1 is outside the cluster's ranges. The listener stands for the
	// redirect, so the real destination cannot listen there: it is refused.
	client := a.serve("web", "198.18.1.1", podOptions{outbound: []string{"198.18.9.2:7000", "203.0.113.1:7000"}})

	c := client.client("198.18.9.2:7000")
	greeting(t, c)
	w.settings.Egress = mesh.EgressDeny
	w.publish() // ends it: plaintext to a workload that is not enrolled is egress
	refused(t, c)
	r := a.flows.wait(t, 1)[0]
	if r.Transport != flow.TransportPlaintext || r.Reason != mesh.ReasonPolicyChanged || r.Verdict != mesh.VerdictDeny {
		t.Errorf("%+v", r)
	}
	client.refused("198.18.9.2:7000")
	client.refused("203.0.113.1:7000")
	for _, r := range a.flows.wait(t, 3)[1:] {
		if r.Reason != mesh.ReasonEgressDenied {
			t.Errorf("%+v", r)
		}
	}
}

// TestRevokedReachesNobodyInPlaintext: neither outside nor where nobody proves anything, and
// what is open there ends; another identity's connections go on.
func TestRevokedReachesNobodyInPlaintext(t *testing.T) {
	w := newWorld(t)
	w.workload("web", "a", "198.18.1.1")
	w.workload("api", "a", "198.18.1.2")
	w.workload("legacy", "b", "198.18.3.1").Enrolled = false
	w.service("legacy", "198.18.9.2", 7000, 7001, "legacy")
	w.service("other", "198.18.9.3", 7000, 7001, "legacy")
	w.publish()
	application(t, "198.18.3.1:7001", echo)
	a := w.node("a")
	web := a.serve("web", "198.18.1.1", podOptions{outbound: []string{"198.18.9.2:7000", "203.0.113.1:7000"}})
	api := a.serve("api", "198.18.1.2", podOptions{outbound: []string{"198.18.9.3:7000"}})
	one, two := web.client("198.18.9.2:7000"), api.client("198.18.9.3:7000")
	greeting(t, one)
	greeting(t, two)
	w.settings.RevokedIdentities = append(w.settings.RevokedIdentities, w.workloads[0].Identity)
	w.publish()
	refused(t, one)
	web.refused("198.18.9.2:7000")
	web.refused("203.0.113.1:7000")
	for _, r := range a.flows.wait(t, 3) {
		if r.Reason != mesh.ReasonIdentityRevoked || r.Verdict != mesh.VerdictDeny || r.Source.Workload.Name != "web" {
			t.Errorf("%+v", r)
		}
	}
	two.Write([]byte("still here\n"))
	if got := greeting(t, two); got != "still here" {
		t.Errorf("%q", got)
	}
}

func TestUnknownAddressIsHeldThenRefused(t *testing.T) {
	w, a, _ := sameNode(t, echo)
	client := a.serve("other", "198.18.1.2", podOptions{outbound: []string{"198.18.9.3:7000", "198.18.9.4:7000"}})
	w.workload("other", "a", "198.18.1.2")
	w.publish()
	start := time.Now()
	client.refused("198.18.9.3:7000")
	if held := time.Since(start); held < 150*time.Millisecond || held > 2*time.Second {
		t.Errorf("held %v, want about 200 ms", held)
	}
	if r := a.flows.wait(t, 1)[0]; r.Reason != mesh.ReasonUnknownDestination {
		t.Errorf("%v", r.Reason)
	}
	c := client.client("198.18.9.4:7000")
	time.Sleep(50 * time.Millisecond)
	w.service("late", "198.18.9.4", 7000, 7001, "db")
	w.publish()
	if got := greeting(t, c); got != "hello 198.18.1.2" {
		t.Errorf("%q", got)
	}
}

func TestNothingIsKnownBeforeTheFirstView(t *testing.T) {
	w := newWorld(t)
	a := w.node("a")
	client := a.serve("web", "198.18.1.1", podOptions{outbound: []string{vip}, inbound: []string{"198.18.1.1:7001"}})
	client.refused(vip)
	client.refused("198.18.1.1:7001")
	for _, r := range a.flows.wait(t, 2) {
		if r.Reason != mesh.ReasonNotSynced {
			t.Errorf("%v: %v", r.Direction, r.Reason)
		}
	}
}

func TestUnreachableCandidatesAreAvoided(t *testing.T) {
	w := newWorld(t)
	w.workload("web", "a", "198.18.1.1")
	w.workload("good", "b", "198.18.2.1")
	w.workload("gone", "b", "198.18.2.2") // nobody listens there
	w.workload("away", "b", "198.18.2.3")
	w.service("db", "198.18.9.1", 7000, 7001, "good", "gone", "away")
	w.publish()
	application(t, "198.18.2.1:7001", echo)
	a, b := w.node("a"), w.node("b")
	client := a.serve("web", "198.18.1.1", podOptions{outbound: []string{vip}})
	b.serve("good", "198.18.2.1", podOptions{})
	for range 20 {
		c := client.client(vip)
		greeting(t, c)
		c.Close()
	}
	for _, r := range a.flows.wait(t, 20) {
		if r.Verdict != mesh.VerdictAllow || r.Destination.Workload.Name != "good" {
			t.Errorf("%v %v to %v", r.Verdict, r.Reason, r.Destination.Workload)
		}
	}
}

func TestApplicationThatIsNotThere(t *testing.T) {
	w, a, b, client, _ := twoNodes(t, echo)
	w.service("closed", "198.18.9.5", 7000, 7999, "db")
	w.publish()
	_ = client
	other := a.serve("nobody", "198.18.1.9", podOptions{outbound: []string{"198.18.9.5:7000"}})
	w.workload("nobody", "a", "198.18.1.9")
	w.publish()
	other.refused("198.18.9.5:7000")
	if r := a.flows.wait(t, 1)[0]; r.Reason != mesh.ReasonAppUnreachable || r.Verdict != mesh.VerdictDeny {
		t.Errorf("outbound: %v (%s)", r.Reason, r.Detail)
	}
	if r := b.flows.wait(t, 1)[0]; r.Reason != mesh.ReasonAppUnreachable || r.Verdict != mesh.VerdictDeny {
		t.Errorf("inbound: %v (%s)", r.Reason, r.Detail)
	}
}

// connectAs opens a stream to db's tunnel as web, with a target and a forwarded
// header of the test's own.
func connectAs(t *testing.T, w *world, a *node, target, forwarded string) error {
	t.Helper()
	web, db := w.workloads[0], w.workloads[1]
	cert, err := w.ca.Certificate(web.Identity)
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t, "127.0.0.1:0")
	defer l.Close()
	app, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	local, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	endpoint := netip.MustParseAddrPort("198.18.2.1:15008")
	done := make(chan hbone.Outcome, 1)
	req := &hbone.ConnectRequest{
		Key:         hbone.Key{Source: "test", Leaf: hbone.Fingerprint(cert), Peer: db.Identity, Endpoint: endpoint},
		Certificate: cert, Bundles: w.ca, Authority: netip.MustParseAddrPort(target), Timeout: 10 * time.Second,
		Dial: func(ctx context.Context) (*net.TCPConn, error) {
			return dialFrom(ctx, netip.AddrPortFrom(web.Addresses[0], 0), endpoint)
		},
		Done: func(o hbone.Outcome) { done <- o },
	}
	if forwarded != "" {
		req.Forwarded = netip.MustParseAddrPort(forwarded)
	}
	a.engine.Connect(local.(*net.TCPConn), req)
	app.(*net.TCPConn).CloseWrite()
	io.Copy(io.Discard, app)
	return (<-done).Err
}

func TestInboundChecksAuthorityAndForwarded(t *testing.T) {
	w, a, b, _, _ := twoNodes(t, echo)
	for _, c := range []struct {
		name, target, forwarded string
		code                    int
		reason                  mesh.Reason
		source                  string
	}{
		{"another pod's address", "198.18.2.9:7001", "", 400, mesh.ReasonAuthorityMismatch, "198.18.1.1"},
		{"the tunnel's own port", "198.18.2.1:15008", "", 401, mesh.ReasonReservedPort, "198.18.1.1"},
		{"forwarded that lies", "198.18.2.1:7001", "198.18.7.7:1234", 400, mesh.ReasonForwardedUntrusted, "198.18.1.1"},
		{"forwarded with the port", "198.18.2.1:7001", "198.18.1.1:4321", 0, mesh.ReasonNoPolicy, "198.18.1.1"},
		{"no forwarded", "198.18.2.1:7001", "", 0, mesh.ReasonNoPolicy, "198.18.1.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			seen := len(b.flows.all())
			err := connectAs(t, w, a, c.target, c.forwarded)
			status, _ := err.(*hbone.StatusError)
			switch {
			case c.code == 0 && err != nil:
				t.Errorf("refused: %v", err)
			case c.code != 0 && (status == nil || status.Code != c.code):
				t.Errorf("answered %v, want %d", err, c.code)
			}
			r := b.flows.wait(t, seen+1)[seen]
			if r.Reason != c.reason || r.Source.Addr.Addr().String() != c.source {
				t.Errorf("record: %v from %v (%s)", r.Reason, r.Source.Addr, r.Detail)
			}
		})
	}
}

func TestTunnelDenialIsExplainedOnBothNodes(t *testing.T) {
	w, a, b, client, _ := twoNodes(t, echo)
	w.policies = append(w.policies, w.denies("no-web", "web"))
	w.publish()
	client.refused(vip)
	if r := b.flows.wait(t, 1)[0]; r.Reason != mesh.ReasonPolicyDeny || r.Policy.Name != "no-web" {
		t.Errorf("inbound: %v %v", r.Reason, r.Policy)
	}
	if r := a.flows.wait(t, 1)[0]; r.Reason != mesh.ReasonPeerRefused || r.Verdict != mesh.VerdictDeny {
		t.Errorf("outbound: %v (%s)", r.Reason, r.Detail)
	}
}

func TestPlaintextInbound(t *testing.T) {
	w := newWorld(t)
	db := w.workload("db", "b", "198.18.2.1")
	db.PortModes = map[uint16]mesh.Mode{7002: mesh.ModePermissive}
	db.ProbePorts = []uint16{7003}
	w.publish()
	b := w.node("b")
	// In a pod the application listens on the redirected address itself; here
	// the listener has taken that, so dials to the application go elsewhere.
	application(t, "198.18.2.1:7902", echo)
	var probe atomic.Bool
	client := b.serve("db", "198.18.2.1", podOptions{
		inbound: []string{"198.18.2.1:7001", "198.18.2.1:7002", "198.18.2.1:7003"}, noTunnel: true,
		probe: func(_, _ netip.AddrPort) bool { return probe.Load() },
		apps:  map[uint16]uint16{7002: 7902, 7003: 7902},
	})
	for i, c := range []struct {
		port    uint16
		probe   bool
		verdict mesh.Verdict
		reason  mesh.Reason
	}{
		{7001, false, mesh.VerdictDeny, mesh.ReasonStrictPlaintext},
		{7001, true, mesh.VerdictDeny, mesh.ReasonStrictPlaintext},
		{7003, false, mesh.VerdictDeny, mesh.ReasonStrictPlaintext},
		{7003, true, mesh.VerdictAllow, mesh.ReasonProbe},
		{7002, false, mesh.VerdictAllow, mesh.ReasonPermissive},
	} {
		probe.Store(c.probe)
		dst := netip.AddrPortFrom(client.addr, c.port).String()
		if c.verdict == mesh.VerdictDeny {
			client.refused(dst)
		} else {
			conn := client.client(dst)
			greeting(t, conn)
			conn.Write([]byte("xyz"))
			conn.CloseWrite()
			io.Copy(io.Discard, conn)
		}
		r := b.flows.wait(t, i+1)[i]
		if r.Reason != c.reason || r.Verdict != c.verdict || r.Direction != flow.DirectionInbound {
			t.Errorf("port %d: %v %v", c.port, r.Verdict, r.Reason)
		}
		if c.verdict == mesh.VerdictAllow && (r.BytesSent != 3 || r.Transport != flow.TransportPlaintext) {
			t.Errorf("port %d: %d bytes sent, %v", c.port, r.BytesSent, r.Transport)
		}
	}
}

// TestProbesStayProbes: a probe that ends by RST, as kubelet's of TCP may, or with its pod, is
// recorded as one, and how it ended beside that.
func TestProbesStayProbes(t *testing.T) {
	w := newWorld(t)
	w.workload("db", "b", "198.18.2.1").ProbePorts = []uint16{7003}
	w.publish()
	b := w.node("b")
	application(t, "198.18.2.1:7902", echo)
	server := b.serve("db", "198.18.2.1", podOptions{
		inbound: []string{"198.18.2.1:7003"}, noTunnel: true, apps: map[uint16]uint16{7003: 7902},
		probe: func(_, _ netip.AddrPort) bool { return true },
	})
	for i, end := range []func(*net.TCPConn){func(c *net.TCPConn) { relay.Reset(c) }, func(*net.TCPConn) {
		if err := server.stop(proxy.ErrUnenrolled); err != nil {
			t.Error(err)
		}
	}} {
		c := server.client("198.18.2.1:7003")
		greeting(t, c)
		end(c)
		if r := b.flows.wait(t, i+1)[i]; r.Reason != mesh.ReasonProbe || r.Verdict != mesh.VerdictAllow || r.Detail == "" {
			t.Errorf("%v %v (%s)", r.Verdict, r.Reason, r.Detail)
		}
	}
}

func TestDrainEndsWithTheCause(t *testing.T) {
	for cause, reason := range map[error]mesh.Reason{nil: mesh.ReasonDraining, proxy.ErrUnenrolled: mesh.ReasonUnenrolled} {
		eachPair(t, func(t *testing.T, engines map[string]string) {
			_, a, b, client, server := twoNodesWith(t, engines, echo)
			c := client.client(vip)
			greeting(t, c)
			if err := server.stop(cause); err != nil {
				t.Error(err)
			}
			refused(t, c)
			if r := b.flows.wait(t, 1)[0]; r.Reason != reason {
				t.Errorf("inbound: %v", r.Reason)
			}
			a.flows.wait(t, 1)
			client.refused(vip)
			if r := a.flows.wait(t, 2)[1]; r.Reason != mesh.ReasonPeerUnreachable {
				t.Errorf("afterwards: %v", r.Reason)
			}
			testenv.Eventually(t, time.Second, "nothing is live", func() bool { return len(a.proxy.Live())+len(b.proxy.Live()) == 0 })
		})
	}
}

// TestLeavingTakesConnections: a pod that is told to leave the mesh carries new
// connections for as long as it has old ones, which end by themselves or at the
// deadline.
func TestLeavingTakesConnections(t *testing.T) {
	for name, ends := range map[string]bool{"old ones end": true, "old ones stay": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.workload("web", "a", "198.18.1.1")
			w.workload("db", "b", "198.18.2.1")
			w.service("db", "198.18.9.1", 7000, 7001, "db")
			w.publish()
			application(t, "198.18.2.1:7001", echo)
			deadline := func(c *proxy.Config) { c.Timeouts.Unenroll = time.Minute }
			if !ends {
				deadline = func(c *proxy.Config) { c.Timeouts.Unenroll = 10 * time.Second }
			}
			a, b := w.node("a"), w.node("b", deadline)
			client := a.serve("web", "198.18.1.1", podOptions{outbound: []string{vip}})
			server := b.serve("db", "198.18.2.1", podOptions{})
			old := client.client(vip)
			greeting(t, old)
			stopped := make(chan error, 1)
			go func() { stopped <- server.stop(proxy.ErrLeaving) }()
			for range 10 {
				c := client.client(vip)
				greeting(t, c)
				c.Close()
				time.Sleep(20 * time.Millisecond)
			}
			select {
			case err := <-stopped:
				t.Fatalf("it has left, with a connection that goes on: %v", err)
			default:
			}
			began := time.Now()
			if ends {
				old.Close()
			}
			if err := <-stopped; err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("it left after %v", took)
			}
			if !ends {
				refused(t, old)
			}
			testenv.Eventually(t, 5*time.Second, "nothing is live", func() bool { return len(b.proxy.Live()) == 0 })
		})
	}
}
