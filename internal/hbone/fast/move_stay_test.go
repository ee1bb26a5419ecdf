package fast_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
)

// TestMoveStays: of several connections one cannot move, whatever is tried. It
// goes on where it is, to its end, and all others move.
func TestMoveStays(t *testing.T) {
	for _, end := range []string{"client", "server"} {
		t.Run(end, func(t *testing.T) {
			w := newWorld(t, newFastEngine, newFastEngine)
			s := map[string]*site{"client": w.client, "server": w.server}[end]
			var moves, stays []*moveFlow
			for i := range 5 {
				f, err := w.openFrom(fmt.Sprintf("client-%d", i))
				if err != nil {
					t.Fatal(err)
				}
				moves = append(moves, f)
			}
			for range 2 { // on one connection: it is known by its three sockets
				f, err := w.openFrom("stays")
				if err != nil {
					t.Fatal(err)
				}
				stays = append(stays, f)
			}
			old, served := s.engine, s.serving
			moved, err := s.moveBut(t, func(f *hbone.Frozen) bool { return len(f.Files) == 3 })
			if !errors.Is(err, hbone.ErrStays) {
				t.Fatalf("%d moved: %v", moved, err)
			}
			if moved != 5 {
				t.Errorf("%d moved, want 5", moved)
			}
			for i, f := range append(moves, stays...) {
				if err := errors.Join(f.echo("after the move"), f.finish()); err != nil {
					t.Errorf("flow %d: %v", i, err)
				}
			}
			// The one that stayed has ended with its streams, as it drains.
			ctx, cancel := context.WithTimeout(t.Context(), moveWait)
			defer cancel()
			if err := old.Close(ctx); err != nil {
				t.Errorf("the old engine's end: %v", err)
			}
			if s.server != nil {
				s.waitServed(served)
			}
			again, err := w.openFrom("stays")
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(again.echo("anew"), again.finish()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestMoveStuckOwner: a connection of which an owner cannot be frozen stays, like
// one that the other process cannot read, and is not tried until time is up.
func TestMoveStuckOwner(t *testing.T) {
	w := newWorld(t, newFastEngine, newFastEngine)
	flows := []*moveFlow{w.mustOpen()}
	f, err := w.openFrom("stuck")
	if err != nil {
		t.Fatal(err)
	}
	w.server.owners.Lock()
	w.server.owners.stuck = w.server.owners.next
	w.server.owners.Unlock()
	old, served := w.server.engine, w.server.serving
	moved, err := w.server.moveBut(t, func(f *hbone.Frozen) bool { return false })
	if !errors.Is(err, hbone.ErrStays) || errors.Is(err, context.DeadlineExceeded) || moved != 1 {
		t.Fatalf("%d moved: %v", moved, err)
	}
	for _, f := range append(flows, f) {
		if err := errors.Join(f.echo("after the move"), f.finish()); err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), moveWait)
	defer cancel()
	if err := old.Close(ctx); err != nil {
		t.Errorf("the old engine's end: %v", err)
	}
	w.server.waitServed(served)
}

// moveBut moves to a new engine what does not stay, and counts it.
func (s *site) moveBut(t *testing.T, stays func(*hbone.Frozen) bool) (moved int, err error) {
	ctx, cancel := context.WithTimeout(t.Context(), moveWait/2)
	defer cancel()
	old, next := s.engine.(hbone.Mover), s.make()
	s.stopAccepting()
	s.mu.Lock()
	s.engine = next
	if s.server != nil {
		s.serve()
	}
	s.mu.Unlock()
	err = old.Freeze(ctx, func(batch []*hbone.Frozen) error {
		for _, f := range batch {
			if stays(f) {
				return fmt.Errorf("%w: one of %d", hbone.ErrStays, len(batch))
			}
		}
		for _, f := range batch {
			if err := s.thaw(next.(hbone.Mover), f); err != nil {
				return err
			}
			moved++
		}
		return nil
	})
	return moved, err
}

// TestMoveBesideSlowReader: a connection that has drained, and of which the peer's
// kernel has not everything yet, is not waited for. The peer reads it to its end.
func TestMoveBesideSlowReader(t *testing.T) {
	const answer = 100 << 10
	w := newWorld(t, newFastEngine, newFastEngine)
	narrow := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		controlled := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<10) })
		return errors.Join(controlled, err)
	}}
	c, err := tls.DialWithDialer(&narrow, "tcp", w.server.tunnels.Addr().String(), &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*w.cert},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fr := http2.NewFramer(c, c)
	_, err = c.Write([]byte(http2.ClientPreface))
	connect := h2.AppendConnect(nil, "10.1.2.3:80")
	err = errors.Join(err, c.SetDeadline(time.Now().Add(moveWait)), fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}), fr.WriteWindowUpdate(0, 1<<20),
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: connect, EndHeaders: true, EndStream: true}))
	next := func(wanted func(http2.Frame) bool) {
		t.Helper()
		for found := false; !found; {
			var f http2.Frame
			if err == nil {
				f, err = fr.ReadFrame()
			}
			if err != nil {
				t.Fatal(err)
			}
			if p, ok := f.(*http2.PingFrame); ok && !p.IsAck() {
				err = fr.WritePing(true, p.Data)
			}
			found = wanted(f)
		}
	}
	next(func(f http2.Frame) bool { _, ok := f.(*http2.HeadersFrame); return ok })
	app := <-w.apps
	old, served := w.server.engine, w.server.serving
	old.Drain(hbone.Match{}, false)
	next(func(f http2.Frame) bool { g, ok := f.(*http2.GoAwayFrame); return ok && g.LastStreamID == 1 })
	if _, err := app.Write(make([]byte, answer)); err != nil {
		t.Fatal(err)
	}
	if err := app.Close(); err != nil {
		t.Fatal(err)
	}
	if o := <-w.inbound; o.Err != nil || o.Sent != answer {
		t.Fatalf("outcome %v after %d bytes", o.Err, o.Sent)
	}
	start := time.Now()
	if moved, err := w.server.moveBut(t, func(*hbone.Frozen) bool { return false }); err != nil || moved != 0 {
		t.Fatalf("%d moved, %v", moved, err)
	}
	if took := time.Since(start); took > moveWait/4 {
		t.Errorf("the move took %v", took)
	}
	time.Sleep(400 * time.Millisecond) // longer than a goodbye takes
	err = fr.WritePing(false, [8]byte{1})
	got := 0
	next(func(f http2.Frame) bool {
		d, ok := f.(*http2.DataFrame)
		if ok {
			got += len(d.Data())
		}
		return ok && d.StreamEnded()
	})
	if got != answer {
		t.Errorf("%d of %d bytes", got, answer)
	}
	w.server.waitServed(served)
	ctx, cancel := context.WithTimeout(t.Context(), moveWait)
	defer cancel()
	if err := old.Close(ctx); err != nil {
		t.Errorf("the old engine's end: %v", err)
	}
}
