package serve_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// client2 is net/http's, speaking HTTP/2 with prior knowledge.
func (w *world) client2() *http.Client {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: p, DialContext: func(context.Context, string, string) (net.Conn, error) { return w.connect() }, DisableCompression: true}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// serving2 is serving, of workloads that speak HTTP/2 only. Conns counts their connections.
func serving2(t testing.TB, name string, address netip.Addr, n int, conns *atomic.Int32, handle http.HandlerFunc) *backend {
	t.Helper()
	b := listening(t, name, address, n, func(l net.Listener, i int) func() {
		p := new(http.Protocols)
		p.SetUnencryptedHTTP2(true)
		s := &http.Server{Protocols: p, Handler: http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
			out.Header().Set("X-Workload", fmt.Sprintf("%s-%d", name, i))
			out.Header().Set("X-Proto", r.Proto)
			handle(out, r)
		}), ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateNew && conns != nil {
				conns.Add(1)
			}
		}}
		go func() { _ = s.Serve(l) }()
		return func() { _ = s.Close() }
	})
	b.port = "grpc"
	return b
}

// TestHTTP2: requests of every size, many at once, by HTTP/2 from the client, and by either version to workloads.
func TestHTTP2(t *testing.T) {
	sum := func(out http.ResponseWriter, r *http.Request) {
		out.Header().Set("X-For", r.Header.Get("X-Forwarded-For"))
		out.Header().Set("X-Cert", r.Header.Get("X-Forwarded-Client-Cert"))
		out.Header().Set("Trailer", "X-End")
		if r.ProtoMajor == 1 { // else net/http does not read on when it has begun to write
			_ = http.NewResponseController(out).EnableFullDuplex()
		}
		if _, err := io.Copy(out, r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
		out.Header().Set("X-End", "end")
	}
	var conns atomic.Int32
	for name, b := range map[string]*backend{"one": serving(t, "cart", cartAddr, 2, sum), "two": serving2(t, "cart", cartAddr, 2, &conns, sum)} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, []*backend{b})
			c := w.client2()
			var all sync.WaitGroup
			for n := range 8 {
				all.Go(func() {
					for i := range 12 {
						body := make([]byte, []int{0, 1, 100, 16 << 10, 70_000, 300_000}[(n+i)%6])
						_, _ = rand.Read(body)
						resp, err := c.Do(request(t, "POST", "/x", bytes.NewReader(body), "X-Forwarded-For", "6.6.6.6"))
						if err != nil {
							t.Errorf("post %d bytes: %v", len(body), err)
							return
						}
						got, err := io.ReadAll(resp.Body)
						if err != nil || !bytes.Equal(got, body) {
							t.Errorf("%d bytes came back as %d, %v", len(body), len(got), err)
						}
						if resp.ProtoMajor != 2 || resp.Header.Get("X-For") != "10.1.2.3" || !strings.Contains(resp.Header.Get("X-Cert"), shopIdentity) || resp.Trailer.Get("X-End") != "end" {
							t.Errorf("the answer is %s %v %v", resp.Proto, resp.Header, resp.Trailer)
						}
						if two := resp.Header.Get("X-Proto") == "HTTP/2.0"; two != (name == "two") {
							t.Errorf("the workload was asked by %q", resp.Header.Get("X-Proto"))
						}
					}
				})
			}
			all.Wait()
			eventually(t, "96 requests are counted", func() bool { return w.value("heddle_waypoint_requests_total", "", "") == 96 })
			eventually(t, "the access log is written", func() bool { return strings.Contains(w.log.String(), `"path":"/x"`) }) // ten times a second
			has(t, "the access log", w.log.String(), `"peer":"`+shopIdentity)
		})
	}
	if n := conns.Load(); n < 1 || n > 8 {
		t.Errorf("%d connections to two workloads for 8 requests at a time", n)
	}
}

