package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrClosed says that the Maker was closed.
var ErrClosed = errors.New("make socket: the maker of sockets is closed")

// Maker makes sockets in pods' namespaces, on one thread of its own: a
// thread per socket would cost more than the socket. The thread starts with the
// first socket and goes home whenever nothing waits, so that it keeps no pod's
// namespace alive.
type Maker struct {
	requests chan socketRequest
	quit     chan struct{}
	done     chan struct{}
	start    sync.Once
	stop     sync.Once
}

type socketRequest struct {
	ns       *Namespace
	family   int
	kind     int   // SOCK_STREAM or SOCK_DGRAM
	sockets  []int // to be filled
	finished chan error
}

// NewMaker returns a Maker that has not started its thread yet.
func NewMaker() *Maker {
	return &Maker{
		requests: make(chan socketRequest),
		quit:     make(chan struct{}),
		done:     make(chan struct{}),
	}
}

// Socket makes a non-blocking TCP socket (IPPROTO_TCP: never MPTCP) inside ns.
// The caller owns the descriptor.
func (m *Maker) Socket(ns *Namespace, family int) (int, error) {
	var one [1]int
	if err := m.Sockets(ns, family, one[:]); err != nil {
		return -1, err
	}
	return one[0], nil
}

// Sockets fills into with sockets as Socket makes them, all or, after an error,
// none: a trip to the namespace costs more than a socket.
func (m *Maker) Sockets(ns *Namespace, family int, into []int) error {
	return m.sockets(ns, family, unix.SOCK_STREAM, into)
}

// Datagram makes a non-blocking UDP socket inside ns. The caller owns the
// descriptor.
func (m *Maker) Datagram(ns *Namespace, family int) (int, error) {
	var one [1]int
	if err := m.sockets(ns, family, unix.SOCK_DGRAM, one[:]); err != nil {
		return -1, err
	}
	return one[0], nil
}

func (m *Maker) sockets(ns *Namespace, family, kind int, into []int) error {
	m.start.Do(func() { go m.run() })
	r := socketRequest{ns: ns, family: family, kind: kind, sockets: into, finished: make(chan error, 1)}
	select {
	case m.requests <- r:
	case <-m.done:
		return ErrClosed
	}
	return <-r.finished
}

// Close ends the thread and waits for it.
func (m *Maker) Close() {
	m.stop.Do(func() {
		m.start.Do(func() { close(m.done) }) // never started: nothing to wait for
		close(m.quit)
	})
	<-m.done
}

func (m *Maker) run() {
	runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
	if unix.Gettid() == os.Getpid() {
		// See OnThread: not on the main thread. It is handed back only once
		// the other goroutine is certain to have a thread of its own.
		moved := make(chan struct{})
		go func() { runtime.LockOSThread(); close(moved); m.serve() }()
		<-moved
		runtime.UnlockOSThread()
		return
	}
	m.serve()
}

func (m *Maker) serve() {
	defer close(m.done)
	home, err := Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	if err != nil {
		m.refuse(err)
		return
	}
	defer home.Close()
	for {
		select {
		case <-m.quit:
			return
		case r := <-m.requests:
			if m.serveBusy(r, home) != nil {
				m.refuse(ErrClosed)
				return
			}
		}
	}
}

// serveBusy serves r and everything that is waiting behind it, then goes home.
func (m *Maker) serveBusy(r socketRequest, home *Namespace) error {
	var in *Namespace
	for {
		var err error
		if in != r.ns {
			err, in = r.ns.enter(), r.ns
		}
		if err == nil {
			err = fill(r.sockets, r.family, r.kind)
		} else {
			in = nil
		}
		r.finished <- err
		select {
		case r = <-m.requests:
		default:
			return home.enter()
		}
	}
}

// fill makes sockets where the thread is.
func fill(sockets []int, family, kind int) error {
	protocol := unix.IPPROTO_TCP
	if kind == unix.SOCK_DGRAM {
		protocol = unix.IPPROTO_UDP
	}
	for i := range sockets {
		fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			for _, made := range sockets[:i] {
				err = errors.Join(err, CloseFd(made))
			}
			return err
		}
		sockets[i] = fd
	}
	return nil
}

// refuse answers every request with err until the maker is closed.
func (m *Maker) refuse(err error) {
	for {
		select {
		case <-m.quit:
			return
		case r := <-m.requests:
			r.finished <- err
		}
	}
}
