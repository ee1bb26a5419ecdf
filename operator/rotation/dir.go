package rotation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

const (
	// journalFile has all texts of a change that is being written: files cannot be
	// replaced together, so what a crash interrupts is written again.
	journalFile = "pending.json"
	maxText     = 1 << 20
	maxJournal  = 8 << 20
)

// Dir keeps texts as files of a directory that identity.OpenAuthority has made.
// One process at a time uses it: see operator/publish.State.
type Dir struct {
	path string
	mu   sync.Mutex
}

// NewDir returns the Store of a directory. It opens nothing.
func NewDir(path string) *Dir { return &Dir{path: path} }

// Keeper implements Store: nobody else writes a directory.
func (d *Dir) Keeper() string { return "" }

// String implements Store.
func (d *Dir) String() string { return d.path }

// dirNames are all files of an authority.
func dirNames() []string {
	all := []string{"configuration.key", JWTFile, moreFile, furtherFile, rotationFile}
	for _, prefix := range []string{"tls.", next, previous} {
		all = append(all, slices.Sorted(maps.Keys(names(prefix, prefix)))...)
	}
	return all
}

func secret(name string) bool { return strings.HasSuffix(name, ".key") }

// Load implements Store.
func (d *Dir) Load(context.Context) (Texts, string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.finish(); err != nil {
		return nil, "", err
	}
	return d.read()
}

func (d *Dir) read() (Texts, string, error) {
	texts, version := Texts{}, sha256.New()
	for _, name := range dirNames() {
		read := keystore.ReadFile
		if secret(name) {
			read = keystore.ReadSecretFile
		}
		text, err := read(filepath.Join(d.path, name), maxText)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, "", fmt.Errorf("read %s: %w", d.path, err)
		}
		texts[name] = text
		fmt.Fprintf(version, "%s %d %s", name, len(text), text)
	}
	return texts, hex.EncodeToString(version.Sum(nil)), nil
}

// Save implements Store.
func (d *Dir) Save(_ context.Context, texts Texts, version string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.finish(); err != nil {
		return err
	}
	if _, now, err := d.read(); err != nil {
		return err
	} else if now != version {
		return ErrConflict
	}
	text, err := json.Marshal(texts)
	if err != nil {
		return fmt.Errorf("encode %s: %w", journalFile, err)
	}
	if err := keystore.ReplaceFile(filepath.Join(d.path, journalFile), text, 0o600); err != nil {
		return fmt.Errorf("store %s: %w", journalFile, err)
	}
	return d.finish()
}

// finish writes what the journal says, and removes it.
func (d *Dir) finish() error {
	journal := filepath.Join(d.path, journalFile)
	text, err := keystore.ReadSecretFile(journal, maxJournal)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", d.path, err)
	}
	var texts Texts
	if err := json.Unmarshal(text, &texts); err != nil {
		return fmt.Errorf("%s: %w; remedy: restore the directory from a backup", journal, err)
	}
	for _, name := range dirNames() {
		path := filepath.Join(d.path, name)
		text, ok := texts[name]
		switch {
		case !ok:
			err = os.Remove(path)
		case secret(name):
			err = keystore.ReplaceFile(path, text, 0o600)
		default:
			err = keystore.ReplaceFile(path, text, 0o644)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("store %s: %w", path, err)
		}
	}
	if err := os.Remove(journal); err != nil {
		return fmt.Errorf("remove %s: %w", journal, err)
	}
	return nil
}

var _ Store = (*Dir)(nil)

// first puts what cfg.First makes into a directory that has no authority, or one that has ended.
func (d *Dir) first(ctx context.Context, make func(context.Context) (map[string][]byte, error)) error {
	texts, version, err := d.Load(ctx)
	if err != nil {
		return err
	}
	if len(texts[keyFile]) > 0 {
		if texts, err = texts.Anew(ctx, make, time.Now()); texts == nil {
			return err
		}
		return d.Save(ctx, texts, version)
	}
	made, err := make(ctx)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return fmt.Errorf("make authority directory: %w", err)
	}
	maps.Copy(texts, made)
	return d.Save(ctx, texts, version)
}

// OpenDir makes the authority of a directory when it has none, and opens it. The
// directory must have a configuration key.
func OpenDir(ctx context.Context, path string, cfg LiveConfig) (*Live, error) {
	d := NewDir(path)
	if cfg.First != nil {
		if err := d.first(ctx, cfg.First); err != nil {
			return nil, err
		}
	}
	if _, _, err := d.Load(ctx); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if _, err := identity.OpenAuthority(path, cfg.Authority); err != nil {
		return nil, err
	}
	if _, err := identity.OpenConfigurationKey(path); err != nil {
		return nil, err
	}
	cfg.Store = d
	return Open(ctx, cfg)
}
