package agent_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestStartWaits: an agent whose start somebody holds up says what it waits for and by
// whom it is held up, ends when it is told to, and starts when there is nobody any more.
func TestStartWaits(t *testing.T) {
	w := newWorld(t)
	n := w.n1
	// /run is a tmpfs on many machines, where no turn is needed to mount one.
	keys, group := filepath.Join(t.TempDir(), "keys"), t.TempDir()
	if err := errors.Join(os.Mkdir(keys, 0o700), unix.Mkfifo(filepath.Join(group, "cgroup.procs"), 0o600)); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Open(keys)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	leave := sync.OnceFunc(func() { t.Cleanup(n.leave) })
	for what, c := range map[string]struct {
		change func(*agent.Config)
		want   string
	}{
		// An open FIFO that nobody writes stands for a lock in the kernel.
		"the kernel": {func(c *agent.Config) { c.Kernel.Cgroup = group }, "waiting for the kernel to move the agent into its cgroup"},
		"a lock":     {func(c *agent.Config) { c.KeyDir = keys }, "waiting for the lock of the key directory"},
	} {
		n.start(c.change)
		leave() // after the cgroup that start makes
		testenv.Eventually(t, 20*time.Second, "it says that it waits for "+what, func() bool {
			log, err := os.ReadFile(n.log)
			return err == nil && strings.Contains(string(log), c.want)
		})
		begun := time.Now()
		if err := n.end(syscall.SIGTERM); err != nil {
			t.Errorf("told to end while it waits for %s: %v", what, err)
		}
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("it took %v to end while it waits for %s", took, what)
		}
	}
	n.start()
	n.await("enrolled")
}
