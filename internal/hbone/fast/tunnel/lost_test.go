package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/frozen"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
	"github.com/heddle-mesh/heddle/internal/hbone/tlsrecord"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// ends counts what a connection's role hears.
type ends struct{ left, ended int }

func (*ends) Ready()                           {}
func (*ends) Request(*Stream, h2.Header) Owner { return nobody{} }
func (*ends) Refuse(error)                     {}
func (e *ends) Leave(error)                    { e.left++ }
func (e *ends) Ended()                         { e.ended++ }
func (*ends) Freeze(*frozen.Conn)              {}
func (*ends) Left()                            {}

// nobody owns the streams of these tests.
type nobody struct{}

func (nobody) Answered(*Stream)                      {}
func (nobody) Repeat(error) bool                     { return false }
func (nobody) Ended(*Stream, error)                  {}
func (nobody) Movable() bool                         { return false }
func (nobody) Freeze() ([]byte, hbone.Timing, error) { return nil, hbone.Timing{}, nil }
func (nobody) Left()                                 {}

// connection is a client's, on a loop that does not run, with its peer's socket.
func connection(t *testing.T, memory *hbone.Memory, role Role) (*Conn, int) {
	t.Helper()
	l, err := NewLoop()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	keys := func(b byte) tlsrecord.Keys {
		secret := make([]byte, 32)
		secret[0] = b
		return tlsrecord.Keys{Suite: tls.TLS_AES_128_GCM_SHA256, Secret: secret}
	}
	session, err := tlsrecord.New(tlsrecord.State{In: keys(1), Out: keys(2)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Add(&Secured{FD: fds[0], Session: session}, Config{
		Patience: time.Hour, IdleTimeout: time.Hour, PingInterval: time.Hour, PingTimeout: time.Hour, WriteTimeout: time.Hour,
		StreamWindow: 1 << 20, ConnectionWindow: 4 << 20, Memory: memory, HeaderBytes: 1 << 14,
	}, role)
	if err != nil {
		t.Fatal(err)
	}
	return c, fds[1]
}

// TestLostWithAFullBuffer: the end of a connection's last stream, while it is being
// lost and its buffer is full, ends it once. A descriptor that was closed twice
// might be somebody else's by then.
func TestLostWithAFullBuffer(t *testing.T) {
	const limit = 64 << 20
	memory, role := hbone.NewMemory(limit), &ends{}
	c, peer := connection(t, memory, role)
	c.newStream(1).owner = nobody{}
	for c.out.Fits(h2.MaxFrame / 2) {
		c.raw(make([]byte, h2.MaxFrame/2))
	}
	if err := unix.Close(peer); err != nil { // writing fails from now on
		t.Fatal(err)
	}
	c.lost(errors.New("for a test"))
	if role.ended != 1 || role.left != 1 || len(c.streams) > 0 {
		t.Errorf("ended %d times, left %d times, %d streams", role.ended, role.left, len(c.streams))
	}
	if !memory.Promise(hbone.Connections, limit/2) || memory.Promise(hbone.Connections, 1) {
		t.Error("the window was not given back once")
	}
}

// TestLostHoldsNothing: what is written to a connection that was just lost is in no
// budget, however the turn goes on.
func TestLostHoldsNothing(t *testing.T) {
	memory := hbone.NewMemory(64 << 20)
	c, peer := connection(t, memory, &ends{})
	c.account()
	if memory.Used() == 0 {
		t.Fatal("the budget does not know of the open buffer")
	}
	if err := unix.Close(peer); err != nil {
		t.Fatal(err)
	}
	c.lost(context.Canceled)
	c.ping([8]byte{}, false)
	c.account() // as at the end of a read
	if used := memory.Used(); used != 0 {
		t.Errorf("%d bytes are taken for ever", used)
	}
}
