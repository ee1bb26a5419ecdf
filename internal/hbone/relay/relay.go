// Package relay joins the two ends of one stream, a TCP connection and an
// HTTP/2 stream, for engines that give each direction a goroutine: it decides
// how the stream ends, once, and carries FIN and RST over faithfully. It knows
// no HTTP/2; its callers bring that end.
//
// A Relay is safe for concurrent use; a Reader belongs to one goroutine.
package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone"
)

const (
	// BufferBytes is the size of a Buffer: one TLS record, one HTTP/2 frame of
	// the default size.
	BufferBytes = 16 << 10
	// FrameBytes is the most that a Reader reads at once: the payload of an
	// HTTP/2 frame that fits a TLS record with its header.
	FrameBytes = BufferBytes - 9
)

// Buffer is what Buffers hands out.
type Buffer = [BufferBytes]byte

// Buffers is a pool of buffers; the zero value is ready.
type Buffers struct{ pool sync.Pool }

// Get returns a buffer with any content.
func (b *Buffers) Get() *Buffer {
	if buf, ok := b.pool.Get().(*Buffer); ok {
		return buf
	}
	return new(Buffer)
}

// Put takes a buffer back.
func (b *Buffers) Put(buf *Buffer) { b.pool.Put(buf) }

// Relay is one stream's pair of ends, and the single place where its end is
// decided: the first failure wins, resets both ends, and is the outcome.
type Relay struct {
	// Local is the TCP connection.
	Local *net.TCPConn
	// Counters are the stream's; never nil.
	Counters *hbone.Counters
	reset    func(error)

	finished atomic.Bool // DeliverEnd was called
	said     atomic.Bool // the local connection's FIN was read
	broken   atomic.Bool // it takes no more

	mu    sync.Mutex
	ended bool
	err   error
	last  *time.Timer // of DeliveryFailed
}

// New joins local with a stream that reset ends abruptly, in both directions.
// Reset is called at most once, and must not wait for the relay.
func New(local *net.TCPConn, progress *hbone.Counters, reset func(error)) *Relay {
	if progress == nil {
		progress = &hbone.Counters{}
	}
	return &Relay{Local: local, Counters: progress, reset: reset}
}

// Fail ends the relay with a reset of both ends, unless it has ended.
func (r *Relay) Fail(err error) {
	if !r.end(err) {
		return
	}
	Abort(r.Local)
	r.reset(err)
}

// Finish ends a relay whose directions have both ended and returns its outcome.
func (r *Relay) Finish(timing hbone.Timing) hbone.Outcome {
	if r.end(nil) {
		Close(r.Local)
	}
	return hbone.Outcome{Err: r.err, Sent: r.Counters.Sent.Load(), Received: r.Counters.Received.Load(), Timing: timing}
}

func (r *Relay) end(err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return false
	}
	r.ended, r.err = true, err
	if r.last != nil {
		r.last.Stop()
	}
	return true
}

// Deliver writes bytes of the tunnel to the local connection.
func (r *Relay) Deliver(p []byte) error {
	n, err := r.Local.Write(p)
	r.Counters.Received.Add(uint64(n))
	if err != nil {
		return LocalReset(err)
	}
	return nil
}

// DeliverEnd carries the tunnel's END_STREAM over as a FIN.
func (r *Relay) DeliverEnd() error {
	r.finished.Store(true)
	if err := r.Local.CloseWrite(); err != nil {
		return LocalReset(err)
	}
	return nil
}

// lastWordsWithin bounds how long what one end said before it broke waits for the
// other to take it.
const lastWordsWithin = 3 * time.Second

// DeliveryFailed is for the error of Deliver or DeliverEnd: the local connection
// takes no more. What its other end said before is still to be read and sent, for a
// while, as it would arrive without a tunnel; the reader meets the error, or
// CheckEnd's, behind it. When there is nothing more to read, it is Fail.
func (r *Relay) DeliveryFailed(err error) {
	r.broken.Store(true)
	if r.said.Load() {
		r.Fail(err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ended && r.last == nil {
		r.last = time.AfterFunc(lastWordsWithin, func() { r.Fail(err) })
	}
}

// CheckEnd is asked when reading from the local connection has found its end:
// nil means a FIN. After a RST whose error a write has taken, reading finds the
// end of the stream, too, but the connection is closed (tcp_reset,
// net/ipv4/tcp_input.c); after a FIN it is not before we have sent ours.
func (r *Relay) CheckEnd() error {
	err := r.checkEnd()
	if err != nil {
		return err
	}
	r.said.Store(true)
	if r.broken.Load() { // meanwhile, before DeliveryFailed could know
		return LocalReset(syscall.ECONNRESET)
	}
	return nil
}

func (r *Relay) checkEnd() error {
	switch {
	case r.broken.Load():
		return LocalReset(syscall.ECONNRESET)
	case r.finished.Load():
		return nil
	}
	raw, err := r.Local.SyscallConn()
	if err != nil {
		return LocalReset(err)
	}
	var info *unix.TCPInfo
	controlled := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	switch {
	case controlled != nil:
		return LocalReset(controlled)
	case err != nil:
		return LocalReset(err)
	case info.State == unix.BPF_TCP_CLOSE && !r.finished.Load():
		return LocalReset(syscall.ECONNRESET)
	}
	return nil
}

// AwaitTaken waits until the local connection's other end has all that Deliver
// wrote, or ctx is done, or the connection broke. Fail drops what it has not.
func (r *Relay) AwaitTaken(ctx context.Context) {
	poll := time.NewTicker(20 * time.Millisecond) // of which the kernel tells nobody
	defer poll.Stop()
	for r.unsent() > 0 {
		select {
		case <-poll.C:
		case <-ctx.Done():
			return
		}
	}
}

// FailBehind is Fail for the peer's reset, which it lets wait until the local
// connection's other end has all that Deliver wrote, or has had its time: a RST of
// TCP's leaves what the receiver's kernel has. It blocks meanwhile.
func (r *Relay) FailBehind(err error) {
	ctx, cancel := context.WithTimeout(context.Background(), lastWordsWithin)
	defer cancel()
	r.AwaitTaken(ctx)
	r.Fail(err)
}

// unsent is 0 for a connection that broke.
func (r *Relay) unsent() (n int) {
	raw, err := r.Local.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { n = eventloop.Unsent(int(fd)) })
	}
	if err != nil {
		return 0
	}
	return n
}

