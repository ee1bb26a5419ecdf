package load

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/eventloop"
)

// RateConfig says what Rate sends.
type RateConfig struct {
	Address     string
	Connections int
	PerSecond   int
	Duration    time.Duration
	// Sheds says that a 503 is what a server may say that has too much to do: it is counted apart, and no error.
	Sheds bool
}

// Timed is what Rate saw. Times are in microseconds, from when a request was due
// to its answer's last byte, so that a stall counts for all that waited in it.
type Timed struct {
	Answered int `json:"answered"`
	// Timely are those that were answered within Late of when they were due, Shed those that were answered with a 503.
	Timely int     `json:"timely"`
	Shed   int     `json:"shed"`
	Errors int     `json:"errors"`
	P50    float64 `json:"p50"`
	P99    float64 `json:"p99"`
}

// Late is when an answer comes too late to be of use.
const Late = time.Second

// patience is how long Rate waits for the last answers.
const patience = 2 * time.Second

// Rate sends requests on kept-alive connections, each at its time whether or not
// the ones before it were answered. One thread does it all, on descriptors of its
// own: Go's timers are a millisecond coarse while nothing else is to be done.
func Rate(cfg RateConfig) (Timed, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := newPacer(cfg)
	if err != nil {
		return Timed{}, err
	}
	defer p.close()
	if err := p.run(); err != nil {
		return Timed{}, err
	}
	return p.timed(), nil
}

// pacer is one run of Rate.
type pacer struct {
	cfg      RateConfig
	request  []byte
	poll     int
	timer    int
	conns    map[int32]*conn
	idle     []*conn
	due      []time.Time // of requests that found no idle connection
	started  time.Time
	released int // requests whose time has come
	times    []time.Duration
	shed     int
	errors   int
}

// conn is one connection. It has at most one request under way.
type conn struct {
	fd   int
	busy bool
	due  time.Time
	read []byte
}

