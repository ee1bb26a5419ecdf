// Package watch tells when a folder of configuration may have changed. It reads none
// of it.
package watch

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// maxWatched bounds the inotify watches of a folder; what is beyond is found by
// the periodic reading.
const maxWatched = 1000

// Folder calls load when the folder may have changed, and now and then in
// any case: load compares. It watches the folder, the folders below it, and
// the one that it is in, where the folder itself may be a link that is swapped.
type Folder struct {
	Dir string
	// Debounce is how long the folder must be quiet before load is called, Relist how
	// often that happens without a sign of a change.
	Debounce, Relist time.Duration
	Log              *slog.Logger
}

// Run calls load, one call at a time, and returns when ctx ends. When the kernel gives no
// watches it goes on with the periodic reading alone.
func (w *Folder) Run(ctx context.Context, load func()) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		w.Log.Warn("configuration folder is not watched: it is read periodically", "every", w.Relist, "error", err)
		watcher = &fsnotify.Watcher{} // its channels never deliver
	} else {
		defer func() {
			if err := watcher.Close(); err != nil {
				w.Log.Warn("configuration folder's watch did not close", "error", err)
			}
		}()
		w.rewatch(watcher)
	}
	load() // what changed before the watches were there
	relist := time.NewTicker(w.Relist)
	defer relist.Stop()
	quiet := time.NewTimer(time.Hour)
	quiet.Stop()
	defer quiet.Stop()
	var dirtySince time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case event := <-watcher.Events:
			if !w.concerns(event.Name) {
				continue
			}
			// Wait for quiet, but not forever: something may write all the time.
			if dirtySince.IsZero() {
				dirtySince = time.Now()
			}
			quiet.Reset(min(w.Debounce, max(0, 10*w.Debounce-time.Since(dirtySince))))
			continue
		case err := <-watcher.Errors:
			// An overflow of the queue: events are lost, so anything may have changed.
			w.Log.Warn("configuration folder's watch: reading it again", "error", err)
		case <-quiet.C:
		case <-relist.C:
		}
		dirtySince = time.Time{}
		quiet.Stop()
		if watcher.Events != nil {
			w.rewatch(watcher)
		}
		load()
	}
}

// concerns leaves out what happens beside the folder.
func (w *Folder) concerns(name string) bool {
	abs, err := filepath.Abs(w.Dir)
	if err != nil {
		return true
	}
	return filepath.Dir(name) != filepath.Dir(abs) || filepath.Base(name) == filepath.Base(abs)
}

// rewatch makes the watches those of the folder as it is now.
func (w *Folder) rewatch(watcher *fsnotify.Watcher) {
	want, err := w.folders()
	if err != nil {
		w.Log.Warn("configuration folder is not watched: it is read periodically", "every", w.Relist, "error", err)
	}
	for _, have := range watcher.WatchList() {
		if want[have] {
			continue
		}
		// It may be gone, and its watch with it.
		if err := watcher.Remove(have); err != nil {
			w.Log.Debug("stale watch was gone", "path", have, "error", err)
		}
	}
	for path := range want {
		// Adding again what is watched does nothing, unless the path is another
		// directory now: then this watches the new one.
		if err := watcher.Add(path); err != nil {
			w.Log.Warn("folder is not watched: it is read periodically", "path", path, "every", w.Relist, "error", err)
		}
	}
}

func (w *Folder) folders() (map[string]bool, error) {
	abs, err := filepath.Abs(w.Dir)
	if err != nil {
		return nil, fmt.Errorf("find folder: %w", err)
	}
	want := map[string]bool{filepath.Dir(abs): true}
	// The parent stays watched, so that a folder that is gone is seen to return.
	root, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return want, fmt.Errorf("resolve folder: %w", err)
	}
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil // gone meanwhile: its parent's watch tells
		case !entry.IsDir():
			return nil
		case len(want) >= maxWatched:
			return fs.SkipAll
		}
		want[path] = true
		return nil
	})
	return want, err
}
