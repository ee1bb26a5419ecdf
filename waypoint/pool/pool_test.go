package pool_test

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/pool"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// rig is a pool on a loop, and a server that it connects to.
type rig struct {
	t        *testing.T
	loop     *eventloop.Loop
	pool     *pool.Pool
	route    mesh.Route
	view     *mesh.View
	accepted chan net.Conn
}

func newRig(t *testing.T, workloads int, cfg pool.Config) *rig {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, accepted: make(chan net.Conn, 100)}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.accepted <- c
		}
	})
	if r.loop, err = eventloop.New(func() bool { return false }); err != nil {
		t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	if cfg.Reach == nil {
		cfg.Reach = func(netip.AddrPort) netip.AddrPort { return at }
	}
	cfg.Connect = 5 * time.Second
	r.pool = pool.New(r.loop, cfg)
	r.view = r.viewOf(workloads)
	r.route = r.view.RouteTo(nil, mesh.Key{Namespace: "a", Name: "s"}, 80)
	r.pool.Use(r.view)
	all.Go(func() { _ = r.loop.Run() })
	t.Cleanup(func() {
		r.on(r.pool.Close)
		r.loop.Stop()
		_ = l.Close()
		all.Wait()
		for len(r.accepted) > 0 {
			_ = (<-r.accepted).Close()
		}
	})
	return r
}

func (r *rig) viewOf(workloads int) *mesh.View {
	r.t.Helper()
	s := mesh.Service{Key: mesh.Key{Namespace: "a", Name: "s"}, Ports: []mesh.ServicePort{{Port: 80, TargetPort: 8080}}}
	var all []mesh.Workload
	for i := range workloads {
		w := mesh.Workload{Key: mesh.Key{Namespace: "a", Name: fmt.Sprint("w", i)}, ServiceAccount: "x", Node: "n", Ready: true, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})},
			Identity: spiffeid.RequireFromString("spiffe://t.example/ns/a/sa/x")}
		all, s.Endpoints = append(all, w), append(s.Endpoints, w.Key)
	}
	v, err := mesh.NewView("v", mesh.Settings{TrustDomain: spiffeid.RequireTrustDomainFromString("t.example"), ClusterRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, all, []mesh.Service{s}, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return v
}

// TestPlaceIsOfTheFamilyThatWasDialled: whoever asked before, of whichever family.
func TestPlaceIsOfTheFamilyThatWasDialled(t *testing.T) {
	r := newRig(t, 1, pool.Config{})
	v4, v6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	w := *r.route.Candidates[0]
	w.Addresses = []netip.Addr{v4, v6}
	for range 2 {
		for like, want := range map[string]netip.Addr{"10.96.0.1": v4, "fd00:96::1": v6} {
			var at netip.Addr
			r.on(func() { at = r.pool.Place(&w, 8080, netip.MustParseAddr(like)).At.Addr() })
			if at != want {
				t.Errorf("a client of %s is led to %s, want %s", like, at, want)
			}
		}
	}
}

// on runs fn on the loop.
func (r *rig) on(fn func()) {
	done := make(chan struct{})
	if r.loop.Post(func() { fn(); close(done) }) {
		<-done
	}
}

// owner waits for its connection.
type owner struct{ there chan error }

func (o *owner) Connected(_ *pool.Conn, err error) { o.there <- err }
func (o *owner) Happened(*pool.Conn)               {}

// open takes a connection to some workload, and waits until it is there.
func (r *rig) open() (c *pool.Conn) {
	r.t.Helper()
	o := &owner{there: make(chan error, 1)}
	r.on(func() {
		_, at := r.pool.Pick(&r.route, netip.Addr{}, nil, nil)
		if c = r.pool.Get(at, o); c != nil {
			o.there <- nil
			return
		}
		var err error
		if c, err = r.pool.Dial(at, o); err != nil {
			o.there <- err
		}
	})
	if err := <-o.there; err != nil {
		r.t.Fatal(err)
	}
	return c
}

func (r *rig) counts() (open, idle int) {
	r.on(func() { open, idle = r.pool.Open(), r.pool.Idle() })
	return open, idle
}

func (r *rig) until(open, idle int) {
	r.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		o, i := r.counts()
		if o == open && i == idle {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%d connections, %d of them idle; want %d and %d", o, i, open, idle)
		}
	}
}

var bounds = pool.Config{Idle: 3, IdlePerWorkload: 2, IdleFor: time.Minute}

// TestKeep: a connection that was kept is used again, and what can be read from it meanwhile ends it.
func TestKeep(t *testing.T) {
	r := newRig(t, 1, bounds)
	c := r.open()
	server := <-r.accepted
	r.on(c.Keep)
	r.until(1, 1)
	if again := r.open(); again != c || again.Used != 1 {
		t.Error("another connection was made")
	}
	r.on(c.Keep)
	_, _ = server.Write([]byte("HTTP/1.1 200 OK\r\n\r\n"))
	r.until(0, 0)
	_ = server.Close()
	c = r.open()
	server = <-r.accepted
	r.on(c.Keep)
	_ = server.Close()
	r.until(0, 0)
}

