package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchy is one mounted cgroup hierarchy.
type hierarchy struct {
	dir     string
	unified bool // cgroup v2
	// options are those to mount a v1 hierarchy again: its controllers or name.
	options string
}

// hierarchies lists what is mounted under /sys/fs/cgroup, from proc(5) mounts.
func hierarchies() ([]hierarchy, error) {
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	found := parseHierarchies(string(data))
	if len(found) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted under /sys/fs/cgroup")
	}
	return found, nil
}

func parseHierarchies(mounts string) []hierarchy {
	var found []hierarchy
	for line := range strings.Lines(mounts) {
		fields := strings.Fields(line)
		if len(fields) < 4 || (fields[2] != "cgroup" && fields[2] != "cgroup2") || !strings.HasPrefix(fields[1], "/sys/fs/cgroup") {
			continue
		}
		h := hierarchy{dir: fields[1], unified: fields[2] == "cgroup2"}
		if !h.unified {
			h.options = remountOptions(fields[3])
		}
		found = append(found, h)
	}
	return found
}

// remountOptions leaves the options that say which v1 hierarchy it is.
func remountOptions(options string) string {
	ofTheMount := []string{"rw", "ro", "relatime", "noatime", "nosuid", "nodev", "noexec", "xattr", "clone_children", "noprefix"}
	kept := slices.DeleteFunc(strings.Split(options, ","), func(option string) bool {
		return slices.Contains(ofTheMount, option) || strings.HasPrefix(option, "release_agent=")
	})
	if len(kept) == 1 && strings.HasPrefix(kept[0], "name=") {
		kept = append([]string{"none"}, kept...)
	}
	return strings.Join(kept, ",")
}

// pure reports whether cgroup v2 is all there is.
func pure(all []hierarchy) bool {
	return !slices.ContainsFunc(all, func(h hierarchy) bool { return !h.unified })
}

// joinCgroups makes the machine's cgroup in each hierarchy and moves this
// process there, so that a cgroup namespace made next has it as its root.
func joinCgroups(path string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		dir := filepath.Join(h.dir, path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		if err := prepareCgroup(h, path, pure(all)); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// prepareCgroup makes what the parents have usable below them: v1's cpuset is
// empty in a new cgroup and refuses every process, v2's controllers are handed
// down one level at a time (where v1 has them, v2 is left alone).
func prepareCgroup(h hierarchy, path string, pure bool) error {
	if h.unified {
		if !pure {
			return nil
		}
		for dir := range parents(h.dir, path) {
			if err := enableControllers(dir); err != nil {
				return err
			}
		}
		return nil
	}
	for dir := range parents(h.dir, path) {
		child := filepath.Join(dir, nextElement(h.dir, dir, path))
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			own, err := os.ReadFile(filepath.Join(child, name))
			if err != nil || strings.TrimSpace(string(own)) != "" {
				continue // another controller's hierarchy, or set already
			}
			inherited, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				return fmt.Errorf("read cpuset: %w", err)
			}
			if err := os.WriteFile(filepath.Join(child, name), inherited, 0); err != nil {
				return fmt.Errorf("set cpuset: %w", err)
			}
		}
	}
	return nil
}

// parents yields root and each folder of path below it, but not the last.
func parents(root, path string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		dir := root
		for _, element := range strings.Split(path, "/") {
			if !yield(dir) {
				return
			}
			dir = filepath.Join(dir, element)
		}
	}
}

func nextElement(root, dir, path string) string {
	rest := strings.TrimPrefix(strings.TrimPrefix(filepath.Join(root, path), dir), "/")
	element, _, _ := strings.Cut(rest, "/")
	return element
}

// enableControllers hands all controllers of a v2 cgroup to its children.
func enableControllers(dir string) error {
	available, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read cgroup controllers: %w", err)
	}
	for _, controller := range strings.Fields(string(available)) {
		err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0)
		if err != nil {
			return fmt.Errorf("enable cgroup controller %s in %s: %w", controller, dir, err)
		}
	}
	return nil
}

// programCgroup makes a program's own cgroup v2 inside the machine, as a unit of
// systemd has one: by it the kernel tells one program's sockets from another's.
func programCgroup(program string) (*os.File, error) {
	all, err := hierarchies()
	if err != nil {
		return nil, err
	}
	for _, h := range all {
		if !h.unified {
			continue
		}
		dir := filepath.Join(h.dir, program+".service")
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make cgroup: %w", err)
		}
		return os.Open(dir)
	}
	return nil, errors.New("cgroup v2 is not mounted")
}

// returnToCgroup moves this process back out of the machine's v2 cgroup, which
// may hold no processes itself when its children have controllers. before is
// what proc(5) cgroup said before it joined.
func returnToCgroup(before []byte) error {
	all, err := hierarchies()
	if err != nil || !pure(all) {
		return err
	}
	for line := range strings.Lines(string(before)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return os.WriteFile(filepath.Join(all[0].dir, path, "cgroup.procs"), []byte("0"), 0)
		}
	}
	return errors.New("this process is in no cgroup v2")
}

// enterCgroups moves this process into the cgroups of a machine that runs.
func enterCgroups(path string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		dir := filepath.Join(h.dir, path)
		if pure(all) {
			dir = filepath.Join(dir, initCgroup)
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// CheckFree says who uses the machine's names on this host: another machine, whose
// state is elsewhere. Starting or stopping this one would end that one.
func (m *Machine) CheckFree() error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		dir := filepath.Join(h.dir, m.Spec.Cgroup)
		members, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("machine %s: %w", m.Spec.Name, err)
		}
		if pids := strings.Fields(string(members)); len(pids) > 0 {
			return fmt.Errorf("machine %s: another one runs in the cgroup %s (process %s): take it down where it was brought up, or choose another name", m.Spec.Name, dir, pids[0])
		}
	}
	return nil
}

// removeCgroups kills what is left in the machine's cgroups and removes them,
// and the folder above when it is empty then.
func removeCgroups(ctx context.Context, path string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		dir := filepath.Join(h.dir, path)
		if err := removeCgroup(ctx, dir); err != nil {
			return err
		}
		if parent := filepath.Dir(dir); parent != h.dir {
			if err := os.Remove(parent); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
				return fmt.Errorf("remove cgroup: %w", err)
			}
		}
	}
	return nil
}

// removeCgroup removes a cgroup and those below, deepest first. The kernel
// answers EBUSY until the last process in it is gone entirely.
func removeCgroup(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeCgroup(ctx, filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	var last error
	err = waitFor(ctx, 10*time.Second, func() bool {
		last = os.Remove(dir)
		if last == nil || errors.Is(last, fs.ErrNotExist) {
			return true
		}
		killMembers(dir)
		return false
	})
	if err != nil {
		return fmt.Errorf("remove cgroup %s: %w", dir, last)
	}
	return nil
}

func killMembers(dir string) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return // the folder is going
	}
	for _, field := range strings.Fields(string(data)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 1 {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended by itself
		}
	}
}
