package cluster

import (
	"fmt"
	"strconv"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"github.com/heddle-mesh/heddle/internal/kube/delta"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// table is a mirror of one resource. It implements cache.ReflectorStore, whose
// methods the resource's reflector calls from one goroutine.
type table struct {
	source   *Source
	resource resource
	// rows, synced and served are guarded by the source's lock.
	rows   map[mesh.Key]any
	synced bool
	// served is not set when the API server has no such resource.
	served bool
}

// carried is a trimmed object on its way through the reflector, which wants to
// know its name and version.
type carried struct {
	metav1.ObjectMeta
	row any
}

var (
	_ cache.TransformingStore      = (*table)(nil)
	_ cache.ReflectorBookmarkStore = (*table)(nil)
)

// carry trims an object. The trimmed row is nil for one that is of no interest.
func (t *table) carry(obj any) (*carried, error) {
	if c, ok := obj.(*carried); ok {
		return c, nil
	}
	object, ok := obj.(runtime.Object)
	if !ok {
		return nil, fmt.Errorf("mirror %s: the API server sent %T", t.resource.name, obj)
	}
	m, err := meta.Accessor(object)
	if err != nil {
		return nil, fmt.Errorf("mirror %s: %w", t.resource.name, err)
	}
	c := &carried{ObjectMeta: metav1.ObjectMeta{Namespace: m.GetNamespace(), Name: m.GetName(), ResourceVersion: m.GetResourceVersion()}}
	t.source.trimming.Lock()
	defer t.source.trimming.Unlock()
	c.row = t.resource.trim(t.source.trimming.Trimmer, object)
	return c, nil
}

// Transformer implements cache.TransformingStore: the first list, too, is never
// in memory as a whole.
func (t *table) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) { return t.carry(obj) }
}

// Add implements cache.ReflectorStore.
func (t *table) Add(obj any) error { return t.put(obj, false) }

// Update implements cache.ReflectorStore.
func (t *table) Update(obj any) error { return t.put(obj, false) }

// Delete implements cache.ReflectorStore. The object's version is that of its
// deletion.
func (t *table) Delete(obj any) error { return t.put(obj, true) }

func (t *table) put(obj any, gone bool) error {
	c, err := t.carry(obj)
	if err != nil {
		return err
	}
	key := mesh.Key{Namespace: c.Namespace, Name: c.Name}
	t.source.mirror.Lock()
	defer t.source.mirror.Unlock()
	t.seenLocked()
	was, had := t.rows[key]
	switch {
	case gone || c.row == nil:
		if !had {
			return nil
		}
		delete(t.rows, key)
		c.row = nil
	case had && t.resource.same(was, c.row):
		t.rows[key] = c.row // what is not of the model may have changed
		return nil
	default:
		t.rows[key] = c.row
	}
	if !t.resource.apart {
		t.source.changedLocked(c.ResourceVersion, delta.Change{Was: was, Is: c.row})
	}
	if t.resource.routes {
		t.source.reroutedLocked(c.ResourceVersion)
	}
	return nil
}

// seenLocked counts what was read of resources whose statuses others write, too.
func (t *table) seenLocked() {
	if t.resource.apart {
		t.source.mirror.seen++
	}
}

// Replace implements cache.ReflectorStore: the first list, and those after a
// watch that was lost for too long.
func (t *table) Replace(list []any, version string) error {
	rows := make(map[mesh.Key]any, len(list))
	for _, obj := range list {
		c, err := t.carry(obj)
		if err != nil {
			return err
		}
		if c.row != nil {
			rows[mesh.Key{Namespace: c.Namespace, Name: c.Name}] = c.row
		}
	}
	t.source.mirror.Lock()
	defer t.source.mirror.Unlock()
	t.served = true
	t.replaceLocked(rows, version)
	return nil
}

// replaceLocked makes these the rows. The caller holds mirror.
func (t *table) replaceLocked(rows map[mesh.Key]any, version string) {
	t.seenLocked()
	first := !t.synced // which others wait for, too
	same := t.synced && len(rows) == len(t.rows)
	for key, row := range rows {
		was, had := t.rows[key]
		if same = same && had && t.resource.same(was, row); !same {
			break
		}
	}
	t.rows, t.synced = rows, true
	if same {
		return
	}
	if !t.resource.apart || first {
		t.source.replacedLocked(version)
	}
	if t.resource.routes {
		t.source.reroutedLocked(version)
	}
}

// Bookmark implements cache.ReflectorBookmarkStore: nothing changed.
func (t *table) Bookmark(string) error { return nil }

// Resync implements cache.ReflectorStore; there is nothing behind the table.
func (t *table) Resync() error { return nil }

// versionNumber reads a resource version. API servers are free to give other
// texts; those that count up are how Kubernetes' own clients compare them, too.
func versionNumber(version string) uint64 {
	n, err := strconv.ParseUint(version, 10, 64)
	if err != nil {
		return 0 // the epoch stays, and grows with the next change
	}
	return n
}
