package fast

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/connect"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/tunnel"
	"github.com/heddle-mesh/heddle/internal/hbone/relay"
	"github.com/heddle-mesh/heddle/internal/hbone/tlsrecord"
)

// acceptPause is how long Serve rests after an error of accept that is not the
// listener's end, such as running out of descriptors.
const acceptPause = 20 * time.Millisecond

// serving is one call of Serve: a listener and the connections accepted on it.
type serving struct {
	eng      *Engine
	srv      *hbone.Server
	limits   hbone.Limits
	listener net.Listener

	mu         sync.Mutex
	peers      *hbone.Peers // of connections past their handshake
	pending    *hbone.Handshakes
	draining   bool
	moving     bool // accepting ended by ErrMoving
	connection sync.WaitGroup
}

// serverSide is what a connection that a peer opened has besides.
type serverSide struct {
	serving       *serving
	w             *worker
	conn          *tunnel.Conn
	remote, local netip.AddrPort
	handshake     time.Duration
	heldAt        time.Time // when a Freeze held it
	triedAt       time.Time // when a Freeze tried it first; zero when none does
}

// Serve is Engine.Serve. It closes l.
func (e *Engine) Serve(l net.Listener, srv *hbone.Server) error {
	s := &serving{eng: e, srv: srv, limits: srv.Limits.WithDefaults(), listener: l}
	s.pending, s.peers = hbone.NewHandshakes(s.limits.Handshakes), hbone.NewPeers(s.limits.PeerConnections)
	defer relay.Close(l)
	if _, err := e.enter(); errors.Is(err, hbone.ErrDraining) {
		return nil
	} else if err != nil {
		return err
	}
	defer e.release()
	e.live.Lock()
	e.live.servers[s] = struct{}{}
	e.live.Unlock()
	defer func() {
		s.connection.Wait()
		e.live.Lock()
		delete(e.live.servers, s)
		e.live.Unlock()
	}()
	if e.closing() {
		return nil
	}
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			s.admit(conn)
		case errors.Is(err, net.ErrClosed):
			s.stop()
			s.drain()
			return nil
		case errors.Is(err, hbone.ErrMoving):
			s.mu.Lock()
			s.moving = true
			s.mu.Unlock()
			return nil
		default:
			e.log.Warn("accept tunnel connection", "local", l.Addr(), "error", err)
			time.Sleep(acceptPause)
		}
	}
}

// admit starts a connection's handshake, or refuses it.
func (s *serving) admit(conn net.Conn) {
	var handshake *hbone.Handshake
	var refused error
	s.mu.Lock()
	switch {
	case s.draining:
		refused = hbone.ErrDraining
	case s.peers.Len()+s.pending.Len() >= s.limits.Connections:
		refused = fmt.Errorf("%w: %d connections", hbone.ErrLimit, s.limits.Connections)
	default:
		peer := connect.AddrPort(conn.RemoteAddr()).Addr()
		handshake, refused = s.pending.BeginIn(s.srv.Memory, peer, func() { relay.Abort(conn) })
	}
	if refused == nil {
		s.connection.Add(1)
	}
	s.mu.Unlock()
	if refused != nil {
		s.refuseConn(conn, spiffeid.ID{}, refused)
		return
	}
	s.eng.spawn(func() { s.run(conn, handshake) })
}

// run shakes hands and gives the connection to a loop.
func (s *serving) run(conn net.Conn, handshake *hbone.Handshake) {
	secured, side, err := s.handshake(conn)
	s.mu.Lock()
	if lost := s.pending.End(handshake); lost != nil {
		err = lost // that it was cut says less
	}
	if err == nil && s.draining {
		err = hbone.ErrDraining
	}
	if err == nil {
		err = s.peers.Enter(secured.Peer)
	}
	s.mu.Unlock()
	if err != nil {
		peer := spiffeid.ID{}
		if secured != nil {
			peer = secured.Peer
			secured.Session.Wipe()
		}
		s.refuseConn(conn, peer, err)
		s.srv.Memory.Closed()
		s.connection.Done()
		return
	}
	if err := secured.TakeOver(conn.(*net.TCPConn)); err != nil {
		s.refuse(side.remote, side.local, secured.Peer, fmt.Errorf("%w: %w", hbone.ErrHandshake, err))
		s.left(secured.Peer)
		return
	}
	s.eng.hold() // for the connection
	w := s.eng.nextWorker()
	w.Post(func() { s.adopt(w, secured, side) })
}

