package through

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// interop is gRPC's test service, as far as it is called here.
type interop struct {
	pb.UnimplementedTestServiceServer
}

func payload(n int32) *pb.Payload { return &pb.Payload{Body: bytes.Repeat([]byte{'p'}, int(n))} }

func (interop) UnaryCall(ctx context.Context, q *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	if q.ResponseStatus != nil {
		return nil, status.Error(codes.Code(q.ResponseStatus.Code), q.ResponseStatus.Message)
	}
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get("x-echo"); len(v) > 0 {
		if err := errors.Join(grpc.SetHeader(ctx, metadata.Pairs("x-head", v[0])), grpc.SetTrailer(ctx, metadata.Pairs("x-tail-bin", v[0]))); err != nil {
			return nil, err
		}
	}
	return &pb.SimpleResponse{Payload: payload(q.ResponseSize)}, nil
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
		for _, p := range q.ResponseParameters {
			if err := s.Send(&pb.StreamingOutputCallResponse{Payload: payload(p.Size)}); err != nil {
				return err
			}
		}
	}
}

// throughGRPC is a client of gRPC whose server is behind the engines.
func throughGRPC(t *testing.T) pb.TestServiceClient {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	pb.RegisterTestServiceServer(s, interop{})
	var all sync.WaitGroup
	all.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() {
		s.Stop()
		all.Wait()
	})
	o := newOwner(l.Addr().String(), true, 16<<10)
	c, err := grpc.NewClient("passthrough:///"+o.serve(t), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, err := range o.failed {
			t.Error(err)
		}
	})
	return pb.NewTestServiceClient(c)
}

// TestGRPC: calls of every kind, many at once, on one connection each way.
func TestGRPC(t *testing.T) {
	c := throughGRPC(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	errs := make(chan error, 1000)
	for w := range int32(8) {
		all.Go(func() {
			for n := range int32(20) {
				errs <- unary(ctx, c, 1+w*7919+n*3571)
				errs <- pingPong(ctx, c)
			}
			errs <- streams(ctx, c)
			errs <- statuses(ctx, c)
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
}

func unary(ctx context.Context, c pb.TestServiceClient, size int32) error {
	var head, tail metadata.MD
	a, err := c.UnaryCall(metadata.AppendToOutgoingContext(ctx, "x-echo", "said"), &pb.SimpleRequest{Payload: payload(size), ResponseSize: 2 * size}, grpc.Header(&head), grpc.Trailer(&tail))
	if err != nil {
		return err
	}
	if len(a.Payload.Body) != int(2*size) || fmt.Sprint(head.Get("x-head"), tail.Get("x-tail-bin")) != "[said] [said]" {
		return fmt.Errorf("%d bytes, %v, %v", len(a.Payload.Body), head, tail)
	}
	return nil
}

func pingPong(ctx context.Context, c pb.TestServiceClient) error {
	s, err := c.FullDuplexCall(ctx)
	if err != nil {
		return err
	}
	for _, size := range []int32{1, 70_000, 10, 0} {
		if err := s.Send(&pb.StreamingOutputCallRequest{Payload: payload(100), ResponseParameters: []*pb.ResponseParameters{{Size: size}}}); err != nil {
			return err
		}
		if a, err := s.Recv(); err != nil || len(a.Payload.Body) != int(size) {
			return fmt.Errorf("ping of %d: %w", size, err)
		}
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("no end: %w", err)
	}
	return nil
}

func streams(ctx context.Context, c pb.TestServiceClient) error {
	q := &pb.StreamingOutputCallRequest{}
	for n := range int32(300) {
		q.ResponseParameters = append(q.ResponseParameters, &pb.ResponseParameters{Size: n * 37})
	}
	down, err := c.StreamingOutputCall(ctx, q)
	if err != nil {
		return err
	}
	for n := range 300 {
		if a, err := down.Recv(); err != nil || len(a.Payload.Body) != n*37 {
			return fmt.Errorf("message %d: %w", n, err)
		}
	}
	up, err := c.StreamingInputCall(ctx)
	if err != nil {
		return err
	}
	for range 300 {
		if err := up.Send(&pb.StreamingInputCallRequest{Payload: payload(5000)}); err != nil {
			return err
		}
	}
	if a, err := up.CloseAndRecv(); err != nil || a.AggregatedPayloadSize != 1_500_000 {
		return fmt.Errorf("sent up %v: %w", a, err)
	}
	return nil
}

func statuses(ctx context.Context, c pb.TestServiceClient) error {
	const message = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
	_, err := c.UnaryCall(ctx, &pb.SimpleRequest{ResponseStatus: &pb.EchoStatus{Code: 2, Message: message}})
	if s := status.Convert(err); s.Code() != 2 || s.Message() != message {
		return fmt.Errorf("status %v", s)
	}
	if _, err = c.UnimplementedCall(ctx, &pb.Empty{}); status.Code(err) != codes.Unimplemented {
		return fmt.Errorf("status %w", err)
	}
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	s, err := c.FullDuplexCall(short)
	if err == nil {
		_, err = s.Recv()
	}
	if status.Code(err) != codes.DeadlineExceeded && !strings.Contains(fmt.Sprint(err), "deadline") {
		return fmt.Errorf("a deadline: %w", err)
	}
	gone, cancel := context.WithCancel(ctx)
	s, err = c.FullDuplexCall(gone)
	if cancel(); err != nil {
		return err
	}
	if _, err = s.Recv(); status.Code(err) != codes.Canceled {
		return fmt.Errorf("a cancelled call: %w", err)
	}
	return nil
}
