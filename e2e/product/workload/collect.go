package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"net"
	"os"
	"sync"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// spanSeen is what is printed of a span.
type spanSeen struct {
	Trace  string            `json:"trace"`
	Span   string            `json:"span"`
	Parent string            `json:"parent"`
	Name   string            `json:"name"`
	Said   map[string]string `json:"said"` // attributes that are texts
}

// collect takes spans by OTLP over gRPC on :4317, and prints each as a line of JSON.
func collect(ctx context.Context) error {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", ":4317")
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	export := func(_ any, _ context.Context, read func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := &tracepb.TracesData{} // the request has the same fields
		if err := read(in); err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		for _, r := range in.GetResourceSpans() {
			for _, scope := range r.GetScopeSpans() {
				for _, span := range scope.GetSpans() {
					if err := out.Encode(seenOf(span)); err != nil {
						return nil, err
					}
				}
			}
		}
		return &emptypb.Empty{}, nil
	}
	s.RegisterService(&grpc.ServiceDesc{ServiceName: "opentelemetry.proto.collector.trace.v1.TraceService", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Export", Handler: export}}}, s)
	defer context.AfterFunc(ctx, s.Stop)()
	return s.Serve(l)
}

func seenOf(s *tracepb.Span) spanSeen {
	seen := spanSeen{hex.EncodeToString(s.GetTraceId()), hex.EncodeToString(s.GetSpanId()), hex.EncodeToString(s.GetParentSpanId()), s.GetName(), map[string]string{}}
	for _, a := range s.GetAttributes() {
		if text := a.GetValue().GetStringValue(); text != "" {
			seen.Said[a.GetKey()] = text
		}
	}
	return seen
}
