package handover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/admin/rootsocket"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// mortalAt, in the environment, makes the test binary a successor of the donor at
// that socket, which stops in the middle of its self-test for ever.
const mortalAt = "HEDDLE_TEST_MORTAL"

func TestMain(m *testing.M) {
	if socket := os.Getenv(mortalAt); socket != "" {
		os.Exit(beMortal(socket))
	}
	if socket := os.Getenv(silentAt); socket != "" {
		os.Exit(beSilent(socket))
	}
	testenv.Main(m)
}

// silentAt, in the environment, makes the test binary an agent that listens there and
// never answers, as one does whose last thread cannot leave the kernel.
const silentAt = "HEDDLE_TEST_SILENT"

func beSilent(socket string) int {
	l, err := rootsocket.Listen(socket, slog.New(slog.DiscardHandler))
	if err != nil {
		return 1
	}
	defer l.Close()
	time.Sleep(time.Minute) // it is killed before
	return 0
}

// TestSilentDonor: a successor says for whom it waits, stops when it is told to, and
// finds nobody when that one has ended.
func TestSilentDonor(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), silentAt+"="+socket)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	reap := sync.OnceFunc(func() { _ = child.Process.Kill(); _ = child.Wait() }) // with the signal's status
	t.Cleanup(reap)
	testenv.Eventually(t, 10*time.Second, "it listens", func() bool { _, err := os.Stat(socket); return err == nil })
	dial := func(ctx context.Context) (string, error) {
		var log bytes.Buffer // read when nobody writes any more
		s, err := Dial(ctx, SuccessorConfig{Socket: socket, Self: Self{Node: "n1"}, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err == nil {
			s.Close()
		}
		return log.String(), err
	}
	who := fmt.Sprintf(`process="%d (`, child.Process.Pid)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	if said, err := dial(ctx); err == nil || errors.Is(err, ErrNobody) || !strings.Contains(said, "waiting for the agent that runs to answer") || !strings.Contains(said, who) {
		t.Errorf("told to stop: %v, said %q", err, said)
	}
	time.AfterFunc(200*time.Millisecond, reap)
	if _, err := dial(t.Context()); !errors.Is(err, ErrNobody) {
		t.Errorf("it was killed: %v", err)
	}
	if _, err := dial(t.Context()); !errors.Is(err, ErrNobody) {
		t.Errorf("it is gone: %v", err)
	}
}

func beMortal(socket string) int {
	s, err := Dial(context.Background(), SuccessorConfig{Socket: socket, Self: Self{Node: "n1", Layout: "v1", Engine: "loop", Moves: true, PID: os.Getpid()}, Mortal: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return 1
	}
	if _, err := s.Estate(func([][]byte) {}); err != nil {
		return 1
	}
	os.Stdout.WriteString("begun\n")
	if os.Getenv("HEDDLE_TEST_LISTENS") != "" {
		lost, _ := s.Watch()
		<-lost
		return 7
	}
	select {}
}

// TestFence: a successor that is given up has ended before the donor takes
// anything up again; one that listens, by itself.
func TestFence(t *testing.T) {
	for name, c := range map[string]struct {
		env  []string
		want func(*os.ProcessState) bool
	}{
		"deaf":    {nil, func(s *os.ProcessState) bool { return s.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL }},
		"listens": {[]string{"HEDDLE_TEST_LISTENS=1"}, func(s *os.ProcessState) bool { return s.ExitCode() == 7 }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1, func(c *DonorConfig) { c.Timeouts.Test, c.Timeouts.TestPod = 300*time.Millisecond, time.Millisecond })
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(append(os.Environ(), mortalAt+"="+w.socket), c.env...)
			ended := make(chan error, 1)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			process, err := unix.PidfdOpen(cmd.Process.Pid, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(process)
			w.giver.resumed = func() {
				watched := []unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}
				if n, err := unix.Poll(watched, 0); n != 1 {
					t.Errorf("the donor goes on beside its successor (%v)", err)
				}
			}
			go func() { ended <- cmd.Wait() }()
			testenv.Eventually(t, 20*time.Second, "the donor goes on", func() bool { return strings.Contains(w.giver.took(), "resume") })
			<-ended
			if !c.want(cmd.ProcessState) {
				t.Errorf("it ended with %v", cmd.ProcessState)
			}
		})
	}
}

// TestStuck: a successor that answers nothing in time for too long is lost, and
// the donor goes on with what did not move.
func TestStuck(t *testing.T) {
	w := newWorld(t, 2, func(c *DonorConfig) { c.Timeouts.Rest, c.Timeouts.Stuck = 10*time.Millisecond, 60*time.Millisecond })
	w.giver.patience = 1000
	k := newTaker(t)
	k.slow = time.Second
	s := w.successor(t, k, nil)
	if _, err := s.Ready(); err != nil {
		t.Fatal(err)
	}
	if sum, err := s.Receive(k); err == nil {
		t.Errorf("it took over: %+v", sum)
	}
	testenv.Eventually(t, 5*time.Second, "the donor goes on", func() bool { return strings.Contains(w.giver.took(), "resume") })
	for name, fd := range w.giver.mine {
		w.alive(t, name, fd)
	}
}

// TestDeed: the file that makes an agent the node's goes with the last
// connection, lock and all.
func TestDeed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	deed, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(deed.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	w, k := newWorld(t, 2, func(c *DonorConfig) { c.Deed = deed }), newTaker(t)
	s := w.successor(t, k, nil)
	if _, err := s.Ready(); err != nil {
		t.Fatal(err)
	}
	sum, err := s.Receive(k)
	if err != nil || sum.Deed == nil {
		t.Fatalf("%+v, %v", sum, err)
	}
	s.Taken()
	w.given <- <-w.given
	third, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	deed.Close()
	if err := unix.Flock(int(third.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("the lock is not the successor's: %v", err)
	}
	sum.Deed.Close()
	if err := unix.Flock(int(third.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("the lock is still held: %v", err)
	}
}
