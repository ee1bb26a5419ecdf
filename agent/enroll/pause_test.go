package enroll

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// TestPause: what is desired meanwhile waits, and pods go on being served.
func TestPause(t *testing.T) {
	reconciled(t, nil, func(f *fake, r *Reconciler, store *mesh.Store, stop func()) {
		web, db := workload("web", "/ns/web", 1), workload("db", "/ns/db", 2)
		store.Replace(view(t, web))
		expect(t, f.took(), "prune but [web]; enroll web; serve web")
		if err := r.Pause(context.Background()); err != nil {
			t.Fatal(err)
		}
		web.Mode = mesh.ModePermissive
		store.Replace(view(t, web, db))
		time.Sleep(time.Hour)
		expect(t, f.took(), "")
		store.Replace(view(t, db))
		r.Gone(web.Key, errors.New("its namespace is gone"))
		time.Sleep(time.Hour)
		expect(t, f.took(), "")
		store.Replace(view(t, web))
		synctest.Wait()
		r.Resume()
		expect(t, f.took(), "drain web; enroll web permissive; serve web")
		stop()
		expect(t, f.took(), "stop web")
	})
}

// TestResumeEnrolls: what another agent may have changed meanwhile is put right,
// once, and tried again if it fails.
func TestResumeEnrolls(t *testing.T) {
	reconciled(t, nil, func(f *fake, r *Reconciler, store *mesh.Store, _ func()) {
		store.Replace(view(t, workload("web", "/ns/web", 1)))
		expect(t, f.took(), "prune but [web]; enroll web; serve web")
		if err := r.Pause(context.Background()); err != nil {
			t.Fatal(err)
		}
		f.setFail("enroll web", errors.New("not now"))
		r.Resume()
		expect(t, f.took(), "enroll web")
		f.setFail("enroll web", nil)
		time.Sleep(time.Hour)
		expect(t, f.took(), "enroll web")
		store.Replace(view(t, workload("web", "/ns/web", 1)))
		time.Sleep(time.Hour)
		expect(t, f.took(), "")
	})
}

// TestPauseWaits: a step that has begun is waited for, and given up on.
func TestPauseWaits(t *testing.T) {
	reconciled(t, nil, func(f *fake, r *Reconciler, store *mesh.Store, _ func()) {
		f.noSVID = true // enrolling waits for it, for 5 s
		store.Replace(view(t, workload("web", "/ns/web", 1)))
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := r.Pause(ctx); err == nil {
			t.Error("paused in the middle of a step")
		}
		begun := time.Now()
		if err := r.Pause(context.Background()); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(begun); waited != 4*time.Second {
			t.Errorf("waited for %v", waited)
		}
		expect(t, f.took(), "prune but [web]; enroll web; serve web")
		r.Resume()
	})
}

func TestNoPruneWhilePaused(t *testing.T) {
	reconciled(t, nil, func(f *fake, r *Reconciler, store *mesh.Store, _ func()) {
		if err := r.Pause(context.Background()); err != nil {
			t.Fatal(err)
		}
		store.Replace(view(t))
		time.Sleep(time.Hour)
		expect(t, f.took(), "")
		r.Resume()
		time.Sleep(time.Second)
		expect(t, f.took(), "prune but []")
	})
}

// TestDetach: an agent whose pods are another's takes nothing out of the mesh;
// one that gets them back serves them again.
func TestDetach(t *testing.T) {
	for _, back := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f, store := newFake(), mesh.NewStore()
			r := New(Config{Node: "n1", Store: store, Datapath: f, Server: f, Identities: f, Log: slog.New(slog.DiscardHandler), UnenrollOnExit: true})
			ctx, cancel := context.WithCancelCause(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- r.Run(ctx) }()
			store.Replace(view(t, workload("web", "/ns/web", 1)))
			f.took()
			if err := r.Pause(context.Background()); err != nil {
				t.Fatal(err)
			}
			r.Detach(proxy.ErrMoving)
			time.Sleep(time.Minute)
			expect(t, f.took(), "stop web")
			if r.Served() {
				t.Error("a pod that was detached is served")
			}
			if back {
				f.mu.Lock()
				f.noSVID = true // it is waited for, for 5 s
				f.mu.Unlock()
				r.Resume()
				if synctest.Wait(); r.Served() {
					t.Error("a pod that is being enrolled is served")
				}
				time.Sleep(5 * time.Second)
				expect(t, f.took(), "enroll web; serve web")
				if !r.Served() {
					t.Error("a pod that was resumed is not served")
				}
				cancel(nil)
				expect(t, f.took(), "drain web; unenroll web")
			} else {
				cancel(ErrLeave)
				expect(t, f.took(), "")
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}
