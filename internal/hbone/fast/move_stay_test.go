package fast_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/heddle-mesh/heddle/internal/hbone"
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
