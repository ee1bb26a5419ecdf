// Package ledger keeps on disk what enrolling has changed in which pod, for an
// agent that must adopt it or take it back when the one that made it is gone. It
// changes nothing but its files. A Store is safe for concurrent use on different
// pods.
package ledger

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/heddle-mesh/heddle/agent/netns"
)

// version is the layout of a pod's state file. A file of another layout is
// refused: what it says was changed cannot be taken back by guessing.
const version = 1

// maxSize bounds a state file that is read; a real one has a few hundred bytes.
const maxSize = 64 << 10

// Pod is what was changed around a pod. It is written before the first
// change and removed after the last one is undone.
type Pod struct {
	Version   int
	Name      string
	ID        uint32
	Path      string   // of the network namespace
	Namespace netns.ID // that was at Path
	Addresses []netip.Addr
	PodLink   string
	PodIndex  int
	HostIndex int
	Table     int
	// Of is the pod that has left this namespace, where its gate stays under the
	// name Name; "" while the pod is here.
	Of string
	// Enrolled says that enrolling was finished. Without it an agent died on
	// the way, and failing again takes everything back.
	Enrolled bool
}

// There opens the pod's network namespace; nil when it is gone, or another is at its path.
func (st *Pod) There() *netns.Namespace {
	ns, err := netns.Open(st.Path)
	if err != nil {
		return nil
	}
	if ns.ID() != st.Namespace {
		_ = ns.Close() // it was only looked at
		return nil
	}
	return ns
}

// Store keeps one file per pod in a directory that only root reads.
type Store struct{ dir string }

// Open makes the directory if it is missing.
func Open(dir string) (Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Store{}, fmt.Errorf("make state directory: %w", err)
	}
	return Store{dir: dir}, nil
}

func (s Store) file(name string) string { return filepath.Join(s.dir, name+".json") }

// Save replaces the pod's file in one step, so that a crash leaves the old one
// or the new one.
func (s Store) Save(st Pod) error {
	st.Version = version
	data, err := json.MarshalIndent(st, "", "\t")
	if err != nil {
		return fmt.Errorf("encode state of %s: %w", st.Name, err)
	}
	tmp := s.file(st.Name) + ".new"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o600); err != nil {
		_ = os.Remove(tmp) // on a full disk a part of it may be there
		return fmt.Errorf("write state: %w", err)
	}
	if err := os.Rename(tmp, s.file(st.Name)); err != nil {
		return errors.Join(fmt.Errorf("write state: %w", err), os.Remove(tmp))
	}
	return nil
}

// Load returns the pod's state; ok is false when there is none.
func (s Store) Load(name string) (st Pod, ok bool, err error) {
	f, err := os.Open(s.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return Pod{}, false, nil
	}
	if err != nil {
		return Pod{}, false, fmt.Errorf("read state: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize))
	if err != nil {
		return Pod{}, false, fmt.Errorf("read state: %w", err)
	}
	st, err = decode(data, name)
	if err != nil {
		return Pod{}, false, fmt.Errorf("%s: %w: unenroll the pod with the agent that wrote it, or remove the file and recreate the pod", s.file(name), err)
	}
	return st, true, nil
}

func decode(data []byte, name string) (Pod, error) {
	var st Pod
	if err := json.Unmarshal(data, &st); err != nil {
		return Pod{}, fmt.Errorf("decode state: %w", err)
	}
	switch {
	case st.Version != version:
		return Pod{}, fmt.Errorf("state has layout %d, this agent knows %d", st.Version, version)
	case st.Name != name:
		return Pod{}, fmt.Errorf("state is of pod %q, not of %q", st.Name, name)
	case st.Path == "" || st.ID == 0:
		return Pod{}, errors.New("state lacks the namespace's path or the pod's id")
	}
	return st, nil
}

// Remove removes the pod's file; that it is gone is no error.
func (s Store) Remove(name string) error {
	if err := os.Remove(s.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove state: %w", err)
	}
	return nil
}

// Names lists the pods that have a file.
func (s Store) Names() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list state: %w", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".json"); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

// IDs returns the names of the pods that are on record by their number in the
// kernel's records.
func (s Store) IDs() (map[uint32]string, error) {
	names, err := s.Names()
	if err != nil {
		return nil, err
	}
	ids := map[uint32]string{}
	var errs []error
	for _, name := range names {
		st, ok, err := s.Load(name)
		if err != nil {
			errs = append(errs, err)
		} else if ok {
			ids[st.ID] = cmp.Or(st.Of, name)
		}
	}
	return ids, errors.Join(errs...)
}

// FreeID chooses the number that stands for a pod in the kernel's records.
func (s Store) FreeID(name string) (uint32, error) {
	taken := map[uint32]bool{0: true}
	names, err := s.Names()
	if err != nil {
		return 0, err
	}
	for _, other := range names {
		st, ok, err := s.Load(other)
		if err == nil && ok {
			taken[st.ID] = true
		}
	}
	h := fnv.New32a()
	h.Write([]byte(name)) // never fails
	id := h.Sum32()
	for taken[id] {
		id++
	}
	return id, nil
}
