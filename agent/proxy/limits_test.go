package proxy_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
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

// TestPolicyChangeEndsExactlyWhatItRefuses holds two clients' connections and
// denies one of them, then revokes the other, for tunnels and for splices.
func TestPolicyChangeEndsExactlyWhatItRefuses(t *testing.T) {
	eachPair(t, func(t *testing.T, engines map[string]string) { policyChange(t, engines, "b") })
	t.Run("splice", func(t *testing.T) { policyChange(t, nil, "a") })
}

func policyChange(t *testing.T, engines map[string]string, serverNode string) {
	w := newWorld(t)
	w.engines = engines
	w.workload("web", "a", "198.18.1.1")
	w.workload("api", "a", "198.18.1.2")
	w.workload("db", serverNode, "198.18.2.1")
	w.service("db", "198.18.9.1", 7000, 7001, "db")
	w.service("db2", "198.18.9.2", 7000, 7001, "db")
	w.publish()
	application(t, "198.18.2.1:7001", echo)
	a := w.node("a")
	server := a
	if serverNode == "b" {
		server = w.node("b")
	}
	web := a.serve("web", "198.18.1.1", podOptions{outbound: []string{"198.18.9.1:7000"}})
	api := a.serve("api", "198.18.1.2", podOptions{outbound: []string{"198.18.9.2:7000"}})
	server.serve("db", "198.18.2.1", podOptions{})
	one, two := web.client("198.18.9.1:7000"), api.client("198.18.9.2:7000")
	greeting(t, one)
	greeting(t, two)

	w.publish() // an equal View changes nothing
	w.policies = append(w.policies, w.denies("no-web", "web"))
	w.publish()
	refused(t, one)
	r := server.flows.wait(t, 1)[0]
	if r.Reason != mesh.ReasonPolicyChanged || r.Verdict != mesh.VerdictDeny || r.Source.Workload.Name != "web" {
		t.Errorf("%v %v from %v", r.Verdict, r.Reason, r.Source.Workload)
	}
	if server != a {
		if r := a.flows.wait(t, 1)[0]; r.Reason != mesh.ReasonReset || r.Source.Workload.Name != "web" {
			t.Errorf("outbound: %v %v from %v", r.Verdict, r.Reason, r.Source.Workload)
		}
	}
	two.Write([]byte("still here\n"))
	if got := greeting(t, two); got != "still here" {
		t.Errorf("%q", got)
	}

	w.settings.RevokedIdentities = append(w.settings.RevokedIdentities, w.workloads[1].Identity)
	w.publish()
	refused(t, two)
	found := false
	// Both nodes see the revocation: one ends the stream with that reason,
	// and the other may find it reset before it does.
	testenv.Eventually(t, 5*time.Second, "revocation recorded", func() bool {
		for _, r := range append(server.flows.all(), a.flows.all()...) {
			found = found || r.Source.Workload.Name == "api" && r.Reason == mesh.ReasonIdentityRevoked && r.Verdict == mesh.VerdictDeny
		}
		return found
	})
}

// TestRevocationCutsOnEitherSide: only one of the two nodes has learned of it.
func TestRevocationCutsOnEitherSide(t *testing.T) {
	for _, side := range []string{"a", "b"} {
		for _, kind := range []string{engine.Loop, engine.Reference} {
			t.Run(side+" "+kind, func(t *testing.T) {
				late := mesh.NewStore()
				w := newWorld(t)
				w.engines = map[string]string{side: kind}
				w.workload("web", "a", "198.18.1.1")
				w.workload("db", "b", "198.18.2.1")
				w.service("db", "198.18.9.1", 7000, 7001, "db")
				w.publish()
				late.Replace(w.store.View())
				application(t, "198.18.2.1:7001", echo)
				nodes := map[string]*node{}
				for _, name := range []string{"a", "b"} {
					nodes[name] = w.node(name, func(c *proxy.Config) {
						if name != side {
							c.Store = late
						}
					})
				}
				client := nodes["a"].serve("web", "198.18.1.1", podOptions{outbound: []string{vip}})
				nodes["b"].serve("db", "198.18.2.1", podOptions{})
				c := client.client(vip)
				greeting(t, c)
				w.settings.RevokedIdentities = append(w.settings.RevokedIdentities, w.workloads[0].Identity)
				w.publish()
				refused(t, c)
				if r := nodes[side].flows.wait(t, 1)[0]; r.Reason != mesh.ReasonIdentityRevoked || r.Verdict != mesh.VerdictDeny || r.Transport != flow.TransportTunnel {
					t.Errorf("%v %v by %v", r.Verdict, r.Reason, r.Transport)
				}
			})
		}
	}
}

