package tunnel

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/frozen"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/window"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/wire"
	"github.com/heddle-mesh/heddle/internal/hbone/flood"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
	"github.com/heddle-mesh/heddle/internal/hbone/tlsrecord"
)

// Conn is one tunnel connection, of either role.
type Conn struct {
	loop    *Loop
	cfg     Config
	role    Role
	client  bool
	fd      int
	session *tlsrecord.Session
	id      Identity

	streams map[uint32]*Stream
	lastID  uint32  // the highest that was opened, by the peer or by us
	data    *Stream // of the DATA frame under way; nil to discard it
	dataLen int
	in      wire.Input
	out     output
	flow    connFlow
	life    connLife
	guard   flood.Guard

	moving
	connFlags
}

type connFlags struct {
	queued bool // in the loop's list
	ended  bool // the peer will send no more
	closed bool
	ready  bool // the peer's SETTINGS are there
	left   bool // the role knows that it takes no new streams
}

// connFlow is the connection's flow control.
type connFlow struct {
	send, initial int64 // what we may still send; what a new stream may
	recv          window.Connection
	streams       int       // at once: the peer's limit for a client, ours for a server
	places        int       // of a server: streams that count against it
	sent          int       // WINDOW_UPDATEs that DATA entitles to, since the last
	blocked       []*Stream // wait for the connection to take more
}

// connLife is what ends a connection.
type connLife struct {
	clock, idle, expiry eventloop.Timer
	heard               bool // since the last tick
	heardAt             time.Time
	path                wire.Path
	estimate            wire.Estimate
	asked               bool // a PING waits for its answer
	goaway              frozen.GoAway
	announced           bool          // the last tick saw a drain whose PING was not answered
	idleLeft            time.Duration // of idle when the connection came to rest
}

func (c *Conn) stopClocks() {
	for _, t := range [...]*eventloop.Timer{&c.life.clock, &c.life.idle, &c.life.expiry} {
		c.loop.Clear(t)
	}
}

// Add makes a secured connection live on the loop, and begins HTTP/2. The
// descriptor is the connection's from then on, unless there was an error.
func (l *Loop) Add(s *Secured, cfg Config, role Role) (*Conn, error) {
	c := &Conn{loop: l, cfg: cfg, role: role, client: !s.Server, fd: s.FD, session: s.Session, id: s.Identity, streams: map[uint32]*Stream{}}
	c.in = wire.NewInput(&l.Buffers, c.session, c.fd, h2.Parser{Server: s.Server, MaxHeaderBytes: cfg.HeaderBytes})
	c.out.Output = wire.NewOutput(&l.Buffers, c.session, c.fd)
	c.flow = connFlow{send: h2.DefaultWindow, initial: h2.DefaultWindow, recv: window.New(cfg.Memory, cfg.StreamWindow, cfg.ConnectionWindow)}
	c.flow.streams = cfg.Streams
	if c.client {
		c.flow.streams = h2.MaxWindow // until the peer says less
	}
	if err := l.Register(c.fd, c); err != nil {
		return nil, err
	}
	l.conns[c] = struct{}{}
	c.raw(wire.Opening(c.client, cfg.Streams, cfg.HeaderBytes, c.flow.recv.First))
	if more := c.flow.recv.Open(); more > 0 {
		c.windowUpdate(0, more)
	}
	l.SetAfter(&c.life.clock, cfg.PingInterval, c.tick)
	l.SetAfter(&c.life.idle, cfg.Patience, c.silent)
	if !c.client {
		l.Set(&c.life.expiry, c.id.NotAfter, c.Drain)
	}
	return c, nil
}

// Identity is who the two ends are.
func (c *Conn) Identity() *Identity { return &c.id }

// Role is what Add was given.
func (c *Conn) Role() Role { return c.role }

// Streams is the number of open streams.
func (c *Conn) Streams() int { return len(c.streams) }

// HasRoom says whether the peer takes another stream (RFC 9113 section 5.1).
func (c *Conn) HasRoom() bool { return len(c.streams) < c.flow.streams && c.lastID < h2.MaxWindow-2 }

// Room is how many streams the peer takes besides, of how many at once.
func (c *Conn) Room() (left, limit int) { return max(0, c.flow.streams-len(c.streams)), c.flow.streams }

