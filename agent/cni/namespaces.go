package cni

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/cniwire"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Changes of the configuration are gathered for so long before the list is
// written, and a list that could not be written is tried again so much later.
const (
	listGather = 100 * time.Millisecond
	listRetry  = 10 * time.Second
)

// A namespace counts as one of the mesh's for so long after the last of its pods that was in it has ended: where these
// are labelled themselves, as a job's, the next one may come when nobody can say so. So many are remembered at most.
const (
	remembered    = 24 * time.Hour
	maxRemembered = 1024
)

// namespaceList keeps the list of namespaces equal to the configuration, for
// heddle-cni to decide by while no agent can be asked.
type namespaceList struct {
	path  string
	store *mesh.Store
	log   *slog.Logger

	// before are the namespaces of the View before, with a pod of each that was in the mesh.
	before map[string]mesh.Key

	mu      sync.Mutex
	current *cniwire.Namespaces
	// unsaved is why what is current is not on disk; nil when it is.
	unsaved error
}

// newNamespaceList begins with what an earlier agent left.
func newNamespaceList(path string, store *mesh.Store, log *slog.Logger) *namespaceList {
	l := &namespaceList{path: path, store: store, log: log, current: &cniwire.Namespaces{}}
	before, err := cniwire.LoadNamespaces(path)
	switch {
	case err == nil:
		l.current = before
	case !errors.Is(err, fs.ErrNotExist):
		log.Warn("list of namespaces is not used: every namespace is unknown until the configuration is here", "error", err)
	}
	return l
}

func (l *namespaceList) standing(namespace string) cniwire.Standing {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current.Standing(namespace)
}

func (l *namespaceList) problem() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unsaved
}

// run writes the list whenever the configuration changes it, until ctx is done.
func (l *namespaceList) run(ctx context.Context) {
	saved := l.snapshot()
	for {
		view, changed := l.store.Snapshot()
		var again <-chan time.Time
		if view.Synced() { // before, an empty configuration would make a list of nothing
			next := l.next(view, time.Now())
			l.mu.Lock()
			l.current = next
			l.mu.Unlock()
			if !next.Equal(saved) || l.problem() != nil {
				if l.save(next) {
					saved = next
				} else {
					again = time.After(listRetry)
				}
			}
		}
		select {
		case <-changed:
		case <-again:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(listGather):
		case <-ctx.Done():
			return
		}
	}
}

func (l *namespaceList) snapshot() *cniwire.Namespaces {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current
}

func (l *namespaceList) save(next *cniwire.Namespaces) bool {
	err := os.MkdirAll(filepath.Dir(l.path), 0o700)
	if err == nil {
		err = next.Save(l.path)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.log.Error("list of namespaces is not on disk: while no agent runs, new pods are judged by an older one", "error", err, "retry", listRetry)
	} else if l.unsaved != nil {
		l.log.Info("list of namespaces is on disk again", "path", l.path)
	}
	l.unsaved = err
	return err == nil
}

// next lists the namespaces by whether any of their pods is in the mesh: one is
// enough to have the others wait for the agent, since the next pod may be such a
// one. A namespace without pods is unknown, unless it is remembered.
func (l *namespaceList) next(view *mesh.View, now time.Time) *cniwire.Namespaces {
	in, all := map[string]mesh.Key{}, map[string]bool{}
	for _, w := range view.Workloads() {
		all[w.Namespace] = true
		if w.Enrolled {
			in[w.Namespace] = w.Key
		}
	}
	list, last := &cniwire.Namespaces{}, l.snapshot()
	ended := l.ended(view, last, now)
	for _, namespace := range slices.Sorted(maps.Keys(ended)) {
		until := ended[namespace]
		if _, again := in[namespace]; !again && now.Before(until) && len(list.Remembered) < maxRemembered {
			if list.Remembered == nil {
				list.Remembered = map[string]time.Time{}
			}
			list.Remembered[namespace] = until
			all[namespace] = true
		}
	}
	for _, namespace := range slices.Sorted(maps.Keys(all)) {
		_, enrolled := in[namespace]
		_, kept := list.Remembered[namespace]
		if enrolled || kept {
			list.Enrolled = append(list.Enrolled, namespace)
		} else {
			list.NotEnrolled = append(list.NotEnrolled, namespace)
		}
	}
	l.before = in
	return list
}

// ended are the namespaces whose last pod of the mesh has ended, with the time until which
// that counts. One whose pods are there, and have left the mesh, was taken out of it.
func (l *namespaceList) ended(view *mesh.View, last *cniwire.Namespaces, now time.Time) map[string]time.Time {
	all := maps.Clone(last.Remembered)
	if all == nil {
		all = map[string]time.Time{}
	}
	for namespace, one := range l.before {
		if _, there := view.Workload(one); !there {
			all[namespace] = now.Add(remembered).UTC().Truncate(time.Second)
		}
	}
	return all
}
