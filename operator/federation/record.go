package federation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/identity/federated"
	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

// Store keeps what is known of trust domains over restarts: a text by name.
type Store interface {
	Load(ctx context.Context) (map[string]string, error)
	// Save puts one in place of what there is of that name; "" takes it out.
	Save(ctx context.Context, name, text string) error
}

// ErrUnusable is matched by errors of a Store whose contents are not to be used, now or later.
var ErrUnusable = errors.New("not usable")

// maxRecord bounds what is kept of one trust domain, in JSON: as many as there may be fit
// into a ConfigMap together, so that none keeps another from being kept.
const maxRecord = 1<<20/federated.MaxDomains - 1<<10

// record is what is kept of one trust domain.
type record struct {
	// Bundle is the last good one.
	Bundle string `json:"bundle"`
	// Bootstrap is the SHA-256, hexadecimal, of the Mesh's bundle when it came.
	Bootstrap string `json:"bootstrap"`
	// Fetched is when the endpoint gave it; zero for the Mesh's own.
	Fetched time.Time `json:"fetched"`
}

func (r record) text() (string, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return "", fmt.Errorf("encode bundle: %w", err)
	}
	if len(text) > maxRecord {
		return "", fmt.Errorf("too large to keep: %d bytes of JSON, %d are possible", len(text), maxRecord)
	}
	return string(text), nil
}

func digest(bootstrap string) string {
	sum := sha256.Sum256([]byte(bootstrap))
	return hex.EncodeToString(sum[:])
}

// readRecord checks what was kept as if it came from the endpoint.
func readRecord(td spiffeid.TrustDomain, text string) (*federated.Domain, record, error) {
	var r record
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return nil, r, fmt.Errorf("kept bundle of %s: %w", td, err)
	}
	d, err := federated.Parse(td, []byte(r.Bundle))
	return d, r, err
}

// maxKept bounds a Dir's file: records are JSON in JSON there, which at most doubles them.
const maxKept = 2 << 20

// Dir is a Store in a directory: a file of mode 0600.
type Dir string

func (d Dir) path() string { return filepath.Join(string(d), "federation.json") }

// Load implements Store. What others could have written, is too large or no JSON matches
// ErrUnusable; the next Save replaces it.
func (d Dir) Load(context.Context) (map[string]string, error) {
	all := map[string]string{}
	text, err := keystore.ReadSecretFile(d.path(), maxKept)
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	var passing *fs.PathError
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	switch {
	case err == nil && all != nil: // nil is of JSON's null
		return all, nil
	case err == nil:
		return map[string]string{}, nil
	case !errors.As(err, &passing) || errors.Is(err, fs.ErrPermission):
		err = fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	return nil, fmt.Errorf("read kept bundles of other trust domains: %s: %w", d.path(), err)
}

// Save implements Store. One goroutine at a time may call it.
func (d Dir) Save(ctx context.Context, name, text string) error {
	all, err := d.Load(ctx)
	switch {
	case errors.Is(err, ErrUnusable):
		all = map[string]string{}
	case err != nil:
		return err // the others' would be lost
	}
	if all[name] = text; text == "" {
		delete(all, name)
	}
	out, err := json.Marshal(all)
	if err != nil {
		return fmt.Errorf("encode kept bundles: %w", err)
	}
	return keystore.ReplaceFile(d.path(), out, 0o600)
}
