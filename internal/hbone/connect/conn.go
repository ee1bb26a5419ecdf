// Package connect is the server's end of HTTP/2 as HBONE needs it (RFC 9113
// section 8.5): CONNECT and nothing else, on the frames and the HPACK of
// x/net/http2, with a hard bound on everything that a peer may ask for. The
// Server of x/net/http2 does not serve here, because it cannot end a response
// while the request goes on, which TCP's half-close needs.
//
// It knows nothing of listeners or TLS handshakes: those are an engine's. A Conn
// is safe for concurrent use; Serve is called once.
package connect

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/flood"
	"github.com/heddle-mesh/heddle/internal/hbone/relay"
	"github.com/heddle-mesh/heddle/internal/hbone/secured"
)

const (
	// defaultWindow is what RFC 9113 section 6.9.2 begins with, maxWindow what
	// section 6.9.1 allows.
	defaultWindow = 65535
	maxWindow     = 1<<31 - 1
	// writeBufferBytes holds a few frames, so that they leave in one record.
	writeBufferBytes = relay.BufferBytes + 64
	// closeGrace is how long a closing connection may take to say so.
	closeGrace = 250 * time.Millisecond
)

// Settings are what the connections of one Serve call share. All fields are
// required.
type Settings struct {
	// Server answers the streams.
	Server *hbone.Server
	// Limits is complete: no field is zero.
	Limits hbone.Limits
	// PrefaceTimeout is how long the client may take to begin HTTP/2,
	// IdleTimeout how long a connection is kept that carries no stream.
	PrefaceTimeout, IdleTimeout time.Duration
	// PingInterval is how long a connection may be silent before it is asked
	// for a sign of life, PingTimeout how long the answer may take. A frame, or a
	// header in several, is a sign when it has ended.
	PingInterval, PingTimeout time.Duration
	// WriteTimeout is how long a peer may leave the TCP connection stuck.
	WriteTimeout time.Duration
	// Buffers are shared with whoever else relays.
	Buffers *relay.Buffers
	// Spawn runs a function on a goroutine that its owner waits for.
	Spawn  func(func())
	Logger *slog.Logger
}

// Identity is what the handshake of a connection established.
type Identity struct {
	// Peer is the identity that the client proved, with Chain, leaf first.
	Peer  spiffeid.ID
	Chain []*x509.Certificate
	// Leaf is the fingerprint of our certificate.
	Leaf [32]byte
	// NotAfter is when the connection must drain.
	NotAfter time.Time
	// Handshake is how long it took, Secured what it settled.
	Handshake time.Duration
	Secured   secured.By
}

// Conn is one tunnel connection that a peer opened. Two goroutines run it, one that reads frames and never writes,
// and one that writes what reading gave rise to and watches the clock; each
// stream has its own.
type Conn struct {
	set  *Settings
	id   Identity
	wire wire

	// ctx ends, with its cause, when the connection does, and whole when its
	// streams must too: one that both ends have finished outlives the connection
	// until its application has read it.
	ctx    context.Context
	cancel context.CancelCauseFunc
	whole  context.Context
	cut    context.CancelCauseFunc
	guard  flood.Guard   // of the reading goroutine
	heard  atomic.Uint64 // frames read, a header in several as one
	spoken atomic.Uint64 // WINDOW_UPDATEs that DATA entitles to, since the last
	tasks  sync.WaitGroup

	live streamTable
}

// wire is the connection's two directions. Reading belongs to one
// goroutine; writing needs mu.
type wire struct {
	tls           *tls.Conn
	tcp           net.Conn
	remote, local netip.AddrPort
	framer        *http2.Framer
	in            countingReader // what framer reads
	decoder       *hpack.Decoder

	mu      sync.Mutex
	out     *bufio.Writer
	encoder *hpack.Encoder
	block   headerBlock // what encoder writes to
}

