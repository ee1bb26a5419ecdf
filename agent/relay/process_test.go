package relay_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/relay"
)

// secondProcess says to this test's own program that it is the second process.
const secondProcess = "HEDDLE_RELAY_SECOND_PROCESS"

// message is a frozen pair on its way; its files go beside it.
type message struct{ State, Data []byte }

// TestSecondProcess moves a pair with bytes for a slow reader and one that is
// half closed to another process by SCM_RIGHTS, and ends them there.
func TestSecondProcess(t *testing.T) {
	if os.Getenv(secondProcess) != "" {
		if err := beSecond(); err != nil {
			t.Fatal(err)
		}
		return
	}
	socket, child := startSecond(t)
	r := relay.New(8)
	t.Cleanup(r.Close)
	var w world
	stuck, half := w.carry(t, r), w.carry(t, r)
	stalled := stick(t, []*carried{stuck.pair})[0]
	half.pair.server.CloseWrite()
	if _, err := io.ReadAll(half.pair.client); err != nil {
		t.Fatal(err)
	}
	err := r.Freeze(t.Context(), func(frozen []*relay.Frozen) error {
		for _, f := range frozen {
			if err := sendFrozen(socket, f); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	if stuck.left.Load() != 1 || half.left.Load() != 1 {
		t.Error("an owner was not told")
	}
	stalled.unstick(stuck.pair)
	stalled.check(t)
	stuck.pair.server.Close()
	begin(half.pair.client, half.pair.server, 16<<20, new(atomic.Bool)).check(t)
	if out, err := child(); err != nil {
		t.Fatalf("second process: %v\n%s", err, out)
	}
}

// startSecond runs this test in another process, which ends when both pairs
// have.
func startSecond(t *testing.T) (socket *net.UnixConn, wait func() ([]byte, error)) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "second's")
	defer theirs.Close()
	socket, err = unixConn(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSecondProcess$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), secondProcess+"=1")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return socket, func() ([]byte, error) {
		err := cmd.Wait()
		text, _ := os.ReadFile(out.Name()) // for a failure's message only
		return text, err
	}
}

func unixConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// sendFrozen waits until the other process goes on with the pair.
func sendFrozen(socket *net.UnixConn, f *relay.Frozen) error {
	socket.SetDeadline(time.Now().Add(20 * time.Second))
	if _, _, err := socket.WriteMsgUnix([]byte{1}, unix.UnixRights(f.Files...), nil); err != nil {
		return err
	}
	if err := json.NewEncoder(socket).Encode(message{f.State, f.Data}); err != nil {
		return err
	}
	_, err := io.ReadFull(socket, make([]byte, 1))
	return err
}

// beSecond is the second process: it goes on with two pairs until their end.
func beSecond() error {
	socket, err := unixConn(3)
	if err != nil {
		return err
	}
	defer socket.Close()
	socket.SetDeadline(time.Now().Add(20 * time.Second))
	r := relay.New(8)
	defer r.Close()
	done := make(chan error, 2)
	for range 2 {
		f, err := receiveFrozen(socket)
		if err != nil {
			return err
		}
		_, err = r.Thaw(f, func([]byte) (*relay.Adopted, error) {
			return &relay.Adopted{Sent: new(atomic.Uint64), Received: new(atomic.Uint64), Done: func(err error) { done <- err }}, nil
		})
		if err != nil {
			return err
		}
		if _, err := socket.Write([]byte{1}); err != nil {
			return err
		}
	}
	for range 2 {
		select {
		case err := <-done:
			if err != nil {
				return err
			}
		case <-time.After(30 * time.Second):
			return os.ErrDeadlineExceeded
		}
	}
	return nil
}

func receiveFrozen(socket *net.UnixConn) (*relay.Frozen, error) {
	oob := make([]byte, unix.CmsgSpace(2*4))
	_, n, _, _, err := socket.ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		return nil, err
	}
	control, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(control) != 1 {
		return nil, fmt.Errorf("%d control messages: %w", len(control), err)
	}
	files, err := unix.ParseUnixRights(&control[0])
	if err != nil {
		return nil, err
	}
	var m message
	if err := json.NewDecoder(socket).Decode(&m); err != nil {
		return nil, err
	}
	return &relay.Frozen{State: m.State, Data: m.Data, Files: files}, nil
}
