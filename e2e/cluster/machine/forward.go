package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
)

// listen opens the forwards' ports on the loopback of this network namespace.
func listen(forwards []Forward) ([]*os.File, error) {
	var files []*os.File
	for _, f := range forwards {
		listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: f.HostPort})
		if err != nil {
			return files, fmt.Errorf("open port %d for %s: %w", f.HostPort, f.Target, err)
		}
		file, err := listener.File()
		if err := errors.Join(err, listener.Close()); err != nil {
			return files, fmt.Errorf("open port %d for %s: %w", f.HostPort, f.Target, err)
		}
		files = append(files, file)
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, file := range files {
		file.Close() // a duplicate, already with who uses it
	}
}

// forward serves a listener of the host's network: what it dials is in the
// machine's, because a socket stays in the namespace that it was made in.
func forward(ctx context.Context, listener net.Listener, target string) error {
	var group errgroup.Group
	group.Go(func() error {
		<-ctx.Done()
		return listener.Close()
	})
	for {
		conn, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return group.Wait()
			}
			return fmt.Errorf("accept for %s: %w", target, err)
		}
		group.Go(func() error {
			splice(ctx, conn.(*net.TCPConn), target)
			return nil
		})
	}
}

// splice joins a connection to a new one, until both directions ended.
func splice(ctx context.Context, host *net.TCPConn, target string) {
	defer host.Close() // ended
	dialer := net.Dialer{Timeout: 5 * time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", target)
	if err != nil {
		return // the peer sees its connection closed, and asks again
	}
	inside := conn.(*net.TCPConn)
	defer inside.Close() // ended
	stop := context.AfterFunc(ctx, func() {
		host.Close()
		inside.Close()
	})
	defer stop()
	var group errgroup.Group
	for _, pair := range [][2]*net.TCPConn{{host, inside}, {inside, host}} {
		group.Go(func() error {
			// An error ends this direction as an end of file does; the peers see it.
			_, _ = io.Copy(pair[0], pair[1])
			return pair[0].CloseWrite()
		})
	}
	_ = group.Wait() // a connection that is reset cannot be half-closed
}
