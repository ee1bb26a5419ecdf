// Package ready tells a container's probe whether the agent of that very container
// is ready. While one agent takes over from another, both are on the node, with one
// port and one folder between them: whoever asks there may be answered by the
// other. So an agent answers on an abstract unix socket (unix(7)) whose name has
// its mount namespace in it, which a container has to itself and its probes are in.
// The name ends with the agent: there is nothing to clean up. Where two agents of a
// node share a mount namespace, as they do without containers, the first answers
// until it ends.
//
// It knows nothing of what makes an agent ready.
package ready

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/heddle-mesh/heddle/internal/admin/rootsocket"
)

const (
	// maxAnswer bounds what is read, in bytes.
	maxAnswer = 4096
	// again is the pause before a name that another agent has is tried anew.
	again = 100 * time.Millisecond
	// answerWithin bounds how long somebody is answered.
	answerWithin = time.Second
	isReady      = "ready"
)

// ErrNotReady is matched by what Ask returns when an agent answered that it is not.
var ErrNotReady = errors.New("not ready")

func name(node string) (string, error) {
	link, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return "", fmt.Errorf("find out the mount namespace: %w", err)
	}
	return "@heddle-agent/" + node + "/" + link, nil
}

// Serve answers until ctx is done. state returns "" when the agent is ready, and
// why it is not otherwise; it must be safe for concurrent use.
func Serve(ctx context.Context, node string, log *slog.Logger, state func() string) error {
	address, err := name(node)
	if err != nil {
		return err
	}
	l, err := listen(ctx, address)
	if l == nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })() // Accept hears of it
	defer l.Close()
	for {
		conn, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			log.Warn("a probe cannot be heard", "error", err)
			if !pause(ctx, again) {
				return nil
			}
			continue
		}
		answer(conn, state())
	}
}

// listen waits for a name that another agent has; nil without an error means that
// ctx is done.
func listen(ctx context.Context, address string) (*net.UnixListener, error) {
	for {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("listen for probes: %w", err)
		}
		if !pause(ctx, again) {
			return nil, nil
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// answer needs no proof of who asks: there is nothing in it to hide.
func answer(conn *net.UnixConn, why string) {
	if why == "" {
		why = isReady
	}
	_ = conn.SetDeadline(time.Now().Add(answerWithin))
	_, _ = io.WriteString(conn, why) // who asked and went away asks again
	_ = conn.Close()
}

// Ask asks the agent of a node that runs in this mount namespace. nil means that
// it is ready; an error that matches ErrNotReady says why it is not.
func Ask(ctx context.Context, node string) error {
	address, err := name(node)
	if err != nil {
		return err
	}
	conn, err := rootsocket.Dial(ctx, address)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w: no agent of node %q runs in this container, or on this machine", ErrNotReady, node)
	}
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	defer conn.Close() // only read
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return fmt.Errorf("ask the agent: %w", err)
		}
	}
	said, err := io.ReadAll(io.LimitReader(conn, maxAnswer))
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	if text := strings.TrimSpace(string(said)); text != isReady {
		return fmt.Errorf("%w: %s", ErrNotReady, text)
	}
	return nil
}
