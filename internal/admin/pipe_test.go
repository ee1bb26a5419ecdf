package admin

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
)

// TestPipe: a client talks through the pipe as it does to the socket, and each
// end's end ends the pipe.
func TestPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	serve(t, path, agent{})
	piped := make(chan error, 1)
	c, err := Over("agent", func(ctx context.Context) (net.Conn, error) {
		near, far := net.Pipe()
		go func() {
			err := Pipe(context.Background(), path, far, far)
			piped <- errors.Join(err, far.Close())
		}()
		return near, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if st, err := c.Admin.Status(ctx, &meshpb.StatusRequest{}); err != nil || st.GetNode() != "one" {
		t.Errorf("got %v, %v", st, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-piped:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("the client has gone, and the pipe goes on")
	}
}

func TestPipeEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if err := Pipe(t.Context(), path, strings.NewReader(""), io.Discard); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "no such socket") {
		t.Errorf("without a server: %v", err)
	}
	serve(t, path, agent{})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	in, more := io.Pipe()
	defer more.Close()
	if err := Pipe(ctx, path, in, io.Discard); err != nil {
		t.Errorf("told to end: %v", err)
	}
}
