package history

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

// magic begins a file, and says its version; a gzip stream of summaries follows,
// each behind its length as a varint.
const (
	magic      = "heddle-history 1\n"
	magicWords = "heddle-history "
)

// The bounds of a file that is read. A summary has five names of Kubernetes objects
// and two SPIFFE IDs, whose sizes are bounded, too (RFC 1123; SPIFFE-ID, 2.3).
const (
	maxSummaryBytes = 8 << 10
	maxFileBytes    = 32 << 20
	maxFiles        = 4096
)

// hourForm is how a file's name says its hour, in UTC.
const hourForm = "2006010215"

// written is what is known of the directory.
type written struct {
	problem                  string
	failures, dropped, bytes uint64
	oldest                   time.Time
}

// file is one of a directory.
type file struct {
	name  string
	begin time.Time
	size  int64
}

func fileName(begin time.Time) string {
	var random [4]byte
	_, _ = rand.Read(random[:]) // it does not fail (crypto/rand)
	return begin.UTC().Format(hourForm) + "-" + hex.EncodeToString(random[:]) + ".flows"
}

// list returns the files, oldest first. A directory that is not there has none.
func (h *History) list() ([]file, error) {
	entries, err := os.ReadDir(h.cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the history: %w", err)
	}
	var files []file
	named := regexp.MustCompile(`^(\d{10})-[0-9a-f]{8}\.flows$`)
	for _, entry := range entries {
		m := named.FindStringSubmatch(entry.Name())
		if m == nil || !entry.Type().IsRegular() {
			continue // not ours
		}
		begin, err := time.Parse(hourForm, m[1])
		info, gone := entry.Info()
		if err != nil || gone != nil {
			continue
		}
		files = append(files, file{entry.Name(), begin, info.Size()})
	}
	slices.SortFunc(files, func(a, b file) int {
		return cmp.Or(a.begin.Compare(b.begin), strings.Compare(a.name, b.name))
	})
	return files, nil
}

// encode is the inverse of decode.
func encode(summaries []*meshpb.FlowSummary) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(magic)
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	for _, s := range summaries {
		if _, err := protodelim.MarshalTo(z, s); err != nil {
			return nil, err
		}
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// decode calls yield with each summary of a file. Damage is why it ended early: what
// came before is good. err is yield's.
func decode(r io.Reader, yield func(*meshpb.FlowSummary) error) (damage, err error) {
	in := bufio.NewReader(r)
	head := make([]byte, len(magic))
	if _, err := io.ReadFull(in, head); err != nil || string(head) != magic {
		if err == nil && strings.HasPrefix(string(head), magicWords) {
			return errors.New("it is of another version of Heddle"), nil
		}
		return errors.New("it is no history of flows"), nil
	}
	z, damage := gzip.NewReader(in)
	if damage != nil {
		return damage, nil
	}
	z.Multistream(false)
	messages := bufio.NewReader(z)
	options := protodelim.UnmarshalOptions{MaxSize: maxSummaryBytes}
	for range maxSummaries {
		s := &meshpb.FlowSummary{}
		damage := options.UnmarshalFrom(messages, s)
		if errors.Is(damage, io.EOF) {
			return nil, nil
		}
		if damage != nil {
			return fmt.Errorf("it is damaged: %w", damage), nil
		}
		if err := yield(s); err != nil {
			return nil, err
		}
	}
	if _, damage := messages.ReadByte(); !errors.Is(damage, io.EOF) {
		return fmt.Errorf("it has more than %d summaries", maxSummaries), nil
	}
	return nil, nil
}

// readFile reads one that may be gone by now.
func (h *History) readFile(f file, yield func(*meshpb.FlowSummary) error) (damage, err error) {
	in, err := os.Open(filepath.Join(h.cfg.Dir, f.name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return err, nil
	}
	damage, err = decode(io.LimitReader(in, maxFileBytes), yield)
	return damage, errors.Join(err, in.Close())
}

// write replaces the file of an hour. When the disk is full the oldest file makes
// room for it.
func (h *History) write(own string, summaries []*meshpb.FlowSummary) error {
	data, err := encode(summaries)
	if err != nil {
		return fmt.Errorf("encode the history: %w", err)
	}
	if err := os.MkdirAll(h.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("make the history's directory: %w", err)
	}
	path := filepath.Join(h.cfg.Dir, own)
	err = keystore.ReplaceFile(path, data, 0o600)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		files, _ := h.list() // without a list the first error stands
		if len(files) > 0 && files[0].name != own && h.drop(files[0]) == nil {
			err = keystore.ReplaceFile(path, data, 0o600)
		}
	}
	if err != nil {
		return fmt.Errorf("write the history: %w", err)
	}
	return h.trim(own)
}

// trim keeps the files within their bounds, own excepted. By age none goes while the
// clock may be one that is wrong for a moment, which would make all of them too old, or
// of a time that is to come: until then their bytes and number bound them, and Read
// leaves out what is too old. Its caller holds files.
func (h *History) trim(own string) error {
	files, err := h.list()
	if err != nil {
		return err
	}
	total := int64(0)
	for _, f := range files {
		total += f.size
	}
	now := h.cfg.Now()
	eldest, youngest := now.Add(-h.cfg.Keep), now.Add(25*time.Hour) // of a clock that was wrong
	aging := h.clock.steady(now, h.ran()) >= steadyEnough
	left := files[:0]
	for i, f := range files {
		over := total > h.cfg.MaxBytes || len(files)-i+len(left) > maxFiles
		aged := aging && (!f.begin.Add(time.Hour).After(eldest) || f.begin.After(youngest))
		if (over || aged) && f.name != own {
			if dropped := h.drop(f); dropped != nil {
				err = errors.Join(err, dropped)
				continue
			}
			total -= f.size
			continue
		}
		left = append(left, f)
	}
	h.note(func(w *written) {
		w.bytes, w.oldest = uint64(total), time.Time{}
		if len(left) > 0 {
			w.oldest = left[0].begin
		}
	})
	if err == nil {
		h.trimmed = now.UTC().Truncate(time.Hour)
	}
	return err
}

func (h *History) drop(f file) error {
	if err := os.Remove(filepath.Join(h.cfg.Dir, f.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("drop the oldest of the history: %w", err)
	}
	h.note(func(w *written) { w.dropped++ })
	return nil
}

// sweep looks at what former agents left: it removes what they had not finished, and
// keeps the rest within the bounds.
func (h *History) sweep() {
	h.files.Lock()
	defer h.files.Unlock()
	entries, _ := os.ReadDir(h.cfg.Dir) // list says what is wrong with it
	for _, entry := range entries {
		// One that is new may be another agent's, which this one takes over from.
		if keystore.Abandoned(entry, h.cfg.Now()) {
			_ = os.Remove(filepath.Join(h.cfg.Dir, entry.Name())) // it is in nobody's way
		}
	}
	h.settle(h.trim(""))
}
