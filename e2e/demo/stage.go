package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// stage is what the acts share: where things are, and what is running.
type stage struct {
	root, name, scratch, mesh string
	started                   time.Time
	programs                  []*program
	capture                   *exec.Cmd
	captureSaid               *bytes.Buffer
}

// program is a process that the demo started in a pod.
type program struct {
	pod string
	cmd *exec.Cmd
	// done is closed when the process has ended.
	done chan struct{}
}

func (s *stage) binary(name string) string { return filepath.Join(s.root, "bin", name) }

// heddle runs the command line and returns what it printed.
func (s *stage) heddle(ctx context.Context, args ...string) (string, error) {
	return output(exec.CommandContext(ctx, s.binary("heddle"), args...))
}

// inPod is a command that runs in a pod's network namespace.
func (s *stage) inPod(ctx context.Context, pod string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, s.binary("heddle"), append([]string{"exec", "--name", s.name, pod, "--"}, args...)...)
}

// output runs a command; its error has the last line of what it complained of.
func output(cmd *exec.Cmd) (string, error) {
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		lines := strings.Split(strings.TrimSpace(complaint.String()+"\n"+out.String()), "\n")
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.Join(lines[max(0, len(lines)-3):], " / "))
	}
	return out.String(), nil
}

// start runs a program in a pod until stopPrograms; its output goes to a file.
func (s *stage) start(pod string, args ...string) error {
	logFile, err := os.Create(filepath.Join(s.scratch, strings.ReplaceAll(pod, "/", "-")+".log"))
	if err != nil {
		return err
	}
	defer logFile.Close() // the child has its own
	cmd := s.inPod(context.Background(), pod, args...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s in %s: %w", args[0], pod, err)
	}
	p := &program{pod: pod, cmd: cmd, done: make(chan struct{})}
	go func() { defer close(p.done); _ = cmd.Wait() }() // ended by stopPrograms: its status says nothing
	s.programs = append(s.programs, p)
	return nil
}

// stopPrograms ends what start began, first politely.
func (s *stage) stopPrograms() {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		for _, p := range s.programs {
			_ = syscall.Kill(-p.cmd.Process.Pid, sig) // it may have ended by itself
		}
		deadline := time.After(5 * time.Second)
		for _, p := range s.programs {
			select {
			case <-p.done:
			case <-deadline:
			}
		}
	}
}

// eventually asks until ask succeeds or the limit has passed.
func eventually(ctx context.Context, limit time.Duration, what string, ask func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := ask()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %v: %w", what, limit, err)
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
