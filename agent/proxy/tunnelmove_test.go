package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/heddle-mesh/heddle/agent/engine"
	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestEverythingMoves has connections of every transport under traffic.
func TestEverythingMoves(t *testing.T) {
	m := newMoving(t, engine.Loop)
	talks := m.pairs(t)
	for name, k := range m.tunnels(t) {
		talks[name] = k
	}
	before, charged := m.old.proxy.Live(), m.old.proxy.Charges()
	if want := (proxy.Charges{Connections: 6, Sockets: 8, Balanced: 3, Tunnels: 2}); charged != want {
		t.Errorf("charged %+v, want %+v", charged, want)
	}
	h, _ := m.old.takeOver(t, m.renewed, m.web, m.near)
	h.move()
	if h.kinds[proxy.KindPair] != 3 || h.kinds[proxy.KindTunnel] != 2 {
		t.Errorf("moved %v", h.kinds)
	}
	if now := m.renewed.proxy.Charges(); now != charged {
		t.Errorf("charged %+v, was %+v", now, charged)
	}
	time.Sleep(50 * time.Millisecond)
	m.check(t, talks, before)
	next := m.web.client(vip)
	greeting(t, next)
	for _, r := range m.renewed.proxy.Live() { // on a tunnel connection that has come from the other
		if r.Timing.Handshake != 0 || r.Secured.Facts().KeyExchange() != "X25519MLKEM768" || r.Secured.Facts().Serial == "" {
			t.Errorf("after a handshake of %v, secured by %v", r.Timing.Handshake, r.Secured)
		}
	}
	greeting(t, m.far.client("198.18.9.4:7000"))
}

// TestTunnelsThatMovedAreCut by policy inbound, and by revocation outbound.
func TestTunnelsThatMovedAreCut(t *testing.T) {
	m := newMoving(t, engine.Loop)
	out, in := m.web.client(vip), m.far.client("198.18.9.4:7000")
	greeting(t, out)
	greeting(t, in)
	h, _ := m.old.takeOver(t, m.renewed, m.web, m.near)
	h.move()
	m.w.policies = append(m.w.policies, m.w.denies("no-far", "far"))
	m.w.publish()
	refused(t, in)
	if r := m.renewed.flows.wait(t, 1)[0]; r.Reason != mesh.ReasonPolicyChanged || r.Verdict != mesh.VerdictDeny || r.Direction != flow.DirectionInbound {
		t.Errorf("%+v", r)
	}
	m.w.settings.RevokedIdentities = append(m.w.settings.RevokedIdentities, m.w.workloads[0].Identity)
	m.w.publish()
	refused(t, out)
	r := m.renewed.flows.wait(t, 2)[1]
	// Whichever node was first: the other finds the stream reset.
	if r.Direction != flow.DirectionOutbound || r.Reason != mesh.ReasonIdentityRevoked && r.Reason != mesh.ReasonReset {
		t.Errorf("%+v", r)
	}
	if left := m.old.flows.all(); len(left) > 0 {
		t.Errorf("the old proxy made records: %+v", left)
	}
}

// churn opens connections one after another until it is told to stop, and
// returns how many there were.
func churn(p *pod, dst string, stop *atomic.Bool) (n int, err error) {
	for !stop.Load() {
		c, err := dialFrom(context.Background(), netip.AddrPortFrom(p.addr, 0), netip.MustParseAddrPort(dst))
		if err != nil {
			return n, err
		}
		n++
		err = func() error {
			defer c.Close()
			if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				return err
			}
			if _, err := c.Write([]byte("question")); err != nil {
				return err
			}
			if err := c.CloseWrite(); err != nil {
				return err
			}
			got, err := io.ReadAll(c)
			if err == nil && !strings.HasSuffix(string(got), "\nquestion") {
				err = fmt.Errorf("read %q", got)
			}
			return err
		}()
		if err != nil {
			return n, fmt.Errorf("%s, connection %d: %w", dst, n, err)
		}
	}
	return n, nil
}

// TestNobodySeesTheMove opens connections of every transport all the time, and
// moves the node twice: none fails, and each leaves exactly one record.
func TestNobodySeesTheMove(t *testing.T) {
	m := newMoving(t, engine.Loop)
	third := m.w.node("a")
	var stop atomic.Bool
	var group errgroup.Group
	var total atomic.Int64
	for _, from := range []struct {
		pod *pod
		dst string
	}{
		{m.web, vip}, {m.web, vip}, {m.web, "198.18.9.2:7000"}, {m.web, "198.18.9.3:7000"},
		{m.far, "198.18.9.4:7000"}, {m.far, "198.18.9.4:7000"}, {m.far, "198.18.2.2:7002"},
	} {
		group.Go(func() error {
			n, err := churn(from.pod, from.dst, &stop)
			total.Add(int64(n))
			return err
		})
	}
	time.Sleep(100 * time.Millisecond)
	h, pods := m.old.takeOver(t, m.renewed, m.web, m.near)
	h.move()
	time.Sleep(100 * time.Millisecond)
	h, _ = m.renewed.takeOver(t, third, pods...)
	h.move()
	time.Sleep(100 * time.Millisecond)
	stop.Store(true)
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	records := func() []flow.Record {
		return append(append(m.old.flows.all(), m.renewed.flows.all()...), third.flows.all()...)
	}
	testenv.Eventually(t, 5*time.Second, "every connection's record", func() bool { return len(records()) >= int(total.Load()) })
	if n := len(records()); n != int(total.Load()) || n < 50 {
		t.Errorf("%d records of %d connections", n, total.Load())
	}
	t.Logf("%d connections", total.Load())
	for _, r := range records() {
		if r.Verdict != mesh.VerdictAllow || r.BytesSent != 8 || r.BytesReceived <= 8 || r.Reason == mesh.ReasonReset {
			t.Errorf("%+v", r)
		}
	}
}