// begin tells the role of the peer's first SETTINGS.
func (c *Conn) begin() {
	if c.ready || c.left {
		return
	}
	c.ready = true
	c.loop.Clear(&c.life.idle)
	c.loop.Set(&c.life.expiry, c.id.NotAfter, c.Drain)
	c.role.Ready()
	if len(c.streams) == 0 {
		c.endIfDrained()
	}
}

// leave tells the role, once, that there will be no new streams.
func (c *Conn) leave(cause error) {
	if !c.left {
		c.left = true
		c.role.Leave(cause)
	}
}

// Ready implements eventloop.Source.
func (c *Conn) Ready(e eventloop.Events) {
	c.ended = c.ended || e.Ended()
	if e.Writable() && (c.out.Queued() > 0 || c.out.closing) {
		c.flush()
	}
	if e.Readable() {
		c.loop.queueConn(c)
	}
}

// read takes what the socket has, up to the size of the scratch buffer, and
// says whether there may be more.
func (c *Conn) read() bool {
	if c.held || c.resting {
		return false // what there is stays in the socket
	}
	if c.out.closing && c.out.code != http2.ErrCodeNo {
		return false // a peer that broke the rules is not listened to
	}
	n, more, errno := c.in.Read(c.loop.scratch)
	switch {
	case errno == syscall.EAGAIN:
		return false
	case errno != 0:
		c.lost(fmt.Errorf("%w: connection lost: %w", hbone.ErrProtocol, errno))
		return false
	case n == 0:
		c.lost(fmt.Errorf("%w: connection lost: peer closed it", hbone.ErrProtocol))
		return false
	}
	if c.out.closing {
		return true // what comes after the goodbye is of no interest
	}
	c.life.heard, c.life.heardAt = true, c.loop.Now()
	err := c.records()
	c.loop.deliver()
	if err != nil {
		c.flush() // what is sent already ends in good order
		c.failRead(err)
		return !c.closed
	}
	c.in.Keep()
	if c.account(); c.in.Pieces() > 0 && c.cfg.Memory.IsOver() {
		c.failRead(wire.ErrPieces)
	}
	return (more || c.ended) && !c.closed
}

func (c *Conn) records() error {
	for {
		data, ok, err := c.in.Next()
		if err != nil || !ok {
			return err
		}
		if c.session.UpdateDue() {
			c.touch() // the answer goes out with the next flush
		}
		if err := c.in.Parser.Feed(data, c); err != nil {
			return err
		}
		if c.closed || c.out.closing {
			c.in.Free()
			return nil
		}
	}
}

// failRead ends the connection for what reading found.
func (c *Conn) failRead(err error) {
	f := wire.Judge(err)
	if f.Lost {
		c.lost(f.Err)
		return
	}
	if f.Broke {
		c.role.Refuse(f.Err)
	}
	c.goodbye(f.Err, f.Code, f.Alert)
}

// Cut ends the connection and every stream on it, for the cause.
func (c *Conn) Cut(cause error) {
	if c.atRest(func() { c.Cut(cause) }) {
		return
	}
	c.out.farewell.Owed = false
	c.goodbye(cause, http2.ErrCodeNo, tlsrecord.CloseNotify)
	for _, s := range c.streams {
		s.end(cause) // it was alone
	}
}

// goodbye ends every stream, tells the peer why, and closes when it has heard
// or does not listen.
func (c *Conn) goodbye(err error, code http2.ErrCode, alert tlsrecord.Alert) {
	if c.closed || c.out.closing {
		return
	}
	c.endStreams(err)
	last := c.lastID
	if c.client {
		last = 0
	}
	c.goAway(last, code)
	c.out.closing, c.out.alert, c.out.code = true, alert, code
	c.stopClocks()
	c.out.farewell.Begin(c.loop.Loop, &c.life.idle, c.fd, c.cfg.WriteTimeout, func() { c.lost(err) })
	c.touch()
}

// Departs says that nothing is left of the connection but what its peer has not read.
func (c *Conn) Departs() bool { return c.out.closing && c.out.farewell.Owed && !c.closed }

// lost closes the connection at once.
func (c *Conn) lost(err error) {
	if c.closed {
		return
	}
	c.out.closing = true // the last stream's end is no reason for a goodbye
	c.endStreams(err)
	c.closed = true
	w := c.loop
	c.stopClocks()
	w.Forget(c.fd)
	eventloop.CloseSocket(c.fd)
	c.free()
	c.gone()
}

