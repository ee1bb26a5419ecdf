package testenv

import (
	"os/exec"
	"runtime"
	"testing"
)

// StartBound starts a command from a thread that lives as long as the command
// does, and returns a channel that is closed when it has ended. What is to end
// with its parent (PR_SET_PDEATHSIG of prctl(2), as Envoy asks for by itself, or
// cmd.SysProcAttr.Pdeathsig) ends with the thread that started it, and Go's
// threads end early where they were in another network namespace. The caller
// ends the command. It may be called from the test's goroutine only.
func StartBound(t testing.TB, cmd *exec.Cmd) (ended <-chan struct{}) {
	t.Helper()
	started, over := make(chan error), make(chan struct{})
	go func() {
		defer close(over)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // killed
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("start %s: %v", cmd, err)
	}
	return over
}
