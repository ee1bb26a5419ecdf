package gated

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/heddle-mesh/heddle/internal/identity/keystore"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/operator/say"
)

// Store keeps Prints. Its methods may be called from any goroutine; one replica saves at a
// time.
type Store struct {
	place
	log *slog.Logger
}

// place is where octets are kept; there are none where nothing is.
type place interface {
	String() string
	read(ctx context.Context) ([]byte, error)
	// write reports whether something else was kept. It makes nothing for none.
	write(ctx context.Context, data []byte) (wrote bool, err error)
}

// NewStore returns the Store that is a ConfigMap of a namespace.
func NewStore(client typedcorev1.ConfigMapsGetter, namespace string, log *slog.Logger) *Store {
	return &Store{configMap{client, namespace}, log}
}

// NewFileStore returns the Store that is a file of a directory that nobody else may write.
func NewFileStore(path string, log *slog.Logger) *Store { return &Store{file(path), log} }

// Load returns what is kept, whether it holds still or not. What somebody has spoiled is
// logged, and is as if it had not been kept.
func (s *Store) Load(ctx context.Context) (Prints, error) {
	data, err := s.read(ctx)
	if err != nil {
		return nil, fmt.Errorf("read which pods were behind their gates from %s: %w", s.place, err)
	}
	all, err := decode(data)
	if err != nil {
		s.log.Warn("what is kept of gates cannot be read: no datagrams pass until agents have reported", "place", s.place, "error", err)
	}
	return all, nil
}

// Save keeps these, and no others. It writes nothing when that is what is kept, and makes
// nothing for none.
func (s *Store) Save(ctx context.Context, all Prints) error {
	data, left := all.encode()
	wrote, err := s.write(ctx, data)
	if err != nil {
		return fmt.Errorf("keep which pods are behind their gates in %s: %w", s.place, err)
	}
	if wrote && left > 0 {
		s.log.Warn("there are more pods behind gates than can be kept: after a restart of every operator, no datagrams pass to these until their agents have reported", "pods", left)
	}
	return nil
}

const (
	// keepEvery is the least time between two writes.
	keepEvery = 2 * time.Second
	// keepAnew is how often it is looked whether what is kept holds for longer by now.
	keepAnew = 30 * time.Second
)

// Keep keeps what a View and a Ledger have until ctx is done, and returns nil: served returns
// what is served, nil for nothing yet, and a channel that is closed when that may be
// different. With a nil Ledger it keeps nothing, as soon as it can: gates come and go then,
// unsaid, and what was kept would count once somebody asks again.
func (s *Store) Keep(ctx context.Context, l *Ledger, served func() (*mesh.View, <-chan struct{})) error {
	var kept *mesh.View
	var last time.Time
	for ctx.Err() == nil {
		var changed <-chan struct{}
		var err error
		if l == nil {
			if err = s.Save(ctx, nil); err == nil {
				return nil
			}
		} else {
			var view *mesh.View
			view, changed = served()
			if view != nil && (view != kept || time.Since(last) > keepAnew) {
				kept, last = view, time.Now()
				err = s.Save(ctx, PrintsOf(view, l))
			}
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("not kept which pods are behind their gates: trying again", "error", err)
			kept, changed = nil, nil
		}
		select { // no more often than that
		case <-ctx.Done():
		case <-time.After(keepEvery):
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-time.After(keepEvery):
		}
	}
	return nil
}

// configMap keeps in a ConfigMap of a namespace.
type configMap struct {
	client    typedcorev1.ConfigMapsGetter
	namespace string
}

func (c configMap) String() string { return "ConfigMap " + c.namespace + "/" + ConfigMapName }

func (c configMap) read(ctx context.Context) ([]byte, error) {
	m, err := c.client.ConfigMaps(c.namespace).Get(ctx, ConfigMapName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return m.BinaryData[printsEntry], nil
}

func (c configMap) write(ctx context.Context, data []byte) (wrote bool, err error) {
	kept := c.client.ConfigMaps(c.namespace)
	m, err := kept.Get(ctx, ConfigMapName, metav1.GetOptions{})
	absent := apierrors.IsNotFound(err)
	switch {
	case absent && len(data) == 0:
		return false, nil
	case absent:
		m = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: ConfigMapName,
			Labels: map[string]string{"app.kubernetes.io/name": "heddle", "app.kubernetes.io/part-of": "heddle", "app.kubernetes.io/managed-by": say.FieldManager}},
			BinaryData: map[string][]byte{printsEntry: data}}
		_, err = kept.Create(ctx, m, metav1.CreateOptions{})
		return true, err
	case err != nil:
		return false, err
	case bytes.Equal(m.BinaryData[printsEntry], data):
		return false, nil
	}
	m.Data, m.BinaryData = nil, map[string][]byte{printsEntry: data}
	_, err = kept.Update(ctx, m, metav1.UpdateOptions{}) // of the version that was read
	return true, err
}

// file keeps in a file of this path.
type file string

func (f file) String() string { return string(f) }

func (f file) read(context.Context) ([]byte, error) {
	data, err := keystore.ReadSecretFile(string(f), maxKept)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

func (f file) write(ctx context.Context, data []byte) (wrote bool, err error) {
	if was, err := f.read(ctx); err == nil && bytes.Equal(was, data) {
		return false, nil
	}
	return true, keystore.ReplaceFile(string(f), data, 0o600)
}
