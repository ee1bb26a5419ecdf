package jointoken

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

// The ways in which a token is refused.
var (
	ErrUnknown   = errors.New("join token is unknown")
	ErrUsed      = errors.New("join token was used already")
	ErrRevoked   = errors.New("join token is revoked")
	ErrExpired   = errors.New("join token is expired")
	ErrWrongNode = errors.New("join token is for another node")
)

const (
	grantSuffix = ".token" // the record of a token, written once
	endSuffix   = ".end"   // how it ended, written once: used or revoked
	maxRecord   = 4 << 10
	// retention is how long records outlive their expiry, so that a late use
	// is told "used" or "expired" rather than "unknown".
	retention = 7 * 24 * time.Hour
	// maxRecords bounds the directory.
	maxRecords = 10_000
)

// Record is what the operator knows of a token.
type Record struct {
	// ID is Token.ID.
	ID      string    `json:"-"`
	Node    string    `json:"node"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	// End is nil while the token can be used, if it is not expired.
	End *End `json:"-"`
}

// End says how a token ended.
type End struct {
	At      time.Time `json:"at"`
	Revoked bool      `json:"revoked,omitempty"`
	// Key is the SHA-256, in hex, of the public key that was signed for it.
	Key string `json:"key,omitempty"`
}

// State returns "pending", "used", "revoked" or "expired", as of now.
func (r Record) State(now time.Time) string {
	switch {
	case r.End != nil && r.End.Revoked:
		return "revoked"
	case r.End != nil:
		return "used"
	case !now.Before(r.Expires):
		return "expired"
	}
	return "pending"
}

// Store is a directory of records. Two files make a token's state,
// NAME.token and NAME.end, NAME being the SHA-256 of the secret; each is made
// by link(2), which is atomic and fails when the name is taken, on network
// filesystems too. Whoever makes the .end file has consumed the token.
type Store struct {
	dir string
	now func() time.Time
}

// OpenStore makes dir, mode 0700, if need be. It refuses one that others may
// write to. now is the clock; nil means time.Now.
func OpenStore(dir string, now func() time.Time) (*Store, error) {
	if now == nil {
		now = time.Now
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of join tokens: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("open directory of join tokens: %w", err)
	}
	// Who can write here can make tokens. The secrets cannot be read here.
	if !info.IsDir() || info.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("directory of join tokens %s: mode %#o lets others write; remedy: chmod 0700", dir, info.Mode().Perm())
	}
	return &Store{dir: dir, now: now}, nil
}

// Add records a token, so that it can be used. Records long expired are deleted
// on the way.
func (s *Store) Add(t Token) error {
	if err := t.validate(); err != nil {
		return err
	}
	records, err := s.prune()
	if err != nil {
		return err
	}
	if records >= maxRecords {
		return fmt.Errorf("directory of join tokens has %d records, the limit is %d", records, maxRecords)
	}
	r := Record{Node: t.Node, Created: s.now().UTC().Truncate(time.Second), Expires: t.Expires}
	return s.create(recordName(t.Secret[:])+grantSuffix, r)
}

// Consume uses a token up for node, whose public key (DER) is to be signed: of
// all callers, ever and everywhere, one succeeds. The same key may ask again
// until the token expires, because an answer can get lost. A refusal matches
// one of the package's errors; those of another node or after expiry consume
// nothing.
func (s *Store) Consume(secret []byte, node string, publicKey []byte) (Record, error) {
	return s.consume(secret, node, publicKey, Record.repeated)
}

// Admit is Consume for a waypoint, which has no key that could be signed: its token is used
// up by whoever has the first session, a secret of its own, and is good for that one until it
// is revoked, also after it expired.
func (s *Store) Admit(secret []byte, waypoint string, session []byte) (Record, error) {
	if _, _, ok := WaypointOf(waypoint); !ok {
		return Record{}, fmt.Errorf("%w than %s", ErrWrongNode, waypoint)
	}
	return s.consume(secret, waypoint, session, Record.goesOn)
}

// consume uses a token up. Who has used it already may have it for as long as again says.
func (s *Store) consume(secret []byte, node string, publicKey []byte, again func(Record, End, time.Time) bool) (Record, error) {
	if len(secret) != SecretBytes {
		return Record{}, ErrUnknown
	}
	name := recordName(secret)
	r, err := s.read(name)
	if err != nil {
		return Record{}, err
	}
	sum := sha256.Sum256(publicKey)
	mine := End{At: s.now().UTC().Truncate(time.Second), Key: hex.EncodeToString(sum[:])}
	switch {
	case r.Node != node:
		// Not which one: whoever holds a stolen token need not learn it here.
		return r, fmt.Errorf("%w than %s", ErrWrongNode, node)
	case r.End != nil:
		return r, r.refuseUnless(again, mine, s.now())
	case !s.now().Before(r.Expires):
		return r, fmt.Errorf("%w since %s", ErrExpired, r.Expires.Format(time.RFC3339))
	}
	err = s.create(name+endSuffix, mine)
	switch {
	case err == nil:
		r.End = &mine
		return r, nil
	case !errors.Is(err, fs.ErrExist):
		return r, fmt.Errorf("consume join token %s: %w", r.ID, err)
	}
	// Somebody was faster.
	if r, err = s.read(name); err != nil {
		return r, err
	}
	return r, r.refuseUnless(again, mine, s.now())
}

// repeated reports whether mine is the use that ended the token, asked for once more.
func (r Record) repeated(mine End, now time.Time) bool {
	return r.End.Key == mine.Key && now.Before(r.Expires)
}

// goesOn reports whether mine is the session that has the token.
func (r Record) goesOn(mine End, _ time.Time) bool { return r.End.Key == mine.Key }

// refuseUnless is nil when a token that has ended may be had again.
func (r Record) refuseUnless(again func(Record, End, time.Time) bool, mine End, now time.Time) error {
	switch {
	case r.End == nil:
		return fmt.Errorf("join token %s: its end cannot be read", r.ID)
	case r.End.Revoked:
		return fmt.Errorf("%w since %s", ErrRevoked, r.End.At.Format(time.RFC3339))
	case again(r, mine, now):
		return nil
	}
	return fmt.Errorf("%w at %s; a token works once; remedy: make a new one", ErrUsed, r.End.At.Format(time.RFC3339))
}

// Revoke ends a token that was not used, or is a waypoint's, by its ID.
func (s *Store) Revoke(id string) error {
	if len(id) < idLength || strings.ContainsFunc(id, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) }) {
		return fmt.Errorf("%w: %q is not an ID of a token", ErrUnknown, id)
	}
	names, err := s.names()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(names, func(name string) bool { return strings.HasPrefix(name, id) })
	if i < 0 {
		return fmt.Errorf("%w: no token has ID %s", ErrUnknown, id)
	}
	err = s.create(names[i]+endSuffix, End{At: s.now().UTC().Truncate(time.Second), Revoked: true})
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	r, err := s.read(names[i])
	if err != nil || r.End != nil && r.End.Revoked {
		return err
	}
	if _, _, ok := WaypointOf(r.Node); !ok {
		return fmt.Errorf("revoke %s: %w", id, ErrUsed)
	}
	// An .end file alone admits nobody.
	if err := os.Remove(filepath.Join(s.dir, names[i]+grantSuffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("revoke %s: %w", id, err)
	}
	return nil
}

// List returns every record, oldest first.
func (s *Store) List() ([]Record, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	var records []Record
	var unreadable []error
	for _, name := range names {
		r, err := s.read(name)
		if err != nil {
			// Pruned meanwhile, or damaged: the others are still worth listing.
			if !errors.Is(err, ErrUnknown) {
				unreadable = append(unreadable, err)
			}
			continue
		}
		records = append(records, r)
	}
	slices.SortFunc(records, func(a, b Record) int { return a.Created.Compare(b.Created) })
	return records, errors.Join(unreadable...)
}

func (s *Store) names() ([]string, error) {
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list join tokens: %w", err)
	}
	var names []string
	for _, f := range files {
		// Other names are not ours.
		if name, ok := strings.CutSuffix(f.Name(), grantSuffix); ok && len(name) == hex.EncodedLen(sha256.Size) {
			names = append(names, name)
		}
	}
	return names, nil
}

// prune deletes records past their retention and returns how many are left. The
// .token file goes first: an .end file alone admits nobody.
func (s *Store) prune() (int, error) {
	names, err := s.names()
	if err != nil {
		return 0, err
	}
	left := len(names)
	for _, name := range names {
		r, err := s.read(name)
		if err != nil || s.now().Before(r.Expires.Add(retention)) || r.inUse() {
			continue
		}
		for _, suffix := range []string{grantSuffix, endSuffix} {
			if err := os.Remove(filepath.Join(s.dir, name+suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return left, fmt.Errorf("delete old join token: %w", err)
			}
		}
		left--
	}
	return left, nil
}

// inUse reports whether a waypoint goes by the token.
func (r Record) inUse() bool {
	_, _, ok := WaypointOf(r.Node)
	return ok && r.End != nil && !r.End.Revoked
}

func (s *Store) create(file string, content any) error {
	text, err := json.Marshal(content)
	if err != nil {
		return fmt.Errorf("encode join token's record: %w", err)
	}
	if err := keystore.CreateFile(filepath.Join(s.dir, file), text, 0o600); err != nil {
		return fmt.Errorf("store join token's record: %w", err)
	}
	return nil
}

// read fails closed: an .end file that cannot be read is an error, not a token
// that is still good.
func (s *Store) read(name string) (Record, error) {
	r := Record{ID: name[:idLength]}
	if err := s.readJSON(name+grantSuffix, &r); errors.Is(err, fs.ErrNotExist) {
		return r, ErrUnknown
	} else if err != nil {
		return r, err
	}
	var end End
	switch err := s.readJSON(name+endSuffix, &end); {
	case errors.Is(err, fs.ErrNotExist):
		return r, nil
	case err != nil:
		return r, err
	}
	r.End = &end
	return r, nil
}

func (s *Store) readJSON(file string, into any) error {
	text, err := keystore.ReadSecretFile(filepath.Join(s.dir, file), maxRecord)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("join token's record %s: %w", file, err)
	}
	return nil
}