func TestBudgetOfConnections(t *testing.T) {
	w := newWorld(t)
	w.workload("web", "a", "198.18.1.1")
	w.workload("api", "a", "198.18.1.2")
	w.workload("db", "b", "198.18.2.1")
	w.service("db2", "198.18.9.2", 7000, 7001, "db")
	w.service("db", "198.18.9.1", 7000, 7001, "db")
	w.publish()
	application(t, "198.18.2.1:7001", echo)
	a := w.node("a", func(c *proxy.Config) { c.Budget.Connections = 3 })
	b := w.node("b")
	client := a.serve("web", "198.18.1.1", podOptions{outbound: []string{vip}})
	neighbour := a.serve("api", "198.18.1.2", podOptions{outbound: []string{"198.18.9.2:7000"}})
	b.serve("db", "198.18.2.1", podOptions{})
	for range 3 {
		greeting(t, client.client(vip))
	}
	client.refused(vip)
	if r := a.flows.wait(t, 1)[0]; r.Reason != mesh.ReasonBudgetExceeded || r.Verdict != mesh.VerdictDeny {
		t.Errorf("%v", r.Reason)
	}
	for range 3 { // another pod has its own
		greeting(t, neighbour.client("198.18.9.2:7000"))
	}
}

// TestBudgetOfSockets: a pod whose connections would take all of the node's sockets is
// refused while there are as many left for others as it has connections, by whichever
// way these go.
func TestBudgetOfSockets(t *testing.T) {
	for kind, c := range map[string]struct {
		node, web, api string // of the server, and where each pod goes
		want           int    // connections of the greedy pod, of 24 sockets
	}{
		"tunnel":    {"b", "198.18.9.1:7000", "198.18.9.2:7000", 18}, // a socket each, and one of the tunnel connection
		"splice":    {"a", "198.18.9.1:7000", "198.18.9.2:7000", 10}, // two each
		"plaintext": {"b", "203.0.113.1:7001", "203.0.113.2:7001", 10},
	} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t)
			w.workload("web", "a", "198.18.1.1")
			w.workload("api", "a", "198.18.1.2")
			w.workload("db", c.node, "198.18.2.1")
			w.workload("other", c.node, "198.18.2.2")
			w.service("db", "198.18.9.1", 7000, 7001, "db")
			w.service("other", "198.18.9.2", 7000, 7001, "other")
			w.publish()
			server := map[string]*node{"a": w.node("a", func(c *proxy.Config) { c.Budget.Sockets = 24 }), "b": w.node("b")}
			a := server["a"]
			for i, name := range []string{"db", "other"} {
				server[c.node].serve(name, fmt.Sprintf("198.18.2.%d", i+1), podOptions{})
				application(t, fmt.Sprintf("198.18.2.%d:7001", i+1), echo)
			}
			sockets := podSockets(kind == "plaintext")
			web := a.serve("web", "198.18.1.1", podOptions{outbound: []string{c.web}, sockets: sockets("198.18.1.1")})
			api := a.serve("api", "198.18.1.2", podOptions{outbound: []string{c.api}, sockets: sockets("198.18.1.2")})
			for range c.want {
				greeting(t, web.client(c.web))
			}
			for range 10 {
				web.refused(c.web)
			}
			for _, r := range a.flows.wait(t, 10) {
				if r.Reason != mesh.ReasonBudgetExceeded || r.Source.Workload.Name != "web" {
					t.Errorf("%v of %v: %s", r.Reason, r.Source.Workload, r.Detail)
				}
			}
			greeting(t, api.client(c.api))
		})
	}
}

