package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// ProgramStatus is how one program of a machine fares.
type ProgramStatus struct {
	Name string `json:"name"`
	// PID is in the machine's pid namespace; 0 when it does not run.
	PID int `json:"pid"`
	// Starts counts how often it was started since the boot.
	Starts int `json:"starts"`
	// LastExit says how it ended the last time; "" when it never did.
	LastExit string `json:"lastExit,omitempty"`
}

const (
	statusFile = "programs.json"
	// restartPause is between a program's end and its next start.
	restartPause = time.Second
	// startPoll is how often a program's After is looked for.
	startPoll = 25 * time.Millisecond
)

// Programs reads how the machine's programs fare.
func (m *Machine) Programs() ([]ProgramStatus, error) {
	data, err := os.ReadFile(filepath.Join(m.Spec.Dir, statusFile))
	if err != nil {
		return nil, err
	}
	var all []ProgramStatus
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(m.Spec.Dir, statusFile), err)
	}
	if !m.Running() {
		for i := range all {
			all[i].PID = 0
		}
	}
	return all, nil
}

// supervisor keeps the programs running and reaps all orphans of the machine.
// It belongs to one goroutine.
type supervisor struct {
	spec      Spec
	status    []ProgramStatus
	notBefore []time.Time
}

func newSupervisor(spec Spec) *supervisor {
	s := &supervisor{spec: spec, notBefore: make([]time.Time, len(spec.Programs))}
	for _, p := range spec.Programs {
		s.status = append(s.status, ProgramStatus{Name: p.Name})
	}
	return s
}

func (s *supervisor) run(ctx context.Context) error {
	ended := make(chan os.Signal, 1) // one is enough: every look reaps all
	signal.Notify(ended, syscall.SIGCHLD)
	defer signal.Stop(ended)
	for {
		changed := s.reap()
		started, waiting := s.startDue(time.Now())
		if changed || started {
			if err := s.save(); err != nil {
				fmt.Fprintln(os.Stderr, err) // a full disk must not end the machine
			}
		}
		var poll <-chan time.Time
		if waiting {
			poll = time.After(startPoll)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ended:
		case <-poll:
		}
	}
}

// reap collects every child that ended, adopted ones too.
func (s *supervisor) reap() (changed bool) {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid == 0 { // no child, or none that ended
			return changed
		}
		for i := range s.status {
			if s.status[i].PID == pid {
				s.ended(i, describe(status))
				changed = true
			}
		}
	}
}

func describe(status syscall.WaitStatus) string {
	if status.Signaled() {
		return "signal: " + status.Signal().String()
	}
	return fmt.Sprintf("exit status %d", status.ExitStatus())
}

func (s *supervisor) ended(i int, how string) {
	s.status[i].PID, s.status[i].LastExit = 0, how
	s.notBefore[i] = time.Now().Add(restartPause)
	fmt.Fprintf(os.Stderr, "%s: %s ended: %s; it is started again\n", time.Now().UTC().Format(time.RFC3339), s.status[i].Name, how)
}

// startDue starts the programs whose turn it is: in order, each after what it
// waits for, and not too soon after its end.
func (s *supervisor) startDue(now time.Time) (started, waiting bool) {
	for i, program := range s.spec.Programs {
		if s.status[i].PID != 0 {
			continue
		}
		if now.Before(s.notBefore[i]) || (program.After != "" && !exists(program.After)) {
			waiting = true
			continue
		}
		pid, err := s.start(program)
		if err != nil {
			s.ended(i, err.Error())
			waiting = true
			continue
		}
		s.status[i].PID = pid
		s.status[i].Starts++
		started = true
	}
	return started, waiting
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (s *supervisor) start(program Program) (int, error) {
	path, err := exec.LookPath(program.Args[0])
	if err != nil {
		return 0, err
	}
	log, err := os.OpenFile(filepath.Join(s.spec.Dir, logDir, program.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer log.Close() // the program has its own
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close() // likewise
	group, err := programCgroup(program.Name)
	if err != nil {
		return 0, err
	}
	defer group.Close() // the program is in it by then
	child, err := os.StartProcess(path, program.Args, &os.ProcAttr{
		Files: []*os.File{null, log, log}, Env: machineEnvironment(),
		Sys: &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())},
	})
	if err != nil {
		return 0, err
	}
	pid := child.Pid
	return pid, child.Release() // reap waits for it
}

func (s *supervisor) save() error {
	data, err := json.MarshalIndent(s.status, "", "  ")
	if err != nil {
		return err
	}
	file := filepath.Join(s.spec.Dir, statusFile)
	if err := os.WriteFile(file+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}
