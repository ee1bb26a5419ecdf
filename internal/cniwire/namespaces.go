package cniwire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// maxList bounds the list on disk: some 15,000 namespaces of the longest names.
const maxList = 1 << 20

// Standing is what is known of a namespace.
type Standing uint8

// The standings. What nothing is known of may be enrolled.
const (
	Unknown Standing = iota
	Enrolled
	NotEnrolled
)

// Namespaces says which namespaces have pods in the mesh and which have none;
// both sorted. Whatever is in neither is unknown.
type Namespaces struct {
	Version     int      `json:"version"`
	Enrolled    []string `json:"enrolled"`
	NotEnrolled []string `json:"notEnrolled"`
	// Remembered are those of Enrolled of which no pod is in the mesh any more, with the
	// time until which they count; heddle-cni does not ask.
	Remembered map[string]time.Time `json:"remembered,omitempty"`
}

// Standing looks a namespace up. One that is in both lists is enrolled.
func (n *Namespaces) Standing(namespace string) Standing {
	if _, found := slices.BinarySearch(n.Enrolled, namespace); found {
		return Enrolled
	}
	if _, found := slices.BinarySearch(n.NotEnrolled, namespace); found {
		return NotEnrolled
	}
	return Unknown
}

// Equal reports whether two lists say the same.
func (n *Namespaces) Equal(o *Namespaces) bool {
	return slices.Equal(n.Enrolled, o.Enrolled) && slices.Equal(n.NotEnrolled, o.NotEnrolled) && maps.EqualFunc(n.Remembered, o.Remembered, time.Time.Equal)
}

// LoadNamespaces reads the list. An error means that nothing is known; it is
// fs.ErrNotExist when there is no list.
func LoadNamespaces(path string) (*Namespaces, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read list of namespaces: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxList+1))
	if err != nil {
		return nil, fmt.Errorf("read list of namespaces: %w", err)
	}
	n, err := parseNamespaces(data)
	if err != nil {
		return nil, fmt.Errorf("list of namespaces %s: %w; remedy: remove it, and the agent writes it anew", path, err)
	}
	return n, nil
}

func parseNamespaces(data []byte) (*Namespaces, error) {
	if len(data) > maxList {
		return nil, fmt.Errorf("more than %d bytes", maxList)
	}
	var n Namespaces
	if err := json.Unmarshal(data, &n); err != nil {
		return nil, err
	}
	if n.Version != Version {
		return nil, fmt.Errorf("version %d is not %d", n.Version, Version)
	}
	// A list that is out of order would find less than it holds.
	slices.Sort(n.Enrolled)
	slices.Sort(n.NotEnrolled)
	return &n, nil
}

// Save writes the list so that a reader, also after a crash or with a full disk,
// finds either it or the one before. Its folder must exist.
func (n *Namespaces) Save(path string) error {
	n.Version = Version
	data, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("encode list of namespaces: %w", err)
	}
	if len(data) > maxList {
		return fmt.Errorf("list of namespaces: %d bytes are more than %d: the one before stays", len(data), maxList)
	}
	if err := WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("write list of namespaces (the one before stays): %w", err)
	}
	return nil
}

// ErrChanged: another program wrote the file meanwhile.
var ErrChanged = errors.New("another program has just written it")

// WriteFile replaces a file atomically and durably: what is at path is the old
// content or the new one, whenever one looks.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	return replaceFile(path, data, mode, os.Rename)
}

// ReplaceFile is WriteFile when path still holds was, and ErrChanged when it does
// not: another program's content stays, however close it was written to this.
func ReplaceFile(path string, was, data []byte, mode os.FileMode) error {
	return replaceFile(path, data, mode, func(fresh, path string) error {
		err := unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // not on every file system
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, was) {
				return errors.Join(ErrChanged, err)
			}
			return os.Rename(fresh, path)
		}
		if err != nil {
			return err
		}
		out, err := os.ReadFile(fresh)
		if err == nil && bytes.Equal(out, was) {
			return os.Remove(fresh)
		}
		// What came out is newer than what was read. Back with it, until what comes
		// out is what was put in: nobody wrote in between.
		for err == nil && !bytes.Equal(out, data) {
			if err = unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE); err == nil {
				out, err = os.ReadFile(fresh)
			}
		}
		return errors.Join(ErrChanged, err)
	})
}

// replaceFile has place put the new content, already durable, where it belongs.
func replaceFile(path string, data []byte, mode os.FileMode, place func(fresh, path string) error) error {
	dir := filepath.Dir(path)
	// No runtime takes a name with this ending for a CNI configuration.
	f, err := os.CreateTemp(dir, ".heddle-cni-*.new")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = errors.Join(f.Chmod(mode), f.Sync())
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = place(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return SyncDir(dir)
}

// SyncDir makes what was renamed in a folder durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