// LocalReset is the outcome of a stream whose local connection failed with err.
func LocalReset(err error) error {
	return fmt.Errorf("%w: by the local end: %w", hbone.ErrReset, err)
}

// Abort closes c, with a RST when it is TCP: the other end learns that this was
// no orderly end, and no TIME_WAIT is left.
func Abort(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // fails only on a closed socket
	}
	Close(c)
}

const (
	// LingerTimeout bounds how long Linger waits for the peer.
	LingerTimeout = 2 * time.Second
	// lingerBytes bounds what Linger reads meanwhile: as much as a peer may have on its
	// way that has not heard of the end. One that sends more does not listen.
	lingerBytes = 16 << 20
)

// Linger ends a TLS connection so that what was written arrives, and returns when
// the peer has closed too, when it goes on sending, when tcp is closed, or after LingerTimeout. Closing at once would
// not do: with bytes unread, or when more come, the kernel sends a RST and forgets what it has
// not sent (RFC 2525 section 2.17). Another goroutine may still read from secured. The sockets
// are still to be closed.
func Linger(secured *tls.Conn, tcp net.Conn) {
	half, ok := tcp.(interface{ CloseWrite() error })
	if !ok || secured.CloseWrite() != nil || half.CloseWrite() != nil || tcp.SetReadDeadline(time.Now().Add(LingerTimeout)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, tcp, lingerBytes) // whatever it says, the end is the end
}

// Close closes what nobody can do anything about.
func Close(c io.Closer) { _ = c.Close() }

// WatchReset blocks until the local connection, from which a FIN has been read,
// is reset by its other end, and then fails the relay; or until it is closed.
// Nothing else would notice while nothing is written. A RST after a FIN leaves
// EPIPE in SO_ERROR (tcp_reset, net/ipv4/tcp_input.c); an orderly end leaves 0.
func (r *Relay) WatchReset() {
	raw, err := r.Local.SyscallConn()
	if err != nil {
		return // closed by us
	}
	var reset error
	err = raw.Read(func(fd uintptr) bool {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil || code == 0 {
			return err != nil
		}
		reset = syscall.Errno(code)
		return true
	})
	if err == nil && reset != nil {
		r.Fail(LocalReset(reset))
	}
}

// Reader reads from a TCP connection into a pooled buffer that it holds only
// while there is something in it: an idle connection has none.
type Reader struct {
	raw     syscall.RawConn
	buffers *Buffers
	buf     *Buffer
	n       int
	err     error
	try     func(fd uintptr) bool
}

// NewReader reads from c, which stays its owner's.
func NewReader(c *net.TCPConn, buffers *Buffers) (*Reader, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	r := &Reader{raw: raw, buffers: buffers}
	r.try = r.once
	return r, nil
}

// Next waits for bytes. They are valid until Release is called, which must
// happen before the next call. At the connection's FIN it returns io.EOF.
func (r *Reader) Next() ([]byte, error) {
	r.n, r.err = 0, nil
	err := r.raw.Read(r.try)
	if err == nil {
		err = r.err
	}
	if err == nil && r.n == 0 {
		err = io.EOF
	}
	if err != nil {
		r.Release()
		return nil, err
	}
	return r.buf[:r.n], nil
}

func (r *Reader) once(fd uintptr) bool {
	if r.buf == nil {
		r.buf = r.buffers.Get()
	}
	for {
		n, err := unix.Read(int(fd), r.buf[:FrameBytes])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			r.Release()
			return false
		}
		r.n, r.err = max(n, 0), err
		return true
	}
}

// Release gives the buffer of the last Next back.
func (r *Reader) Release() {
	if r.buf != nil {
		r.buffers.Put(r.buf)
		r.buf = nil
	}
}