// crowd is a pod of node a that has to do with many of node b, one after the other, and its
// neighbour, which has to do with the last of them.
type crowd struct {
	a           *node
	from        []*pod
	to          []string
	neighbour   *pod
	neighbourTo string
}

func newCrowd(t *testing.T, kind string, inbound bool, peers, sockets int) *crowd {
	w := newWorld(t)
	w.engines = map[string]string{"a": kind}
	w.workload("web", "a", "198.18.1.1")
	w.workload("api", "a", "198.18.1.2")
	addresses := []string{"198.18.1.1", "198.18.1.2"}
	g := &crowd{neighbourTo: "198.18.9.201:7000"}
	for i := range peers {
		name := fmt.Sprint("peer-", i)
		addresses = append(addresses, fmt.Sprintf("198.18.2.%d", i+1))
		w.workload(name, "b", addresses[i+2])
		service := fmt.Sprintf("198.18.9.%d", i+1)
		g.to = append(g.to, service+":7000")
		if inbound {
			w.service("to-"+name, service, 7000, 7001, "web")
		} else {
			w.service("to-"+name, service, 7000, 7001, name)
		}
	}
	last := fmt.Sprint("peer-", peers-1)
	if inbound {
		last = "api"
	}
	w.service("neighbour", "198.18.9.201", 7000, 7001, last)
	w.publish()
	for _, addr := range addresses {
		application(t, addr+":7001", echo)
	}
	g.a = w.node("a", func(c *proxy.Config) { c.Budget.Sockets = sockets })
	b := w.node("b")
	var ofWeb, ofAPI podOptions
	if !inbound {
		ofWeb.outbound, ofAPI.outbound = g.to, []string{g.neighbourTo}
	}
	web := g.a.serve("web", addresses[0], ofWeb)
	g.neighbour = g.a.serve("api", addresses[1], ofAPI)
	for i := range peers {
		var o podOptions
		if inbound {
			o.outbound = g.to[i : i+1]
			if i == peers-1 {
				o.outbound = append([]string{g.neighbourTo}, o.outbound...)
			}
		}
		peer := b.serve(fmt.Sprint("peer-", i), addresses[i+2], o)
		if !inbound {
			peer = web
		} else if i == peers-1 {
			g.neighbour = peer
		}
		g.from = append(g.from, peer)
	}
	return g
}

// says reports whether a connection opens, and closes it.
func (p *pod) says(t *testing.T, dst string) bool {
	c, err := p.dial(dst)
	if err != nil {
		return false
	}
	defer c.Close()
	n, err := c.Read(make([]byte, 1))
	return n == 1 && err == nil
}

// TestBudgetOfTunnels: a pod that goes to many others, one at a time, makes its agent keep no
// more tunnel connections, which are idle, than its share of sockets; nor does one that many
// come to. Another pod of the node finds some.
func TestBudgetOfTunnels(t *testing.T) {
	for _, kind := range []string{engine.Loop, engine.Reference} {
		for _, inbound := range []bool{false, true} {
			t.Run(fmt.Sprint(kind, " inbound ", inbound), func(t *testing.T) {
				const peers = 30
				most := 12 // of 24 sockets: so many are left
				if !inbound {
					most = 11 // with the connection that it is for
				}
				g := newCrowd(t, kind, inbound, peers, 24)
				opened := 0
				for i, from := range g.from {
					if from.says(t, g.to[i]) {
						opened++
					}
					testenv.Eventually(t, 5*time.Second, "it has ended", func() bool { return g.a.proxy.Charges().Connections == 0 })
				}
				if n := g.a.proxy.Charges().Tunnels; opened != most || int(n) != most {
					t.Errorf("%d of %d peers were reached, by %d tunnel connections, want %d", opened, peers, n, most)
				}
				over := 0
				for _, r := range g.a.flows.all() {
					if r.Reason == mesh.ReasonBudgetExceeded && r.Verdict == mesh.VerdictDeny {
						over++
					}
				}
				if over < peers-most {
					t.Errorf("%d were refused as over the budget", over)
				}
				if !g.from[0].says(t, g.to[0]) {
					t.Error("what has a tunnel connection is refused")
				}
				if !g.neighbour.says(t, g.neighbourTo) {
					t.Error("the neighbour is refused")
				}
			})
		}
	}
}

