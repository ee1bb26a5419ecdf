package fast

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/frozen"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/tunnel"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
	"github.com/heddle-mesh/heddle/internal/hbone/relay"
	"github.com/heddle-mesh/heddle/internal/hbone/tlsrecord"
)

// clientSide is what a connection that we opened has besides.
type clientSide struct {
	w    *worker
	conn *tunnel.Conn
	key  hbone.Key
	dial *dialing // until the peer's SETTINGS are there
	// memory is the pod's, where the connection has its place.
	memory *hbone.Memory
	// moving says that a Freeze waits for its streams to be answered.
	moving bool
}

// entry is the connections of one key on one loop, the one dial that may be under
// way, and who waits for it.
type entry struct {
	conns   []*tunnel.Conn
	dialing *dialing
	waiting []*outbound
}

type dialing struct {
	owner   *outbound // that began it; nil when nobody waited
	start   time.Time // of the handshake
	drained bool      // Drain came meanwhile, with the cause
	cause   error
}

// spill chooses the loop of a request whose key is busy here.
func (w *worker) spill(o *outbound) *worker {
	if o.spilled {
		return w
	}
	n := w.busy(o.req.Key)
	o.spilled = n >= spillAt
	return w.neighbour(n)
}

// busy counts a key's streams on this loop, and those that wait to be.
func (w *worker) busy(k hbone.Key) int {
	ent := w.entries[k]
	if ent == nil {
		return 0
	}
	n := len(ent.waiting)
	for _, c := range ent.conns {
		n += c.Streams()
	}
	return n
}

// neighbour is the loop for a key of which n streams are here: this one, or
// the one that carries the least when they are many.
func (w *worker) neighbour(n int) *worker {
	if n < spillAt {
		return w
	}
	w.eng.live.Lock()
	defer w.eng.live.Unlock()
	least := w
	for _, other := range w.eng.live.workers {
		if other.load.Load() < least.load.Load() {
			least = other
		}
	}
	return least
}

func (w *worker) entry(k hbone.Key) *entry {
	ent := w.entries[k]
	if ent == nil {
		ent = &entry{}
		w.entries[k] = ent
	}
	return ent
}

func (w *worker) forget(k hbone.Key) {
	if ent := w.entries[k]; ent != nil && len(ent.conns) == 0 && ent.dialing == nil && len(ent.waiting) == 0 {
		delete(w.entries, k)
	}
}

// place finds a connection for a request, or makes it wait for one.
func (w *worker) place(o *outbound) {
	switch {
	case o.done:
		return
	case w.eng.closing():
		o.fail(hbone.ErrDraining)
		return
	}
	ent := w.entry(o.req.Key)
	var few [4]*tunnel.Conn // a drain changes the entry's
	for _, c := range append(few[:0], ent.conns...) {
		if c.Role().(*clientSide).moving {
			continue
		}
		if err := c.Identity().Trust.Check(o.req.Bundles, o.req.Peer); err != nil {
			w.eng.log.Info("tunnel connection drains", "endpoint", o.req.Endpoint, "peer", o.req.Peer, "reason", err)
			c.Drain()
		} else if c.HasRoom() {
			o.open(c)
			w.ahead(o.req)
			return
		}
	}
	ent = w.entry(o.req.Key) // a drain may have dropped it
	ent.waiting = append(ent.waiting, o)
	if ent.dialing == nil {
		w.begin(o.req, &dialing{owner: o})
	}
}

// begin dials for a request's key.
func (w *worker) begin(req *hbone.ConnectRequest, d *dialing) {
	w.entry(req.Key).dialing = d
	w.eng.spawn(func() {
		var s *tunnel.Secured
		var timing hbone.Timing
		err := req.Memory.Within(func() (err error) { s, timing, err = w.eng.dial(req); return err })
		w.Post(func() { w.dialed(req, d, s, timing, err) })
	})
}

// ahead dials before anybody has to wait for it, when the peer's limit of streams
// is nearly reached.
func (w *worker) ahead(req *hbone.ConnectRequest) {
	ent := w.entries[req.Key] // nil when the connection was lost as it was written to
	if ent == nil || ent.dialing != nil || w.eng.closing() {
		return
	}
	left, limit := 0, 0
	for _, c := range ent.conns {
		n, most := c.Room()
		left, limit = left+n, max(limit, most)
	}
	if limit >= enoughStreams && left <= limit/aheadPart {
		w.begin(req, &dialing{})
	}
}

// dial opens a connection and shakes hands, on a goroutine.
func (e *Engine) dial(req *hbone.ConnectRequest) (*tunnel.Secured, hbone.Timing, error) {
	var timing hbone.Timing
	ctx, cancel := context.WithTimeoutCause(e.hard, e.timeoutOf(req), hbone.ErrTimeout)
	defer cancel()
	leaf, err := hbone.LeafOf(req.Certificate)
	if err != nil {
		return nil, timing, err
	}
	if hbone.Fingerprint(req.Certificate) != req.Leaf {
		return nil, timing, fmt.Errorf("%w: the key names another local certificate", hbone.ErrPeerMismatch)
	}
	start := time.Now()
	tcp, err := req.Dial(ctx)
	timing.Dial = time.Since(start)
	if err != nil {
		return nil, timing, hbone.DialError(ctx, req.Endpoint, err)
	}
	start = time.Now()
	session, state, err := tlsrecord.Client(ctx, tcp, hbone.ClientTLS(req.Certificate, req.Bundles, req.Peer), e.cfg.GCM)
	if err != nil {
		relay.Abort(tcp)
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: handshake with %s", context.Cause(ctx), req.Endpoint)
		}
		return nil, timing, hbone.HandshakeError(err)
	}
	timing.Handshake = time.Since(start)
	roots, err := req.Bundles.GetX509BundleForTrustDomain(req.Peer.TrustDomain())
	if err != nil {
		roots = nil // looked at again before a stream is opened
	}
	secured := &tunnel.Secured{
		Session: session,
		Identity: tunnel.Identity{
			Source: req.Source, Leaf: req.Leaf, Peer: req.Peer,
			Trust: hbone.NewTrust(state, roots), NotAfter: hbone.NotAfter(leaf, state.PeerCertificates[0]),
		},
	}
	if err := secured.TakeOver(tcp); err != nil {
		return nil, timing, hbone.HandshakeError(err)
	}
	return secured, timing, nil
}