// streamTable is the connection's state that reading, writing and the streams
// share, and the lock of all of it and of the streams' own state.
type streamTable struct {
	sync.Mutex
	streams map[uint32]*stream
	places  int    // streams whose goroutines have not ended
	refused int    // streams that were, and that the guard does not know of
	acked   bool   // the peer knows our SETTINGS
	lastID  uint32 // the highest that the peer opened
	// sendWindow is what we may still send, initialWindow what a new stream may.
	sendWindow, initialWindow int64
	recv                      recvWindow
	late                      int64          // bytes that may be on their way on streams that we have ended
	control                   []controlFrame // to be written
	wake                      chan struct{}
	goaway                    goawayState
	code                      http2.ErrCode      // of the last GOAWAY, when ctx has ended
	idleSince                 time.Time          // when places became 0
	roots                     *x509bundle.Bundle // that the peer was verified with last
}

type goawayState int

const (
	goawayNone      goawayState = iota
	goawayAnnounced             // GOAWAY with the highest id was sent, and a PING after it
	goawayFinal                 // nothing above lastID is served
)

// New makes the server's end of a connection whose handshake is done. Nothing
// runs before Serve. The connection ends with ctx, for its cause.
func New(ctx context.Context, set *Settings, secured *tls.Conn, tcp net.Conn, id Identity) *Conn {
	c := &Conn{set: set, id: id}
	c.whole, c.cut = context.WithCancelCause(ctx)
	c.ctx, c.cancel = context.WithCancelCause(c.whole)
	w := &c.wire
	w.tls, w.tcp, w.remote, w.local = secured, tcp, AddrPort(tcp.RemoteAddr()), AddrPort(tcp.LocalAddr())
	w.out = bufio.NewWriterSize(deadlineWriter{secured, set.WriteTimeout}, writeBufferBytes)
	w.in.from = bufio.NewReader(relay.Data(secured))
	w.framer = http2.NewFramer(w.out, &w.in)
	w.framer.SetMaxReadFrameSize(relay.BufferBytes)
	w.framer.SetReuseFrames()
	w.decoder = hpack.NewDecoder(4096, nil)
	w.encoder = hpack.NewEncoder(&w.block)
	w.encoder.SetMaxDynamicTableSizeLimit(0)
	c.live.streams = map[uint32]*stream{}
	c.live.sendWindow, c.live.initialWindow = defaultWindow, defaultWindow
	c.live.recv = newRecvWindow(set.Limits.ConnectionWindow)
	c.live.wake = make(chan struct{}, 1)
	c.live.idleSince = time.Now()
	return c
}

// deadlineWriter gives every write its own time.
type deadlineWriter struct {
	conn    *tls.Conn
	timeout time.Duration
}

func (w deadlineWriter) Write(p []byte) (int, error) {
	if err := w.conn.SetWriteDeadline(time.Now().Add(w.timeout)); err != nil {
		return 0, err
	}
	return w.conn.Write(p)
}

// AddrPort is the address of a TCP connection, IPv4 as IPv4; zero for others.
func AddrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// Identity is what New was given.
func (c *Conn) Identity() Identity { return c.id }

// Serve runs the connection until it has ended and all its streams have. It
// closes it.
func (c *Conn) Serve() {
	err := c.greet()
	if err == nil {
		c.tasks.Add(1)
		c.set.Spawn(func() {
			defer c.tasks.Done()
			c.write()
		})
		expiry := time.AfterFunc(time.Until(c.id.NotAfter), c.Drain)
		err = c.read()
		expiry.Stop()
	}
	c.failRead(err)
	c.tasks.Wait()
	relay.Close(c.wire.tcp)
	c.cut(nil)
}