// podSockets makes the sockets of a pod at an address; outside, what leaves the mesh
// goes to an application that is not where it was dialled, as that is a listener's.
func podSockets(outside bool) func(addr string) proxy.Sockets {
	return func(addr string) proxy.Sockets {
		s := sockets{addr: netip.MustParseAddr(addr)}
		if outside {
			return egressing{s}
		}
		return s
	}
}

type egressing struct{ sockets }

func (e egressing) DialEgress(ctx context.Context, _ netip.AddrPort) (*net.TCPConn, error) {
	return e.sockets.DialEgress(ctx, netip.MustParseAddrPort("198.18.2.1:7001"))
}

// watched is an engine whose memory budgets a test sees.
type watched struct {
	hbone.Engine
	mu       sync.Mutex
	out, in  map[string]*hbone.Memory // by source, by local
	mistaken []string
}

func (e *watched) note(by map[string]*hbone.Memory, pod string, m *hbone.Memory) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if had, ok := by[pod]; m == nil || ok && had != m {
		e.mistaken = append(e.mistaken, pod)
	}
	by[pod] = m
}

func (e *watched) Connect(local *net.TCPConn, req *hbone.ConnectRequest) {
	e.note(e.out, req.Source, req.Memory)
	e.Engine.Connect(local, req)
}

func (e *watched) Serve(l net.Listener, srv *hbone.Server) error {
	e.note(e.in, srv.Local, srv.Memory)
	return e.Engine.Serve(l, srv)
}

// TestBudgetOfBytesIsThePods: what the engine holds for a pod is one budget, and
// another pod's is another.
func TestBudgetOfBytesIsThePods(t *testing.T) {
	w := newWorld(t)
	w.workload("web", "a", "198.18.1.1")
	w.workload("api", "a", "198.18.1.2")
	w.workload("db", "b", "198.18.2.1")
	w.service("db", "198.18.9.1", 7000, 7001, "db")
	w.service("db2", "198.18.9.2", 7000, 7001, "db")
	w.publish()
	application(t, "198.18.2.1:7001", echo)
	e := &watched{out: map[string]*hbone.Memory{}, in: map[string]*hbone.Memory{}}
	a := w.node("a", func(c *proxy.Config) { e.Engine = c.Engine; c.Engine = e; c.Budget.BufferedBytes = 1 << 30 })
	w.node("b").serve("db", "198.18.2.1", podOptions{})
	for i, name := range []string{"web", "api"} {
		dst := []string{"198.18.9.1:7000", "198.18.9.2:7000"}[i]
		p := a.serve(name, fmt.Sprintf("198.18.1.%d", i+1), podOptions{outbound: []string{dst}})
		greeting(t, p.client(dst))
		greeting(t, p.client(dst))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	web, api := e.out["shop/web"], e.out["shop/api"]
	if len(e.mistaken) > 0 || web == api || e.in["shop/web"] != web {
		t.Errorf("budgets out %v, in %v; mistaken %v", e.out, e.in, e.mistaken)
	}
	if web.Limit() != 1<<30 || web.Full() {
		t.Errorf("limit %d, full %v", web.Limit(), web.Full())
	}
	if web.Take(1 << 30); !web.Full() || api.Full() {
		t.Error("a gigabyte is this pod's limit, and nobody else's")
	}
	web.Give(1 << 30)
}

func TestBudgetOfHandshakes(t *testing.T) {
	w := newWorld(t)
	w.workload("db", "b", "198.18.2.1")
	w.publish()
	b := w.node("b", func(c *proxy.Config) { c.Budget.Handshakes = 1 })
	p := b.serve("db", "198.18.2.1", podOptions{})
	for range 10 {
		if c, err := dialFrom(t.Context(), netip.AddrPortFrom(p.addr, 0), netip.MustParseAddrPort("198.18.2.1:15008")); err == nil {
			c.Close()
		}
	}
	testenv.Eventually(t, 5*time.Second, "8 refusals", func() bool {
		n := 0
		for _, r := range b.flows.all() {
			if r.Reason == mesh.ReasonBudgetExceeded {
				n++
			}
		}
		return n >= 7 // one more may have been allowed as time passed
	})
}

// TestBudgetOfOutboundHandshakes: a pod whose connections go to where each handshake
// fails makes its agent begin no more than it has; another pod of the node has its own.
func TestBudgetOfOutboundHandshakes(t *testing.T) {
	for _, kind := range []string{engine.Loop, engine.Reference} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t)
			w.engines = map[string]string{"a": kind}
			w.workload("web", "a", "198.18.1.1")
			w.workload("api", "a", "198.18.1.2")
			w.workload("broken", "b", "198.18.2.1")
			w.workload("db", "b", "198.18.2.2")
			w.service("broken", "198.18.9.1", 7000, 7001, "broken")
			w.service("broken2", "198.18.9.2", 7000, 7001, "broken")
			w.service("db", "198.18.9.3", 7000, 7001, "db")
			w.publish()
			application(t, "198.18.2.2:7001", echo)
			var dialled atomic.Int32
			application(t, "198.18.2.1:15008", func(*net.TCPConn) { dialled.Add(1) }) // closes in place of a handshake
			a := w.node("a", func(c *proxy.Config) { c.Budget.OutboundHandshakes = 1 })
			w.node("b").serve("db", "198.18.2.2", podOptions{})
			web := a.serve("web", "198.18.1.1", podOptions{outbound: []string{"198.18.9.1:7000"}})
			api := a.serve("api", "198.18.1.2", podOptions{outbound: []string{"198.18.9.2:7000", "198.18.9.3:7000"}})
			for range 20 {
				web.refused("198.18.9.1:7000")
			}
			over := 0
			for _, r := range a.flows.wait(t, 20) {
				if r.Reason == mesh.ReasonBudgetExceeded && r.Verdict == mesh.VerdictDeny && r.Destination.Workload.Name == "broken" {
					over++
				} else if r.Reason != mesh.ReasonPeerRefused {
					t.Errorf("%v: %s", r.Reason, r.Detail)
				}
			}
			if n := dialled.Load(); n < 1 || n > 4 || over != 20-int(n) { // as time passed, there were more
				t.Errorf("%d connections over the budget and %d handshakes begun, of 20 and 1", over, n)
			}
			api.refused("198.18.9.2:7000")
			if r := a.flows.wait(t, 21)[20]; r.Reason != mesh.ReasonPeerRefused {
				t.Errorf("the other pod's: %v: %s", r.Reason, r.Detail)
			}
			greeting(t, api.client("198.18.9.3:7000"))
		})
	}
}

