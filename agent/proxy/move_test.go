package proxy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/engine"
	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// duplicate is what another process gets of a listener.
func duplicate(t *testing.T, all []net.Listener) (copies []net.Listener) {
	t.Helper()
	for _, l := range all {
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		again, err := net.FileListener(f)
		if err != nil {
			t.Fatal(err)
		}
		copies = append(copies, again)
	}
	return copies
}

// handOver is a node's move to another proxy.
type handOver struct {
	t        *testing.T
	from, to *node
	left     chan error // one result of Serve for each pod
	pods     int
	kinds    map[proxy.Kind]int
}

// takeOver makes the other proxy serve the pods, and tells this one's Serve.
func (n *node) takeOver(t *testing.T, to *node, pods ...*pod) (*handOver, []*pod) {
	h := &handOver{t: t, from: n, to: to, left: make(chan error, len(pods)), pods: len(pods), kinds: map[proxy.Kind]int{}}
	var served []*pod
	for _, p := range pods {
		o := p.options
		o.listeners = &proxy.Listeners{
			Outbound: duplicate(t, p.listeners.Outbound), Inbound: duplicate(t, p.listeners.Inbound), Tunnel: duplicate(t, p.listeners.Tunnel),
		}
		go func() { h.left <- p.stop(proxy.ErrMoving) }()
		served = append(served, to.serve(p.name, p.addr.String(), o))
	}
	return h, served
}

