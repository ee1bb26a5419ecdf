package fast_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

// childVariable makes the test binary the process that connections move to.
const childVariable = "HEDDLE_TEST_THAWS"

// What the child says, a byte each.
const (
	saysReady  = 'r'
	saysThawed = 't'
	saysDone   = 'd' // a stream ended in good order
	saysFailed = 'f' // one did not, or could not be thawed
)

// sendFrozen writes a connection: its files come with the first bytes.
func sendFrozen(c *net.UnixConn, f *hbone.Frozen) error {
	head := binary.BigEndian.AppendUint32(nil, uint32(len(f.State)))
	head = binary.BigEndian.AppendUint32(head, uint32(len(f.Data)))
	if _, _, err := c.WriteMsgUnix(head, unix.UnixRights(f.Files...), nil); err != nil {
		return err
	}
	_, err := c.Write(append(append([]byte(nil), f.State...), f.Data...))
	return err
}

func receiveFrozen(c *net.UnixConn) (*hbone.Frozen, error) {
	head, rights := make([]byte, 8), make([]byte, unix.CmsgSpace(4*253))
	n, k, _, _, err := c.ReadMsgUnix(head, rights)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	if n < len(head) {
		return nil, errors.New("half a head")
	}
	messages, err := unix.ParseSocketControlMessage(rights[:k])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("%d control messages: %w", len(messages), err)
	}
	f := &hbone.Frozen{State: make([]byte, binary.BigEndian.Uint32(head)), Data: make([]byte, binary.BigEndian.Uint32(head[4:]))}
	if f.Files, err = unix.ParseUnixRights(&messages[0]); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(c, f.State); err != nil {
		return nil, err
	}
	_, err = io.ReadFull(c, f.Data)
	return f, err
}

// thawingProcess is the child: it thaws what comes on descriptor 3 until its
// end, and says what becomes of the streams.
func thawingProcess() int {
	file := os.NewFile(3, "connections")
	conn, err := net.FileConn(file)
	if err != nil {
		return 2
	}
	file.Close()
	c := conn.(*net.UnixConn)
	var saying sync.Mutex
	say := func(what byte) {
		saying.Lock()
		defer saying.Unlock()
		_, _ = c.Write([]byte{what}) // the parent notices what is missing
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 2
	}
	ready := &movingListener{TCPListener: l.(*net.TCPListener), accepting: make(chan struct{}), stopped: make(chan struct{})}
	engine := newFastEngine().(hbone.Mover)
	served := make(chan error, 1)
	go func() {
		served <- engine.Serve(ready, &hbone.Server{
			Local: "server", Certificate: func() (*tls.Certificate, error) { return nil, errors.New("no new connections") },
		})
	}()
	<-ready.accepting
	say(saysReady)
	adopt := func([]byte) (*hbone.Adopted, error) {
		return &hbone.Adopted{Done: func(o hbone.Outcome) {
			if o.Err != nil {
				fmt.Fprintln(os.Stderr, "stream:", o.Err)
				say(saysFailed)
				return
			}
			say(saysDone)
		}}, nil
	}
	for {
		f, err := receiveFrozen(c)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = engine.Thaw(f, hbone.ThawContext{Adopt: adopt})
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "thaw:", err)
			say(saysFailed)
			continue
		}
		say(saysThawed)
	}
	ctx, cancel := context.WithTimeout(context.Background(), moveWait)
	defer cancel()
	if err := errors.Join(engine.Close(ctx), <-served); err != nil {
		fmt.Fprintln(os.Stderr, "close:", err)
		return 1
	}
	return 0
}

// child is a process that thaws.
type child struct {
	t    *testing.T
	conn *net.UnixConn
	says chan byte
}

func startChild(t *testing.T) *child {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "parent"), os.NewFile(uintptr(pair[1]), "child")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=1")
	cmd.ExtraFiles, cmd.Stderr = []*os.File{theirs}, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	c := &child{t: t, conn: conn.(*net.UnixConn), says: make(chan byte, 64)}
	var reading sync.WaitGroup
	reading.Go(func() {
		b := make([]byte, 1)
		for {
			if _, err := c.conn.Read(b); err != nil {
				close(c.says)
				return
			}
			c.says <- b[0]
		}
	})
	t.Cleanup(func() {
		kill := time.AfterFunc(moveWait, func() { _ = cmd.Process.Kill() }) // fails when it has ended
		defer kill.Stop()
		if err := c.conn.CloseWrite(); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("the other process: %v", err)
		}
		c.conn.Close()
		reading.Wait()
	})
	c.expect(saysReady)
	return c
}

func (c *child) expect(what byte) {
	c.t.Helper()
	select {
	case got := <-c.says:
		if got != what {
			c.t.Fatalf("the other process says %q, want %q", got, what)
		}
	case <-time.After(moveWait):
		c.t.Fatalf("the other process does not say %q", what)
	}
}

// TestMoveToProcess gives both ends' connections to a process that has nothing
// but what it is sent, while bytes flow.
func TestMoveToProcess(t *testing.T) {
	c := startChild(t)
	w := newWorld(t, newFastEngine, newFastEngine)
	var stop atomic.Bool
	bulk, talker := w.mustOpen(), w.mustOpen()
	failed, talked := bulk.bulk(&stop, 1), talkingOnly(talker, &stop)
	for _, s := range []*site{w.client, w.server} {
		if s.server != nil {
			s.stopAccepting()
		}
		ctx, cancel := context.WithTimeout(context.Background(), moveWait)
		err := s.engine.(hbone.Mover).Freeze(ctx, func(batch []*hbone.Frozen) error {
			for _, f := range batch {
				if err := sendFrozen(c.conn, f); err != nil {
					return err
				}
				c.expect(saysThawed)
			}
			return nil
		})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond) // bytes flow through the other process
	}
	stop.Store(true)
	for _, failed := range []<-chan error{failed, failed, talked} {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	for range 4 { // both ends of two streams
		c.expect(saysDone)
	}
	if w.client.owners.left != 2 || w.server.owners.left != 2 {
		t.Errorf("%d and %d owners left, want 2 and 2", w.client.owners.left, w.server.owners.left)
	}
}

// talkingOnly is talking for a stream whose outcome is another process's.
func talkingOnly(f *moveFlow, stop *atomic.Bool) <-chan error {
	failed := make(chan error, 1)
	go func() {
		for i := 0; !stop.Load(); i++ {
			if err := f.echo(fmt.Sprintf("message %d", i)); err != nil {
				failed <- err
				return
			}
		}
		failed <- errors.Join(f.program.CloseWrite(), f.app.CloseWrite())
	}()
	return failed
}