// TestBudgetOfWarmConnections: tunnel connections that are dialled ahead, or for
// another loop, are a few for hundreds of an honest pod's connections.
func TestBudgetOfWarmConnections(t *testing.T) {
	w := newWorld(t)
	w.workload("web", "a", "198.18.1.1")
	w.workload("db", "b", "198.18.2.1")
	w.service("db", "198.18.9.1", 7000, 7001, "db")
	w.publish()
	application(t, "198.18.2.1:7001", echo)
	a := w.node("a", func(c *proxy.Config) { c.Budget.OutboundHandshakes = 8 })
	client := a.serve("web", "198.18.1.1", podOptions{outbound: []string{vip}})
	w.node("b").serve("db", "198.18.2.1", podOptions{})
	for range 400 {
		greeting(t, client.client(vip))
	}
	if refused := a.flows.all(); len(refused) > 0 {
		t.Errorf("%v: %s", refused[0].Reason, refused[0].Detail)
	}
}

// TestSilentSourceKeepsNobodyOut: a peer that opens 1,000 connections to a pod's
// tunnel port and says nothing is told off, and others are served meanwhile.
func TestSilentSourceKeepsNobodyOut(t *testing.T) {
	_, _, b, client, _ := twoNodes(t, echo)
	silent := netip.MustParseAddr("198.18.7.7")
	for range 1000 {
		if c, err := dialFrom(t.Context(), netip.AddrPortFrom(silent, 0), netip.MustParseAddrPort("198.18.2.1:15008")); err == nil { // the refused may see their RST here
			defer c.Close()
		}
	}
	before := time.Now()
	greeting(t, client.client(vip))
	if took := time.Since(before); took > 2*time.Second {
		t.Errorf("served after %v", took)
	}
	testenv.Eventually(t, 5*time.Second, "refusals", func() bool {
		n := 0
		for _, r := range b.flows.all() {
			if r.Reason == mesh.ReasonBudgetExceeded && r.Source.Addr.Addr() == silent && r.Destination.Workload.Name == "db" {
				n++
			}
		}
		return n > 900
	})
}

