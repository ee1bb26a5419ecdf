package admin

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"google.golang.org/grpc"

	"github.com/heddle-mesh/heddle/internal/admin/rootsocket"
)

// DefaultSocket is where the agent of a machine with one agent listens.
const DefaultSocket = "/run/heddle/agent.sock"

// Serve answers on a unix socket at path, whose folder must exist, with the
// services that register puts on the server. It blocks until ctx is done, when
// it ends every call and removes the socket. A socket that a program left when
// it died is replaced; one that is served is an error.
func Serve(ctx context.Context, path string, register func(*grpc.Server), log *slog.Logger) error {
	l, err := rootsocket.Listen(path, log)
	if err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	return serveOn(ctx, l, register)
}

// serveOn answers on a listener, and closes it.
func serveOn(ctx context.Context, l net.Listener, register func(*grpc.Server)) error {
	server := grpc.NewServer(
		grpc.WaitForHandlers(true),
		grpc.MaxRecvMsgSize(64<<10),
		grpc.MaxConcurrentStreams(128),
	)
	register(server)
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		server.Stop()
	}()
	err := server.Serve(l)
	if ctx.Err() != nil {
		<-done
		return nil
	}
	return fmt.Errorf("serve admin socket %s: %w", l.Addr(), err)
}
