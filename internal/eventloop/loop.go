// Package eventloop runs sockets on one goroutine each for many: a Loop waits
// for readiness with an epoll of its own, and parks in Go's netpoller while
// there is none, so that a loop costs the scheduler no thread. It is a leaf: it
// knows no protocol, and imports nothing of this repository.
//
// A Loop's methods belong to its goroutine, but for Post and Stop, which may be
// called from anywhere. Whoever calls Run owns the loop and waits for it.
package eventloop

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxEvents is how many sockets one turn looks at.
const maxEvents = 256

// interest is what every socket is watched for, once, edge-triggered: epoll is
// told of a socket twice in its life, not at each change of mind.
const interest = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLPRI | unix.EPOLLRDHUP | unix.EPOLLET

// Events is what happened to a socket since it was last told of it. They are
// edges: whoever does not read until EAGAIN hears no more.
type Events uint32

// Readable says that reading may give something, the end of the stream and
// errors included.
func (e Events) Readable() bool {
	return e&(unix.EPOLLIN|unix.EPOLLPRI|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0
}

// Writable says that the socket takes bytes again.
func (e Events) Writable() bool { return e&unix.EPOLLOUT != 0 }

// Ended says that the peer will send no more, or that the connection broke: a
// short read is then not the last one.
func (e Events) Ended() bool { return e&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 }

// Urgent says that there is urgent data: reads end short at its mark (tcp(7)),
// with more behind it that no edge tells of.
func (e Events) Urgent() bool { return e&unix.EPOLLPRI != 0 }

// Broken says that both directions are over, or that there is an error to be
// asked for (SocketError).
func (e Events) Broken() bool { return e&(unix.EPOLLHUP|unix.EPOLLERR) != 0 }

// Source is a socket's owner. Ready is called on the loop's goroutine; it may
// be called once more than there is something to do, never less.
type Source interface{ Ready(Events) }

// slot is a registered descriptor. The generation tells a descriptor from an
// earlier one of the same number, of which the kernel may still speak.
type slot struct {
	source     Source
	generation int32
}

// Loop is one event loop.
type Loop struct {
	epoll  *os.File
	epfd   int // File.Fd may make it blocking
	waiter syscall.RawConn
	wakefd int
	turn   func() bool

	slots  []slot
	events [maxEvents]unix.EpollEvent
	ready  int                // events of this turn
	try    func(uintptr) bool // Loop.poll, bound once
	timers timerHeap
	armed  time.Time // the deadline that the netpoller knows of
	now    time.Time
	watch  watch

	posts struct {
		sync.Mutex
		list    []func()
		stopped bool
	}
	running []func() // the list before, to be used again

	later, laterBefore []func() // for the end of this turn; the list before, to be used again
	stop               bool
}

// New makes a loop; nothing runs before Run. Turn is called at the end of each
// turn, on the loop's goroutine, and says whether there is work left that waits
// for no event. A loop that is never run is freed by Close.
func New(turn func() bool) (*Loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll: %w", err)
	}
	l := &Loop{turn: turn, now: time.Now()}
	// A descriptor that is non-blocking is what makes os.NewFile give it to the
	// netpoller; epoll_wait itself is called with a timeout of 0 only.
	if err := unix.SetNonblock(epfd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("make epoll non-blocking: %w", err), unix.Close(epfd))
	}
	l.epoll, l.epfd = os.NewFile(uintptr(epfd), "epoll"), epfd
	if l.waiter, err = l.epoll.SyscallConn(); err != nil {
		return nil, errors.Join(err, l.epoll.Close())
	}
	if l.wakefd, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		return nil, errors.Join(fmt.Errorf("create eventfd: %w", err), l.epoll.Close())
	}
	l.try = l.poll
	if err := l.Register(l.wakefd, wake{}); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Close frees a loop that is not running.
func (l *Loop) Close() error {
	return errors.Join(unix.Close(l.wakefd), l.epoll.Close())
}

// wake owns the eventfd; what was posted runs in any case. Nobody reads it: each
// write is an edge (eventfd(2) counts to 2^64-2), and costs half as much so.
type wake struct{}

// Ready implements Source.
func (wake) Ready(Events) {}

