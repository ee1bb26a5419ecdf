// interop is gRPC's own interoperability tests: "interop serve ADDRESS" is their server, "interop call ADDRESS CASE"
// runs one case of their client, whose failure ends the program with a status that is not 0. "interop sockets ADDRESS" is
// net/http's server of HTTP/2, without HTTP/1.1, which says back what comes on a WebSocket: it offers RFC 8441 with
// GODEBUG=http2xconnect=1 alone. It is a module of its own, as what it is made of is no part of Heddle.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/orca"
)

func main() {
	args := os.Args[1:]
	var err error
	switch {
	case len(args) == 2 && args[0] == "serve":
		err = serve(args[1])
	case len(args) == 2 && args[0] == "sockets":
		err = sockets(args[1])
	case len(args) == 3 && args[0] == "call":
		err = call(args[1], args[2])
	default:
		err = fmt.Errorf("usage: interop serve ADDRESS | interop sockets ADDRESS | interop call ADDRESS CASE")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "interop:", err)
		os.Exit(1)
	}
}

func serve(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	server := grpc.NewServer(orca.CallMetricsServerOption(nil))
	testgrpc.RegisterTestServiceServer(server, interop.NewTestServer())
	return server.Serve(l)
}

// call runs a case, on a connection of its own.
func call(address, name string) error {
	dial := func() (*grpc.ClientConn, error) {
		return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"test_backend_metrics_load_balancer": {}}]}`))
	}
	conn, err := dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tc := testgrpc.NewTestServiceClient(conn)
	if run, ok := cases()[name]; ok {
		run(ctx, tc)
		return nil
	}
	soak := interop.SoakTestConfig{RequestSize: 271828, ResponseSize: 314159, PerIterationMaxAcceptableLatency: 20 * time.Second, OverallTimeout: time.Minute,
		ServerAddr: address, NumWorkers: 4, Iterations: 40}
	switch name {
	case "unimplemented_method":
		interop.DoUnimplementedMethod(ctx, conn)
	case "unimplemented_service":
		interop.DoUnimplementedService(ctx, testgrpc.NewUnimplementedServiceClient(conn))
	case "rpc_soak":
		soak.ChannelForTest = func() (*grpc.ClientConn, func()) { return conn, func() {} }
		interop.DoSoakTest(ctx, soak)
	case "channel_soak":
		soak.ChannelForTest = func() (*grpc.ClientConn, func()) {
			own, err := dial()
			if err != nil {
				panic(err)
			}
			return own, func() { _ = own.Close() }
		}
		interop.DoSoakTest(ctx, soak)
	default:
		return fmt.Errorf("there is no case %q", name)
	}
	return nil
}

func cases() map[string]func(context.Context, testgrpc.TestServiceClient) {
	plain := func(run func(context.Context, testgrpc.TestServiceClient, ...grpc.CallOption)) func(context.Context, testgrpc.TestServiceClient) {
		return func(ctx context.Context, tc testgrpc.TestServiceClient) { run(ctx, tc) }
	}
	return map[string]func(context.Context, testgrpc.TestServiceClient){
		"empty_unary":                 plain(interop.DoEmptyUnaryCall),
		"large_unary":                 plain(interop.DoLargeUnaryCall),
		"client_streaming":            plain(interop.DoClientStreaming),
		"server_streaming":            plain(interop.DoServerStreaming),
		"ping_pong":                   plain(interop.DoPingPong),
		"empty_stream":                plain(interop.DoEmptyStream),
		"timeout_on_sleeping_server":  plain(interop.DoTimeoutOnSleepingServer),
		"cancel_after_begin":          plain(interop.DoCancelAfterBegin),
		"cancel_after_first_response": plain(interop.DoCancelAfterFirstResponse),
		"custom_metadata":             plain(interop.DoCustomMetadata),
		"status_code_and_message":     plain(interop.DoStatusCodeAndMessage),
		"special_status_message":      plain(interop.DoSpecialStatusMessage),
		"orca_per_rpc":                interop.DoORCAPerRPCTest,
	}
}
