package proxy

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/agent/proxy/budget"
	"github.com/heddle-mesh/heddle/agent/proxy/wire"
	"github.com/heddle-mesh/heddle/agent/relay"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// connection is one connection from its acceptance to its flow record. There may
// be many thousands, so what only the way to being carried needs is in opening,
// and what re-authorizes a connection is read from its record. Its methods are
// safe for concurrent use; finish, with all that call it, is effective once.
type connection struct {
	proxy *Proxy
	pod   *pod
	id    uint64
	// counters are seen from the tunnel's local side: Sent goes from the
	// source to the destination outbound, and the other way inbound.
	counters hbone.Counters
	// cutter ends what carries it.
	cutter hbone.Cutter

	mu     sync.Mutex
	record flow.Record
	// opening is nil once the connection is carried.
	opening *opening
	// also is the destination's pod when that is on this node too.
	also *pod
	// seen is the View that allowed it last, or who stands for it (wire.Judge);
	// nil while there is nothing to authorize.
	seen *mesh.View
	// ended is why the proxy itself ended it, ReasonUnknown when it did not.
	ended mesh.Reason
	// sockets counts those that it has charged to the node.
	sockets int8
	// balanced says that the balancer counts it for the record's destination, given
	// that Freeze wrote it down here.
	balanced, probe, done, given bool
	// inside says that both ends were seen enrolled since it is watched (wire.Inside), here or by an agent before.
	inside bool
}

// opening is what a connection has until it is carried.
type opening struct {
	// scope ends with the connection, and bounds what is done for it.
	scope wire.Scope
	// sockets are aborted when the connection is ended from outside.
	sockets []*net.TCPConn
	// fd is the application's socket while it is no net.Conn; 0 when there is none.
	fd int
	// answered gets nil when a tunnel has the connection, or its refusal.
	answered func(*hbone.Outcome)
}

// endedError is why the proxy itself ended a connection.
type endedError struct{ reason mesh.Reason }

func (e endedError) Error() string { return "ended: " + e.reason.String() }

// begin makes the connection's record and enters it in the registry. False
// means that the pod has used up its budget, and the refusal is recorded.
func (p *Proxy) begin(ctx context.Context, pod *pod, record flow.Record) (*connection, bool) {
	record.Start = time.Now()
	record.Rule = -1
	record.Verdict = mesh.VerdictDeny
	c := &connection{proxy: p, pod: pod, record: record, opening: &opening{scope: wire.Scope{Parent: ctx}}}
	pod.busy.Add(1)
	if !pod.Charge() {
		c.finish(refused(mesh.ReasonBudgetExceeded, errors.New("too many connections at once")))
		return c, false
	}
	c.sockets = 1
	p.live.add(c)
	return c, true
}

// edit changes the record.
func (c *connection) edit(change func(*flow.Record)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.record)
}

// decide puts a decision into the record.
func (c *connection) decide(d mesh.Decision) {
	c.edit(func(r *flow.Record) { r.Decide(d) })
}

// watch makes the connection, which the View that was seen allows to go by a
// transport, subject to re-authorization from now on.
func (c *connection) watch(seen *mesh.View, by flow.Transport) {
	c.mu.Lock()
	c.record.Transport, c.seen = by, seen
	c.inside = c.inside || wire.Inside(seen, &c.record)
	c.mu.Unlock()
	// The View may have been replaced between the decision and this moment,
	// and the sweep for it may have passed by.
	c.review()
}

// unwatch is for a try that failed: the next one decides anew.
func (c *connection) unwatch() {
	c.mu.Lock()
	c.record.Transport, c.seen, c.inside = flow.TransportNone, nil, false
	c.mu.Unlock()
}

// review ends the connection when the View of this moment no longer allows it.
func (c *connection) review() {
	c.mu.Lock()
	view := c.proxy.cfg.Store.View()
	if c.seen == view || c.seen == nil {
		c.mu.Unlock()
		return
	}
	why, ok, by := c.proxy.judge.Allowed(view, &c.record, c.probe, c.inside)
	c.seen, c.inside = by, c.inside || wire.Inside(view, &c.record)
	c.mu.Unlock()
	if !ok {
		c.end(why, mesh.VerdictDeny)
	}
}

// hold makes the connection's end also that of a socket, until it is carried.
// False means that the connection was ended already, and so is the socket.
func (c *connection) hold(socket *net.TCPConn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != mesh.ReasonUnknown {
		relay.Abort(socket)
		return false
	}
	c.opening.sockets = append(c.opening.sockets, socket)
	return true
}

// holdSocket is hold for a socket that is no net.Conn, and is not closed by it.
func (c *connection) holdSocket(fd int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended == mesh.ReasonUnknown {
		c.opening.fd = fd
	}
	return c.ended == mesh.ReasonUnknown
}

// end ends the connection from outside, once: both ends see an RST. Whoever
// carries it notices and calls complete. What is not allowed any more is denied.
func (c *connection) end(why mesh.Reason, verdict mesh.Verdict) {
	c.mu.Lock()
	if c.ended != mesh.ReasonUnknown || c.done {
		c.mu.Unlock()
		return
	}
	c.ended = why
	if verdict == mesh.VerdictDeny {
		c.record.Verdict = verdict
	}
	opening := c.opening
	if opening != nil && opening.fd > 0 { // under the lock: it has not been given away
		wire.Disconnect(opening.fd)
	}
	c.mu.Unlock()
	c.cutter.Cut(endedError{why})
	if opening != nil { // hold adds nothing any more
		opening.scope.End()
		for _, socket := range opening.sockets {
			relay.Abort(socket)
		}
	}
}

