package keystore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"
)

const (
	entrySuffix = ".svid"
	bundleName  = "bundle.pem"

	maxBundleBytes = 1 << 20
	// maxEntries bounds what is read at start: far more than the pods of a
	// node.
	maxEntries = 4096
)

// Config says where a Store is.
type Config struct {
	// Dir is the directory; it becomes mode 0700 when it is made.
	Dir string
	// Mount has a tmpfs mounted on Dir when it is on none; otherwise that is an
	// error.
	Mount bool
	// Disk allows Dir to be on a disk. It is for the node's own key only.
	Disk bool
	// Logger hears of waits that take long; nil discards.
	Logger *slog.Logger
}

func (c Config) logger() *slog.Logger {
	if c.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Logger
}

// Store is a directory of keys and SVIDs.
type Store struct{ dir string }

// Refusal is a file that was not taken, and why.
type Refusal struct {
	Path string
	Err  error
}

// Open prepares and checks the directory; see Config. It may wait for other processes
// that mount on it, until ctx is done and for ten seconds at most.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if !filepath.IsAbs(cfg.Dir) {
		return nil, fmt.Errorf("key directory %q: an absolute path is needed", cfg.Dir)
	}
	cfg.Dir = filepath.Clean(cfg.Dir)
	if err := prepareDir(ctx, cfg); err != nil {
		return nil, err
	}
	return &Store{dir: cfg.Dir}, nil
}

// Dir returns the directory.
func (s *Store) Dir() string { return s.dir }

// Put stores an entry in place of the identity's earlier one.
func (s *Store) Put(e Entry) error {
	text, err := e.encode()
	if err != nil {
		return fmt.Errorf("encode key of %s: %w", e.ID, err)
	}
	if err := ReplaceFile(filepath.Join(s.dir, fileName(e.ID)), text, 0o600); err != nil {
		return fmt.Errorf("store key of %s: %w", e.ID, err)
	}
	return nil
}

// Delete removes an identity's entry; it is no error when there is none.
func (s *Store) Delete(id spiffeid.ID) error {
	err := os.Remove(filepath.Join(s.dir, fileName(id)))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete key of %s: %w", id, err)
	}
	return nil
}

// Load reads every entry. Files that cannot be taken (corrupt, of others,
// readable by others, not named for what they hold) come back as refusals and
// stay where they are until Put or Prune.
func (s *Store) Load() ([]Entry, []Refusal, error) {
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("list keys: %w", err)
	}
	var entries []Entry
	var refused []Refusal
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), entrySuffix) {
			continue
		}
		path := filepath.Join(s.dir, f.Name())
		if len(entries) == maxEntries {
			refused = append(refused, Refusal{path, fmt.Errorf("more than %d entries", maxEntries)})
			continue
		}
		e, err := loadEntry(path)
		if err != nil {
			refused = append(refused, Refusal{path, err})
			continue
		}
		entries = append(entries, e)
	}
	return entries, refused, nil
}

func loadEntry(path string) (Entry, error) {
	text, err := readFile(path, maxEntryBytes, unix.O_NOFOLLOW, true)
	if err != nil {
		return Entry{}, err
	}
	e, err := parseEntry(text)
	if err != nil {
		return Entry{}, err
	}
	if filepath.Base(path) != fileName(e.ID) {
		return Entry{}, fmt.Errorf("holds %s, whose file has another name", e.ID)
	}
	return e, nil
}

// Prune deletes every entry, readable or not, of an identity that keep does not
// hold, and files that an interrupted write left.
func (s *Store) Prune(keep map[spiffeid.ID]struct{}) error {
	names := make(map[string]bool, len(keep))
	for id := range keep {
		names[fileName(id)] = true
	}
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("list keys: %w", err)
	}
	var failed []error
	for _, f := range files {
		name := f.Name()
		stale := strings.HasSuffix(name, entrySuffix) && !names[name]
		if !stale && !Abandoned(f, time.Now()) {
			continue
		}
		if err := os.Remove(filepath.Join(s.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// Abandoned reports whether a file is one that a writer left behind: writing
// takes milliseconds, so that an hour says that the writer is gone.
func Abandoned(f fs.DirEntry, now time.Time) bool {
	if !strings.HasPrefix(f.Name(), tempPrefix) {
		return false
	}
	info, err := f.Info()
	return err == nil && now.Sub(info.ModTime()) > time.Hour
}

// PutBundle stores the trust bundle.
func (s *Store) PutBundle(b *x509bundle.Bundle) error {
	text, err := b.Marshal()
	if err != nil {
		return fmt.Errorf("encode bundle: %w", err)
	}
	if err := ReplaceFile(filepath.Join(s.dir, bundleName), text, 0o600); err != nil {
		return fmt.Errorf("store bundle: %w", err)
	}
	return nil
}

// Bundle reads the trust bundle; its error matches fs.ErrNotExist when there is
// none.
func (s *Store) Bundle(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	path := filepath.Join(s.dir, bundleName)
	text, err := readFile(path, maxBundleBytes, unix.O_NOFOLLOW, true)
	if err != nil {
		return nil, err
	}
	certs, err := ParseCertificates(text, maxBundleBytes/256)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return x509bundle.FromX509Authorities(td, certs), nil
}
