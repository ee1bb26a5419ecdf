// Package cgroup gives the agent a cgroup v2 folder of its own: the kernel tells
// the agent's sockets from all others by it. It finds the hierarchy from
// /proc/self/mountinfo, unified or beside v1. A Cgroup is not safe for
// concurrent use, and is per process.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// cgroupWait is how long Enter waits for the process of an earlier agent
// of the same name to leave its cgroup; a killed one needs a moment.
const cgroupWait = 3 * time.Second

// Cgroup is the cgroup v2 folder in which the agent's process runs alone.
// Every socket that is created there is stamped as the agent's, so that nobody
// else may be in it.
type Cgroup struct {
	// Path is the folder, under the cgroup2 mount of this process.
	Path string
	// parent is where Leave moves the process back to; "" when Enter
	// moved nothing.
	parent string
}

// Enter returns the agent's own cgroup. When the process is in the root
// cgroup, or in one that it shares, it is moved to a child of it named
// heddle-agent-NAME. A path in override is used as it is, and must be a cgroup
// that holds this process and no other. beside names processes that may be in
// the cgroup, too: the agent that this one succeeds, whose cgroup it shares then.
//
// It moves the whole process, all threads, and must be called before the first
// of the agent's sockets is made. Requires root.
func Enter(name, override string, beside ...int) (c *Cgroup, err error) {
	if override != "" {
		return givenCgroup(override, beside)
	}
	err = machineView(func() (err error) { c, err = enter(name, beside); return err })
	return c, err
}

func enter(name string, beside []int) (*Cgroup, error) {
	mount, root, err := Mount()
	if err != nil {
		return nil, err
	}
	own, err := ownCgroup("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	// Under a bind mount, paths are relative to the root that the mount shows.
	current, err := under(mount, root, own)
	if err != nil {
		return nil, err
	}
	alone, err := dedicated(current, beside)
	if err != nil {
		return nil, err
	}
	if alone {
		return &Cgroup{Path: current}, nil
	}
	return enterChild(current, "heddle-agent-"+name, beside)
}

// Leave moves the process back to where Enter found it and removes the
// folder. It is for programs that go on without an agent, as tests do; an agent
// that exits leaves the folder, which its successor uses again.
func (c *Cgroup) Leave() error {
	if c.parent == "" {
		return nil
	}
	if err := moveTo(c.parent); err != nil {
		return err
	}
	c.parent = ""
	// The kernel lets go of the folder a moment after the last thread left.
	deadline := time.Now().Add(cgroupWait)
	for {
		err := os.Remove(c.Path)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("remove the agent's cgroup: %w", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func givenCgroup(path string, beside []int) (*Cgroup, error) {
	pids, err := processes(path, beside)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: give the folder of a cgroup v2", path, err)
	}
	if !slices.Equal(pids, []int{os.Getpid()}) {
		return nil, fmt.Errorf("cgroup %s holds processes %v, and must hold the agent (%d) alone: start the agent in a cgroup of its own, or leave the setting out", path, pids, os.Getpid())
	}
	return &Cgroup{Path: path}, nil
}

func enterChild(parent, name string, beside []int) (*Cgroup, error) {
	path := filepath.Join(parent, name)
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make the agent's cgroup (run as root with a writable cgroup2 mount, or set the agent's cgroup): %w", err)
	}
	deadline := time.Now().Add(cgroupWait)
	for {
		pids, err := processes(path, beside)
		if err != nil {
			return nil, err
		}
		if len(pids) == 0 {
			break
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("cgroup %s is used by process %d: stop the other agent of this name, or give this one another name", path, pids[0])
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err := moveTo(path); err != nil {
		return nil, err
	}
	return &Cgroup{Path: path, parent: parent}, nil
}

func moveTo(cgroup string) error {
	if err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
		return fmt.Errorf("move the agent into %s (run as root with a writable cgroup2 mount, or set the agent's cgroup): %w", cgroup, err)
	}
	return nil
}

// dedicated reports whether the process is alone in a cgroup that is not the
// root: only the root lacks cgroup.events.
func dedicated(cgroup string, beside []int) (bool, error) {
	if _, err := os.Stat(filepath.Join(cgroup, "cgroup.events")); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	pids, err := processes(cgroup, beside)
	if err != nil {
		return false, err
	}
	return slices.Equal(pids, []int{os.Getpid()}), nil
}

// processes lists a cgroup's processes but those beside; 0 stands for those of
// other PID namespaces.
func processes(cgroup string, beside []int) ([]int, error) {
	data, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
	if err != nil {
		return nil, fmt.Errorf("read the cgroup's processes: %w", err)
	}
	var pids []int
	for word := range strings.FieldsSeq(string(data)) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			return nil, fmt.Errorf("read the cgroup's processes: %w", err)
		}
		if !slices.Contains(beside, pid) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Mount returns where cgroup v2 is mounted, and which cgroup is seen there.
func Mount() (mount, root string, err error) { return cgroup2Mount("/proc/self/mountinfo") }

// cgroup2Mount finds the cgroup2 mount, alone or beside v1 hierarchies, and
// which cgroup it shows as its root (proc_pid_mountinfo(5)).
func cgroup2Mount(mountinfo string) (mount, root string, err error) {
	f, err := os.Open(mountinfo)
	if err != nil {
		return "", "", fmt.Errorf("find the cgroup2 mount: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		if !ok || !strings.HasPrefix(after, "cgroup2 ") {
			continue
		}
		if fields := strings.Fields(before); len(fields) >= 5 {
			return unescapeMount(fields[4]), unescapeMount(fields[3]), nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", "", fmt.Errorf("find the cgroup2 mount: %w", err)
	}
	return "", "", errors.New("cgroup v2 is not mounted: mount it (`mount -t cgroup2 none /sys/fs/cgroup/unified`) or set the agent's cgroup")
}

func ownCgroup(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("find own cgroup: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSuffix(strings.TrimSpace(path), " (deleted)"), nil
		}
	}
	return "", errors.New("find own cgroup: this process is in no cgroup v2: boot with the unified or hybrid hierarchy, or set the agent's cgroup")
}

// unescapeMount undoes the octal escapes of mountinfo.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