// greet sends our SETTINGS and reads the client's preface.
func (c *Conn) greet() error {
	w := &c.wire
	settings := []http2.Setting{
		{ID: http2.SettingHeaderTableSize, Val: 0},
		{ID: http2.SettingMaxConcurrentStreams, Val: uint32(c.set.Limits.Streams)},
		{ID: http2.SettingInitialWindowSize, Val: uint32(c.set.Limits.StreamWindow)},
		{ID: http2.SettingMaxFrameSize, Val: relay.BufferBytes},
		{ID: http2.SettingMaxHeaderListSize, Val: uint32(c.set.Limits.HeaderBytes)},
	}
	if err := w.framer.WriteSettings(settings...); err != nil {
		return err
	}
	if more := c.set.Limits.ConnectionWindow - defaultWindow; more > 0 {
		if err := w.framer.WriteWindowUpdate(0, uint32(more)); err != nil {
			return err
		}
	}
	if err := w.out.Flush(); err != nil {
		return err
	}
	preface := make([]byte, len(http2.ClientPreface))
	if err := w.tls.SetReadDeadline(time.Now().Add(c.set.PrefaceTimeout)); err != nil {
		return err
	}
	if _, err := io.ReadFull(w.tls, preface); err != nil {
		return err
	}
	if string(preface) != http2.ClientPreface {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	return nil
}

// Cut ends the connection and every stream on it, for the cause.
func (c *Conn) Cut(cause error) {
	c.fail(cause, http2.ErrCodeNo)
	c.cut(cause)
}

// fail ends the connection, with the code for the peer. The writing goroutine
// says goodbye and closes.
func (c *Conn) fail(cause error, code http2.ErrCode) {
	c.live.Lock()
	if c.ctx.Err() == nil {
		c.live.code = code
	}
	c.live.Unlock()
	c.cancel(cause)
}

// failRead ends the connection for what reading returned.
func (c *Conn) failRead(err error) {
	code := http2.ErrCodeNo
	if ce, ok := errors.AsType[http2.ConnectionError](err); ok {
		code = http2.ErrCode(ce)
		err = fmt.Errorf("%w: %w", hbone.ErrProtocol, err)
		c.refuse(err)
	} else if tooMuch, ok := errors.AsType[*flood.Error](err); ok {
		code = http2.ErrCodeEnhanceYourCalm
		err = fmt.Errorf("%w: %w", hbone.ErrLimit, tooMuch)
		c.refuse(err)
	} else if errors.Is(err, hbone.ErrLimit) {
		code = http2.ErrCodeEnhanceYourCalm
		c.refuse(err)
	} else if t, ok := errors.AsType[net.Error](err); ok && t.Timeout() {
		err = fmt.Errorf("%w: no HTTP/2 preface: %w", hbone.ErrTimeout, err)
		c.refuse(err)
	} else {
		err = fmt.Errorf("%w: connection lost: %w", hbone.ErrProtocol, err)
	}
	c.fail(err, code)
}

// refuse reports what Accept was not asked about. Refused must not block, so the
// lock may be held.
func (c *Conn) refuse(err error) {
	if c.set.Server.Refused != nil {
		c.set.Server.Refused(hbone.Refusal{Remote: c.wire.remote, Local: c.wire.local, Peer: c.id.Peer, Err: err})
	}
}

// Drain begins a graceful end (RFC 9113 section 6.8): GOAWAY with the highest
// id, then a PING; when its answer is there, no stream that the peer opened
// before it saw the GOAWAY can be under way, and the final one follows.
func (c *Conn) Drain() {
	c.live.Lock()
	defer c.live.Unlock()
	if c.live.goaway != goawayNone {
		return
	}
	c.live.goaway = goawayAnnounced
	c.queue(controlFrame{kind: http2.FrameGoAway, id: maxWindow})
	c.queue(controlFrame{kind: http2.FramePing, data: drainPing()})
}

// drainPing marks the PING of a drain; the others carry zeros.
func drainPing() [8]byte { return [8]byte{'d', 'r', 'a', 'i', 'n'} }

// finishDrain sends the final GOAWAY; the caller holds the lock.
func (c *Conn) finishDrain() {
	if c.live.goaway != goawayAnnounced {
		return
	}
	c.live.goaway = goawayFinal
	c.queue(controlFrame{kind: http2.FrameGoAway, id: c.live.lastID})
	c.endIfDrained()
}

// endIfDrained closes a drained connection without streams; the caller holds
// the lock.
func (c *Conn) endIfDrained() {
	if c.live.goaway == goawayFinal && c.live.places == 0 {
		c.cancel(hbone.ErrDraining)
	}
}

// controlFrame is a frame that reading gives rise to.
type controlFrame struct {
	kind  http2.FrameType
	ack   bool
	id    uint32
	value uint32 // increment or error code
	data  [8]byte
}

// maxControl bounds the frames that wait for a peer that does not read.
const maxControl = 4096

// queue hands a frame to the writing goroutine; the caller holds the lock.
func (c *Conn) queue(f controlFrame) {
	if len(c.live.control) >= maxControl {
		c.cancel(fmt.Errorf("%w: %d frames wait for a peer that does not read", hbone.ErrLimit, maxControl))
		return
	}
	c.live.control = append(c.live.control, f)
	select {
	case c.live.wake <- struct{}{}:
	default:
	}
}

// write is the writing goroutine.
func (c *Conn) write() {
	clock := time.NewTicker(c.set.PingInterval)
	defer clock.Stop()
	watch := lifeWatch{conn: c}
	for {
		select {
		case <-c.live.wake:
			if err := c.writeControl(); err != nil {
				c.fail(fmt.Errorf("%w: %w", hbone.ErrProtocol, err), http2.ErrCodeNo)
			}
		case <-clock.C:
			watch.tick(clock)
		case <-c.ctx.Done():
			c.goodbye()
			return
		}
	}
}

func (c *Conn) writeControl() error {
	w := &c.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	c.live.Lock()
	frames := c.takeControl()
	c.live.Unlock()
	if err := w.writeAll(frames); err != nil {
		return err
	}
	return w.out.Flush()
}

func (w *wire) writeControl(f controlFrame) error {
	switch f.kind {
	case http2.FrameSettings:
		return w.framer.WriteSettingsAck()
	case http2.FramePing:
		return w.framer.WritePing(f.ack, f.data)
	case http2.FrameGoAway:
		return w.framer.WriteGoAway(f.id, http2.ErrCode(f.value), nil)
	case http2.FrameWindowUpdate:
		return w.framer.WriteWindowUpdate(f.id, f.value)
	default:
		return w.framer.WriteRSTStream(f.id, http2.ErrCode(f.value))
	}
}

// goodbye says why, as far as the peer listens, and closes: the reading
// goroutine ends with that.
func (c *Conn) goodbye() {
	w := &c.wire
	cut := time.AfterFunc(closeGrace, func() { relay.Close(w.tcp) })
	defer cut.Stop()
	if c.writeLast() == nil {
		cut.Stop()
		relay.Linger(w.tls, w.tcp)
	}
	relay.Close(w.tcp)
}

// writeLast writes what is queued, a GOAWAY and a close_notify.
func (c *Conn) writeLast() error {
	w := &c.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	c.live.Lock()
	frames := append(c.takeControl(), controlFrame{kind: http2.FrameGoAway, id: c.live.lastID, value: uint32(c.live.code)})
	c.live.Unlock()
	if err := errors.Join(w.writeAll(frames), w.out.Flush()); err != nil {
		return err
	}
	return w.tls.CloseWrite()
}

// lifeWatch finds connections whose peer has gone, and idle ones.
type lifeWatch struct {
	conn         *Conn
	heard, given uint64
	asked        bool
	// announced: the last tick saw a drain whose PING was not answered.
	announced bool
}

// tick is called each PingInterval, and PingTimeout after a question.
func (l *lifeWatch) tick(clock *time.Ticker) {
	c := l.conn
	heard := c.heard.Load()
	silent := heard == l.heard
	l.heard = heard
	given := c.wire.in.given.Load()
	speaks := given != l.given // and ends nothing, if it is silent
	l.given = given
	c.live.Lock()
	defer c.live.Unlock()
	switch {
	case silent && l.asked && speaks:
		err := fmt.Errorf("%w: something was begun and not ended", hbone.ErrTimeout)
		c.refuse(err)
		c.cancel(err)
		return
	case silent && l.asked:
		c.cancel(fmt.Errorf("%w: connection lost: no answer to PING in %v", hbone.ErrProtocol, c.set.PingTimeout))
		return
	case silent:
		l.asked = true
		c.queue(controlFrame{kind: http2.FramePing})
		clock.Reset(c.set.PingTimeout)
	case l.asked:
		l.asked = false
		clock.Reset(c.set.PingInterval)
	}
	if c.live.goaway == goawayAnnounced && l.announced {
		c.finishDrain()
	}
	l.announced = c.live.goaway == goawayAnnounced
	if c.live.places == 0 && c.live.goaway == goawayNone && time.Since(c.live.idleSince) > c.set.IdleTimeout {
		c.live.goaway = goawayFinal
		c.endIfDrained()
	}
}
