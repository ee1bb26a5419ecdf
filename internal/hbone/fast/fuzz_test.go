package fast_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast"
)

// maxFuzzFiles bounds the sockets that one input gets.
const maxFuzzFiles = 6

// FuzzThaw thaws anything, lets the peers at all its sockets speak, and ends it:
// whatever is taken over must live by the bounds of any connection. The seeds are
// connections of both roles with streams in every state.
func FuzzThaw(f *testing.F) {
	for _, z := range frozenSeeds(f) {
		f.Add(z.State, z.Data, []byte("GET / HTTP/1.1\r\n\r\n"))
	}
	f.Fuzz(func(t *testing.T, state, data, speech []byte) {
		var shape struct{ Streams []json.RawMessage }
		_ = json.Unmarshal(state, &shape) // Thaw says what is wrong
		files, peers := fuzzSockets(t, 1+min(len(shape.Streams), maxFuzzFiles-1))
		thawAnything(t, &hbone.Frozen{State: state, Data: data, Files: files}, peers, speech)
	})
}

func fuzzSockets(t *testing.T, n int) (files, peers []int) {
	for range n {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		files, peers = append(files, pair[0]), append(peers, pair[1])
	}
	return files, peers
}

func thawAnything(t *testing.T, z *hbone.Frozen, peers []int, speech []byte) {
	e := fast.New(fast.Config{Loops: 1})
	l := &movingListener{TCPListener: pathListener(t), accepting: make(chan struct{}), stopped: make(chan struct{})}
	defer l.TCPListener.Close()
	served := make(chan error, 1)
	go func() {
		served <- e.Serve(l, &hbone.Server{Local: "server", Certificate: func() (*tls.Certificate, error) { return nil, errors.New("none") }})
	}()
	<-l.accepting
	done := 0
	err := e.Thaw(z, hbone.ThawContext{Adopt: func([]byte) (*hbone.Adopted, error) {
		return &hbone.Adopted{Owner: stayer{}, Done: func(hbone.Outcome) { done++ }}, nil
	}})
	if err != nil {
		for _, fd := range z.Files {
			unix.Close(fd)
		}
	} else {
		for _, fd := range peers {
			_, _ = unix.Write(fd, speech) // a socket that was reset takes nothing
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
		_ = e.Freeze(ctx, func([]*hbone.Frozen) error { return errors.New("no") }) // in any state
		cancel()
	}
	for _, fd := range peers {
		unix.Close(fd)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	_ = e.Close(ctx) // cuts what is left
	if err := <-served; err != nil {
		t.Error(err)
	}
	if want := len(z.Files) - 1; err == nil && done != want {
		t.Errorf("%d of %d streams ended", done, want)
	}
}

// stayer is an owner for whom nothing is kept.
type stayer struct{}

func (stayer) Freeze() ([]byte, error) { return []byte("s"), nil }
func (stayer) Left()                   {}

// frozenSeeds freezes connections of both roles: idle, busy, half closed, with
// a slow reader.
func frozenSeeds(f *testing.F) (seeds []*hbone.Frozen) {
	w := newWorld(f, newFastEngine, newFastEngine)
	closed, slow, quiet := w.mustOpen(), w.mustOpen(), w.mustOpen()
	if err := errors.Join(closed.program.CloseWrite(), quiet.echo("seed"), slow.program.SetWriteDeadline(time.Now().Add(50*time.Millisecond))); err != nil {
		f.Fatal(err)
	}
	if _, err := io.ReadAll(closed.app); err != nil {
		f.Fatal(err)
	}
	_, _ = slow.program.Write(make([]byte, 8<<20)) // until the deadline
	for _, s := range []*site{w.client, w.server} {
		ctx, cancel := context.WithTimeout(context.Background(), moveWait)
		err := s.engine.(hbone.Mover).Freeze(ctx, func(batch []*hbone.Frozen) error {
			for _, z := range batch {
				seeds = append(seeds, shorter(f, z))
			}
			return errors.New("only looking")
		})
		cancel()
		if err == nil {
			f.Fatal("nothing was frozen")
		}
	}
	for _, s := range []*site{w.client, w.server} {
		s.engine.Drain(hbone.Match{}, true)
	}
	return seeds
}

// shorter is a connection with few bytes, for a fuzzer to have an easier time.
func shorter(f *testing.F, z *hbone.Frozen) *hbone.Frozen {
	var fields map[string]any
	if err := json.Unmarshal(z.State, &fields); err != nil {
		f.Fatal(err)
	}
	data := z.Data[:min(len(z.Data), 64)]
	delete(fields, "Out")
	delete(fields, "Partial")
	for _, s := range fields["Streams"].([]any) {
		if pending, ok := s.(map[string]any)["Pending"]; ok && pending.(map[string]any)["N"].(float64) > 0 {
			s.(map[string]any)["Pending"] = map[string]any{"At": 0, "N": len(data)}
		}
	}
	state, err := json.Marshal(fields)
	if err != nil {
		f.Fatal(err)
	}
	return &hbone.Frozen{State: state, Data: data}
}
