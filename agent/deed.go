package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The node's agent is the one that has RUN_DIR/agent.lock locked (flock(2)): two
// that start at the same instant know nothing else of each other. The lock is of
// an open file, not of a process: a donor gives the file to its successor with
// the last connection, so that somebody has it at every moment, and the kernel
// takes it from an agent that dies.

// deedWithin is how long the end of a process that had it is waited for, and how
// long one that has it and does not answer yet.
const deedWithin = time.Second

func (a *Agent) deedPath() string { return filepath.Join(a.cfg.RunDir, "agent.lock") }

// claim locks the file, or returns nil and the process that has it locked, 0 when
// that did not say.
func claim(path string) (deed *os.File, holder int, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, 0, fmt.Errorf("lock the node for this agent: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		text, _ := os.ReadFile(path)                              // it may be about to say so
		holder, _ = strconv.Atoi(strings.TrimSpace(string(text))) // or has not: 0
		return nil, holder, f.Close()
	}
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return f, 0, sign(f)
}

// sign writes down whose the file is, for people.
func sign(deed *os.File) error {
	_, err := deed.WriteAt([]byte(fmt.Sprintf("%-10d\n", os.Getpid())), 0)
	if err != nil {
		return fmt.Errorf("say which process has the node locked: %w", err)
	}
	return nil
}

// claimSoon is claim that waits a moment for whoever ends.
func (a *Agent) claimSoon(ctx context.Context) (*os.File, error) {
	for limit := time.Now().Add(deedWithin); ; {
		deed, holder, err := claim(a.deedPath())
		switch {
		case deed != nil || err != nil:
			return deed, err
		case time.Now().After(limit):
			return nil, a.held(holder)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// held says that another process is the node's agent.
func (a *Agent) held(holder int) error {
	who, kill := "another process", "it"
	if holder > 0 {
		who, kill = fmt.Sprintf("process %d", holder), fmt.Sprintf("it (kill %d)", holder)
	}
	return fmt.Errorf("%s is this node's agent: it has %s locked; remedy: wait until it answers at %s and start this one again to take over from it (--take-over=auto), or stop %s first",
		who, a.deedPath(), a.handoverSocket(), kill)
}