// TestHTTP2Rules: routes and policy hold for each request that comes by HTTP/2.
func TestHTTP2Rules(t *testing.T) {
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, echo), serving2(t, "other", netip.Addr{}, 1, nil, echo)})
	c := w.client2()
	to := toBackend("other", route.Filter{RequestHeaders: &route.Headers{Set: []route.Header{{Name: "x-by", Value: "rule"}}}})
	to.Matches = []route.Match{{Path: route.PathMatch{Value: "/other"}}}
	w.routes = routed(to)
	w.set()
	resp, body := w.get(c, "/other/a")
	if resp.StatusCode != 200 || resp.Header.Get("X-Workload") != "other-0" || resp.Header.Get("Got-X-By") != "rule" || body != "GET 0" {
		t.Errorf("/other: %d %v %q", resp.StatusCode, resp.Header, body)
	}
	if resp, _ := w.get(c, "/cart"); resp.StatusCode != 404 || resp.Header.Get("X-Heddle-Reason") != "NoRoute" {
		t.Errorf("/cart: %d %v", resp.StatusCode, resp.Header)
	}
	w.policies = []mesh.Policy{{Key: mesh.Key{Namespace: "shop", Name: "none"}, Action: mesh.ActionDeny, Selector: map[string]string{"app": "other"}, Rules: []mesh.Rule{{}}}}
	w.set() // on the same connection
	if resp, _ := w.get(c, "/other/a"); resp.StatusCode != 403 || resp.Header.Get("X-Heddle-Reason") != "PolicyDeny" {
		t.Errorf("denied: %d %v", resp.StatusCode, resp.Header)
	}
	resp, _ = w.do(c, request(t, "POST", "/other/a", strings.NewReader("x"), "content-type", "application/grpc"))
	if resp.StatusCode != 200 || resp.Header.Get("Grpc-Status") != "7" {
		t.Errorf("denied call: %d %v", resp.StatusCode, resp.Header)
	}
	resp, err := c.Do(request(t, "CONNECT", ":80", nil))
	if err != nil || resp.StatusCode != 405 { // routes are about the port
		t.Fatalf("CONNECT: %v, %v", resp, err)
	}
	_ = resp.Body.Close()
}

// interop is gRPC's test service, as far as it is called here.
type interop struct {
	pb.UnimplementedTestServiceServer
	cancelled chan struct{}
}

func payload(n int32) *pb.Payload { return &pb.Payload{Body: bytes.Repeat([]byte{'p'}, int(n))} }

func (s interop) UnaryCall(ctx context.Context, q *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	if q.ResponseStatus != nil {
		return nil, status.Error(codes.Code(q.ResponseStatus.Code), q.ResponseStatus.Message)
	}
	md, _ := metadata.FromIncomingContext(ctx)
	if len(md.Get("x-wait")) > 0 {
		<-ctx.Done()
		s.cancelled <- struct{}{}
		return nil, ctx.Err()
	}
	return &pb.SimpleResponse{Payload: payload(q.ResponseSize)}, grpc.SetTrailer(ctx, metadata.Pairs("x-tail-bin", "said"))
}

func (interop) StreamingOutputCall(q *pb.StreamingOutputCallRequest, s pb.TestService_StreamingOutputCallServer) error {
	for _, p := range q.ResponseParameters {
		if err := s.Send(&pb.StreamingOutputCallResponse{Payload: payload(p.Size)}); err != nil {
			return err
		}
	}
	return nil
}

func (interop) StreamingInputCall(s pb.TestService_StreamingInputCallServer) error {
	total := 0
	for {
		q, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return s.SendAndClose(&pb.StreamingInputCallResponse{AggregatedPayloadSize: int32(total)})
		} else if err != nil {
			return err
		}
		total += len(q.Payload.Body)
	}
}

func (interop) FullDuplexCall(s pb.TestService_FullDuplexCallServer) error {
	for {
		q, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := s.Send(&pb.StreamingOutputCallResponse{Payload: q.Payload}); err != nil {
			return err
		}
	}
}

// servingCalls is serving, of workloads that are gRPC's servers. The port's name does not say what it is.
func servingCalls(t testing.TB, name string, address netip.Addr, n int, server func(i int) *grpc.Server) *backend {
	t.Helper()
	return listening(t, name, address, n, func(l net.Listener, i int) func() {
		s := server(i)
		var all sync.WaitGroup
		all.Go(func() { _ = s.Serve(l) })
		return func() { s.Stop(); all.Wait() }
	})
}

// caller is gRPC's client, on connections to the waypoint.
func (w *world) caller() *grpc.ClientConn {
	w.t.Helper()
	c, err := grpc.NewClient("passthrough:///cart", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return w.connect() }))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// calls runs gRPC's server behind a waypoint, and is a client of it.
