package keystore

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

var (
	web = spiffeid.RequireFromString("spiffe://mesh.test/ns/shop/sa/web")
	db  = spiffeid.RequireFromString("spiffe://mesh.test/ns/shop/sa/db")
)

func newEntry(t testing.TB, id spiffeid.ID, more ...*url.URL) Entry {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
		URIs: append([]*url.URL{id.URL()}, more...),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return Entry{ID: id, Key: key, Chain: []*x509.Certificate{cert}, Received: time.Now().Truncate(time.Second)}
}

// memoryDir is a directory on a tmpfs.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "heddle-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func open(t testing.TB) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Dir: filepath.Join(memoryDir(t), "keys")})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t testing.TB, s *Store, e Entry) string {
	t.Helper()
	if err := s.Put(e); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(s.dir, fileName(e.ID))
}

func TestEntriesComeBack(t *testing.T) {
	s := open(t)
	e := newEntry(t, web)
	path := put(t, s, e)
	put(t, s, newEntry(t, db))
	put(t, s, newEntry(t, db)) // in place of the first
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	entries, refused, err := s.Load()
	if err != nil || len(refused) > 0 || len(entries) != 2 {
		t.Fatalf("%d entries, %v, %v", len(entries), refused, err)
	}
	for _, got := range entries {
		if got.ID == web && (!got.Key.Equal(e.Key) || !got.Chain[0].Equal(e.Chain[0]) || !got.Received.Equal(e.Received)) {
			t.Errorf("came back as %+v", got)
		}
	}
	if err := s.Delete(web); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(web); err != nil {
		t.Errorf("delete what is not there: %v", err)
	}
	if err := s.Prune(nil); err != nil {
		t.Fatal(err)
	}
	if files, err := os.ReadDir(s.dir); err != nil || len(files) != 0 {
		t.Errorf("left: %v, %v", files, err)
	}
}

func TestDamagedFilesAreRefusedWithReason(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(t *testing.T, path string) error
		want   string
	}{
		"empty":              {func(_ *testing.T, p string) error { return os.Truncate(p, 0) }, "private key"},
		"cut short":          {func(_ *testing.T, p string) error { return os.Truncate(p, 300) }, "certificate"},
		"too large":          {func(_ *testing.T, p string) error { return os.Truncate(p, maxEntryBytes+1) }, "limit"},
		"readable by others": {func(_ *testing.T, p string) error { return os.Chmod(p, 0o640) }, "lets others in"},
		"of another user":    {func(_ *testing.T, p string) error { return os.Chown(p, 1234, 0) }, "belongs to uid 1234"},
		"symbolic link": {func(_ *testing.T, p string) error {
			return errors.Join(os.Rename(p, p+".old"), os.Symlink(p+".old", p))
		}, "symbolic links"},
		"FIFO":      {func(_ *testing.T, p string) error { return errors.Join(os.Remove(p), unix.Mkfifo(p, 0o600)) }, "not a regular file"},
		"directory": {func(_ *testing.T, p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o700)) }, "not a regular file"},
		"another's": {func(t *testing.T, p string) error {
			text, err := newEntry(t, db).encode()
			return errors.Join(err, os.WriteFile(p, text, 0o600))
		}, "another name"},
		"another key": {func(t *testing.T, p string) error {
			e := newEntry(t, web)
			e.Chain = newEntry(t, web).Chain
			text, err := e.encode()
			return errors.Join(err, os.WriteFile(p, text, 0o600))
		}, "not the certificate's"},
		"two URI names": {func(t *testing.T, p string) error {
			text, err := newEntry(t, web, db.URL()).encode()
			return errors.Join(err, os.WriteFile(p, text, 0o600))
		}, "more than one URI"},
		"no time": {func(t *testing.T, p string) error {
			text, err := newEntry(t, web).encode()
			return errors.Join(err, os.WriteFile(p, []byte(strings.Replace(string(text), "Received: 2", "Received: x", 1)), 0o600))
		}, "Received"},
	} {
		t.Run(name, func(t *testing.T) {
			testenv.NeedRoot(t)
			s := open(t)
			put(t, s, newEntry(t, db))
			path := put(t, s, newEntry(t, web))
			if err := c.damage(t, path); err != nil {
				t.Fatal(err)
			}
			entries, refused, err := s.Load()
			if err != nil || len(entries) != 1 || len(refused) != 1 {
				t.Fatalf("%d entries, refused %v, %v", len(entries), refused, err)
			}
			if refused[0].Path != path || !strings.Contains(refused[0].Err.Error(), c.want) {
				t.Errorf("refused %s: %v; want %q", refused[0].Path, refused[0].Err, c.want)
			}
			if name == "directory" {
				return // Put cannot replace one; Prune takes it away
			}
			put(t, s, newEntry(t, web))
			if entries, refused, err := s.Load(); err != nil || len(entries) != 2 || len(refused) != 0 {
				t.Errorf("not replaced: %d entries, %v, %v", len(entries), refused, err)
			}
		})
	}
}

