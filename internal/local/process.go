package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is a program that a mesh runs, as it is on record. Its pid alone
// would not do: the kernel gives pids out again.
type Process struct {
	PID int `json:"pid"`
	// Started is the kernel's start time, in clock ticks since boot
	// (proc(5), field 22 of stat).
	Started uint64 `json:"started"`
	Log     string `json:"log"`
}

// Running reports whether this very process is alive.
func (p Process) Running() bool {
	started, state, err := procStat(p.PID)
	return p.PID > 1 && err == nil && started == p.Started && state != "Z"
}

// procStat reads the start time and the state of a process.
func procStat(pid int) (started uint64, state string, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, "", err
	}
	// The command's name, in parentheses, may hold anything.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 20 {
		return 0, "", fmt.Errorf("read /proc/%d/stat: %d fields", pid, len(fields))
	}
	started, err = strconv.ParseUint(fields[19], 10, 64)
	return started, fields[0], err
}

// launch describes a process to start.
type launch struct {
	binary string
	args   []string
	netns  string // path
	cgroup string // cgroup2 folder, made if need be; "" for the caller's own
	log    string // file, appended to
}

// start runs a process of its own session, in the given namespace and cgroup
// from its first instruction on. It goes on when its parent ends.
func start(l launch) (Process, error) {
	logFile, err := os.OpenFile(l.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return Process{}, fmt.Errorf("open log: %w", err)
	}
	defer logFile.Close() // the child has its own
	cmd := exec.Command(l.binary, l.args...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if l.cgroup != "" {
		group, err := openCgroup(l.cgroup)
		if err != nil {
			return Process{}, err
		}
		defer group.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
	}
	if err := inNetNS(l.netns, cmd.Start); err != nil {
		return Process{}, fmt.Errorf("start %s: %w", filepath.Base(l.binary), err)
	}
	pid := cmd.Process.Pid
	started, _, err := procStat(pid)
	if err != nil {
		return Process{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	// Nobody waits for it: it outlives this process. gone reaps it if it does not.
	if err := cmd.Process.Release(); err != nil {
		return Process{}, fmt.Errorf("release process %d: %w", pid, err)
	}
	return Process{PID: pid, Started: started, Log: l.log}, nil
}

// stop ends a process: politely, and after the grace without mercy. It returns
// when the process is gone.
func (p Process) stop(ctx context.Context, grace time.Duration) error {
	for _, step := range []struct {
		signal syscall.Signal
		wait   time.Duration
	}{{syscall.SIGTERM, grace}, {syscall.SIGKILL, 5 * time.Second}} {
		if !p.Running() {
			return nil
		}
		if err := syscall.Kill(p.PID, step.signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop process %d: %w", p.PID, err)
		}
		if p.gone(ctx, step.wait) {
			return nil
		}
	}
	return fmt.Errorf("process %d does not end", p.PID)
}

func (p Process) gone(ctx context.Context, wait time.Duration) bool {
	deadline := time.Now().Add(wait)
	for p.Running() {
		_, _ = syscall.Wait4(p.PID, nil, syscall.WNOHANG, nil) // ECHILD when another process started it
		if time.Now().After(deadline) || ctx.Err() != nil {
			return false
		}
		time.Sleep(20 * time.Millisecond)
	}
	return true
}

// lastLines returns the end of a log, for an error message.
func lastLines(path string, n int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// cgroupRoot finds where cgroup2 is mounted (proc(5), mountinfo).
func cgroupRoot() (string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find cgroup2: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		before, after, ok := strings.Cut(line, " - ")
		if fields := strings.Fields(before); ok && strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 {
			return fields[4], nil
		}
	}
	return "", errors.New("find cgroup2: not mounted: mount -t cgroup2 none /sys/fs/cgroup")
}

func openCgroup(path string) (*os.File, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	return f, nil
}

// removeCgroups removes a cgroup and those below it. What still runs in them
// goes to the root cgroup: it is not the mesh's to stop. A process that has just
// ended may hold one for a moment.
func removeCgroups(path string) error {
	var err error
	for range 100 {
		if err = removeTree(path); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("remove cgroup: %w", err)
}

func removeTree(path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := evacuate(path); err != nil {
		return err
	}
	return os.Remove(path)
}

// evacuate moves the processes of a cgroup to the root cgroup.
func evacuate(path string) error {
	pids, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
	if err != nil {
		return err
	}
	root, err := cgroupRoot()
	if err != nil {
		return err
	}
	for pid := range strings.FieldsSeq(string(pids)) {
		err := os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(pid), 0o644)
		if err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("move process %s out of %s: %w", pid, path, err)
		}
	}
	return nil
}