// free drops what a closed connection has. Whoever was writing when it was lost
// may go on: the wiped session seals nothing.
func (c *Conn) free() {
	c.out.Free()
	c.in.Free()
	c.flow.recv.Leave()
	c.account()
	c.session.Wipe()
}

// gone is the end of a lost connection, which the last of its streams may
// outlive: until then Cut finds them by it.
func (c *Conn) gone() {
	if _, there := c.loop.conns[c]; there && len(c.streams) == 0 {
		delete(c.loop.conns, c)
		c.role.Ended()
	}
}

// endStreams ends all streams for one cause, and takes no more.
func (c *Conn) endStreams(err error) {
	c.life.goaway = frozen.GoAwayFinal
	c.data = nil
	c.leave(err)
	for _, s := range c.streams {
		s.connectionFailed(err)
	}
}

// tick finds a peer that has gone, each PingInterval, and PingTimeout after a
// question.
func (c *Conn) tick() {
	cfg := &c.cfg
	next := cfg.PingInterval
	switch {
	case c.life.heard && c.in.IsLate(c.loop.Now(), cfg.WriteTimeout): // a peer that says nothing may be gone, and has broken no rule
		c.failRead(wire.ErrUnfinished)
		return
	case !c.life.heard && c.life.asked:
		c.lost(fmt.Errorf("%w: connection lost: no answer to PING in %v", hbone.ErrProtocol, cfg.PingTimeout))
		return
	case c.out.IsStuck(c.loop.Now(), cfg.WriteTimeout):
		c.lost(fmt.Errorf("%w: connection lost: peer does not read", hbone.ErrProtocol))
		return
	case !c.life.heard:
		c.life.asked = true
		next = cfg.PingTimeout
		c.ping([8]byte{}, false)
	default:
		c.life.asked = false
	}
	c.life.heard = false
	if c.life.goaway == frozen.GoAwayAnnounced && c.life.announced {
		c.finishDrain()
	}
	c.life.announced = c.life.goaway == frozen.GoAwayAnnounced
	if !c.closed && !c.out.closing {
		c.loop.SetAfter(&c.life.clock, next, c.tick)
	}
}

// silent ends a connection whose peer does not begin HTTP/2.
func (c *Conn) silent() {
	if c.client {
		c.lost(fmt.Errorf("%w: waiting for SETTINGS", hbone.ErrTimeout))
		return
	}
	err := fmt.Errorf("%w: no HTTP/2 preface", hbone.ErrTimeout)
	c.role.Refuse(err)
	c.goodbye(err, http2.ErrCodeNo, tlsrecord.CloseNotify)
}

// Drain begins a graceful end (RFC 9113 section 6.8). A server announces it: a
// stream that the peer opened before it saw the GOAWAY is still served. A client
// just opens no more.
func (c *Conn) Drain() {
	if c.life.goaway != frozen.GoAwayNone || c.atRest(c.Drain) {
		return
	}
	if c.client {
		c.life.goaway = frozen.GoAwayFinal
		c.leave(nil)
		c.endIfDrained()
		return
	}
	c.life.goaway = frozen.GoAwayAnnounced
	c.goAway(h2.MaxWindow, http2.ErrCodeNo)
	c.ping(wire.DrainPing(), false)
}

func (c *Conn) finishDrain() {
	if c.life.goaway != frozen.GoAwayAnnounced {
		return
	}
	c.life.goaway = frozen.GoAwayFinal
	c.goAway(c.lastID, http2.ErrCodeNo)
	c.endIfDrained()
}

// endIfDrained closes a drained connection without streams, and watches for one
// that has been idle for long.
func (c *Conn) endIfDrained() {
	if c.closed {
		c.gone()
		return
	}
	if c.out.closing || len(c.streams) > 0 || c.flow.places > 0 {
		return
	}
	switch {
	case c.life.goaway == frozen.GoAwayFinal:
		c.out.farewell.Owed = true
		c.goodbye(hbone.ErrDraining, http2.ErrCodeNo, tlsrecord.CloseNotify)
	case c.client && c.ready, !c.client && c.in.Parser.Started():
		c.loop.SetAfter(&c.life.idle, c.cfg.IdleTimeout, c.idleClose)
	}
}

func (c *Conn) idleClose() {
	c.life.goaway = frozen.GoAwayFinal
	c.leave(nil)
	c.endIfDrained()
}
