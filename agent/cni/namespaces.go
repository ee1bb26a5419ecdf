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

// namespaceList keeps the list of namespaces equal to the configuration, for
// heddle-cni to decide by while no agent can be asked.
type namespaceList struct {
	path  string
	store *mesh.Store
	log   *slog.Logger

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
			next := namespacesOf(view)
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

// namespacesOf lists the namespaces by whether any of their pods is in the mesh:
// one is enough to have the others wait for the agent, since the next pod may be
// such a one. A namespace without pods is unknown.
func namespacesOf(view *mesh.View) *cniwire.Namespaces {
	enrolled := map[string]bool{}
	for _, w := range view.Workloads() {
		enrolled[w.Namespace] = enrolled[w.Namespace] || w.Enrolled
	}
	list := &cniwire.Namespaces{}
	for _, namespace := range slices.Sorted(maps.Keys(enrolled)) {
		if enrolled[namespace] {
			list.Enrolled = append(list.Enrolled, namespace)
		} else {
			list.NotEnrolled = append(list.NotEnrolled, namespace)
		}
	}
	return list
}
