package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// machineView runs fn on a thread that sees cgroups as the machine's pid 1 does. A
// container may have a cgroup namespace of its own, in which its cgroup looks like
// the root, and others like "/../../x" (cgroup_namespaces(7)); the kernel shows
// paths as the reading thread's namespace has them. Without hostPID, pid 1 is the
// container's own, and so is the view; so it is where pid 1 may not be looked at.
func machineView(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := joinMachine(); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}

func joinMachine() error {
	const machine = "/proc/1/ns/cgroup"
	theirs, err := os.Readlink(machine)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return nil // a kernel without cgroup namespaces; or a machine of others
	}
	if err != nil {
		return fmt.Errorf("look at the machine's cgroup namespace: %w", err)
	}
	if own, err := os.Readlink("/proc/thread-self/ns/cgroup"); err != nil || own == theirs {
		return err
	}
	fd, err := unix.Open(machine, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the machine's cgroup namespace: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("join the machine's cgroup namespace: %w; remedy: give the agent the capability SYS_ADMIN", err)
	}
	return nil
}

// Of returns the text of /proc/PID/cgroup of a process, and the folder of its
// cgroup v2 under this process's cgroup2 mount.
func Of(pid int) (text, folder string, err error) {
	err = machineView(func() error {
		mount, root, err := Mount()
		if err != nil {
			return err
		}
		file := filepath.Join("/proc", strconv.Itoa(pid), "cgroup")
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("read the cgroup of process %d: %w", pid, err)
		}
		text = string(data)
		path, err := ownCgroup(file)
		if err != nil {
			return err
		}
		folder, err = under(mount, root, path)
		return err
	})
	return text, folder, err
}

// under returns the folder of a cgroup under a mount that shows root.
func under(mount, root, cgroup string) (string, error) {
	rel, err := filepath.Rel(root, cgroup)
	if err != nil || strings.HasPrefix(rel, "..") || strings.HasPrefix(root, "/..") || strings.HasPrefix(cgroup, "/..") {
		return "", fmt.Errorf("cgroup %s is outside the mount %s (which shows %s): mount cgroup2 of this cgroup namespace, or set the agent's cgroup", cgroup, mount, root)
	}
	return filepath.Join(mount, rel), nil
}

// Members lists the processes in a cgroup v2 folder itself, not those below it; 0
// stands for those of other PID namespaces.
func Members(folder string) ([]int, error) { return processes(folder, nil) }
