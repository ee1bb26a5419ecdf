// Package deed says which process is a node's agent: the one that has
// RUN_DIR/agent.lock locked (flock(2)). Two that start at the same instant know
// nothing else of each other. The lock is of an open file, not of a process: a donor
// gives the file to its successor with the last connection, so that somebody has it
// at every moment, and the kernel takes it from an agent that dies.
//
// Its functions are safe for concurrent use.
package deed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// within is how long the end of a process that had it is waited for, and how
// long one that has it and does not answer yet.
const within = time.Second

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
	return f, 0, Sign(f)
}

// Sign writes down that the file is this process's, for people.
func Sign(deed *os.File) error {
	_, err := deed.WriteAt([]byte(fmt.Sprintf("%-10d\n", os.Getpid())), 0)
	if err != nil {
		return fmt.Errorf("say which process has the node locked: %w", err)
	}
	return nil
}

// Claim locks the file at path, and waits a moment for whoever ends. Whoever closes
// the file gives the node up.
func Claim(ctx context.Context, path string) (*os.File, error) {
	for limit := time.Now().Add(within); ; {
		deed, holder, err := claim(path)
		switch {
		case deed != nil || err != nil:
			return deed, err
		case time.Now().After(limit):
			return nil, held(path, holder)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// held says that another process is the node's agent.
func held(path string, holder int) error {
	who, kill := "another process", "it"
	if holder > 0 {
		who, kill = fmt.Sprintf("process %d", holder), fmt.Sprintf("it (kill %d)", holder)
	}
	return fmt.Errorf("%s is this node's agent: it has %s locked; remedy: wait until it answers at %s and start this one again to take over from it (--take-over=auto), or stop %s first",
		who, path, filepath.Join(filepath.Dir(path), "handover.sock"), kill)
}

// How often it is looked whether the node has an agent, and for how many looks there
// must have been none.
const (
	look  = time.Second
	looks = 5
)

// AwaitNobody waits until the node has had no agent for some seconds, which is true,
// or ctx is done.
func AwaitNobody(ctx context.Context, path string, log *slog.Logger) bool {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for free := 0; free < looks; {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
		if nobodys(path, log) {
			free++
		} else {
			free = 0
		}
	}
	return true
}

func nobodys(path string, log *slog.Logger) bool {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if err != nil {
		log.Warn("it is not known whether this node has an agent", "error", err)
		return false
	}
	defer f.Close() // and with it the lock
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil
}