// send is what a process makes of a Frozen that came by a socket.
func send(t *testing.T, f *proxy.Frozen) *proxy.Frozen {
	t.Helper()
	text, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	got := &proxy.Frozen{}
	if err := json.Unmarshal(text, got); err != nil {
		t.Fatal(err)
	}
	for i, fd := range f.Files {
		if got.Files[i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
	}
	return got
}

// move moves everything and waits until the pods have left.
func (h *handOver) move() {
	t := h.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err := h.from.proxy.Freeze(ctx, func(all []*proxy.Frozen) error {
		for _, f := range all {
			h.kinds[f.Kind]++
			if err := h.to.proxy.Thaw(send(t, f)); err != nil {
				t.Errorf("thaw %s of %s: %v", f.Kind, f.Pod, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("freeze: %v", err)
	}
	h.gone()
}

// gone waits until the old proxy's Serves have returned.
func (h *handOver) gone() {
	h.t.Helper()
	for range h.pods {
		select {
		case err := <-h.left:
			if err != nil {
				h.t.Errorf("serve: %v", err)
			}
		case <-time.After(10 * time.Second):
			h.t.Fatal("Serve has not returned")
		}
	}
	if n := h.from.proxy.Open(); n != 0 {
		h.t.Errorf("%d connections are left", n)
	}
}

// talker asks an echo and checks what comes back, until it is told to stop.
type talker struct {
	c     *net.TCPConn
	stop  atomic.Bool
	bytes atomic.Uint64
	ended chan error
}

func talk(t *testing.T, c *net.TCPConn) *talker {
	greeting(t, c)
	k := &talker{c: c, ended: make(chan error, 1)}
	go func() { k.ended <- k.run() }()
	testenv.Eventually(t, 5*time.Second, "it talks", func() bool { return k.bytes.Load() > 1<<10 })
	return k
}

func (k *talker) run() error {
	var wg sync.WaitGroup
	var sent error
	seed := [32]byte{1}
	wg.Go(func() {
		random, block := rand.NewChaCha8(seed), make([]byte, 4<<10)
		for !k.stop.Load() && sent == nil {
			random.Read(block)
			_, sent = k.c.Write(block)
			k.bytes.Add(uint64(len(block)))
			time.Sleep(time.Millisecond)
		}
		k.c.CloseWrite()
	})
	random, want, got := rand.NewChaCha8(seed), make([]byte, 4<<10), make([]byte, 4<<10)
	var received uint64
	for {
		_, err := io.ReadFull(k.c, got)
		if err != nil {
			wg.Wait()
			if errors.Is(err, io.EOF) && received != k.bytes.Load() {
				err = errors.New("bytes are missing")
			} else if errors.Is(err, io.EOF) {
				err = nil
			}
			return errors.Join(err, sent)
		}
		if random.Read(want); !bytes.Equal(got, want) {
			k.stop.Store(true)
			go io.Copy(io.Discard, k.c)
			wg.Wait()
			return errors.New("the bytes changed")
		}
		received += uint64(len(got))
	}
}

// end stops the talk and returns how many bytes it sent.
func (k *talker) end(t *testing.T) uint64 {
	t.Helper()
	k.stop.Store(true)
	select {
	case err := <-k.ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the talk does not end")
	}
	return k.bytes.Load()
}

// moving is node a, about to move, with connections of every transport.
type moving struct {
	w            *world
	old, renewed *node
	b            *node
	web, near    *pod
	far          *pod
}

// newMoving makes web and near on a, db and far on b, and legacy outside.
func newMoving(t *testing.T, kind string) *moving {
	w := newWorld(t)
	w.engines = map[string]string{"a": kind, "b": kind}
	w.workload("web", "a", "198.18.1.1")
	w.workload("db", "b", "198.18.2.1")
	w.workload("far", "b", "198.18.2.3")
	w.workload("near", "a", "198.18.2.2").PortModes = map[uint16]mesh.Mode{7002: mesh.ModePermissive}
	w.workload("legacy", "b", "198.18.3.1").Enrolled = false
	w.service("db", "198.18.9.1", 7000, 7001, "db")
	w.service("near", "198.18.9.2", 7000, 7001, "near")
	w.service("legacy", "198.18.9.3", 7000, 7001, "legacy")
	w.service("near2", "198.18.9.4", 7000, 7001, "near")
	w.publish()
	for _, addr := range []string{"198.18.2.1", "198.18.2.2", "198.18.3.1"} {
		application(t, addr+":7001", echo)
	}
	m := &moving{w: w, old: w.node("a"), renewed: w.node("a"), b: w.node("b")}
	m.web = m.old.serve("web", "198.18.1.1", podOptions{outbound: []string{vip, "198.18.9.2:7000", "198.18.9.3:7000"}})
	m.near = m.old.serve("near", "198.18.2.2", podOptions{inbound: []string{"198.18.2.2:7002"}, apps: map[uint16]uint16{7002: 7001}})
	m.b.serve("db", "198.18.2.1", podOptions{})
	m.far = m.b.serve("far", "198.18.2.3", podOptions{outbound: []string{"198.18.9.4:7000"}})
	return m
}

// pairs opens what no tunnel carries; tunnels the rest.
func (m *moving) pairs(t *testing.T) map[string]*talker {
	return map[string]*talker{
		"splice": talk(t, m.web.client("198.18.9.2:7000")), "egress": talk(t, m.web.client("198.18.9.3:7000")),
		"plaintext": talk(t, m.far.client("198.18.2.2:7002")),
	}
}

func (m *moving) tunnels(t *testing.T) map[string]*talker {
	return map[string]*talker{"outbound": talk(t, m.web.client(vip)), "inbound": talk(t, m.far.client("198.18.9.4:7000"))}
}

// way names a record as pairs and tunnels name talks.
func way(r *flow.Record) string {
	switch {
	case r.Transport == flow.TransportSplice:
		return "splice"
	case r.Transport == flow.TransportTunnel:
		return r.Direction.String()
	case r.Direction == flow.DirectionInbound:
		return "plaintext"
	default:
		return "egress"
	}
}

// check ends the talks and compares the new proxy's records with what was.
func (m *moving) check(t *testing.T, talks map[string]*talker, before []flow.Record) {
	t.Helper()
	sent := map[string]uint64{}
	for name, k := range talks {
		sent[name] = k.end(t)
	}
	was := map[string]flow.Record{}
	for _, r := range before {
		was[way(&r)] = r
	}
	greeted := uint64(len("hello 198.18.1.1\n"))
	for _, r := range m.renewed.flows.wait(t, len(talks)) {
		name := way(&r)
		w, ok := was[name]
		if !ok {
			t.Errorf("an unknown record: %+v", r)
			continue
		}
		delete(was, name)
		if r.BytesSent != sent[name] || r.BytesReceived != sent[name]+greeted {
			t.Errorf("%s: sent %d and received %d of %d", name, r.BytesSent, r.BytesReceived, sent[name])
		}
		if !r.Start.Equal(w.Start) || r.Duration < w.Duration || r.Timing.RTT <= 0 {
			t.Errorf("%s: from %v for %v, was from %v for %v; %+v", name, r.Start, r.Duration, w.Start, w.Duration, r.Timing)
		}
		if r.Source != w.Source || r.Destination != w.Destination || r.Service != w.Service || r.Verdict != w.Verdict ||
			r.Reason != w.Reason || r.Policy != w.Policy || r.Rule != w.Rule || r.Secured != w.Secured || (r.Transport == flow.TransportTunnel) != (r.Secured != flow.Secured{}) || r.Timing.Handshake != w.Timing.Handshake || r.Timing.Connect != w.Timing.Connect {
			t.Errorf("%s: %+v\nwas %+v", name, r, w)
		}
	}
	if len(was) > 0 {
		t.Errorf("without a record: %+v", was)
	}
	if left := m.old.flows.all(); len(left) > 0 {
		t.Errorf("the old proxy made records: %+v", left)
	}
	testenv.Eventually(t, time.Second, "all charges are given back", func() bool {
		left := m.renewed.proxy.Charges()
		left.Tunnels = 0 // which stay for others
		return left == proxy.Charges{}
	})
	if old := m.old.proxy.Charges(); old != (proxy.Charges{}) {
		t.Errorf("the old proxy still charges %+v", old)
	}
}

func TestPairsMove(t *testing.T) {
	m := newMoving(t, engine.Reference)
	talks := m.pairs(t)
	before, charged := m.old.proxy.Live(), m.old.proxy.Charges()
	if want := (proxy.Charges{Connections: 4, Sockets: 6, Balanced: 2}); charged != want {
		t.Errorf("charged %+v, want %+v", charged, want)
	}
	h, _ := m.old.takeOver(t, m.renewed, m.web, m.near)
	h.move()
	if h.kinds[proxy.KindPair] != 3 || len(h.kinds) != 1 {
		t.Errorf("moved %v", h.kinds)
	}
	if now := m.renewed.proxy.Charges(); now != charged {
		t.Errorf("charged %+v, was %+v", now, charged)
	}
	time.Sleep(50 * time.Millisecond)
	m.check(t, talks, before)
	greeting(t, m.web.client("198.18.9.2:7000")) // the new one accepts
}

// TestPolicyChangeAfterTheMoveCuts: also one that comes while nobody looks.
func TestPolicyChangeAfterTheMoveCuts(t *testing.T) {
	for _, when := range []string{"after", "meanwhile"} {
		t.Run(when, func(t *testing.T) {
			m := newMoving(t, engine.Reference)
			c := m.web.client("198.18.9.2:7000")
			greeting(t, c)
			change := func() {
				m.w.policies = append(m.w.policies, m.w.denies("no-web", "web"))
				m.w.publish()
			}
			h, _ := m.old.takeOver(t, m.renewed, m.web, m.near)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err := m.old.proxy.Freeze(ctx, func(all []*proxy.Frozen) error {
				if when == "meanwhile" {
					change()
				}
				return m.renewed.proxy.Thaw(send(t, all[0]))
			})
			if err != nil {
				t.Fatal(err)
			}
			h.gone()
			if when == "after" {
				change()
			}
			refused(t, c)
			r := append(m.old.flows.all(), m.renewed.flows.wait(t, 1)...)
			if len(r) != 1 || r[0].Reason != mesh.ReasonPolicyChanged || r[0].Verdict != mesh.VerdictDeny || r[0].Transport != flow.TransportSplice {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestMoveThatFailsChangesNothing: what could not be given away goes on, and the
// pods can be served again.
func TestMoveThatFailsChangesNothing(t *testing.T) {
	m := newMoving(t, engine.Reference)
	talks := m.pairs(t)
	copies := map[string]*proxy.Listeners{}
	for _, p := range []*pod{m.web, m.near} {
		copies[p.name] = &proxy.Listeners{
			Outbound: duplicate(t, p.listeners.Outbound), Inbound: duplicate(t, p.listeners.Inbound), Tunnel: duplicate(t, p.listeners.Tunnel),
		}
	}
	h, _ := m.old.takeOver(t, m.renewed, m.web, m.near)
	broken := errors.New("the other process is gone")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := m.old.proxy.Freeze(ctx, func([]*proxy.Frozen) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("freeze: %v", err)
	}
	served := map[string]*pod{}
	for _, p := range []*pod{m.web, m.near} {
		o := p.options
		o.listeners = copies[p.name]
		served[p.name] = m.old.serve(p.name, p.addr.String(), o)
	}
	for name, k := range talks {
		if name != "splice" {
			k.end(t)
		}
	}
	// The one that is left is ended with the pod that is served anew.
	if err := served["web"].stop(proxy.ErrUnenrolled); err != nil {
		t.Error(err)
	}
	if err := <-talks["splice"].ended; err == nil {
		t.Error("unenrolling left a connection from before")
	}
	talks["splice"].stop.Store(true)
	for _, r := range m.old.flows.wait(t, 3) {
		if name := way(&r); (r.Reason == mesh.ReasonUnenrolled) != (name == "splice") {
			t.Errorf("%s: %v", name, r.Reason)
		}
	}
	h.gone()
}

// TestMoveThatFailsGivesNoSecondBudget: what a pod has open when it is served anew
// counts; and when nothing is left of it, the pod begins afresh.
func TestMoveThatFailsGivesNoSecondBudget(t *testing.T) {
	w := newWorld(t)
	w.workload("web", "a", "198.18.1.1")
	w.workload("legacy", "b", "198.18.3.1").Enrolled = false
	w.service("legacy", "198.18.9.3", 7000, 7001, "legacy")
	w.publish()
	application(t, "198.18.3.1:7001", echo)
	const to = "198.18.9.3:7000"
	a := w.node("a", func(c *proxy.Config) { c.Budget.Connections = 3 })
	web := a.serve("web", "198.18.1.1", podOptions{outbound: []string{to}})
	key := mesh.Key{Namespace: "shop", Name: "web"}
	held := []*net.TCPConn{web.client(to), web.client(to)}
	for _, c := range held {
		greeting(t, c)
	}
	again := func(was *pod) (*pod, chan error) {
		t.Helper()
		o := was.options
		o.listeners = &proxy.Listeners{Outbound: duplicate(t, was.listeners.Outbound), Tunnel: duplicate(t, was.listeners.Tunnel)}
		left := make(chan error, 1)
		go func() { left <- was.stop(proxy.ErrMoving) }()
		testenv.Eventually(t, 5*time.Second, "the pod is left", func() bool { return a.proxy.Leaving(key) })
		served := a.serve("web", "198.18.1.1", o)
		testenv.Eventually(t, 5*time.Second, "the pod is served anew", func() bool { return !a.proxy.Leaving(key) })
		return served, left
	}
	before := a.proxy.Allowance(key)
	web, left := again(web)
	if a.proxy.Allowance(key) != before {
		t.Error("a pod with connections has another allowance for the next")
	}
	third := web.client(to)
	greeting(t, third)
	web.refused(to)
	if r := a.flows.wait(t, 1)[0]; r.Reason != mesh.ReasonBudgetExceeded {
		t.Errorf("%v", r.Reason)
	}
	for _, c := range append(held, third) {
		c.Close()
	}
	testenv.Eventually(t, 5*time.Second, "nothing is charged", func() bool { return a.proxy.Charges() == proxy.Charges{} })
	if err := <-left; err != nil {
		t.Error(err)
	}
	_, left = again(web)
	if a.proxy.Allowance(key) == before {
		t.Error("what nothing is left of is charged for")
	}
	if err := <-left; err != nil {
		t.Error(err)
	}
}

// TestThawRefuses what it cannot go on with, and charges nothing for it.
func TestThawRefuses(t *testing.T) {
	m := newMoving(t, engine.Reference)
	greeting(t, m.web.client("198.18.9.2:7000"))
	_, _ = m.old.takeOver(t, m.renewed, m.near)
	stop := errors.New("seen enough")
	var pair *proxy.Frozen
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	web := make(chan error, 1)
	go func() { web <- m.web.stop(proxy.ErrMoving) }()
	if err := m.old.proxy.Freeze(ctx, func(all []*proxy.Frozen) error { pair = send(t, all[0]); return stop }); !errors.Is(err, stop) {
		t.Fatal(err)
	}
	defer func() {
		for _, fd := range pair.Files {
			unix.Close(fd)
		}
	}()
	for name, f := range map[string]*proxy.Frozen{
		"a pod that is not served": pair, // web is not, there
		"no kind":                  {State: pair.State, Files: pair.Files},
		"no state":                 {Kind: proxy.KindPair, Files: pair.Files},
		"no files":                 {Kind: proxy.KindPair, State: pair.State},
		"an engine that cannot":    {Kind: proxy.KindTunnel, Pod: mesh.Key{Namespace: "shop", Name: "near"}},
	} {
		if err := m.renewed.proxy.Thaw(f); err == nil {
			t.Errorf("%s: thawed", name)
		}
	}
	if c := m.renewed.proxy.Charges(); c != (proxy.Charges{}) || m.renewed.proxy.Open() != 0 {
		t.Errorf("charged %+v for nothing", c)
	}
	for _, fd := range pair.Files {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			t.Errorf("a file is not the caller's any more: %v", err)
		}
	}
	// It is still the old proxy's, which nobody waits for any longer.
	m.w.policies = append(m.w.policies, m.w.denies("no-web", "web"))
	m.w.publish()
	if err := <-web; err != nil {
		t.Error(err)
	}
}
