package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// Enter is what `machined enter SPEC` does: it moves itself into the machine's
// cgroups, starts pid 1 in new namespaces, records it, and returns when the
// machine is up or its boot failed. Descriptor 3 is the log, the forwards'
// listeners follow.
func Enter(specPath string) error {
	spec, err := readSpec(specPath)
	if err != nil {
		return err
	}
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	if err := joinCgroups(spec.Cgroup); err != nil {
		return err
	}
	report, reported, err := os.Pipe()
	if err != nil {
		return err
	}
	defer report.Close()
	pid1 := exec.Command("/proc/self/exe", "init", specPath)
	log := os.NewFile(logDescriptor, "log")
	pid1.Stdout, pid1.Stderr = log, log
	pid1.ExtraFiles = []*os.File{reported}
	for i := range spec.Forwards {
		pid1.ExtraFiles = append(pid1.ExtraFiles, os.NewFile(uintptr(firstListener+i), "listener"))
	}
	pid1.Env = machineEnvironment()
	pid1.Dir = "/"
	pid1.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS |
			syscall.CLONE_NEWIPC | syscall.CLONE_NEWNET | syscall.CLONE_NEWCGROUP,
	}
	err = errors.Join(pid1.Start(), reported.Close())
	if err != nil {
		return fmt.Errorf("start pid 1: %w", err)
	}
	if err := errors.Join(record(spec, pid1.Process.Pid), returnToCgroup(before)); err != nil {
		return errors.Join(err, pid1.Process.Kill())
	}
	answer, err := io.ReadAll(report)
	if err != nil {
		return fmt.Errorf("wait for the boot: %w", err)
	}
	if string(answer) != bootedWell {
		if len(answer) == 0 {
			return errors.New("pid 1 ended during the boot")
		}
		return errors.New(strings.TrimSpace(string(answer)))
	}
	return pid1.Process.Release()
}

// What the two processes inherit: Enter its log, pid 1 the pipe to report on,
// and both then the listeners.
const (
	logDescriptor    = 3
	reportDescriptor = 3
	firstListener    = 4
	bootedWell       = "booted"
)

func record(spec Spec, pid int) error {
	started, _, err := procStat(pid)
	if err != nil {
		return fmt.Errorf("read process %d: %w", pid, err)
	}
	data, err := json.Marshal(process{pid, started})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(spec.Dir, processFile), data, 0o600)
}

func readSpec(path string) (Spec, error) {
	var spec Spec
	data, err := os.ReadFile(path)
	if err != nil {
		return spec, err
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return spec, fmt.Errorf("%s: %w", path, err)
	}
	return spec, nil
}

// machineEnvironment is what programs of a machine start with: the caller's own
// settings (proxies, credentials, locale) are no part of it.
func machineEnvironment() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
}
