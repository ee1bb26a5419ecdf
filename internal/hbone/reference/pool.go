package reference

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/relay"
	"github.com/heddle-mesh/heddle/internal/hbone/secured"
)

const (
	// maxResponseBytes bounds the header of a peer's answer.
	maxResponseBytes = 16 << 10
	// closeGrace is how long a closing connection may take to say so.
	closeGrace = 250 * time.Millisecond
)

// newTransport makes the HTTP/2 client. It sees each tunnel connection as one
// that is already secured: TLS is ours (dial), and DialContext only hands over
// the connection that the context carries.
func newTransport(cfg Config) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Transport{
		Protocols:              protocols,
		DisableCompression:     true,
		IdleConnTimeout:        cfg.IdleTimeout,
		MaxResponseHeaderBytes: maxResponseBytes,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return ctx.Value(securedConn{}).(net.Conn), nil
		},
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerConnection: int(cfg.ConnectionWindow),
			MaxReceiveBufferPerStream:     int(cfg.StreamWindow),
			MaxReadFrameSize:              relay.BufferBytes,
			SendPingTimeout:               cfg.PingInterval,
			PingTimeout:                   cfg.PingTimeout,
			WriteByteTimeout:              cfg.WriteTimeout,
		},
	}
}

// securedConn is the context key of the connection that DialContext returns.
type securedConn struct{}

// pool holds the outbound connections by key. Its lock is taken before that of
// an HTTP/2 connection, never after.
type pool struct {
	eng *Engine

	mu      sync.Mutex
	entries map[hbone.Key]*entry
	live    map[*clientConn]*hbone.Memory // open, in the pool or retired, and where each has its place
}

// entry is the connections of one key, and the one dial that may be under way.
type entry struct {
	conns   []*clientConn
	dialing *dialing
}

// dialing is a dial under way; err and timing are set before done is closed.
type dialing struct {
	done   chan struct{}
	err    error
	timing hbone.Timing
}

// clientConn is one tunnel connection that we opened.
type clientConn struct {
	key    hbone.Key
	http   *http.ClientConn
	wire   *wireConn
	chain  []*x509.Certificate
	by     secured.By
	roots  *x509bundle.Bundle // that chain was verified with last
	expiry *time.Timer

	// Guarded by pool.mu.
	gone    bool // not in the pool any more
	streams map[*outbound]struct{}
}

// maxDials bounds the connections that one request opens, each of which others may
// have filled before it, or the peer takes no stream on.
const maxDials = 16

// acquire returns a connection for req with one stream reserved for o. At most
// one dial per key is under way; everybody else with the key waits for it.
func (p *pool) acquire(ctx context.Context, req *hbone.ConnectRequest, o *outbound) (*clientConn, hbone.Timing, error) {
	timing := hbone.Timing{Pooled: true}
	for dials := 0; ; {
		if p.eng.closing() {
			return nil, timing, hbone.ErrDraining
		}
		c, d, own, stale := p.reserve(req, o)
		for _, old := range stale {
			p.eng.log.Info("tunnel connection drains", "endpoint", old.key.Endpoint, "peer", old.key.Peer, "reason", "bundle changed")
			p.retire(old, nil)
		}
		if c != nil {
			return c, timing, nil
		}
		if own {
			if dials++; dials > maxDials {
				err := fmt.Errorf("%w: the peer takes no streams on %d new connections", hbone.ErrLimit, maxDials)
				p.giveUp(req.Key, d, err)
				return nil, timing, err
			}
			p.eng.spawn(func() { p.dial(req, d) })
		}
		select {
		case <-d.done:
		case <-ctx.Done():
			return nil, timing, context.Cause(ctx)
		}
		if own {
			timing = d.timing
		}
		// A dial that ran out of time may have had less of it than this request.
		if d.err != nil && (own || !errors.Is(d.err, hbone.ErrTimeout)) {
			return nil, timing, d.err
		}
	}
}

// reserve finds a connection with room for one stream more. When there is none
// it returns the dial to wait for, and whether the caller is the one to start
// it. Connections whose peer the bundle no longer vouches for are stale.
func (p *pool) reserve(req *hbone.ConnectRequest, o *outbound) (c *clientConn, d *dialing, own bool, stale []*clientConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ent := p.entry(req.Key)
	for _, c := range ent.conns {
		if !c.trusted(req.Bundles) {
			stale = append(stale, c)
		} else if c.http.Reserve() == nil {
			c.streams[o] = struct{}{}
			return c, nil, false, stale
		}
	}
	if ent.dialing == nil {
		ent.dialing = &dialing{done: make(chan struct{})}
		own = true
	}
	return nil, ent.dialing, own, stale
}