// dialed takes a dial's result. The connection is not used before the peer's
// SETTINGS are there: they say that it accepted our certificate, and how many
// streams it allows.
func (w *worker) dialed(req *hbone.ConnectRequest, d *dialing, s *tunnel.Secured, timing hbone.Timing, err error) {
	if d.owner != nil {
		d.owner.timing = timing
	}
	d.start = w.Now()
	if err == nil && w.eng.closing() {
		s.Abort()
		req.Memory.Closed()
		err = hbone.ErrDraining
	}
	if err != nil {
		w.dialFailed(req.Key, d, err)
		return
	}
	cfg := w.eng.clientConfig(req.Memory)
	cfg.Patience = w.eng.timeoutOf(req)
	side := &clientSide{w: w, key: req.Key, dial: d, memory: req.Memory}
	if side.conn, err = w.Add(s, cfg, side); err != nil {
		s.Abort()
		req.Memory.Closed()
		w.dialFailed(req.Key, d, fmt.Errorf("%w: %w", hbone.ErrLimit, err))
		return
	}
	w.eng.hold()
}

// clientConfig is what the connections that we open for a pod are told.
func (e *Engine) clientConfig(m *hbone.Memory) tunnel.Config {
	cfg := e.cfg.tunnel()
	cfg.Memory, cfg.Patience, cfg.IdleTimeout, cfg.HeaderBytes = m, e.cfg.ConnectTimeout, e.cfg.IdleTimeout, maxResponseBytes
	return cfg
}

// dialFailed tells everybody who waited. A dial that ran out of time may have
// had less of it than another request has.
func (w *worker) dialFailed(k hbone.Key, d *dialing, err error) {
	ent := w.entry(k)
	waiting := ent.waiting
	ent.dialing, ent.waiting = nil, nil
	for _, o := range waiting {
		if o != d.owner && errors.Is(err, hbone.ErrTimeout) {
			w.place(o)
		} else {
			o.fail(err)
		}
	}
	w.forget(k)
}

// Ready implements tunnel.Role: the connection goes into the pool, unless the peer
// takes no stream at all on a new one: another dial would come to the same, and
// another one, for as long as somebody waits.
func (side *clientSide) Ready() {
	w, d := side.w, side.dial
	side.dial = nil
	if _, limit := side.conn.Room(); limit == 0 && !d.drained {
		d.drained, d.cause = true, fmt.Errorf("%w: the peer takes no streams", hbone.ErrLimit)
	}
	if d.owner != nil {
		d.owner.timing.Handshake += w.Now().Sub(d.start)
	}
	ent := w.entry(side.key)
	waiting := ent.waiting
	ent.dialing, ent.waiting = nil, nil
	if d.drained {
		side.conn.Drain()
	} else {
		ent.conns = append(ent.conns, side.conn)
	}
	for _, o := range waiting {
		if d.cause != nil {
			o.fail(d.cause)
		} else {
			w.place(o)
		}
	}
	w.forget(side.key)
}

// Leave implements tunnel.Role. The cause matters to those who still wait for
// the connection.
func (side *clientSide) Leave(cause error) {
	w := side.w
	ent := w.entry(side.key)
	ent.conns = slices.DeleteFunc(ent.conns, func(other *tunnel.Conn) bool { return other == side.conn })
	if side.dial != nil {
		if cause == nil {
			cause = hbone.ErrDraining
		} else if errors.Is(cause, hbone.ErrProtocol) {
			// In TLS 1.3 a client has finished its handshake before the server
			// has looked at its certificate: a refusal shows here.
			cause = fmt.Errorf("%w: peer closed after it, as for a certificate that it refuses: %w", hbone.ErrHandshake, cause)
		}
		w.dialFailed(side.key, side.dial, cause)
	}
	w.forget(side.key)
}

// Request implements tunnel.Role; a client is asked for none.
func (side *clientSide) Request(*tunnel.Stream, h2.Header) tunnel.Owner { return nil }

// Refuse implements tunnel.Role: what a server does wrong is its streams' end.
func (side *clientSide) Refuse(error) {}

// Ended implements tunnel.Role.
func (side *clientSide) Ended() { side.memory.Closed(); side.w.eng.release() }

// Freeze implements tunnel.Role.
func (side *clientSide) Freeze(z *frozen.Conn) { z.Pool = &frozen.Pool{Endpoint: side.key.Endpoint} }

// Left implements tunnel.Role.
func (side *clientSide) Left() {
	side.Leave(nil) // of the pool, unless it has
	side.Ended()
}