// TestIdleTunnelMoves: a connection of the pool without a stream, of a pod of
// which nothing else is left, serves the next stream in the other process.
func TestIdleTunnelMoves(t *testing.T) {
	m := newMoving(t, engine.Loop)
	c := m.web.client(vip)
	greeting(t, c)
	c.CloseWrite()
	io.Copy(io.Discard, c)
	m.old.flows.wait(t, 1)
	h, _ := m.old.takeOver(t, m.renewed, m.web, m.near)
	h.move()
	if h.kinds[proxy.KindTunnel] != 1 {
		t.Fatalf("moved %v", h.kinds)
	}
	c = m.web.client(vip)
	greeting(t, c)
	c.CloseWrite()
	io.Copy(io.Discard, c)
	if r := m.renewed.flows.wait(t, 1)[0]; r.Timing.Handshake != 0 {
		t.Errorf("shook hands for %v, on a warm connection", r.Timing.Handshake)
	}
}

// TestManyMove has more connections than one batch, all idle: none has a goroutine in the
// process that it has come to, each answers when asked afterwards, and is recorded once.
func TestManyMove(t *testing.T) {
	const each = 150
	m := newMoving(t, engine.Loop)
	var conns []*net.TCPConn
	for range each {
		for _, c := range []*net.TCPConn{
			m.web.client(vip), m.web.client("198.18.9.2:7000"), m.web.client("198.18.9.3:7000"),
			m.far.client("198.18.9.4:7000"), m.far.client("198.18.2.2:7002"),
		} {
			greeting(t, c)
			conns = append(conns, c)
		}
	}
	charged, goroutines := m.old.proxy.Charges(), runtime.NumGoroutine()
	h, _ := m.old.takeOver(t, m.renewed, m.web, m.near)
	start := time.Now()
	h.move()
	t.Logf("%d connections in %v", len(conns), time.Since(start))
	if now := m.renewed.proxy.Charges(); now != charged || m.renewed.proxy.Open() != len(conns) {
		t.Errorf("charged %+v for %d, was %+v", now, m.renewed.proxy.Open(), charged)
	}
	testenv.Eventually(t, 5*time.Second, "no goroutine for a connection that moved", func() bool {
		return runtime.NumGoroutine() < goroutines+each/3 // one transport's would be as many as each; the pods' are few
	})
	t.Logf("%d goroutines, %d before the move", runtime.NumGoroutine(), goroutines)
	for _, c := range conns {
		c.Write([]byte("alive\n"))
	}
	for _, c := range conns {
		if got := greeting(t, c); got != "alive" {
			t.Fatalf("%q", got)
		}
		c.Close()
	}
	for _, r := range m.renewed.flows.wait(t, len(conns)) {
		if r.BytesSent != 6 || r.Verdict != mesh.VerdictAllow {
			t.Errorf("%+v", r)
		}
	}
	if left := m.old.flows.all(); len(left) > 0 {
		t.Errorf("the old proxy made %d records", len(left))
	}
}

// slowToServe is an engine whose Serve begins when it is told to.
type slowToServe struct {
	hbone.Mover
	begin chan struct{}
}

func (e *slowToServe) Serve(l net.Listener, s *hbone.Server) error {
	<-e.begin
	return e.Mover.Serve(l, s)
}

// TestThawWaitsForServe: a connection that comes while its pod is about to be served
// waits for that, however long it takes, and for nothing else.
func TestThawWaitsForServe(t *testing.T) {
	m := newMoving(t, engine.Loop)
	c := m.far.client("198.18.9.4:7000")
	greeting(t, c)
	begin := make(chan struct{})
	m.renewed = m.w.node("a", func(c *proxy.Config) { c.Engine = &slowToServe{c.Engine.(hbone.Mover), begin} })
	h, _ := m.old.takeOver(t, m.renewed, m.web, m.near)
	slow := time.AfterFunc(300*time.Millisecond, func() { close(begin) })
	defer slow.Stop()
	h.move()
	if h.kinds[proxy.KindTunnel] != 1 {
		t.Errorf("moved %v", h.kinds)
	}
	c.Write([]byte("moved\n"))
	if got := greeting(t, c); got != "moved" {
		t.Errorf("%q", got)
	}
}