// giveUp ends a dial before it has begun, and drops the connections of its key that
// take no stream.
func (p *pool) giveUp(k hbone.Key, d *dialing, err error) {
	p.mu.Lock()
	ent := p.entry(k)
	ent.dialing, d.err = nil, err
	full := slices.Clone(ent.conns)
	p.forget(k, ent)
	p.mu.Unlock()
	close(d.done)
	for _, c := range full {
		if c.http.Available() == 0 && c.http.InFlight() == 0 {
			p.retire(c, nil)
		}
	}
}

// entry returns the key's entry; the caller holds mu.
func (p *pool) entry(k hbone.Key) *entry {
	ent := p.entries[k]
	if ent == nil {
		ent = &entry{}
		p.entries[k] = ent
	}
	return ent
}

// trusted says whether the peer's chain still holds with the bundle of now. A
// bundle that only gained a root keeps its connections.
func (c *clientConn) trusted(bundles x509bundle.Source) bool {
	roots, err := bundles.GetX509BundleForTrustDomain(c.key.Peer.TrustDomain())
	if err != nil {
		return false
	}
	if roots.Equal(c.roots) {
		return true
	}
	if _, err := hbone.VerifyPeer(c.chain, roots, time.Now()); err != nil {
		return false
	}
	c.roots = roots.Clone()
	return true
}

// dial opens a connection for the request's key and puts it into the pool.
func (p *pool) dial(req *hbone.ConnectRequest, d *dialing) {
	ctx, cancel := context.WithTimeoutCause(p.eng.hard, p.eng.timeoutOf(req), hbone.ErrTimeout)
	defer cancel()
	var c *clientConn
	err := req.Memory.Within(func() (err error) { c, err = p.open(ctx, req, &d.timing); return err })
	p.mu.Lock()
	ent := p.entry(req.Key)
	ent.dialing, d.err = nil, err
	if err == nil {
		c.gone = false
		c.expiry = time.AfterFunc(time.Until(hbone.NotAfter(c.wire.leaf, c.chain[0])), func() { p.eng.spawn(func() { p.retire(c, nil) }) })
		ent.conns = append(ent.conns, c)
		p.live[c] = req.Memory
	}
	p.forget(req.Key, ent)
	p.mu.Unlock()
	close(d.done)
	switch {
	case err != nil:
	case c.wire.isClosed():
		p.lost(c) // before it was in the pool
	case p.eng.closing():
		p.retire(c, nil)
	}
}

// open dials, shakes hands and waits for the peer's SETTINGS, which also say
// that it accepted our certificate.
func (p *pool) open(ctx context.Context, req *hbone.ConnectRequest, timing *hbone.Timing) (*clientConn, error) {
	leaf, err := hbone.LeafOf(req.Certificate)
	if err != nil {
		return nil, err
	}
	if hbone.Fingerprint(req.Certificate) != req.Leaf {
		return nil, fmt.Errorf("%w: the key names another local certificate", hbone.ErrPeerMismatch)
	}
	start := time.Now()
	tcp, err := req.Dial(ctx)
	timing.Dial = time.Since(start)
	if err != nil {
		return nil, hbone.DialError(ctx, req.Endpoint, err)
	}
	start = time.Now()
	defer func() { timing.Handshake = time.Since(start) }()
	tunnel := tls.Client(relay.NewRecords(tcp), hbone.ClientTLS(req.Certificate, req.Bundles, req.Peer))
	if err := tunnel.HandshakeContext(ctx); err != nil {
		relay.Abort(tcp)
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: handshake with %s", context.Cause(ctx), req.Endpoint)
		}
		return nil, hbone.HandshakeError(err)
	}
	state := tunnel.ConnectionState()
	c := &clientConn{
		key: req.Key, chain: state.PeerCertificates, by: hbone.SecuredBy(state.CurveID, state.PeerCertificates), gone: true,
		streams: map[*outbound]struct{}{},
		wire:    &wireConn{Conn: tunnel, data: relay.Data(tunnel), tcp: tcp, leaf: leaf, ready: make(chan struct{}), closed: make(chan struct{})},
	}
	c.wire.onClose = func() { p.eng.spawn(func() { p.lost(c) }) }
	if roots, err := req.Bundles.GetX509BundleForTrustDomain(req.Peer.TrustDomain()); err == nil {
		c.roots = roots.Clone()
	}
	return c, c.start(ctx, p.eng.transport)
}

// start begins HTTP/2 on the connection. When it fails, the connection is
// closed.
func (c *clientConn) start(ctx context.Context, transport *http.Transport) (err error) {
	c.http, err = transport.NewClientConn(context.WithValue(ctx, securedConn{}, net.Conn(c.wire)), "http", c.key.Endpoint.String())
	if err != nil {
		relay.Close(c.wire)
		return fmt.Errorf("%w: peer closed after it, as for a certificate that it refuses: %w", hbone.ErrHandshake, err)
	}
	select {
	case <-c.wire.ready:
		return nil
	case <-c.wire.closed:
		return c.wire.endedEarly()
	case <-ctx.Done():
		relay.Close(c.http)
		return fmt.Errorf("%w: waiting for SETTINGS", context.Cause(ctx))
	}
}

