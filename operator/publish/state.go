package publish

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

const (
	lockFile     = "lock"
	recordFile   = "state.json"
	lastGoodFile = "last-good"
	gatesFile    = "gates"
	maxRecord    = 64 << 10
)

// record is what must survive a restart besides keys and configuration.
type record struct {
	TrustDomain string `json:"trustDomain"`
	// Epoch and Revision are those published last. The epoch never goes back:
	// agents refuse an older one.
	Epoch    uint64 `json:"epoch"`
	Revision string `json:"revision"`
}

// State is the operator's directory, held by a lock. After OpenState,
// record belongs to the goroutine that publishes.
type State struct {
	dir    string
	lock   *os.File
	record record
}

func (s *State) path(name string) string { return filepath.Join(s.dir, name) }

// CA returns the directory of keys and roots.
func (s *State) CA() string { return s.path("ca") }

// Tokens returns the directory of join tokens' records.
func (s *State) Tokens() string   { return s.path("tokens") }
func (s *State) lastGood() string { return s.path(lastGoodFile) }

// Gates returns the file that keeps who is behind a gate.
func (s *State) Gates() string { return s.path(gatesFile) }

// OpenState makes or checks the directory and takes its lock.
func OpenState(dir string) (*State, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	s := &State{dir: dir}
	if err := s.checkModes(); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(s.path(lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of state directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock state directory %s: another operator runs on it; remedy: stop that one, or give this one a directory of its own: %w", dir, err), lock.Close())
	}
	s.lock = lock
	if err := s.readRecord(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return s, nil
}

// Close gives the lock back.
func (s *State) Close() error { return s.lock.Close() }

// checkModes refuses what lets others read keys or write configuration. The
// keys in ca/ are checked again, one by one, when they are read.
func (s *State) checkModes() error {
	for name, want := range map[string]fs.FileMode{".": 0o700, "ca": 0o700, "tokens": 0o700,
		lockFile: 0o600, recordFile: 0o600, lastGoodFile: 0o600, gatesFile: 0o600} {
		path := s.path(name)
		info, err := os.Lstat(path)
		if name == "." { // the directory itself may be a link; its target counts
			info, err = os.Stat(s.dir)
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("check state directory: %w", err)
		}
		if info.IsDir() != (want == 0o700) || info.Mode()&(fs.ModeSymlink|fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSocket) != 0 {
			return fmt.Errorf("state directory: %s is a %v, which no operator made; remedy: move it away", path, info.Mode().Type())
		}
		if info.Mode().Perm()&0o077 != 0 {
			return fmt.Errorf("state directory: mode of %s is %#o, which lets others in; remedy: chmod %#o %s, and when others may have read it, begin with a new state directory", path, info.Mode().Perm(), want, path)
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
			return fmt.Errorf("state directory: %s belongs to uid %d, this is uid %d; remedy: chown it", path, st.Uid, os.Geteuid())
		}
	}
	return nil
}

func (s *State) readRecord() error {
	path := s.path(recordFile)
	text, err := keystore.ReadSecretFile(path, maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read state: %w", err)
	}
	if err := json.Unmarshal(text, &s.record); err != nil {
		return fmt.Errorf("read state %s: %w; remedy: restore it from a backup, or delete it: epochs then go on from the clock", path, err)
	}
	return nil
}

// next returns the record to keep when a revision is published: the epoch
// grows with every new revision, and stays with the same one. It is at least
// the Unix time, so that it does not go back when the file is lost either,
// unless configurations changed more than once a second ever since.
func (s *State) next(td spiffeid.TrustDomain, revision string, now time.Time) record {
	if s.record.Revision == revision && s.record.Epoch > 0 {
		return s.record
	}
	return record{TrustDomain: td.Name(), Epoch: max(s.record.Epoch+1, uint64(max(now.Unix(), 0))), Revision: revision}
}

// keep makes a record durable before what it says is published.
func (s *State) keep(r record) error {
	if r == s.record {
		return nil
	}
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	if err := keystore.ReplaceFile(s.path(recordFile), append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("keep epoch %d: %w", r.Epoch, err)
	}
	s.record = r
	return nil
}

// TrustDomain returns the one that the directory was made for, or, for a new
// one, that of the folder.
func (s *State) TrustDomain(first Loaded) (spiffeid.TrustDomain, error) {
	if s.record.TrustDomain != "" {
		td, err := spiffeid.TrustDomainFromString(s.record.TrustDomain)
		if err != nil {
			return td, fmt.Errorf("read state %s: %w", s.path(recordFile), err)
		}
		return td, nil
	}
	if first.err != nil {
		return spiffeid.TrustDomain{}, fmt.Errorf("read configuration for the first time: %w", first.err)
	}
	return first.compiled.Settings.TrustDomain, nil
}