func (s *serving) adopt(w *worker, sec *tunnel.Secured, side *serverSide) {
	side.w = w
	c, err := w.Add(sec, s.config(), side)
	side.conn = c
	if err != nil {
		s.refuse(side.remote, side.local, sec.Peer, fmt.Errorf("%w: %w", hbone.ErrLimit, err))
		sec.Abort()
		s.left(sec.Peer)
		s.eng.release()
		return
	}
	s.drainIfStopped(c)
}

// config is what the connections of this call are told.
func (s *serving) config() tunnel.Config {
	cfg := s.eng.cfg.tunnel()
	cfg.Patience, cfg.IdleTimeout, cfg.HeaderBytes = s.eng.cfg.HandshakeTimeout, s.eng.cfg.ServerIdleTimeout, s.limits.HeaderBytes
	cfg.Memory = s.srv.Memory
	cfg.StreamWindow, cfg.ConnectionWindow, cfg.Streams = s.limits.StreamWindow, s.limits.ConnectionWindow, s.limits.Streams
	return cfg
}

// drainIfStopped drains a connection that came too late for drain.
func (s *serving) drainIfStopped(c *tunnel.Conn) {
	s.mu.Lock()
	draining := s.draining
	s.mu.Unlock()
	if draining {
		c.Drain()
	}
}

// left is a connection's end.
func (s *serving) left(peer spiffeid.ID) {
	s.mu.Lock()
	s.peers.Leave(peer)
	s.mu.Unlock()
	s.srv.Memory.Closed()
	s.connection.Done()
}

// handshake proves who is there. The certificate is asked for anew each time,
// so that a renewed one is used at once.
func (s *serving) handshake(conn net.Conn) (*tunnel.Secured, *serverSide, error) {
	cert, err := s.srv.Certificate()
	if err != nil {
		return nil, nil, fmt.Errorf("%w: get local certificate: %w", hbone.ErrHandshake, err)
	}
	leaf, err := hbone.LeafOf(cert)
	if err != nil {
		return nil, nil, err
	}
	if _, ok := conn.(*net.TCPConn); !ok {
		return nil, nil, fmt.Errorf("%w: not a TCP connection", hbone.ErrHandshake)
	}
	start := time.Now()
	if err := conn.SetDeadline(start.Add(s.eng.cfg.HandshakeTimeout)); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", hbone.ErrHandshake, err)
	}
	var peer spiffeid.ID
	session, state, err := tlsrecord.Server(s.eng.hard, conn, hbone.ServerTLS(cert, s.srv.Bundles, &peer), s.eng.cfg.GCM)
	if err != nil {
		return nil, nil, hbone.HandshakeError(err)
	}
	chain := state.PeerCertificates
	return &tunnel.Secured{
			Session: session, Server: true,
			Identity: tunnel.Identity{
				Source: s.srv.Local, Leaf: hbone.Fingerprint(cert), Peer: peer,
				Trust: hbone.NewTrust(state, nil), NotAfter: hbone.NotAfter(leaf, chain[0]),
			},
		}, &serverSide{
			serving: s, remote: connect.AddrPort(conn.RemoteAddr()), local: connect.AddrPort(conn.LocalAddr()), handshake: time.Since(start),
		}, nil
}

func (s *serving) refuse(remote, local netip.AddrPort, peer spiffeid.ID, err error) {
	if s.srv.Refused != nil {
		s.srv.Refused(hbone.Refusal{Remote: remote, Local: local, Peer: peer, Err: err})
	}
}

func (s *serving) refuseConn(conn net.Conn, peer spiffeid.ID, err error) {
	s.refuse(connect.AddrPort(conn.RemoteAddr()), connect.AddrPort(conn.LocalAddr()), peer, err)
	relay.Abort(conn)
}

// stop admits no connection any more, those in their handshake included.
func (s *serving) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	s.pending.Cut()
}

// drain drains this listener's connections.
func (s *serving) drain() {
	_, workers := s.eng.everything()
	for _, w := range workers {
		w.Post(func() {
			for c := range w.Conns {
				if side, ok := c.Role().(*serverSide); ok && side.serving == s {
					c.Drain()
				}
			}
		})
	}
}
