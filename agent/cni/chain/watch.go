package chain

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/heddle-mesh/heddle/internal/cniwire"
)

// gather is how long events of one tool's writing are waited for. calm is how
// long the plugin must have stayed for the next put-back to be a first one.
const (
	gather = 20 * time.Millisecond
	calm   = time.Minute
)

// Run installs the plugin, keeps the copy equal to the cluster's own file, and puts
// the plugin back whenever it is taken out, until ctx is done; then it leaves
// everything as it is, so that pods stay safe while there is no agent. changed is
// called after every change, when pods may just have started without heddle-cni, and
// must not block. Run returns nil: what does not work is in Problem and in the log,
// and is tried again.
func (i *Installer) Run(ctx context.Context, changed func()) error {
	var events <-chan struct{}
	stop := func() {}
	defer func() { stop() }()
	said := ""
	var put, pause = time.Time{}, i.cfg.MinPause
	for ctx.Err() == nil {
		again := i.cfg.Every
		if events == nil {
			events, stop = i.watch() // first: nothing is missed in between
		}
		change, err := i.Install(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			again = min(again, i.cfg.MaxPause, i.cfg.Linger, 5*time.Second)
			if err.Error() != said {
				i.complain(err, again)
			}
			said = err.Error()
		} else {
			said = ""
			if change == Put {
				pause = i.putBack(put, pause)
				put = time.Now()
			}
			if change == Followed {
				i.cfg.Log.Info("copy of the cluster's CNI configuration is its newest", "file", i.File(), "plugins", i.pluginsOf(i.File()))
			}
			if change != Unchanged {
				changed()
			}
		}
		await(ctx, events, again)
		if err != nil { // the folder may be another one by now
			stop()
			events, stop = nil, func() {}
		}
		// However fast another tool is, the plugin is not put back more often.
		if rest := pause - time.Since(put); rest > 0 {
			await(ctx, nil, rest)
		}
	}
	return nil
}

// complain logs what an error means for new pods.
func (i *Installer) complain(err error, retry time.Duration) {
	if file := i.File(); file != "" {
		i.cfg.Log.Error("new pods are held back, and get the network that the cluster's CNI had before: the configuration in use is out of date", "file", file, "error", err, "retry", retry)
		return
	}
	i.cfg.Log.Error("new pods are not held back: heddle-cni is not in the cluster's CNI configuration", "error", err, "retry", retry)
}

// putBack logs that the plugin was put in, and returns the pause until it may be
// again.
func (i *Installer) putBack(before time.Time, pause time.Duration) time.Duration {
	file := i.File()
	if before.IsZero() {
		i.cfg.Log.Info("heddle-cni is in the cluster's CNI configuration", "file", file, "plugins", i.pluginsOf(file))
		return i.cfg.MinPause
	}
	if time.Since(before) > calm {
		pause = i.cfg.MinPause / 2
	}
	pause = min(2*pause, i.cfg.MaxPause)
	i.cfg.Log.Warn("another tool has taken heddle-cni out of the cluster's CNI configuration: put back; remedy, if it goes on: let that tool leave others' plugins in (Cilium: cni.exclusive=false)",
		"file", file, "plugins", i.pluginsOf(file), "earliest_next", pause)
	return pause
}

// pluginsOf names a configuration's plugins: whose file it is.
func (i *Installer) pluginsOf(path string) string {
	config, err := readConfig(path)
	if err != nil {
		return "?"
	}
	l, err := parseList(config.text)
	if err != nil {
		return "?"
	}
	return strings.Join(l.types, ",")
}

// watch wakes whoever reads events when the folders of configurations and
// programs change. Without a folder, or descriptors, there are no events, only
// the regular look.
func (i *Installer) watch() (events <-chan struct{}, stop func()) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		i.cfg.Log.Warn("CNI configuration is not watched, only looked at", "every", i.cfg.Every, "error", err)
		return nil, func() {}
	}
	err = errors.Join(watcher.Add(i.cfg.ConfDir), watcher.Add(i.cfg.BinDir))
	if err != nil {
		_ = watcher.Close() // nothing was added
		return nil, func() {}
	}
	wake, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case e, ok := <-watcher.Events:
				if !ok {
					return
				}
				if !i.concerns(e) {
					continue
				}
			case _, ok := <-watcher.Errors: // an overflow: look again
				if !ok {
					return
				}
			}
			select {
			case wake <- struct{}{}:
			default: // it is awake
			}
		}
	}()
	return wake, func() {
		_ = watcher.Close() // it ends the goroutine
		<-done
	}
}

// concerns tells changes of configurations and of the program from the others in
// the folders, those of its own half-written files among them.
func (i *Installer) concerns(e fsnotify.Event) bool {
	if e.Op == fsnotify.Chmod {
		return false
	}
	if filepath.Dir(e.Name) == filepath.Clean(i.cfg.BinDir) {
		return filepath.Base(e.Name) == cniwire.PluginType
	}
	return slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name)) || e.Name == i.cfg.ConfDir
}

// await returns after an event, and what belongs to it, or after a while.
func await(ctx context.Context, events <-chan struct{}, limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-events:
		select {
		case <-time.After(gather):
		case <-ctx.Done():
		}
	}
}