// connected notes that the far end has accepted, handshake and by being those of
// the tunnel connection.
func (c *connection) connected(handshake time.Duration, by flow.Secured) {
	c.edit(func(r *flow.Record) {
		r.Timing.Handshake, r.Secured = handshake, by
		r.Timing.Connect = time.Since(r.Start)
	})
}

// settle gives up what only opening needed: from now on the cutter ends the
// connection.
func (c *connection) settle() *opening {
	c.mu.Lock()
	opening := c.opening
	c.opening = nil
	c.mu.Unlock()
	if opening != nil {
		opening.scope.End()
	}
	return opening
}

// refused says that a connection was never carried.
func refused(why mesh.Reason, cause error) func(*connection) {
	return func(c *connection) {
		r := &c.record
		r.Verdict, r.Reason, r.Transport = mesh.VerdictDeny, why, flow.TransportNone
		if c.ended != mesh.ReasonUnknown {
			r.Reason = c.ended
		}
		if cause != nil {
			r.Detail = cause.Error()
		}
	}
}

// refuse records that the connection was never carried. Resetting its socket is
// the caller's.
func (c *connection) refuse(why mesh.Reason, cause error) { c.finish(refused(why, cause)) }

// measure puts what the kernel knows of the wire leg into the record.
func (c *connection) measure(path hbone.Path) {
	c.edit(func(r *flow.Record) { r.Timing.RTT, r.Retransmits = path.RTT, path.Retransmits })
}

// complete records how a carried connection ended; nil means by FIN both ways.
func (c *connection) complete(cause error) {
	c.finish(func(c *connection) {
		r := &c.record
		switch {
		case c.ended != mesh.ReasonUnknown && (r.Verdict == mesh.VerdictDeny || r.Reason != mesh.ReasonProbe):
			r.Reason = c.ended
		case cause == nil:
		case r.Reason == mesh.ReasonProbe:
			// It stays one, however it ends: kubelet ends some by RST, and the history knows by this what no policy is about.
			r.Detail = cause.Error()
		default:
			r.Reason, r.Detail = wire.EndReason(cause), cause.Error()
			if c.inside && wire.Cancelled(cause) && wire.Left(c.proxy.cfg.Store.View(), r) {
				r.Reason = mesh.ReasonUnenrolled // as the peer's agent says that it ended it for
			}
		}
	})
}

// finish makes the flow record, exactly once; last completes it, under the lock.
func (c *connection) finish(last func(*connection)) {
	c.mu.Lock()
	if c.done {
		c.mu.Unlock()
		return
	}
	c.done = true
	last(c)
	record := c.snapshotLocked()
	c.mu.Unlock()
	c.leave()
	c.proxy.cfg.Flows.Add(record)
	c.pod.busy.Done()
}

// leave takes a connection that is done out of the registry and gives back what
// it has charged.
func (c *connection) leave() {
	c.settle()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = nil
	c.proxy.live.remove(c)
	c.proxy.discharge(c)
}

// snapshot returns the record as it is now.
func (c *connection) snapshot() flow.Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.snapshotLocked()
}

func (c *connection) snapshotLocked() flow.Record {
	r := c.record
	r.ID = c.id
	r.Duration = time.Since(r.Start)
	r.BytesSent, r.BytesReceived = c.counters.Sent.Load(), c.counters.Received.Load()
	if r.Direction == flow.DirectionInbound {
		r.BytesSent, r.BytesReceived = r.BytesReceived, r.BytesSent
	}
	return r
}

// registry knows the live connections of all pods.
type registry struct{ budget.Registry[*connection] }

func (r *registry) add(c *connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.id = r.Add(c)
}

func (r *registry) remove(c *connection) { r.Remove(c.id) }

// of returns the live connections of a pod, whichever Serve accepted them.
func (r *registry) of(key mesh.Key) []*connection {
	var found []*connection
	for _, c := range r.All() {
		c.mu.Lock()
		if c.pod.key == key || c.also != nil && c.also.key == key {
			found = append(found, c)
		}
		c.mu.Unlock()
	}
	return found
}

// sweep re-authorizes every live connection.
func (r *registry) sweep() {
	for _, c := range r.All() {
		c.review()
	}
}

// Open counts the connections that are carried, or being decided about.
func (p *Proxy) Open() int { return p.live.Len() }

// Live returns the connections that are carried at the moment, each as the
// record it would leave if it ended now, in no order. Their IDs are the
// proxy's own, and differ from those of flow records.
func (p *Proxy) Live() []flow.Record {
	connections := p.live.All()
	records := make([]flow.Record, len(connections))
	for i, c := range connections {
		records[i] = c.snapshot()
	}
	return records
}

// join gives two sockets to the relay, which carries the connection between them
// from then on. The wire leg is b.
func (p *Proxy) join(c *connection, a, b *net.TCPConn) {
	c.settle()
	carrying, err := p.relay.Start(relay.Pair{
		A: a, B: b, Sent: &c.counters.Sent, Received: &c.counters.Received, Measure: c.measurePair, Owner: c,
	}, c.complete)
	if err != nil {
		c.complete(err)
		return
	}
	c.cutter.Bind(func(error) { carrying.Cut() })
}

// measurePair asks the kernel for the figures of the wire leg.
func (c *connection) measurePair(_, b int) { c.measure(hbone.PathOfSocket(b)) }