// Register watches a socket from now on; its source hears at once if something
// is there already. The caller keeps owning the descriptor.
func (l *Loop) Register(fd int, s Source) error {
	for len(l.slots) <= fd {
		l.slots = append(l.slots, make([]slot, max(64, len(l.slots)))...)
	}
	l.slots[fd].generation++
	event := unix.EpollEvent{Events: interest, Fd: int32(fd), Pad: l.slots[fd].generation}
	if _, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(l.epfd), unix.EPOLL_CTL_ADD, uintptr(fd), uintptr(unsafe.Pointer(&event)), 0, 0); errno != 0 {
		return fmt.Errorf("watch socket: %w", errno)
	}
	l.slots[fd].source = s
	return nil
}

// Forget stops events; closing the descriptor, the caller's next step, takes it
// out of the epoll.
func (l *Loop) Forget(fd int) { l.slots[fd].source = nil }

// Remove stops events of a socket that stays open. Closing would not do when
// another process has it too. Register watches it again.
func (l *Loop) Remove(fd int) error {
	l.Forget(fd)
	if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_DEL, fd, nil); err != nil {
		return fmt.Errorf("stop watching socket: %w", err)
	}
	return nil
}

// Now is the time at which this turn began.
func (l *Loop) Now() time.Time { return l.now }

// Post makes the loop call fn, in the order of posts. It returns false, and
// does nothing, when the loop was stopped. It may be called from any goroutine.
func (l *Loop) Post(fn func()) bool {
	return l.post(fn, false)
}

// post makes fn the last that runs if it is said to be.
func (l *Loop) post(fn func(), last bool) bool {
	l.posts.Lock()
	defer l.posts.Unlock()
	if l.posts.stopped {
		return false
	}
	l.posts.stopped = last
	l.posts.list = append(l.posts.list, fn)
	if len(l.posts.list) == 1 {
		one := [8]byte{1}
		// EAGAIN is the only error, when the counter is full: it wakes too.
		_, _ = Write(l.wakefd, one[:])
	}
	return true
}

// Later makes the loop call fn as soon as this turn is over. Unlike Post, it is the
// loop's own, and costs nothing.
func (l *Loop) Later(fn func()) { l.later = append(l.later, fn) }

// Stop makes Run return, after everything that was posted before. It may be
// called from any goroutine.
func (l *Loop) Stop() { l.post(func() { l.stop = true }, true) }

// Run is the loop. It returns when it was stopped, and frees what New made; the
// sockets that are still registered stay open, their owners' to close.
func (l *Loop) Run() error {
	defer func() { _ = l.Close() }() // what waits for readiness is gone
	l.watch.begin()
	defer l.watch.end()
	more := false
	for {
		if err := l.wait(more); err != nil {
			return fmt.Errorf("wait for events: %w", err)
		}
		l.now = time.Now()
		l.watch.turn(l.now)
		for _, e := range l.events[:l.ready] {
			if s := l.slots[e.Fd]; s.source != nil && s.generation == e.Pad {
				s.source.Ready(Events(e.Events))
			}
		}
		l.runPosts()
		l.timers.run(l.now)
		more = l.turn()
		if len(l.later) > 0 {
			l.later, l.laterBefore = l.laterBefore[:0], l.later // they may add to it
			runAll(l.laterBefore)
			more = true
		}
		if l.stop {
			return nil
		}
	}
}

func (l *Loop) runPosts() {
	l.posts.Lock()
	list := l.posts.list
	l.posts.list = l.running[:0]
	l.posts.Unlock()
	runAll(list)
	l.running = list
}

func runAll(list []func()) {
	for i, fn := range list {
		fn()
		list[i] = nil
	}
}

// wait looks for events, and parks until there are some unless there is work
// to do anyway.
func (l *Loop) wait(more bool) error {
	if more {
		l.poll(uintptr(l.epfd))
		l.watch.rested = false
		return nil
	}
	if next, ok := l.timers.next(); ok && (l.armed.IsZero() || next.Before(l.armed)) {
		if err := l.epoll.SetReadDeadline(next); err != nil {
			return err
		}
		l.armed = next
	}
	l.ready = 0
	err := l.waiter.Read(l.try)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		l.armed = time.Time{}
		return l.epoll.SetReadDeadline(time.Time{})
	}
	return err
}

// poll is epoll_wait without waiting. The netpoller calls it each time the
// epoll became readable.
func (l *Loop) poll(epfd uintptr) bool {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, epfd, uintptr(unsafe.Pointer(&l.events[0])), maxEvents, 0, 0, 0)
	l.ready = 0
	if errno == 0 {
		l.ready = int(n)
	}
	l.watch.rested = l.watch.rested || l.ready == 0
	return l.ready > 0
}
