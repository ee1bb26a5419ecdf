package reference

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/connect"
	"github.com/heddle-mesh/heddle/internal/hbone/relay"
)

// acceptPause is how long Serve rests after an error of accept that is not the
// listener's end, such as running out of descriptors.
const acceptPause = 20 * time.Millisecond

// serving is one call of Serve: a listener and the connections accepted on it.
type serving struct {
	eng      *Engine
	srv      *hbone.Server
	settings connect.Settings
	listener net.Listener

	mu         sync.Mutex
	conns      map[*connect.Conn]struct{} // past their handshake
	peers      *hbone.Peers
	pending    *hbone.Handshakes
	draining   bool
	connection sync.WaitGroup
}

// Serve is Engine.Serve. It returns nil once l was closed or Close was called,
// when every connection that it accepted has ended; it closes l.
func (e *Engine) Serve(l net.Listener, srv *hbone.Server) error {
	s := &serving{eng: e, srv: srv, listener: l, conns: map[*connect.Conn]struct{}{}}
	s.settings = connect.Settings{
		Server: srv, Limits: srv.Limits.WithDefaults(),
		PrefaceTimeout: e.cfg.HandshakeTimeout, IdleTimeout: e.cfg.ServerIdleTimeout,
		PingInterval: e.cfg.PingInterval, PingTimeout: e.cfg.PingTimeout, WriteTimeout: e.cfg.WriteTimeout,
		Buffers: &e.buffers, Spawn: e.spawn, Logger: e.log,
	}
	s.settings.Limits.StreamWindow = min(s.settings.Limits.StreamWindow, streamWindow)
	s.pending, s.peers = hbone.NewHandshakes(s.settings.Limits.Handshakes), hbone.NewPeers(s.settings.Limits.PeerConnections)
	defer relay.Close(l)
	if !e.register(s) {
		return nil
	}
	defer e.unregister(s)
	defer s.connection.Wait()
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			s.admit(conn)
		case errors.Is(err, net.ErrClosed):
			s.stop()
			s.drain(hbone.Match{}, nil)
			return nil
		case errors.Is(err, hbone.ErrMoving):
			return nil // its connections stay: it is no Mover
		default:
			e.log.Warn("accept tunnel connection", "local", l.Addr(), "error", err)
			time.Sleep(acceptPause)
		}
	}
}

// admit starts a connection's goroutine, or refuses it.
func (s *serving) admit(conn net.Conn) {
	limits := &s.settings.Limits
	var handshake *hbone.Handshake
	var refused error
	s.mu.Lock()
	switch {
	case s.draining:
		refused = hbone.ErrDraining
	case len(s.conns)+s.pending.Len() >= limits.Connections:
		refused = fmt.Errorf("%w: %d connections", hbone.ErrLimit, limits.Connections)
	default:
		peer := connect.AddrPort(conn.RemoteAddr()).Addr()
		handshake, refused = s.pending.BeginIn(s.srv.Memory, peer, func() { relay.Abort(conn) })
	}
	if refused == nil {
		s.connection.Add(1)
	}
	s.mu.Unlock()
	if refused != nil {
		s.refuse(conn, spiffeid.ID{}, refused)
		relay.Abort(conn)
		return
	}
	s.eng.spawn(func() {
		defer s.connection.Done()
		defer s.srv.Memory.Closed()
		s.run(conn, handshake)
	})
}

// run carries one connection from its handshake to its end.
func (s *serving) run(conn net.Conn, handshake *hbone.Handshake) {
	c, err := s.handshake(conn)
	s.mu.Lock()
	if lost := s.pending.End(handshake); lost != nil {
		err = lost // that it was cut says less
	}
	if err == nil && s.draining {
		err = hbone.ErrDraining
	}
	if err == nil {
		err = s.peers.Enter(c.Identity().Peer)
	}
	if err == nil {
		s.conns[c] = struct{}{}
	}
	s.mu.Unlock()
	if err != nil {
		peer := spiffeid.ID{}
		if c != nil {
			peer = c.Identity().Peer
			c.Cut(err)
		}
		s.refuse(conn, peer, err)
		relay.Abort(conn)
		return
	}
	c.Serve()
	s.mu.Lock()
	delete(s.conns, c)
	s.peers.Leave(c.Identity().Peer)
	s.mu.Unlock()
}

// handshake proves who is there. The certificate is asked for anew each time,
// so that a renewed one is used at once.
func (s *serving) handshake(conn net.Conn) (*connect.Conn, error) {
	cert, err := s.srv.Certificate()
	if err != nil {
		return nil, fmt.Errorf("%w: get local certificate: %w", hbone.ErrHandshake, err)
	}
	leaf, err := hbone.LeafOf(cert)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(s.eng.cfg.HandshakeTimeout)
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("%w: %w", hbone.ErrHandshake, err)
	}
	var peer spiffeid.ID
	start := time.Now()
	secured := tls.Server(relay.NewRecords(conn), hbone.ServerTLS(cert, s.srv.Bundles, &peer))
	if err := secured.HandshakeContext(s.eng.hard); err != nil {
		return nil, hbone.HandshakeError(err)
	}
	state := secured.ConnectionState()
	chain := state.PeerCertificates
	return connect.New(s.eng.hard, &s.settings, secured, conn, connect.Identity{
		Peer: peer, Chain: chain, Leaf: hbone.Fingerprint(cert),
		NotAfter: hbone.NotAfter(leaf, chain[0]), Handshake: time.Since(start), Secured: hbone.SecuredBy(state.CurveID, chain),
	}), nil
}

func (s *serving) refuse(conn net.Conn, peer spiffeid.ID, err error) {
	if s.srv.Refused != nil {
		s.srv.Refused(hbone.Refusal{Remote: connect.AddrPort(conn.RemoteAddr()), Local: connect.AddrPort(conn.LocalAddr()), Peer: peer, Err: err})
	}
}

// stop admits no connection any more, those in their handshake included.
func (s *serving) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	s.pending.Cut()
}

// drain ends the connections that match once their streams have ended, or now
// when there is a cause.
func (s *serving) drain(match hbone.Match, cause error) {
	var matched []*connect.Conn
	s.mu.Lock()
	for c := range s.conns {
		if match.Matches(s.srv.Local, c.Identity().Leaf, c.Identity().Peer) {
			matched = append(matched, c)
		}
	}
	s.mu.Unlock()
	for _, c := range matched {
		if cause != nil {
			c.Cut(cause)
		} else {
			c.Drain()
		}
	}
}
