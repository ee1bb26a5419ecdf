package keystore

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// tempPrefix begins the names of files that are being written.
const tempPrefix = ".new-"

// Unfinished matches, as filepath.Match does, the names of files that ReplaceFile was writing when its process was killed.
const Unfinished = tempPrefix + "*"

// ErrInsecure is matched by refusals of files and directories that somebody
// else could have read or written.
var ErrInsecure = errors.New("ownership or mode lets others in")

// ReadFile reads a regular file of at most limit bytes.
func ReadFile(path string, limit int64) ([]byte, error) { return readFile(path, limit, 0, false) }

// ReadSecretFile is ReadFile for a secret: the file must belong to this process's
// user, or root, and let nobody else in. Symbolic links are followed, because
// mounted Secrets are made of them; it is the file that is checked.
func ReadSecretFile(path string, limit int64) ([]byte, error) { return readFile(path, limit, 0, true) }

func readFile(path string, limit int64, flags int, secret bool) ([]byte, error) {
	// O_NONBLOCK: opening a FIFO that somebody put there must not hang.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|flags, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: not a regular file", path)
	case info.Size() > limit:
		return nil, fmt.Errorf("%s: %d bytes, the limit is %d", path, info.Size(), limit)
	}
	if secret {
		if err := checkPrivate(info); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: more than %d bytes", path, limit)
	}
	return data, nil
}

// checkPrivate refuses what group or others may access, and what belongs to
// another user.
func checkPrivate(info fs.FileInfo) error {
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("mode %#o: %w; remedy: chmod go= and replace the key if it was shared", mode, ErrInsecure)
	}
	if owner, ok := ownerOf(info); !ok || owner != os.Geteuid() && owner != 0 {
		return fmt.Errorf("belongs to uid %d: %w", owner, ErrInsecure)
	}
	return nil
}

// CreateFile writes a file that does not exist yet, whole or not at all: its
// error matches fs.ErrExist when there is one already, and of several
// processes that try, one succeeds.
func CreateFile(path string, data []byte, mode fs.FileMode) error {
	return writeFile(path, data, mode, os.Link)
}

// ReplaceFile writes a file, whole or not at all, in place of one that may be
// there.
func ReplaceFile(path string, data []byte, mode fs.FileMode) error {
	return writeFile(path, data, mode, os.Rename)
}

// writeFile writes a temporary file beside path and has publish give it its
// name. It syncs both file and directory, for those that are on disk.
func writeFile(path string, data []byte, mode fs.FileMode, publish func(from, to string) error) error {
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return fmt.Errorf("draw file name: %w", err)
	}
	dir := filepath.Dir(path)
	temp := filepath.Join(dir, tempPrefix+hex.EncodeToString(random[:]))
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, mode)
	if err != nil {
		return err
	}
	// After a rename there is nothing left to remove, and after a link or an
	// error a file that stays does no harm.
	defer func() { _ = os.Remove(temp) }()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = publish(temp, path)
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	// Some filesystems have no fsync of directories; the rename is atomic there
	// all the same.
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
