package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

const bpffsPath = "/sys/fs/bpf"

// mountBPFFS mounts a BPF file system at /sys/fs/bpf when dir is not in one
// yet.
func mountBPFFS(dir string) error {
	if isBPFFS(dir) {
		return nil
	}
	if !isBPFFS(bpffsPath) {
		if err := unix.Mount("bpf", bpffsPath, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
			return fmt.Errorf("mount bpf file system at %s: %w", bpffsPath, err)
		}
	}
	if !isBPFFS(dir) {
		return fmt.Errorf("%s is not in a bpf file system: choose a folder in %s", dir, bpffsPath)
	}
	return nil
}

// isBPFFS looks at the nearest ancestor that exists.
func isBPFFS(dir string) bool {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			return st.Type == unix.BPF_FS_MAGIC
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == "/" {
			return false
		}
		dir = filepath.Dir(dir)
	}
}

// unpinFolder removes every pin in dir, and dir.
func unpinFolder(dir string) error {
	err := os.RemoveAll(dir)
	if err != nil {
		return fmt.Errorf("unpin %s: %w", dir, err)
	}
	return nil
}

// inNetNS runs fn on a thread inside the network namespace. The thread is
// thrown away, so that no other goroutine ever runs in the wrong one.
func inNetNS(fd int, fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		result <- fn()
	}()
	return <-result
}

// monotonic is the clock of the programs, in nanoseconds.
func monotonic() (uint64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		return 0, fmt.Errorf("read the monotonic clock: %w", err)
	}
	return uint64(ts.Nano()), nil
}
