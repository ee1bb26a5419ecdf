package overdue

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// memory is a log that a test reads.
type memory struct{ testenv.Log }

func (m *memory) logger() *slog.Logger { return slog.New(slog.NewTextHandler(m, nil)) }

// TestQuick: what does not take long is not spoken of.
func TestQuick(t *testing.T) {
	var log memory
	n, err := Do(t.Context(), log.logger(), Step{What: "for nothing", Within: time.Minute}, func() (int, error) { return 7, nil }, nil)
	if n != 7 || err != nil || log.String() != "" {
		t.Errorf("%d, %v, said %q", n, err, log.String())
	}
	broken := errors.New("broken")
	if _, err := Do(t.Context(), log.logger(), Step{}, func() (int, error) { return 0, broken }, nil); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// TestSaid: a wait is spoken of after a second, and again, and no more when it is over.
func TestSaid(t *testing.T) {
	var log memory
	stop := Say(log.logger(), "for the end", func() []any { return []any{"by", "a test"} })
	testenv.Eventually(t, 5*time.Second, "it says so twice", func() bool { return strings.Count(log.String(), "waiting for the end") >= 2 })
	stop()
	before := log.String()
	if !strings.Contains(before, `by="a test"`) || !regexp.MustCompile(`for=1(\.\d)?s`).MatchString(before) {
		t.Errorf("said %q", before)
	}
	stop() // may be called again
	time.Sleep(2500 * time.Millisecond)
	if log.String() != before {
		t.Errorf("it goes on: %q", log.String())
	}
}

// TestBlocked: a step that no context reaches ends with its bound or its context all
// the same, is said to be waited for, and what it makes in the end is dropped.
func TestBlocked(t *testing.T) {
	for name, c := range map[string]struct {
		within, until time.Duration
		want          string
	}{
		"bound":   {4 * time.Second, time.Minute, "remedy: look at the lock"},
		"context": {time.Minute, 500 * time.Millisecond, "enough"},
	} {
		t.Run(name, func(t *testing.T) {
			lock, release := blocker(t)
			var log memory
			ctx, cancel := context.WithTimeoutCause(t.Context(), c.until, errors.New("enough"))
			defer cancel()
			dropped := make(chan int, 1)
			begun := time.Now()
			_, err := Do(ctx, log.logger(), Step{What: "for the lock", Within: c.within, Remedy: "look at the lock"}, func() (int, error) {
				return 7, unix.Flock(int(lock.Fd()), unix.LOCK_EX)
			}, func(n int) { dropped <- n })
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "for the lock") {
				t.Errorf("got %v", err)
			}
			if took := time.Since(begun); took > 15*time.Second {
				t.Errorf("it took %v", took)
			}
			if said := log.String(); !strings.Contains(said, "waiting for the lock") || os.Geteuid() == 0 && !strings.Contains(said, "lock_inode_wait") {
				t.Errorf("said %q", said)
			}
			release()
			if n := <-dropped; n != 7 {
				t.Errorf("dropped %d", n)
			}
		})
	}
}

// blocker returns a file whose flock(2) blocks until release is called, or the test
// ends.
func blocker(t *testing.T) (lock *os.File, release func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lock")
	open := func() *os.File {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	held := open()
	if err := unix.Flock(int(held.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	return open(), func() { held.Close() }
}

// TestHolder finds who has a lock.
func TestHolder(t *testing.T) {
	lock, release := blocker(t)
	if got := Holder(lock); !strings.HasPrefix(got, strconv.Itoa(os.Getpid())+" (") || !strings.Contains(got, ", state ") {
		t.Errorf("held by %q, want this process, %d", got, os.Getpid())
	}
	release()
	if got := Holder(lock); got != "nobody who can be seen" {
		t.Errorf("held by %q, want nobody", got)
	}
	if got := Process(1 << 30); got != "1073741824 (gone)" {
		t.Errorf("a process that there cannot be: %q", got)
	}
}

func TestHolderIn(t *testing.T) {
	const locks = `1: POSIX  ADVISORY  WRITE 11 fe:00:77 0 EOF
2: FLOCK  ADVISORY  WRITE 12 fe:00:177 0 EOF
3: FLOCK  ADVISORY  WRITE 13 fe:00:77 0 EOF
3: -> FLOCK  ADVISORY  WRITE 14 fe:00:77 0 EOF
4: FLOCK  ADVISORY  READ  0 fe:00:99 0 EOF
5: junk
`
	for inode, want := range map[uint64]int{77: 13, 177: 12, 99: 0, 5: 0} {
		if got := holderIn(locks, inode); got != want {
			t.Errorf("inode %d: %d, want %d", inode, got, want)
		}
	}
}

func TestWaitIn(t *testing.T) {
	for stack, want := range map[string]string{
		"[<0>] rtnl_lock+0x15/0x20\n[<0>] x+0x1/0x2\n": "rtnl_lock",
		"[<0>] futex_wait_queue+0x60/0x90\n":           "", "": "", "junk": "",
	} {
		if got := waitIn(stack); got != want {
			t.Errorf("%q: %q, want %q", stack, got, want)
		}
	}
}
