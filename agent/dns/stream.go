package dns

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/agent/dns/wire"
)

// pipelined is how many queries of one connection are answered at once.
const pipelined = 16

// serveStreams accepts a pod's connections to port 53.
func (p *served) serveStreams(from net.Listener) {
	for {
		conn, err := from.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			p.cfg.Log.Warn("connections for DNS cannot be accepted", "workload", p.Key, "error", err)
			if sleep(p.stopped, time.Second) != nil {
				return
			}
			continue
		}
		select {
		case p.streams <- struct{}{}:
		default:
			p.metrics.count("tcp", overBudget)
			_ = conn.Close() // the client asks again
			continue
		}
		p.busy.Go(func() {
			defer func() { <-p.streams }()
			p.serveStream(conn)
		})
	}
}

// serveStream answers the queries of one connection, in the order in which their
// answers come (RFC 7766, section 6.2.1.1).
func (p *served) serveStream(conn net.Conn) {
	defer conn.Close()
	local, ok := conn.LocalAddr().(*net.TCPAddr)
	if !ok {
		return
	}
	server := netip.AddrPortFrom(local.AddrPort().Addr().Unmap(), local.AddrPort().Port())
	var client netip.Addr
	if remote, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		client = remote.AddrPort().Addr().Unmap()
	}
	defer context.AfterFunc(p.stopped, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	defer context.AfterFunc(p.ended, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	s := &stream{Conn: conn, open: make(chan struct{}, pipelined)}
	defer s.pending.Wait()
	for {
		if conn.SetReadDeadline(time.Now().Add(idleTCP)) != nil || p.stopped.Err() != nil {
			return
		}
		b, err := readMessage(conn)
		if err != nil {
			return // its end, or nothing for long
		}
		if p.rate.Wait(p.stopped) != nil {
			return
		}
		q, err := wire.ParseQuery(b)
		if err != nil {
			p.metrics.count("tcp", malformed)
			if errors.Is(err, wire.ErrNoQuery) {
				return
			}
			s.write(wire.FormatFailure(b))
			continue
		}
		if q.Transfer {
			s.pending.Wait()
			p.relay(conn, server, q)
			return
		}
		s.open <- struct{}{}
		s.pending.Add(1)
		p.answer(&inquiry{Query: q, client: client, server: server, transport: "tcp", limit: wire.Largest, reply: func(b []byte) {
			defer s.pending.Done()
			if len(b) == 0 {
				b = q.Failure(wire.ServerFailure, 0) // it was not lost on the way
			}
			s.write(b)
			<-s.open
		}})
	}
}

// stream is a connection that several write to.
type stream struct {
	net.Conn
	mu      sync.Mutex
	open    chan struct{}
	pending sync.WaitGroup
}

func (s *stream) write(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.SetWriteDeadline(time.Now().Add(idleTCP))
	if err == nil {
		err = writeMessage(s.Conn, b)
	}
	if err != nil {
		_ = s.Close() // the client learns that an answer is missing
	}
}

// relay carries a zone transfer (RFC 5936), whose answers are many, and everything
// after it on the same connection.
func (p *served) relay(conn net.Conn, server netip.AddrPort, q *wire.Query) {
	if !mayAsk(p.cfg.Store.View(), p.Key, server) {
		p.metrics.count("tcp", refused)
		_ = writeMessage(conn, q.Failure(wire.Refused, wire.Prohibited)) // it is closed either way
		return
	}
	dialling, cancel := context.WithTimeout(p.ended, dialTCP)
	defer cancel()
	up, err := p.Sockets.DialEgress(dialling, server)
	if err != nil {
		p.metrics.count("tcp", failed)
		_ = writeMessage(conn, q.Failure(wire.ServerFailure, wire.Unreachable)) // it is closed either way
		return
	}
	defer up.Close()
	p.metrics.count("tcp", byUpstream)
	if writeMessage(up, q.Upstream(q.ID)) != nil || conn.SetDeadline(time.Time{}) != nil {
		return
	}
	ended, over := context.WithCancel(p.ended)
	defer over()
	var both sync.WaitGroup
	defer both.Wait()
	both.Go(func() {
		p.whileMayAsk(ended, server)
		_, _ = up.Close(), conn.Close()
	})
	both.Go(func() {
		_, _ = io.Copy(up, conn) // its end, in good order or not, is the end
		_ = up.CloseWrite()
	})
	_, _ = io.Copy(conn, up)
	_ = conn.Close()
	over()
}

// whileMayAsk returns when policy no longer lets the pod ask a server, or ctx is done.
func (p *served) whileMayAsk(ctx context.Context, server netip.AddrPort) {
	for {
		view, replaced := p.cfg.Store.Snapshot()
		if !mayAsk(view, p.Key, server) {
			return
		}
		select {
		case <-replaced:
		case <-ctx.Done():
			return
		}
	}
}
