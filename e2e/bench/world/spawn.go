package world

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// spawner starts processes that end with this one, however it ends. The kernel
// ends them with the thread that started them (PR_SET_PDEATHSIG of prctl(2)), so
// one thread, kept until close, starts them all.
type spawner struct {
	requests  chan func()
	processes []*Process
}

// Process is a program that runs until it is stopped.
type Process struct {
	cmd *exec.Cmd
	// done is closed when the process has ended.
	done chan struct{}
}

func newSpawner() *spawner {
	s := &spawner{requests: make(chan func())}
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for request := range s.requests {
			request()
		}
	}()
	return s
}

// start starts a command whose output goes to a file.
func (s *spawner) start(cmd *exec.Cmd, log string) (*Process, error) {
	file, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer file.Close() // the child has its own
	cmd.Stdout, cmd.Stderr = file, file
	// Its standard input stays open as long as this process lives.
	if _, err := cmd.StdinPipe(); err != nil {
		return nil, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
	started := make(chan error)
	s.requests <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	go func() { defer close(p.done); _ = cmd.Wait() }() // ended by stop: its status says nothing
	s.processes = append(s.processes, p)
	return p, nil
}

// stop ends a process, politely first.
func (p *Process) stop() {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		_ = syscall.Kill(-p.cmd.Process.Pid, signal) // it may have ended by itself
		select {
		case <-p.done:
			return
		case <-time.After(2 * time.Second):
		}
	}
}

// close ends all processes.
func (s *spawner) close() {
	for _, p := range s.processes {
		p.stop()
	}
	s.processes = nil
	close(s.requests)
}
