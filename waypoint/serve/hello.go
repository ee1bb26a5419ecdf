package serve

import (
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/waypoint/passthrough"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/record"
)

// hello waits for the ClientHello of a connection that TLSRoutes are about. It is held until it is whole, and then goes to
// the workload with all that follows.
type hello struct {
	c     *conn
	read  passthrough.Hello
	until time.Time
}

// pass passes a connection on as it is: by the server that it asks for, where TLSRoutes are about it.
func (c *conn) pass() {
	if kind, ok := c.w.planner.Kind(&c.client); !ok || kind != route.TLS {
		c.relay("")
		return
	}
	h := &hello{c: c, until: c.w.loop.Now().Add(c.w.cfg.Timeouts.Header)}
	c.proto, c.stage = h, active
	h.step()
}

// step implements protocol.
func (h *hello) step() {
	c := h.c
	for {
		name, is := h.read.Read(c.In)
		switch is {
		case passthrough.Named:
			c.relay(name)
			return
		case passthrough.Nameless:
			h.refuse(plan.NoServerName, passthrough.MissingExtension)
			return
		case passthrough.Malformed:
			h.refuse(plan.BadHello, passthrough.DecodeError)
			return
		case passthrough.Foreign:
			h.refuse(plan.NotTLS, 0)
			return
		}
		if n := c.More(c.w.in, &c.w.buffers); n > 0 {
			c.budget -= n
			continue
		}
		switch {
		case c.Broken(), c.EOF() && len(c.In) == 0:
			c.close(false)
		case c.EOF():
			h.refuse(plan.BadHello, passthrough.DecodeError)
		}
		return
	}
}

// refuse ends a connection before a route was looked for, with an alert unless that is 0.
func (h *hello) refuse(reason string, alert byte) {
	c := h.c
	r := &relay{c: c, note: &record.Connection{Began: c.w.loop.Now(), Passage: c.w.planner.Unnamed(&c.client, reason)}}
	c.proto = r
	if alert == 0 {
		r.refuse(reason)
		return
	}
	r.alert(reason, alert)
}

// alert refuses a connection, and tells its client by an alert of TLS.
func (r *relay) alert(reason string, description byte) {
	c := r.c
	c.w.refused(reason)
	r.note.Reason = reason
	c.send(passthrough.Alert(description))
	c.end()
}

// due implements protocol.
func (h *hello) due() time.Time { return h.until }

// expire implements protocol.
func (h *hello) expire(time.Time) { h.refuse(plan.SlowClient, 0) }

// gone implements protocol.
func (h *hello) gone() {}