// TestNoClientCertificate: the flow says what is wrong with who asks.
func TestNoClientCertificate(t *testing.T) {
	_, _, b, _, _ := twoNodes(t, echo)
	raw, err := dialFrom(t.Context(), netip.MustParseAddrPort("198.18.7.7:0"), netip.MustParseAddrPort("198.18.2.1:15008"))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	c := tls.Client(raw, &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, InsecureSkipVerify: true}) // the client's end is what is tried
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("served without a certificate")
	}
	if r := b.flows.wait(t, 1)[0]; r.Reason != mesh.ReasonCertificateInvalid || r.Verdict != mesh.VerdictDeny {
		t.Errorf("%v %v: %s", r.Verdict, r.Reason, r.Detail)
	}
}

// starving fails to accept for want of descriptors until it is fed.
type starving struct {
	net.Listener
	fed   atomic.Bool
	tries atomic.Int32
}

func (s *starving) Accept() (net.Conn, error) {
	if !s.fed.Load() {
		s.tries.Add(1)
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", unix.EMFILE)}
	}
	return s.Listener.Accept()
}

func TestWithoutDescriptorsItWaits(t *testing.T) {
	w := newWorld(t)
	w.workload("web", "a", "198.18.1.1")
	w.workload("db", "b", "198.18.2.1")
	w.service("db", "198.18.9.1", 7000, 7001, "db")
	w.publish()
	application(t, "198.18.2.1:7001", echo)
	a, b := w.node("a"), w.node("b")
	client := a.serve("web", "198.18.1.1", podOptions{outbound: []string{vip}})
	hungry := &starving{}
	b.serve("db", "198.18.2.1", podOptions{wrapTunnel: func(l net.Listener) net.Listener { hungry.Listener = l; return hungry }})
	time.Sleep(300 * time.Millisecond)
	if n := hungry.tries.Load(); n < 3 || n > 12 {
		t.Errorf("accept was tried %d times in 300 ms, want a growing pause", n)
	}
	hungry.fed.Store(true)
	greeting(t, client.client(vip))
}

// TestRotationKeepsConnections replaces every SVID under a live connection: it
// goes on, and the next one uses the new SVID.
func TestRotationKeepsConnections(t *testing.T) {
	w, a, b, client, _ := twoNodes(t, echo)
	c := client.client(vip)
	greeting(t, c)
	w.ca.rotate()
	time.Sleep(100 * time.Millisecond)
	next := client.client(vip)
	greeting(t, next)
	for _, conn := range []net.Conn{c, next} {
		conn.Write([]byte("alive\n"))
		if got := greeting(t, conn); got != "alive" {
			t.Errorf("%q", got)
		}
	}
	for _, conn := range []*net.TCPConn{c, next} {
		conn.CloseWrite()
		if _, err := io.ReadAll(conn); err != nil {
			t.Error(err)
		}
	}
	for _, r := range append(a.flows.wait(t, 2), b.flows.wait(t, 2)...) {
		if r.Verdict != mesh.VerdictAllow || r.Reason != mesh.ReasonNoPolicy || r.Timing.Handshake == 0 {
			t.Errorf("%v %v %v", r.Verdict, r.Reason, r.Timing)
		}
	}
}

func TestServingTwiceIsRefused(t *testing.T) {
	w := newWorld(t)
	w.workload("web", "a", "198.18.1.1")
	w.publish()
	a := w.node("a")
	a.serve("web", "198.18.1.1", podOptions{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := a.proxy.Serve(ctx, proxy.Pod{Key: mesh.Key{Namespace: "shop", Name: "web"}}); err == nil {
		t.Error("served twice")
	}
}
