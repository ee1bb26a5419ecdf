package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command is a command inside the machine: in all of its namespaces and cgroups,
// and in its root folder. It ends with the machine.
func (m *Machine) Command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	pid, err := m.PID()
	if err != nil {
		return nil, err
	}
	command := exec.CommandContext(ctx, m.Binary, append([]string{"join", m.Spec.Cgroup, "nsenter", "-t", strconv.Itoa(pid), "-a", "--"}, args...)...)
	command.Env = append(machineEnvironment(), "TERM=dumb")
	command.WaitDelay = time.Second
	return command, nil
}

// Join is what `machined join CGROUP COMMAND...` does: it becomes the command,
// in the machine's cgroups. It returns only with an error.
func Join(cgroup string, command []string) error {
	if err := enterCgroups(cgroup); err != nil {
		return err
	}
	path, err := exec.LookPath(command[0])
	if err != nil {
		return err
	}
	return syscall.Exec(path, command, os.Environ())
}

// InNetns runs fn on a thread inside the machine's network namespace. Sockets
// that fn opens belong to it for good; fn must not start goroutines that need it.
func (m *Machine) InNetns(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		result <- func() error {
			ns, err := os.Open(m.NetnsPath())
			if err != nil {
				return fmt.Errorf("machine %s: %w", m.Spec.Name, err)
			}
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			if err := errors.Join(err, ns.Close()); err != nil {
				return fmt.Errorf("enter network of machine %s: %w", m.Spec.Name, err)
			}
			return fn()
		}()
	}()
	return <-result
}