func TestDirectoryMustBeInMemoryAndPrivate(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "keys")
	inMemory, err := onMemory(filepath.Dir(disk))
	if err != nil {
		t.Fatal(err)
	}
	if inMemory {
		t.Fatal("the test's directory is on a tmpfs: set TMPDIR to a disk")
	}
	if _, err := Open(t.Context(), Config{Dir: disk}); !errors.Is(err, ErrNotMemory) {
		t.Errorf("on a disk: %v", err)
	}
	if _, err := Open(t.Context(), Config{Dir: disk, Disk: true}); err != nil {
		t.Errorf("on a disk, allowed: %v", err)
	}
	open := filepath.Join(memoryDir(t), "open")
	if err := os.Mkdir(open, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Dir: open}); !errors.Is(err, ErrInsecure) {
		t.Errorf("mode 0755: %v", err)
	}
	if _, err := Open(t.Context(), Config{Dir: "keys"}); err == nil {
		t.Error("took a relative path")
	}
}

// TestMount has several agents begin at once: one tmpfs comes of it, and it is
// gone after Remove.
func TestMount(t *testing.T) {
	testenv.NeedRoot(t)
	dir := filepath.Join(t.TempDir(), "keys")
	t.Cleanup(func() {
		if err := Remove(dir); err != nil {
			t.Error(err)
		}
	})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := Open(t.Context(), Config{Dir: dir, Mount: true}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(mounts), " "+dir+" tmpfs "); n != 1 {
		t.Errorf("mounted %d times", n)
	}
	s, err := Open(t.Context(), Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, newEntry(t, web))
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

// TestMountWaits: while somebody has the turn to mount, the others wait; they say for
// whom, and not for ever. Neighbours do not wait.
func TestMountWaits(t *testing.T) {
	testenv.NeedRoot(t)
	parent := t.TempDir()
	dir := filepath.Join(parent, "keys")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, parent} {
		held, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		if err := unix.Flock(int(held.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer // read when nobody writes any more
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	begun := time.Now()
	_, err := Open(ctx, Config{Dir: dir, Mount: true, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	holder := strconv.Itoa(os.Getpid()) + " ("
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "process "+holder) || !strings.Contains(err.Error(), "remedy:") {
		t.Errorf("with the turn taken: %v", err)
	}
	if took := time.Since(begun); took > 15*time.Second {
		t.Errorf("it took %v", took)
	}
	if !strings.Contains(log.String(), "waiting for the lock of the key directory") || !strings.Contains(log.String(), `held_by="`+holder) {
		t.Errorf("said %q", log.String())
	}
	neighbour := filepath.Join(parent, "neighbour")
	t.Cleanup(func() {
		if err := Remove(neighbour); err != nil {
			t.Error(err)
		}
	})
	log.Reset()
	if _, err := Open(t.Context(), Config{Dir: neighbour, Mount: true, Logger: slog.New(slog.NewTextHandler(&log, nil))}); err != nil || log.Len() > 0 {
		t.Errorf("a neighbour: %v, said %q", err, log.String())
	}
}

func TestBundleComesBack(t *testing.T) {
	s, td := open(t), web.TrustDomain()
	if _, err := s.Bundle(td); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("bundle out of nowhere: %v", err)
	}
	b := x509bundle.FromX509Authorities(td, []*x509.Certificate{newEntry(t, web).Chain[0], newEntry(t, db).Chain[0]})
	if err := s.PutBundle(b); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Bundle(td); err != nil || !got.Equal(b) {
		t.Errorf("came back as %v, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, bundleName), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Bundle(td); err == nil {
		t.Error("took a damaged bundle")
	}
}

// TestReadersSeeWholeFiles replaces an entry while others read it.
func TestReadersSeeWholeFiles(t *testing.T) {
	s := open(t)
	versions := []Entry{newEntry(t, web), newEntry(t, web)}
	put(t, s, versions[0])
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				if err := s.Put(versions[i%2]); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for range 200 {
		entries, refused, err := s.Load()
		if err != nil || len(refused) > 0 || len(entries) != 1 {
			t.Errorf("%d entries, %v, %v", len(entries), refused, err)
			break
		}
	}
	close(stop)
	wg.Wait()
}

func TestAbandonedWritesArePruned(t *testing.T) {
	s := open(t)
	for name, age := range map[string]time.Duration{"young": time.Minute, "old": 2 * time.Hour} {
		path := filepath.Join(s.dir, tempPrefix+name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-age)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Prune(nil); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(s.dir)
	if err != nil || len(files) != 1 || files[0].Name() != tempPrefix+"young" {
		t.Errorf("left: %v, %v", files, err)
	}
}

func FuzzParseEntry(f *testing.F) {
	text, err := newEntry(f, web).encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := parseEntry(text)
		if err != nil {
			return
		}
		if e.ID.IsZero() || len(e.Chain) == 0 || len(e.Chain) > maxChain || !e.Key.PublicKey.Equal(e.Chain[0].PublicKey) {
			t.Errorf("took %+v", e)
		}
		if _, err := e.encode(); err != nil {
			t.Errorf("encode what was parsed: %v", err)
		}
	})
}
