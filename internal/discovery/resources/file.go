package resources

import (
	"bufio"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// fileMagic begins every file. Then follow length-prefixed resources as
// they are on the wire: the signed commit first, the set in its order after it.
const fileMagic = "heddle last good configuration 2\n"

// ErrNoFile says that there is no file: nothing is wrong.
var ErrNoFile = errors.New("no last good configuration")

// Listed returns a list in the form that WriteTo takes.
func Listed(items []*Resource) iter.Seq2[*Resource, error] {
	return func(yield func(*Resource, error) bool) {
		for _, r := range items {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// WriteTo writes a set, which must be sorted, with the commit over it.
func WriteTo(w io.Writer, items iter.Seq2[*Resource, error], c *Commit) error {
	if _, err := io.WriteString(w, fileMagic); err != nil {
		return err
	}
	body, err := EncodeCommit(c)
	if err != nil {
		return err
	}
	put := func(k Kind, name, version string, body []byte) error {
		_, err := protodelim.MarshalTo(w, &discoveryv3.Resource{Name: name, Version: version,
			Resource: &anypb.Any{TypeUrl: k.TypeURL(), Value: body}})
		return err
	}
	if err := put(KindCommit, CommitName, c.Version(), body); err != nil {
		return err
	}
	for r, err := range items {
		if err != nil {
			return err
		}
		if err := put(r.Kind, r.Name, r.Version, r.Body); err != nil {
			return err
		}
	}
	return nil
}

// ReadFrom reads a file that anybody may have written: it believes
// nothing before the signature is verified, and holds no more than a set's
// bounds. The error says what is wrong.
func ReadFrom(r io.Reader, node string, keys []ed25519.PublicKey) (*Set, error) {
	in := bufio.NewReader(io.LimitReader(r, 2*MaxSetBytes))
	magic := make([]byte, len(fileMagic))
	if _, err := io.ReadFull(in, magic); err != nil || string(magic) != fileMagic {
		return nil, errors.New("not a last good configuration of this version")
	}
	next := func() (*discoveryv3.Resource, error) {
		m := &discoveryv3.Resource{}
		err := protodelim.UnmarshalOptions{MaxSize: MaxMessage}.UnmarshalFrom(in, m)
		return m, err
	}
	first, err := next()
	if err != nil {
		return nil, fmt.Errorf("read commit: %w", err)
	}
	c, err := DecodeCommit(first.GetResource().GetValue())
	if err != nil {
		return nil, err
	}
	if err := checkCommit(c, node, keys, nil); err != nil {
		return nil, err
	}
	h := &Set{Commit: *c, texts: newTexts()}
	var rows []row
	for size := 0; ; {
		m, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read resource %d: %w", len(rows), err)
		}
		k, err := KindOf(m.GetResource().GetTypeUrl())
		if err != nil {
			return nil, err
		}
		d, err := decodeResource(k, m.GetName(), m.GetVersion(), m.GetResource().GetValue())
		if err != nil {
			return nil, err
		}
		if size += len(d.Name) + len(d.Body); size > MaxSetBytes || len(rows) >= MaxSetSize {
			return nil, errors.New("more resources than a set may hold")
		}
		rows = append(rows, newRow(d, h.texts))
	}
	if !slices.IsSortedFunc(rows, compareRows) {
		return nil, errors.New("resources are out of order")
	}
	h.fill(rows)
	if err := h.check(); err != nil {
		return nil, err
	}
	h.shareNames(h.services())
	return h, nil
}

// LoadFile reads and verifies the file. One that is refused is renamed to
// path.refused, for a person to look at, and does not come back.
func LoadFile(path, node string, keys []ed25519.PublicKey) (*Set, *mesh.View, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, ErrNoFile
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open last good configuration: %w", err)
	}
	defer f.Close()
	h, err := ReadFrom(f, node, keys)
	var view *mesh.View
	if err == nil {
		view, err = h.View()
	}
	if err != nil {
		err = fmt.Errorf("refuse last good configuration %s: %w", path, err)
		if aside := os.Rename(path, path+".refused"); aside != nil {
			err = errors.Join(err, fmt.Errorf("keep it aside: %w", aside))
		}
		return nil, nil, err
	}
	return h, view, nil
}

// SaveFile replaces the file: after a crash at any moment there is the old
// one or the new one, whole.
func SaveFile(path string, items iter.Seq2[*Resource, error], c *Commit) error {
	dir := filepath.Dir(path)
	removeUnfinished(path)
	f, err := os.CreateTemp(dir, unfinished(path))
	if err != nil {
		return fmt.Errorf("save last good configuration: %w", err)
	}
	w := bufio.NewWriterSize(f, 256<<10)
	err = WriteTo(w, items, c)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("save last good configuration: %w", err), os.Remove(f.Name()))
	}
	return syncDir(dir)
}

// unfinished is how a file is called that is to become the one at path.
func unfinished(path string) string { return "." + filepath.Base(path) + ".*" }

// removeUnfinished removes what processes left that were killed while they wrote. One that hands its connections over may
// still be writing; it does not take that long.
func removeUnfinished(path string) {
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), unfinished(path))) // the pattern is a good one
	for _, one := range left {
		if info, err := os.Stat(one); err == nil && time.Since(info.ModTime()) > unfinishedFor {
			_ = os.Remove(one) // it is tried again with the next file
		}
	}
}

// unfinishedFor is when a file that nobody wrote to for so long is nobody's.
const unfinishedFor = 10 * time.Minute

// syncDir makes a rename in the directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}
