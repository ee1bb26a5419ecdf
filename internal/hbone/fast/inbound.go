package fast

import (
	"context"
	"errors"
	"net/http"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/frozen"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/tunnel"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
	"github.com/heddle-mesh/heddle/internal/hbone/relay"
)

// inbound is a stream's request, and what Accept said.
type inbound struct {
	side     *serverSide
	cancel   context.CancelCauseFunc
	accepted *hbone.Accepted
	ended    bool
	err      error // of a stream that ended while Accept ran
}

// Ready implements tunnel.Role; a server waits for requests.
func (side *serverSide) Ready() {}

// Leave implements tunnel.Role; nobody holds a server's connections ready.
func (side *serverSide) Leave(error) {}

// Refuse implements tunnel.Role.
func (side *serverSide) Refuse(err error) {
	side.serving.refuse(side.remote, side.local, side.conn.Identity().Peer, err)
}

// Ended implements tunnel.Role.
func (side *serverSide) Ended() {
	side.w.release(side)
	side.serving.left(side.conn.Identity().Peer)
	side.w.eng.release()
}

// Freeze implements tunnel.Role.
func (side *serverSide) Freeze(z *frozen.Conn) {
	z.Serving = &frozen.Serving{Remote: side.remote, Local: side.local, Handshake: side.handshake}
}

// Left implements tunnel.Role.
func (side *serverSide) Left() { side.Ended() }

// Request implements tunnel.Role.
func (side *serverSide) Request(s *tunnel.Stream, h h2.Header) tunnel.Owner {
	in := &inbound{side: side, cancel: func(error) {}}
	req, err := side.request(h)
	if err != nil || side.serving.srv.AcceptNow == nil {
		in.ask(s, func(ctx context.Context) (*hbone.Accepted, error) {
			if err != nil {
				return nil, err
			}
			return side.serving.srv.Accept(ctx, req)
		})
		return in
	}
	side.w.Later(func() {
		if in.ended {
			s.Decided() // too late
			return
		}
		a, rest, err := side.serving.srv.AcceptNow(req)
		if rest != nil {
			in.ask(s, rest)
			return
		}
		in.decide(s, a, err)
	})
	return in
}

// ask asks about a stream on a goroutine.
func (in *inbound) ask(s *tunnel.Stream, accept func(context.Context) (*hbone.Accepted, error)) {
	w := in.side.w
	ctx, cancel := context.WithCancelCause(w.eng.hard)
	in.cancel = cancel
	w.eng.spawn(func() {
		a, err := accept(ctx)
		w.Post(func() { in.decide(s, a, err) })
	})
}

// untrusted is the error for a peer whose chain the bundle of now does not vouch
// for.
type untrusted struct{ error }

// request reads what a peer asks for.
func (side *serverSide) request(h h2.Header) (*hbone.StreamRequest, error) {
	srv, id := side.serving.srv, side.conn.Identity()
	req, err := hbone.ParseRequest(h.Fields, h.TooLong)
	if err != nil {
		side.Refuse(err)
		return nil, err
	}
	req.Peer, req.Remote, req.Local, req.Handshake, req.Secured = id.Peer, side.remote, side.local, side.handshake, id.Trust.Secured()
	if err := id.Trust.Check(srv.Bundles, id.Peer); err != nil {
		side.Refuse(err)
		return nil, untrusted{&hbone.StatusError{Code: http.StatusUnauthorized, Reason: err.Error()}}
	}
	return req, nil
}

// decide takes what Accept returned.
func (in *inbound) decide(s *tunnel.Stream, a *hbone.Accepted, err error) {
	if err == nil && (a == nil || a.Conn == nil && a.FD <= 0) {
		err = hbone.ErrUnreachable
	}
	in.cancel(nil)
	in.cancel = func(error) {} // the context is not kept for the stream's whole life
	if !s.Decided() {
		if err == nil {
			if a.Conn == nil {
				eventloop.Abort(a.FD)
			} else {
				relay.Abort(a.Conn)
			}
			in.accepted = a
			in.report(s, in.err)
		}
		return
	}
	if err != nil {
		code := http.StatusServiceUnavailable
		if status, ok := errors.AsType[*hbone.StatusError](err); ok {
			code = status.Code
		}
		s.Refuse(code, err)
		if _, ok := err.(untrusted); ok {
			in.side.conn.Drain()
		}
		return
	}
	in.accepted = a
	fd := a.FD
	if a.Conn != nil {
		if fd, err = eventloop.TakeOver(a.Conn); err != nil {
			s.LocalFailed(err)
			return
		}
	}
	s.Accept(fd, a.Progress, a.Cutter)
}

// Answered implements tunnel.Owner; it is we who answer.
func (in *inbound) Answered(*tunnel.Stream) {}

// Repeat implements tunnel.Owner; only who opens a stream can repeat it.
func (in *inbound) Repeat(error) bool { return false }

// Ended implements tunnel.Owner.
func (in *inbound) Ended(s *tunnel.Stream, err error) {
	in.ended, in.err = true, err
	in.cancel(err)
	in.report(s, err)
}

// Movable implements tunnel.Owner.
func (in *inbound) Movable() bool { return in.accepted != nil && in.accepted.Owner != nil }

// Freeze implements tunnel.Owner. The timing is the connection's.
func (in *inbound) Freeze() ([]byte, hbone.Timing, error) {
	state, err := in.accepted.Owner.Freeze()
	return state, hbone.Timing{}, err
}

// Left implements tunnel.Owner.
func (in *inbound) Left() {
	in.cancel(nil)
	in.accepted.Owner.Left()
}

func (in *inbound) report(s *tunnel.Stream, err error) {
	if a := in.accepted; a != nil {
		in.accepted = nil
		if a.Done != nil {
			a.Done(s.Outcome(err, hbone.Timing{Handshake: in.side.handshake, Pooled: true}))
		}
	}
}
