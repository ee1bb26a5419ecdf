package serve

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/waypoint/bounds"
	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/mirror"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/pool"
	"github.com/heddle-mesh/heddle/waypoint/serve/h2"
	"github.com/heddle-mesh/heddle/waypoint/snapshot"
	"github.com/heddle-mesh/heddle/waypoint/socket"
	"github.com/heddle-mesh/heddle/waypoint/telemetry"
)

const (
	// readBytes is how much is read at once; backlog is how much may wait to be written before no
	// more is read for it.
	readBytes = 64 << 10
	backlog   = 64 << 10
	// spareBytes is the largest buffer that is kept for later, spares how many things are, of which largeSpares have buffers.
	spareBytes  = 32 << 10
	spares      = 1024
	largeSpares = 64
	// mirrorShare is which part of the bytes copies for mirrors may have: requests are never refused
	// for want of what these hold.
	mirrorShare = 4
	// reportEvery is how often the gauges are brought up to date.
	reportEvery = time.Second
)

// worker is one loop and its connections.
type worker struct {
	cfg     *Config
	loop    *eventloop.Loop
	load    atomic.Int64 // connections that are its own, or on their way to it
	conns   []*conn
	pool    *pool.Pool
	planner *plan.Planner
	snap    *snapshot.Snapshot
	// reviewed is the Snapshot that what is under way was judged by last.
	reviewed *snapshot.Snapshot

	limits  bounds.Limits // this loop's share
	active  int           // requests under way
	held    int64         // bytes
	mirrors mirror.Sender
	two     *h2.Loop

	draining time.Time // since when; zero while it is not

	scratch
	free
	gauges gauges
}

// scratch is what is used within one call, and by the next one again.
type scratch struct {
	in, out, text []byte
	request       plan.Request
	plan          plan.Plan
	edit          http1.Edit
	fields        []http1.Field
}

// free is what was used, and is used again.
type free struct {
	buffers socket.Buffers
	h1      []*h1
	conns   []*conn
}

// gauges are what was told last.
type gauges struct {
	timer                        eventloop.Timer
	report                       func()
	clients, workloads, requests int
	bytes                        int64
	clientGauge, workloadGauge   interface{ Add(float64) }
	requestsGauge, bufferedGauge interface{ Add(float64) }
}

func newWorker(cfg *Config) (*worker, error) {
	w := &worker{cfg: cfg, planner: plan.New(cfg.Metrics), limits: cfg.Limits.Share(cfg.Loops)}
	var err error
	if w.loop, err = eventloop.New(w.turn); err != nil {
		return nil, err
	}
	w.pool = pool.New(w.loop, pool.Config{Idle: w.limits.Idle, IdlePerWorkload: w.limits.IdlePerWorkload, IdleFor: cfg.Timeouts.IdleWorkload, Connect: cfg.Timeouts.Connect, Reach: cfg.Reach})
	w.mirrors = mirror.Sender{Held: &w.held, Bytes: w.limits.Bytes / mirrorShare, Loop: w.loop, Pool: w.pool, HTTP: cfg.HTTP, Metrics: cfg.Metrics, Most: w.limits.Mirrors, Within: cfg.Timeouts.Mirror}
	w.in, w.out = make([]byte, readBytes), make([]byte, 0, readBytes+1<<10)
	w.two = w.newTwo()
	m := cfg.Metrics
	w.gauges = gauges{report: w.report, clientGauge: m.Connections.WithLabelValues(telemetry.ClientSide), workloadGauge: m.Connections.WithLabelValues(telemetry.WorkloadSide),
		requestsGauge: m.Active, bufferedGauge: m.Buffered}
	w.use()
	return w, nil
}

// use takes the current snapshot.
func (w *worker) use() {
	if s := w.cfg.Store.Load(); s != w.snap {
		w.snap = s
		w.planner.Use(s)
		w.pool.Use(s.View)
	}
}

// await has the loop call fn, and waits for that.
func (w *worker) await(fn func()) {
	done := make(chan struct{})
	if w.loop.Post(func() { fn(); close(done) }) {
		<-done
	}
}

// turn is the end of each turn of the loop.
func (w *worker) turn() bool {
	g := &w.gauges
	if !g.timer.IsSet() && (g.clients != len(w.conns) || g.workloads != w.pool.Open() || g.requests != w.active || g.bytes != w.held) {
		w.loop.SetAfter(&g.timer, reportEvery, g.report)
	}
	return false
}

// report brings the gauges up to date.
func (w *worker) report() {
	g := &w.gauges
	g.clientGauge.Add(float64(len(w.conns) - g.clients))
	g.workloadGauge.Add(float64(w.pool.Open() - g.workloads))
	g.requestsGauge.Add(float64(w.active - g.requests))
	g.bufferedGauge.Add(float64(w.held - g.bytes))
	g.clients, g.workloads, g.requests, g.bytes = len(w.conns), w.pool.Open(), w.active, w.held
}

// adopt makes an accepted socket a connection.
func (w *worker) adopt(fd int, remote netip.AddrPort) {
	socket.NoDelay(fd)
	var c *conn
	if n := len(w.free.conns); n > 0 {
		c, w.free.conns = w.free.conns[n-1], w.free.conns[:n-1]
	} else {
		c = &conn{w: w}
		c.expired, c.again = c.expire, c.resume
	}
	c.Adopt(fd)
	c.stage, c.index, c.since = atHeader, len(w.conns), w.loop.Now()
	w.conns = append(w.conns, c)
	w.cfg.Metrics.Accepted.Inc()
	if err := w.loop.Register(fd, c); err != nil {
		w.cfg.Log.Error("a connection was not watched", "error", err)
		c.close(true)
		return
	}
	if w.cfg.Direct.IsValid() {
		c.begin(plan.Client{Addr: remote, To: w.cfg.Direct})
	}
	c.run()
}

// forget takes a connection out of the list.
func (w *worker) forget(c *conn) {
	last := len(w.conns) - 1
	w.conns[c.index] = w.conns[last]
	w.conns[c.index].index = c.index
	w.conns[last] = nil
	w.conns = w.conns[:last]
	w.load.Add(-1)
}

// drain tells all connections that the end is near.
func (w *worker) drain() {
	w.draining = time.Now()
	for i := len(w.conns) - 1; i >= 0; i-- { // those that end are replaced by later ones
		w.conns[i].drain()
	}
}

// end ends what is left.
func (w *worker) end() {
	for len(w.conns) > 0 {
		w.refused(mesh.ReasonDraining.String())
		w.conns[len(w.conns)-1].close(true)
	}
	w.mirrors.Close()
	w.two.Close()
	w.pool.Close()
	w.report()
}

// full says that as much is held as may be: what is kept for later goes first.
func (w *worker) full() bool { return w.held > w.limits.Bytes }

// backlog is how much may wait for a backend before no more is read for it.
func (w *worker) backlog() int {
	if w.full() {
		return 1
	}
	return backlog
}

// refused counts a refusal.
func (w *worker) refused(reason string) {
	w.cfg.Metrics.Refusals.WithLabelValues(reason).Inc()
}
