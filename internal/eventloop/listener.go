package eventloop

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

const (
	// acceptsPerTurn bounds how long a burst keeps a loop's other sockets waiting.
	acceptsPerTurn = 16
	// minAcceptPause and maxAcceptPause are how long accepting rests when there are no
	// descriptors, or no memory.
	minAcceptPause, maxAcceptPause = 20 * time.Millisecond, time.Second
)

// Listener accepts connections on a loop, many in a turn. It belongs to the loop's
// goroutine.
type Listener struct {
	loop    *Loop
	fd      int
	take    func(fd int, remote netip.AddrPort)
	starved func(error)
	timer   Timer
	pause   time.Duration
	ended   bool
}

// Duplicate returns a descriptor of l for Listen.
func Duplicate(l *net.TCPListener) (int, error) { return duplicate(l) }

// Listen accepts from a descriptor, which stays the caller's, until End, and gives each
// socket to take: it is take's, and does not block. Starved is told of each time
// that there begin to be no descriptors or memory.
func (l *Loop) Listen(fd int, take func(fd int, remote netip.AddrPort), starved func(error)) (*Listener, error) {
	from := &Listener{loop: l, fd: fd, take: take, starved: starved}
	return from, l.Register(fd, from)
}

// End ends accepting. The descriptor may be another process's too.
func (l *Listener) End() error {
	l.ended = true
	l.loop.Clear(&l.timer)
	return l.loop.Remove(l.fd)
}

// Ready implements Source.
func (l *Listener) Ready(Events) { l.accept() }

// accept takes what waits in the queue.
func (l *Listener) accept() {
	for range acceptsPerTurn {
		if l.ended {
			return
		}
		fd, remote, errno := Accept(l.fd)
		switch errno {
		case 0:
			l.pause = 0
			l.take(fd, remote)
		case syscall.EAGAIN:
			return
		case syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM:
			if l.pause == 0 {
				l.starved(fmt.Errorf("accept: %w", errno))
			}
			l.pause = min(max(2*l.pause, minAcceptPause), maxAcceptPause)
			l.loop.SetAfter(&l.timer, l.pause, l.accept)
			return
		case syscall.EBADF, syscall.EINVAL, syscall.ENOTSOCK: // it listens no longer
			return
		}
		// Other errors are those of the connection that was to be accepted (accept(2)).
	}
	l.loop.Later(l.accept)
}