// release gives a stream's place back.
func (p *pool) release(c *clientConn, o *outbound) {
	p.mu.Lock()
	delete(c.streams, o)
	last := c.gone && len(c.streams) == 0
	p.mu.Unlock()
	if last {
		relay.Close(c.http)
	}
}

// retire takes a connection out of the pool. Its streams go on, unless there is
// a cause to end them; the connection closes with the last.
func (p *pool) retire(c *clientConn, cause error) {
	p.mu.Lock()
	p.remove(c)
	streams := make([]*outbound, 0, len(c.streams))
	for o := range c.streams {
		streams = append(streams, o)
	}
	p.mu.Unlock()
	if len(streams) == 0 {
		relay.Close(c.http)
	}
	if cause != nil {
		for _, o := range streams {
			o.cancel(cause)
		}
	}
}

// lost forgets a connection that has closed.
func (p *pool) lost(c *clientConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.remove(c)
	if memory, ok := p.live[c]; ok {
		memory.Closed()
	}
	delete(p.live, c)
}

// remove makes a connection unavailable to new streams; the caller holds mu.
func (p *pool) remove(c *clientConn) {
	if c.gone {
		return
	}
	c.gone = true
	c.expiry.Stop()
	ent := p.entry(c.key)
	ent.conns = slices.DeleteFunc(ent.conns, func(other *clientConn) bool { return other == c })
	p.forget(c.key, ent)
}

// forget drops an entry that holds nothing; the caller holds mu.
func (p *pool) forget(k hbone.Key, ent *entry) {
	if len(ent.conns) == 0 && ent.dialing == nil && p.entries[k] == ent {
		delete(p.entries, k)
	}
}

// drain retires the connections that match, those included that were retired
// before and still have streams.
func (p *pool) drain(match hbone.Match, cause error) {
	var matched []*clientConn
	p.mu.Lock()
	for c := range p.live {
		if match.Matches(c.key.Source, c.key.Leaf, c.key.Peer) {
			matched = append(matched, c)
		}
	}
	p.mu.Unlock()
	for _, c := range matched {
		p.retire(c, cause)
	}
}

// wireConn is the connection as the HTTP/2 client sees it. It tells when the
// client has read what came first, and when it closes, and bounds what comes.
type wireConn struct {
	*tls.Conn
	data io.Reader // of Conn
	tcp  *net.TCPConn
	leaf *x509.Certificate // ours
	// guard ends reading when the peer floods.
	guard floodGuard
	// ready is closed when the client asks for more after its first bytes: it
	// has then taken in the SETTINGS that a server must begin with (RFC 9113
	// section 3.4), and knows how many streams it may open.
	ready   chan struct{}
	reads   int
	failure atomic.Pointer[error] // what ended reading
	closed  chan struct{}
	once    sync.Once
	onClose func()
}

// Read is called by one goroutine only, the HTTP/2 client's.
func (w *wireConn) Read(p []byte) (int, error) {
	if w.reads++; w.reads == 2 {
		close(w.ready)
	}
	n, err := w.data.Read(p)
	if tooMuch := w.guard.read(p[:n]); tooMuch != nil {
		n, err = 0, fmt.Errorf("%w: %w", hbone.ErrLimit, tooMuch)
	}
	if err != nil {
		w.failure.CompareAndSwap(nil, &err)
	}
	return n, err
}

// Write may be called by any goroutine.
func (w *wireConn) Write(p []byte) (int, error) {
	w.guard.wrote(len(p))
	return w.Conn.Write(p)
}

// Close does not wait for a peer that does not read.
func (w *wireConn) Close() (err error) {
	w.once.Do(func() {
		cut := time.AfterFunc(closeGrace, func() { relay.Close(w.tcp) })
		_ = w.Conn.CloseWrite() // as Linger finds out, which must not wait for it
		cut.Stop()
		close(w.closed)
		relay.Linger(w.Conn, w.tcp)
		err = w.Conn.Close()
		w.onClose()
	})
	return err
}

// endedEarly says why the connection closed before it was ready. In TLS 1.3 a
// client has finished its handshake before the server has looked at its
// certificate, so a refusal shows here, as an alert, or as a bare end of the
// connection when the alert was lost to a RST.
func (w *wireConn) endedEarly() error {
	err := io.ErrUnexpectedEOF
	if failure := w.failure.Load(); failure != nil {
		err = *failure
	}
	return fmt.Errorf("%w: peer closed after it, as for a certificate that it refuses: %w", hbone.ErrHandshake, err)
}

func (w *wireConn) isClosed() bool {
	select {
	case <-w.closed:
		return true
	default:
		return false
	}
}
