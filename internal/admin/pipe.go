package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/heddle-mesh/heddle/internal/admin/rootsocket"
)

// Pipe connects in and out to the socket at path until the socket's other end
// has ended, or ctx has. The end of in ends the sending half only. When the other
// end is the first, a Read of in may still be under way when Pipe returns: it is
// for processes that end then. Errors match ErrUnreachable when nobody serves the
// socket, and say what to do.
func Pipe(ctx context.Context, path string, in io.Reader, out io.Writer) error {
	conn, err := rootsocket.Dial(ctx, path)
	if err != nil {
		return fmt.Errorf("%w: %s: %s", ErrUnreachable, path, whyNot(err))
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // it ends the copying
	defer stop()
	go func() {
		// What does not arrive, the other end will not answer.
		_, _ = io.Copy(conn, in)
		_ = conn.CloseWrite()
	}()
	_, err = io.Copy(out, conn)
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		err = nil // as it was told to
	}
	if err != nil {
		err = fmt.Errorf("pipe of %s: %w", path, err)
	}
	return errors.Join(err, closed(conn.Close()))
}

// closed takes away the error of closing twice.
func closed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
