package serve

import (
	"time"

	"github.com/heddle-mesh/heddle/waypoint/serve/h2"
	"github.com/heddle-mesh/heddle/waypoint/serve/h2/turn"
	"github.com/heddle-mesh/heddle/waypoint/snapshot"
)

// two carries a client's connection that speaks HTTP/2: package h2 does.
type two struct {
	*h2.Client
	c *conn
}

// beginTwo begins one, at its preface.
func (c *conn) beginTwo() {
	t := &two{c: c}
	c.proto, c.stage = t, active
	t.Client = c.w.two.New(&c.Buffered, t, &c.client)
	if !c.w.draining.IsZero() || !c.leaving.since.IsZero() {
		t.Drain()
	}
}

func (w *worker) newTwo() *h2.Loop {
	return &h2.Loop{Loop: w.loop, Pool: w.pool, Planner: w.planner, HTTP: w.cfg.HTTP2, Limits: &w.limits, Timeouts: &w.cfg.Timeouts, Metrics: w.cfg.Metrics, Mirrors: &w.mirrors, Sinks: &w.cfg.Sinks,
		Use: func() *snapshot.Snapshot { w.use(); return w.snap }, Active: &w.active, Held: &w.held, In: w.in, Buffers: &w.buffers, Turn: turn.New(w.loop)}
}

func (t *two) step() { t.Step() }

func (t *two) due() time.Time { return t.Due() }

func (t *two) expire(now time.Time) { t.Expire(now) }

func (t *two) gone() { t.Gone() }

// Send implements h2.Owner, as the other three do.
func (t *two) Send(b []byte) { t.c.send(b) }

// Run does all that can be done now.
func (t *two) Run() { t.c.run() }

// End closes in good order.
func (t *two) End() { t.c.end() }

// Close closes at once.
func (t *two) Close(reset bool) { t.c.close(reset) }
