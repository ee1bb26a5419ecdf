// Package relay carries bytes between two TCP connections in one process.
//
// It carries the end of each direction as it was: FIN becomes FIN of that
// direction only, RST becomes RST. Idle connections hold no buffer and no pipe:
// small messages go through a pooled buffer, bulk goes through a pooled pipe
// with splice(2) and is never copied to user space. A direction whose reader is
// slow holds one buffer or one pipe of bytes, and reads no more until they are
// gone. What an end said before its RST arrives before it, if its reader takes it
// within three seconds. Live pairs can move to another process. It knows nothing of addresses,
// identities or policy.
//
// Pairs live on event loops, one for each processor, and no goroutine is theirs.
// A Relay and a Carrying are safe for concurrent use.
package relay

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

var (
	// ErrReset is the outcome when one end reset its connection, or when the
	// pair was cut.
	ErrReset = errors.New("connection reset")
	// ErrClosed is Start's, Freeze's and Thaw's answer after Close.
	ErrClosed = errors.New("relay is closed")
)

const (
	bufferBytes = 32 << 10
	// spliceBytes bounds one splice, and so what a direction holds; pipeBytes is
	// what a pipe should hold. The kernel counts a pipe's pages, not bytes.
	spliceBytes, pipeBytes = 1 << 20, 256 << 10
	// bulkBytes: less than this in one turn and a direction is no longer bulk.
	bulkBytes = 8 << 10
)

// Relay owns the buffers and pipes that connections share, and the loops that
// the connections live on.
type Relay struct {
	buffers sync.Pool
	pipes   struct {
		sync.Mutex
		free []*pipe
		// open counts free and used ones, limit bounds it: each is two
		// descriptors.
		open, limit int
	}
	loops struct {
		sync.Mutex
		workers []*worker // as many as there are processors, from the first Start
		next    int       // the one for the next pair
		closed  bool
	}
	// patience is lastWordsWithin.
	patience time.Duration
	moving   sync.RWMutex // held by Freeze and Thaw, which Close waits for
}

type pipe struct{ r, w int }

// New returns a Relay that opens at most pipes pipes; bulk beyond that goes
// through buffers. 0 never splices. It starts nothing: loops begin with the
// first Start or Thaw, and end with Close.
func New(pipes int) *Relay {
	r := &Relay{patience: lastWordsWithin, buffers: sync.Pool{New: func() any { b := make([]byte, bufferBytes); return &b }}}
	r.pipes.limit = pipes
	return r
}

// Close resets the pairs that are left and waits until their loops have ended;
// a Freeze or Thaw under way comes first. It must not be called from a done.
func (r *Relay) Close() {
	r.moving.Lock()
	defer r.moving.Unlock()
	r.stopLoops()
	r.pipes.Lock()
	defer r.pipes.Unlock()
	for _, p := range r.pipes.free {
		p.close()
	}
	r.pipes.open -= len(r.pipes.free)
	r.pipes.free = nil
}

// Pair is two connections to join.
type Pair struct {
	A, B *net.TCPConn
	// Sent counts bytes from A to B, Received from B to A, while they flow.
	Sent, Received *atomic.Uint64
	// Measure, when not nil, is called once before the sockets that were A and B
	// are closed or reset, with their descriptors. They can still be asked for
	// their TCP_INFO, must not be used for anything else, and are gone when it has
	// returned.
	Measure func(a, b int)
	// Owner, when not nil, lets the pair move to another process.
	Owner hbone.Owner
}

// Reset closes a connection with RST instead of FIN.
func Reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // fails only on a connection that is closed already
	_ = c.Close()      // closing an abandoned connection has no one to report to
}

// Abort resets a connection that another part of the program owns: the peer
// gets an RST, the owner's reads and writes fail with ECONNRESET, and the
// descriptor stays the owner's to close.
func Abort(c *net.TCPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return // not a socket any more
	}
	_ = raw.Control(func(fd uintptr) { disconnect(int(fd)) }) // fails only when closed, which is what was wanted
}

// disconnect resets a connection, whoever else has its socket. It is connect(2)
// with AF_UNSPEC (net/ipv4/af_inet.c, tcp_disconnect).
func disconnect(fd int) {
	sa := unix.RawSockaddrInet4{Family: unix.AF_UNSPEC}
	// Fails only on what is no connection any more.
	_, _, _ = syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet4)
}

func spliceOnce(from, to, n int) (int, error) {
	moved, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
	return int(moved), err
}

func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return n, err
		}
	}
}

// translate gives the ways in which a connection dies under us one name.
func translate(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE), errors.Is(err, net.ErrClosed), errors.Is(err, unix.ENOTCONN):
		return ErrReset
	default:
		return err
	}
}
