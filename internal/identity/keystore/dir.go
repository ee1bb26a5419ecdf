package keystore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/overdue"
)

// prepareDir makes dir if need be, and checks owner, mode and filesystem.
func prepareDir(ctx context.Context, cfg Config) error {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("make key directory: %w", err)
	}
	if !cfg.Disk {
		if err := ensureMemory(ctx, cfg); err != nil {
			return err
		}
	}
	info, err := os.Lstat(cfg.Dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("key directory %s: not a directory", cfg.Dir)
	}
	if err := checkPrivate(info); err != nil {
		return fmt.Errorf("key directory %s: %w", cfg.Dir, err)
	}
	return nil
}

// ensureMemory makes sure that dir is on a tmpfs, and mounts one when the
// configuration says so. Agents that start at the same moment take turns, so
// that they do not mount over each other.
func ensureMemory(ctx context.Context, cfg Config) error {
	inMemory, err := onMemory(cfg.Dir)
	switch {
	case err != nil:
		return err
	case inMemory:
		return nil // as after any start but the first: no turn is needed
	case !cfg.Mount:
		return fmt.Errorf("key directory %s: %w", cfg.Dir, ErrNotMemory)
	}
	turn, err := takeTurn(ctx, cfg)
	if err != nil {
		return err
	}
	defer turn.Close()
	if inMemory, err = onMemory(cfg.Dir); err != nil || inMemory {
		return err // whoever had the turn before has mounted it
	}
	return mountMemory(cfg.Dir)
}

// turnWithin bounds the wait for others, who need milliseconds.
const turnWithin = 10 * time.Second

// takeTurn locks the directory below the mount. It is the key directory's own, so
// that nodes whose key directories are neighbours do not wait for each other. Whoever
// closes the file gives the turn back.
func takeTurn(ctx context.Context, cfg Config) (*os.File, error) {
	f, err := os.OpenFile(cfg.Dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("key directory %s: %w", cfg.Dir, err)
	}
	ctx, cancel := context.WithTimeout(ctx, turnWithin)
	defer cancel()
	said := overdue.Say(cfg.logger(), "for the lock of the key directory", func() []any {
		return []any{"path", cfg.Dir, "held_by", overdue.Holder(f)}
	})
	defer said()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			said() // it looks at the file
			return nil, errors.Join(fmt.Errorf("lock %s: %w", cfg.Dir, err), f.Close())
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			said()
			holder := overdue.Holder(f)
			return nil, errors.Join(fmt.Errorf("lock %s: process %s has it: %w; remedy: end that process", cfg.Dir, holder, context.Cause(ctx)), f.Close())
		}
	}
}

// ErrNotMemory is matched when a key directory is on a disk.
var ErrNotMemory = errors.New("not on a tmpfs; remedy: choose a directory under a tmpfs such as /run, or let the agent mount one")

func onMemory(dir string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, fmt.Errorf("statfs %s: %w", dir, err)
	}
	// Statfs_t.Type is signed and of another width elsewhere; the magics fit
	// 32 bits (include/uapi/linux/magic.h).
	magic := uint32(st.Type)
	return magic == unix.TMPFS_MAGIC || magic == unix.RAMFS_MAGIC, nil
}

// mountMemory mounts a small tmpfs on dir. noswap, since Linux 6.4, keeps its
// pages out of the swap area; older kernels refuse the option.
func mountMemory(dir string) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	const options = "mode=0700,size=64m"
	err := unix.Mount("heddle-keys", dir, "tmpfs", flags, options+",noswap")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("heddle-keys", dir, "tmpfs", flags, options)
	}
	if err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	return nil
}

// Remove deletes a key directory with everything in it, and unmounts the tmpfs
// that Open mounted there. It is no error when there is none.
func Remove(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if mounted, err := isMountPoint(dir); err != nil {
		return err
	} else if mounted {
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	return os.RemoveAll(dir)
}

// isMountPoint compares devices: it sees every mount but a bind mount within
// one filesystem, which Open does not make.
func isMountPoint(dir string) (bool, error) {
	var self, parent unix.Stat_t
	if err := unix.Lstat(dir, &self); err != nil {
		return false, fmt.Errorf("stat %s: %w", dir, err)
	}
	if err := unix.Stat(filepath.Dir(dir), &parent); err != nil {
		return false, fmt.Errorf("stat %s: %w", filepath.Dir(dir), err)
	}
	return self.Dev != parent.Dev, nil
}

func ownerOf(info fs.FileInfo) (int, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return -1, false
	}
	return int(st.Uid), true
}