// TestLook: a connection that has ended, or says something, is not taken, also when the loop has not heard
// of it yet; one that was kept before it is.
func TestLook(t *testing.T) {
	r := newRig(t, 1, pool.Config{Idle: 4, IdlePerWorkload: 4, IdleFor: time.Minute})
	var conns []*pool.Conn
	var servers []net.Conn
	for range 3 {
		conns = append(conns, r.open())
		server := <-r.accepted
		defer server.Close()
		servers = append(servers, server)
	}
	r.on(func() {
		for _, c := range conns {
			c.Keep()
		}
		_ = servers[2].Close()
		_, _ = servers[1].Write([]byte("HTTP/1.1 408 Request Timeout\r\n\r\n"))
		deadline := time.Now().Add(5 * time.Second)
		for conns[2].Quiet() || conns[1].Quiet() { // the loop hears of nothing while this runs
			if time.Now().After(deadline) {
				t.Error("what the server did does not arrive")
				return
			}
			time.Sleep(time.Millisecond)
		}
		if c := r.pool.Get(conns[0].At, &owner{}); c != conns[0] {
			t.Error("a connection is taken that has ended, or says something unasked")
		} else {
			c.Keep()
		}
		if r.pool.Open() != 1 {
			t.Errorf("%d connections are left, want 1", r.pool.Open())
		}
	})
}

// TestBounds: of too many that idle the oldest ends, of one workload and of all; and each after its time.
func TestBounds(t *testing.T) {
	r := newRig(t, 1, bounds)
	var all []*pool.Conn
	for range 3 {
		all = append(all, r.open())
	}
	r.on(func() {
		for _, c := range all {
			c.Keep()
		}
	})
	r.until(2, 2)
	many := newRig(t, 8, bounds)
	all = nil
	for range 6 {
		all = append(all, many.open())
	}
	many.on(func() {
		for _, c := range all {
			c.Keep()
		}
	})
	if _, idle := many.counts(); idle > 3 {
		t.Errorf("%d idle", idle)
	}
	short := newRig(t, 1, pool.Config{Idle: 3, IdlePerWorkload: 2, IdleFor: 30 * time.Millisecond})
	c := short.open()
	short.on(c.Keep)
	short.until(0, 0)
}

// TestGone: what is kept for a workload ends with it.
func TestGone(t *testing.T) {
	r := newRig(t, 1, bounds)
	c := r.open()
	r.on(c.Keep)
	r.on(func() { r.pool.Use(r.viewOf(1)) })
	r.until(1, 1)
	r.on(func() { r.pool.Use(r.viewOf(0)) })
	r.until(0, 0)
}

// TestPick: of two the one with less to do; those that failed are avoided while there are others.
func TestPick(t *testing.T) {
	r := newRig(t, 2, bounds)
	a, b := r.open(), r.open()
	for a.At == b.At {
		t.Fatalf("both connections are to %s", a.At.Name)
	}
	r.on(func() {
		r.pool.Failed(a.At)
		for range 100 {
			if _, at := r.pool.Pick(&r.route, netip.Addr{}, nil, nil); at != b.At {
				t.Error("a workload that failed is taken, and there is another")
			}
		}
		r.pool.Failed(b.At)
		if _, at := r.pool.Pick(&r.route, netip.Addr{}, nil, nil); at == nil {
			t.Error("all have failed, and none is taken")
		}
		if _, at := r.pool.Pick(&r.route, netip.Addr{}, []mesh.Key{a.At.Workload}, nil); at != b.At {
			t.Error("one that was tried is taken")
		}
		if _, at := r.pool.Pick(&r.route, netip.Addr{}, []mesh.Key{a.At.Workload, b.At.Workload}, nil); at != nil {
			t.Error("all were tried")
		}
		a.At.Answered()
		b.At.Answered()
		if n := testing.AllocsPerRun(100, func() { r.pool.Pick(&r.route, netip.Addr{}, nil, nil) }); n > 0 {
			t.Errorf("picking allocates %v times", n)
		}
		a.Close(true)
		b.Close(false)
	})
	r.until(0, 0)
}

// TestWith: one that is wanted is chosen before all others, unless it was tried, or has failed for good; then as any.
func TestWith(t *testing.T) {
	r := newRig(t, 3, bounds)
	r.on(func() {
		with := r.route.Candidates[1]
		at := r.pool.Place(with, 8080, netip.Addr{})
		is := func(what string, want bool, tried ...mesh.Key) {
			t.Helper()
			for range 20 {
				w, place := r.pool.Pick(&r.route, netip.Addr{}, tried, with)
				if place == nil || (w == with) != want || (place == at) != want {
					t.Errorf("%s: %v is chosen", what, w)
				}
			}
		}
		at.Carry(1000)
		is("the busiest", true)
		is("one that was tried", false, with.Key)
		for range 2 {
			r.pool.Failed(at)
			is("one that failed lately", true)
		}
		r.pool.Failed(at)
		is("one that failed three times in a row", false)
		at.Answered()
		is("one that has answered since", true)
		at.Carry(-1000)
	})
}

// TestRefused: a connection that cannot be made is told once.
func TestRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().(*net.TCPAddr).AddrPort()
	_ = l.Close()
	r := newRig(t, 1, pool.Config{Idle: 1, IdlePerWorkload: 1, IdleFor: time.Minute, Reach: func(netip.AddrPort) netip.AddrPort { return nobody }})
	o := &owner{there: make(chan error, 2)}
	r.on(func() {
		_, at := r.pool.Pick(&r.route, netip.Addr{}, nil, nil)
		if _, err := r.pool.Dial(at, o); err != nil {
			o.there <- err
		}
	})
	if err := <-o.there; err == nil {
		t.Error("nobody listens, and it is there")
	}
	r.until(0, 0)
	if len(o.there) > 0 {
		t.Error("it was told twice")
	}
}