func newPacer(cfg RateConfig) (*pacer, error) {
	p := &pacer{cfg: cfg, conns: map[int32]*conn{}, times: make([]time.Duration, 0, max(0, int(cfg.Duration.Seconds()*float64(cfg.PerSecond)))+1), poll: -1, timer: -1}
	p.request = fmt.Appendf(nil, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", cfg.Address)
	to, err := netip.ParseAddrPort(cfg.Address)
	if err != nil || !to.Addr().Is4() || cfg.Connections < 1 || cfg.PerSecond < 1 {
		return nil, fmt.Errorf("rate: want an IPv4 address, a connection and a request per second at least: %w", err)
	}
	if p.poll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	if p.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC); err != nil {
		return nil, errors.Join(err, unix.Close(p.poll))
	}
	err = p.watch(p.timer)
	for i := 0; i < cfg.Connections && err == nil; i++ {
		err = p.connect(to)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *pacer) watch(fd int) error {
	return unix.EpollCtl(p.poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

func (p *pacer) connect(to netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	c := &conn{fd: fd, read: make([]byte, 0, 4096)}
	p.conns[int32(fd)] = c
	p.idle = append(p.idle, c)
	bound := unix.NsecToTimeval(int64(5 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &bound); err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
		return &net.OpError{Op: "connect", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	return p.watch(fd)
}

func (p *pacer) close() {
	for _, c := range p.conns {
		_ = unix.Close(c.fd) // nothing unsent matters
	}
	_ = unix.Close(p.timer)
	_ = unix.Close(p.poll)
}

// run sends until the duration is over, then waits for what is under way.
func (p *pacer) run() error {
	step := time.Second / time.Duration(p.cfg.PerSecond)
	tick := unix.NsecToTimespec(int64(step))
	if err := unix.TimerfdSettime(p.timer, 0, &unix.ItimerSpec{Interval: tick, Value: tick}, nil); err != nil {
		return err
	}
	p.started = time.Now()
	total := int(p.cfg.Duration / step)
	end := p.started.Add(p.cfg.Duration + patience)
	events := make([]unix.EpollEvent, 64)
	for p.released < total || p.underWay() {
		left := time.Until(end)
		if left <= 0 || len(p.conns) == 0 {
			break
		}
		n, errno := wait(p.poll, events, left)
		if errno != 0 && errno != unix.EINTR {
			return fmt.Errorf("wait for answers: %w", errno)
		}
		for _, event := range events[:max(n, 0)] {
			if int(event.Fd) == p.timer {
				var count [8]byte
				_, _ = eventloop.Read(p.timer, count[:]) // the clock says how many are due
				p.release(step, total)
			} else if c := p.conns[event.Fd]; c != nil {
				p.readable(c)
			}
		}
	}
	p.errors += total - p.released + len(p.due)
	for _, c := range p.conns {
		if c.busy {
			p.errors++
		}
	}
	return nil
}

// wait is epoll_wait without a word to Go's scheduler, which would wake threads
// of its own at each turn to see to what this one leaves behind.
func wait(poll int, events []unix.EpollEvent, left time.Duration) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(poll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)),
		uintptr(left/time.Millisecond)+1, 0, 0)
	return int(n), errno
}

func (p *pacer) underWay() bool { return len(p.due) > 0 || len(p.idle) < len(p.conns) }

// release makes requests due whose time has come.
func (p *pacer) release(step time.Duration, total int) {
	for now := time.Now(); p.released < total; p.released++ {
		at := p.started.Add(time.Duration(p.released+1) * step)
		if at.After(now) {
			break
		}
		p.due = append(p.due, at)
	}
	p.send()
}

func (p *pacer) send() {
	for len(p.due) > 0 && len(p.idle) > 0 {
		// The one that has been idle longest, so that all are used.
		c := p.idle[0]
		p.idle = p.idle[1:]
		c.busy, c.due = true, p.due[0]
		p.due = p.due[1:]
		if n, errno := eventloop.Write(c.fd, p.request); errno != 0 || n < len(p.request) {
			p.drop(c)
		}
	}
}

// drop closes a connection that failed, with the request that was on it.
func (p *pacer) drop(c *conn) {
	p.errors++
	_ = unix.Close(c.fd) // it has failed already
	delete(p.conns, int32(c.fd))
	p.idle = slices.DeleteFunc(p.idle, func(other *conn) bool { return other == c })
}

func (p *pacer) readable(c *conn) {
	n, errno := eventloop.Read(c.fd, c.read[len(c.read):cap(c.read)])
	if errno == unix.EAGAIN {
		return
	}
	if errno != 0 || n <= 0 || !c.busy {
		p.drop(c)
		return
	}
	c.read = c.read[:len(c.read)+n]
	whole, good := answer(c.read)
	switch {
	case !whole && len(c.read) < cap(c.read):
		return
	case whole && good:
		p.times = append(p.times, time.Since(c.due))
	case whole && p.cfg.Sheds && bytes.HasPrefix(c.read, []byte("HTTP/1.1 503 ")):
		p.shed++
	default:
		p.drop(c)
		return
	}
	c.read, c.busy = c.read[:0], false
	p.idle = append(p.idle, c)
	p.send()
}

// answer reports whether data is a whole answer with a Content-Length, and
// whether its status is 200.
func answer(data []byte) (whole, good bool) {
	head, body, ok := bytes.Cut(data, []byte("\r\n\r\n"))
	if !ok {
		return false, false
	}
	length, ok := contentLength(head)
	if !ok {
		return true, false
	}
	return len(body) >= length, bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) && len(body) <= length
}

// contentLength finds the field in a head; proxies write its name as they like.
func contentLength(head []byte) (int, bool) {
	name := []byte("content-length: ")
	for line := range bytes.SplitSeq(head, []byte("\r\n")) {
		if len(line) > len(name) && bytes.EqualFold(line[:len(name)], name) {
			length, err := strconv.Atoi(string(line[len(name):]))
			return length, err == nil
		}
	}
	return 0, false
}

func (p *pacer) timed() Timed {
	slices.Sort(p.times)
	at := func(share float64) float64 {
		if len(p.times) == 0 {
			return 0
		}
		return float64(p.times[int(share*float64(len(p.times)-1))].Nanoseconds()) / 1000
	}
	timely, _ := slices.BinarySearch(p.times, Late)
	return Timed{Answered: len(p.times), Timely: timely, Shed: p.shed, Errors: p.errors, P50: at(0.50), P99: at(0.99)}
}