func calls(t *testing.T) (*world, pb.TestServiceClient, interop) {
	t.Helper()
	s := interop{cancelled: make(chan struct{}, 10)}
	w := newWorld(t, []*backend{servingCalls(t, "cart", cartAddr, 1, func(int) *grpc.Server {
		server := grpc.NewServer()
		pb.RegisterTestServiceServer(server, s)
		return server
	})})
	return w, pb.NewTestServiceClient(w.caller()), s
}

// TestGRPC: calls of every kind, many at once.
func TestGRPC(t *testing.T) {
	w, c, s := calls(t)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var all sync.WaitGroup
	for n := range int32(6) {
		all.Go(func() {
			for i := range int32(8) {
				if err := allKinds(ctx, c, 1+n*7919+i*3571); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	short, end := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "x-wait", "1"), 100*time.Millisecond)
	defer end()
	if _, err := c.UnaryCall(short, &pb.SimpleRequest{}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a call whose time is over: %v", err)
	}
	<-s.cancelled
	stopped, stop := context.WithCancel(metadata.AppendToOutgoingContext(ctx, "x-wait", "1"))
	time.AfterFunc(100*time.Millisecond, stop)
	if _, err := c.UnaryCall(stopped, &pb.SimpleRequest{}); status.Code(err) != codes.Canceled {
		t.Errorf("a call that was given up: %v", err)
	}
	<-s.cancelled // the server is told
	w.policies = []mesh.Policy{{Key: mesh.Key{Namespace: "shop", Name: "none"}, Action: mesh.ActionDeny, Selector: map[string]string{"app": "cart"}, Rules: []mesh.Rule{{}}}}
	w.set()
	if _, err := c.UnaryCall(ctx, &pb.SimpleRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a call that policy denies: %v", err)
	}
}

func allKinds(ctx context.Context, c pb.TestServiceClient, size int32) error {
	var tail metadata.MD
	if a, err := c.UnaryCall(ctx, &pb.SimpleRequest{Payload: payload(size), ResponseSize: 2 * size}, grpc.Trailer(&tail)); err != nil || len(a.Payload.Body) != int(2*size) || len(tail.Get("x-tail-bin")) != 1 {
		return fmt.Errorf("unary: %v %v", err, tail)
	}
	if _, err := c.UnaryCall(ctx, &pb.SimpleRequest{ResponseStatus: &pb.EchoStatus{Code: int32(codes.DataLoss), Message: "gone: ü"}}); status.Code(err) != codes.DataLoss || status.Convert(err).Message() != "gone: ü" {
		return fmt.Errorf("status: %v", err)
	}
	down, err := c.StreamingOutputCall(ctx, &pb.StreamingOutputCallRequest{ResponseParameters: []*pb.ResponseParameters{{Size: size}, {Size: 1}, {Size: size}}})
	if err != nil {
		return err
	}
	total := 0
	for {
		a, err := down.Recv()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("server's stream: %w", err)
		}
		total += len(a.Payload.Body)
	}
	if total != int(2*size+1) {
		return fmt.Errorf("server's stream: %d bytes", total)
	}
	up, err := c.StreamingInputCall(ctx)
	if err != nil {
		return err
	}
	for range 3 {
		if err := up.Send(&pb.StreamingInputCallRequest{Payload: payload(size)}); err != nil {
			return fmt.Errorf("client's stream: %w", err)
		}
	}
	if a, err := up.CloseAndRecv(); err != nil || a.AggregatedPayloadSize != 3*size {
		return fmt.Errorf("client's stream: %v %w", a, err)
	}
	both, err := c.FullDuplexCall(ctx)
	if err != nil {
		return err
	}
	for n := range int32(5) {
		if err := both.Send(&pb.StreamingOutputCallRequest{Payload: payload(n * size / 5)}); err != nil {
			return err
		}
		if a, err := both.Recv(); err != nil || len(a.Payload.GetBody()) != int(n*size/5) {
			return fmt.Errorf("both: %v", err)
		}
	}
	if err := both.CloseSend(); err != nil {
		return err
	}
	if _, err := both.Recv(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("both: the end is %w", err)
	}
	return nil
}
