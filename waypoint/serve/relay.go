package serve

import (
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/waypoint/passthrough"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/pool"
	"github.com/heddle-mesh/heddle/waypoint/record"
	"github.com/heddle-mesh/heddle/waypoint/sniff"
)

// relay hands on what comes as it is, both ways: a connection that is no HTTP, or what becomes of a
// request that asked for a tunnel. Each direction ends by itself.
type relay struct {
	c        *conn
	backend  *pool.Conn
	place    *pool.Place
	workload *mesh.Workload
	to       mesh.Route
	with     *mesh.Workload // asked before others; nil for any
	tried    []mesh.Key
	// out is what the backend did not take yet.
	out      []byte
	shutBack bool // a FIN was sent to the backend
	look     look
	// note is nil of a connection that no route is about.
	note *record.Connection
	// asked is the request that has become a tunnel; none of a connection that is no HTTP.
	asked plan.Sent
}

// relay makes a connection that is no HTTP one to a workload of the service that was dialled, or of the backend that a route says.
// Name is the server that it asks for in TLS.
func (c *conn) relay(name string) {
	p := c.w.planner.Pass(&c.client, name)
	r := &relay{c: c, to: p.To, with: p.With, look: look{on: c.says == sniff.Unsaid}}
	if p.Routed {
		r.note = &record.Connection{Began: c.w.loop.Now(), Passage: p, Name: name}
		r.look.on = p.Foreign && p.Kind == route.TCP && !opaque(&p)
	}
	c.proto, c.stage = r, active
	switch {
	case p.Reason == plan.NoRoute && p.Kind == route.TLS:
		r.alert(p.Reason, passthrough.UnrecognizedName)
	case p.Reason != "":
		r.refuse(p.Reason)
	case r.look.on && r.judge() == sniff.HTTP:
		r.isHTTP()
	default:
		r.dial()
	}
}

// opaque reports whether the port of the backend says that what is spoken there is no HTTP.
func opaque(p *plan.Passage) bool {
	said, _ := sniff.Of(p.To.Service, p.Port)
	return said == sniff.Opaque
}

// refuse ends a connection, and says why.
func (r *relay) refuse(reason string) {
	r.c.w.refused(reason)
	if r.note != nil {
		r.note.Reason = reason
	}
	r.c.close(true)
}

// dial asks one workload after the other.
func (r *relay) dial() {
	c := r.c
	w := c.w
	for len(r.tried) < maxConnects {
		workload, place := w.pool.Pick(&r.to, c.client.To.Addr(), r.tried, r.with)
		if place == nil {
			break
		}
		d := r.authorize(workload, place)
		if r.note != nil {
			r.note.Went(workload, place.At, d)
		}
		if d.Verdict == mesh.VerdictDeny {
			r.refuse(d.Reason.String())
			return
		}
		r.place, r.workload = place, workload
		r.tried = append(r.tried, workload.Key)
		if r.note != nil {
			r.note.Tries = len(r.tried)
		}
		b, err := w.pool.Dial(place, r)
		if err == nil {
			r.backend = b
			return
		}
		w.pool.Failed(place)
	}
	r.refuse(mesh.ReasonAppUnreachable.String())
}

// authorize asks policy whether the client may reach a workload: with the request that has become a tunnel, or by what
// is known of a connection.
func (r *relay) authorize(to *mesh.Workload, at *pool.Place) mesh.Decision {
	return plan.Authorize(r.c.w.snap.View, &r.c.client, to, at.At.Port(), r.asked.Request())
}

// tunnel makes of a request that was granted an upgrade what it asked for. Out is for
// the client.
func (h *h1) tunnel(out []byte) {
	c := h.c
	h.c.w.out = out[:0]
	c.send(out)
	h.note.Sent += int64(len(out))
	r := &relay{c: c, backend: h.backend, place: h.place, workload: h.workload, out: append([]byte(nil), h.sent[min(h.written, len(h.sent)):]...)}
	r.asked = h.asked.Copy()
	h.backend.Own(r)
	h.backend = nil
	h.record()
	h.reset()
	c.proto = r
	c.run()
}

// Connected implements pool.Owner.
func (r *relay) Connected(_ *pool.Conn, err error) {
	if err != nil {
		r.backend = nil
		r.c.w.pool.Failed(r.place)
		if r.dial(); r.c.stage == closed {
			return
		}
	} else {
		r.place.Answered()
	}
	r.c.run()
}

// Happened implements pool.Owner.
func (r *relay) Happened(*pool.Conn) { r.c.run() }

// step implements protocol.
func (r *relay) step() {
	b, c := r.backend, r.c
	if b == nil || b.Connecting() {
		if c.Broken() {
			c.close(true)
		}
		return
	}
	if r.toBackend(); c.proto == protocol(r) {
		r.toClient()
	}
	if c.proto != protocol(r) {
		return
	}
	if b.Broken() || c.Broken() || b.Socket.Refused() || c.Refused() {
		c.close(true)
		return
	}
	if c.EOF() && len(c.In) == 0 && len(r.out) == 0 && !r.shutBack {
		r.shutBack = true
		b.CloseWrite()
	}
	if b.EOF() && len(c.Out) == 0 && !c.shut {
		c.shut = true
		c.CloseWrite()
	}
	if r.shutBack && c.shut {
		c.close(false)
	}
}

// toBackend hands on what the client sends.
func (r *relay) toBackend() {
	b, c := r.backend, r.c
	if len(r.out) > 0 {
		r.out = r.out[:copy(r.out, r.out[b.Write(r.out):])]
	}
	for len(r.out) == 0 && c.budget > 0 {
		if r.look.on && !r.first() {
			return
		}
		data, kept := c.read()
		if len(data) == 0 {
			r.out = nil
			return
		}
		if n := b.Write(data); n < len(data) {
			r.out = append(r.out, data[n:]...)
		}
		if r.note != nil {
			r.note.Received += int64(len(data))
		}
		c.used(data, kept, len(data))
	}
}

// toClient hands on what the backend sends.
func (r *relay) toClient() {
	b, c := r.backend, r.c
	for len(c.Out) == 0 && c.budget > 0 && b.Readable() {
		n := b.Read(c.w.in)
		if n == 0 {
			return
		}
		c.budget -= n
		if r.look.on && r.answers(c.w.in[:n]) {
			return
		}
		if r.note != nil {
			r.note.Sent += int64(n)
		}
		c.send(c.w.in[:n])
	}
}

// due implements protocol: what is silent may be so for long.
func (r *relay) due() time.Time {
	if r.look.held {
		return r.look.until
	}
	return time.Time{}
}

// expire implements protocol.
func (r *relay) expire(time.Time) { r.look.held = false }

// gone implements protocol.
func (r *relay) gone() {
	if r.backend != nil {
		r.backend.Close(!r.shutBack)
		r.backend = nil
	}
	if r.note != nil {
		r.note.Tell(&r.c.w.cfg.Sinks, &r.c.client, r.c.w.loop.Now())
		r.note = nil
	}
}
