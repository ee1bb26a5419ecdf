package workloadapi

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Bounds of a connection. No request of the X.509 profile has content; one of the JWT
// profile is a token and an audience at most.
const (
	// streamsPerConnection are open at once, admitted or not.
	streamsPerConnection = 8
	// windowBytes is what a client may send of one request, and by one connection, before
	// the server has taken it: HTTP/2's own, which grpc-go would raise to 16 MiB for a
	// client that is fast.
	windowBytes     = 64 << 10
	maxRequestBytes = 16 << 10
	maxHeaderBytes  = 8 << 10
	bufferBytes     = 4 << 10
	handshakeWithin = 5 * time.Second
	idleConnection  = 10 * time.Minute
	penalty         = time.Second
	// A client that is stopped, or gone without a word, is found out by pings.
	pingAfter, pingWithin, pingsAtMost = time.Minute, 20 * time.Second, 10 * time.Second
)

// header is the metadata that each request must have: a client that was led here by an
// attacker's URL does not send it (SPIFFE Workload Endpoint, section 3).
const header, headerValue = "workload.spiffe.io", "true"

// headerMissing is the error of a request without it.
type headerMissing struct{}

// GRPCStatus says what its client hears.
func (headerMissing) GRPCStatus() *status.Status {
	return status.Newf(codes.InvalidArgument, "security header missing: a request of the Workload API has the metadata %s: %s", header, headerValue)
}

func (h headerMissing) Error() string { return h.GRPCStatus().Message() }

// endpoint answers one pod. Its streams end when ended is done.
type endpoint struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	*Server
	pod     Pod
	ended   context.Context
	streams chan struct{} // a token for each that is open
	begin   *rate.Limiter
	mint    *rate.Limiter // of JWT-SVIDs
}

// answer serves a pod at its listener, which it closes, until ctx is done, or the
// listener fails.
func (s *Server) answer(ctx context.Context, pod Pod, listener net.Listener) error {
	e := &endpoint{
		Server: s, pod: pod, ended: ctx, streams: make(chan struct{}, s.cfg.Limits.Streams),
		begin: rate.NewLimiter(rate.Limit(s.cfg.Limits.Rate), s.cfg.Limits.Rate),
		mint:  rate.NewLimiter(rate.Limit(s.cfg.Limits.JWTs), 10*s.cfg.Limits.JWTs),
	}
	g := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxRequestBytes), grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.ReadBufferSize(bufferBytes), grpc.WriteBufferSize(bufferBytes),
		grpc.StaticStreamWindowSize(windowBytes), grpc.StaticConnWindowSize(windowBytes),
		grpc.MaxConcurrentStreams(streamsPerConnection), grpc.ConnectionTimeout(handshakeWithin), grpc.WaitForHandlers(true),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleConnection, Time: pingAfter, Timeout: pingWithin}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingsAtMost, PermitWithoutStream: true}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, call grpc.StreamHandler) error {
			return e.within(stream.Context(), func() error { return call(srv, stream) })
		}),
		// Or it would not go through the above, as all methods of served do.
		grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
			return status.Error(codes.Unimplemented, "only the SPIFFE Workload API is served here")
		}),
	)
	g.RegisterService(served(), e)
	ended := make(chan error, 1)
	go func() {
		ended <- g.Serve(&bounded{Listener: listener, limits: e, open: make(chan struct{}, s.cfg.Limits.Connections)})
	}()
	var err error
	select {
	case <-ctx.Done():
		late := time.AfterFunc(ending, g.Stop)
		g.GracefulStop()
		late.Stop()
		<-ended
	case err = <-ended:
		err = errors.Join(errors.New("its listener has failed"), err)
	}
	g.Stop() // nothing is left to stop after a graceful one
	return err
}

// within does what a request asks for, if it may.
func (e *endpoint) within(ctx context.Context, do func() error) error {
	err := e.admit(ctx, do)
	e.metrics.count(err)
	return err
}

func (e *endpoint) admit(ctx context.Context, do func() error) error {
	if !e.begin.Allow() {
		e.penalty()
		return status.Errorf(codes.ResourceExhausted, "more than %d requests of the pod in a second", e.cfg.Limits.Rate)
	}
	md, _ := metadata.FromIncomingContext(ctx) // none has no header either
	if v := md.Get(header); len(v) != 1 || v[0] != headerValue {
		return headerMissing{}
	}
	select {
	case e.streams <- struct{}{}:
	default:
		return status.Errorf(codes.ResourceExhausted, "the pod has %d streams open, which is as many as it can have", e.cfg.Limits.Streams)
	}
	e.metrics.streams.Inc()
	defer func() {
		<-e.streams
		e.metrics.streams.Dec()
	}()
	return do()
}

// penalty keeps the place of a request that is too many, whether or not its client still
// wants it: refusals cost time, too, and a connection has so many places.
func (e *endpoint) penalty() { e.pause(penalty) }

// pause takes so long, or until the endpoint ends.
func (e *endpoint) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-e.ended.Done():
	}
}

// bounded accepts what comes by loopback, as many at a time as a pod may have; what is
// over is closed.
type bounded struct {
	net.Listener
	limits *endpoint
	open   chan struct{}
}

// Accept implements net.Listener.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		conn, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		// The listener's address is loopback's, and the gate lets nothing in that is
		// for it: this is the second wall.
		if !local(conn.RemoteAddr()) || !local(conn.LocalAddr()) {
			b.refuse(conn, foreign) // it is nobody's
			continue
		}
		if !b.limits.begin.Allow() {
			b.refuse(conn, overBudget)
			continue
		}
		select {
		case b.open <- struct{}{}:
			return &counted{Conn: conn, leave: sync.OnceFunc(func() { <-b.open })}, nil
		default:
			b.refuse(conn, overBudget)
		}
	}
}

// refuse closes a connection, and takes as long as one may have by the rate: a client that
// tries again at once is to wait in the kernel.
func (b *bounded) refuse(conn net.Conn, why outcome) {
	b.limits.metrics.outcomes.WithLabelValues(string(why)).Inc()
	_ = conn.Close() // the client tries again
	b.limits.pause(time.Second / time.Duration(b.limits.cfg.Limits.Rate))
}

func local(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// counted is a connection that makes room when it is closed.
type counted struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	c.leave()
	return c.Conn.Close()
}
