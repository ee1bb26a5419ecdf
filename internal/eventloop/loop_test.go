package eventloop

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// start runs a loop until the test ends.
func start(t testing.TB, turn func() bool) *Loop {
	t.Helper()
	l, err := New(turn)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- l.Run() }()
	t.Cleanup(func() {
		l.Stop()
		if err := <-ended; err != nil {
			t.Errorf("loop: %v", err)
		}
		if l.Post(func() {}) {
			t.Error("a stopped loop took a post")
		}
	})
	return l
}

func idle() bool { return false }

func TestPostsKeepTheirOrder(t *testing.T) {
	l := start(t, idle)
	const n = 10_000
	var got []int
	done := make(chan struct{})
	for i := range n {
		l.Post(func() {
			got = append(got, i)
			if i == n-1 {
				close(done)
			}
		})
	}
	<-done
	if !slices.IsSorted(got) || len(got) != n {
		t.Errorf("%d posts ran, in order: %v", len(got), slices.IsSorted(got))
	}
}

func TestTimers(t *testing.T) {
	l := start(t, idle)
	type firing struct{ want, got time.Time }
	fired := make(chan firing, 100)
	l.Post(func() {
		var off Timer
		for range 50 {
			timer, at := new(Timer), time.Now().Add(time.Duration(rand.IntN(60))*time.Millisecond)
			l.Set(timer, at.Add(time.Hour), nil)
			l.Set(timer, at, func() { fired <- firing{at, time.Now()} })
		}
		l.SetAfter(&off, time.Millisecond, func() { t.Error("a cleared timer fired") })
		l.Clear(&off)
	})
	var last time.Time
	for range 50 {
		f := <-fired
		if late := f.got.Sub(f.want); late < 0 || late > time.Second {
			t.Errorf("fired %v late", late)
		}
		if f.want.Before(last) {
			t.Error("fired out of order")
		}
		last = f.want
	}
}

// TestHeap compares the heap with sorting, under random removals.
func TestHeap(t *testing.T) {
	var l Loop
	timers := make([]Timer, 300)
	var want []int64
	var got []int64
	for i := range timers {
		at := time.Unix(rand.Int64N(1000), 0)
		l.Set(&timers[i], at, func() { got = append(got, at.Unix()) })
	}
	for i := range timers {
		if i%3 == 0 {
			l.Clear(&timers[i])
		} else {
			want = append(want, timers[i].at.Unix())
		}
	}
	slices.Sort(want)
	l.timers.run(time.Unix(2000, 0))
	if !slices.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

// echo is a Source that sends back what it gets.
type echo struct {
	loop  *Loop
	fd    int
	ended chan struct{}
	turns *atomic.Int64
}

// Ready implements Source.
func (e *echo) Ready(Events) {
	e.turns.Add(1)
	buf := make([]byte, 4096)
	for {
		n, errno := Read(e.fd, buf)
		if errno == syscall.EAGAIN {
			return
		}
		if errno != 0 || n == 0 {
			e.loop.Forget(e.fd)
			CloseSocket(e.fd)
			close(e.ended)
			return
		}
		var v Vector
		v.Add(buf[:n/2])
		v.Add(nil)
		v.Add(buf[n/2 : n])
		if w, errno := WriteVector(e.fd, v); w != n || errno != 0 {
			panic(errno)
		}
	}
}

func TestSockets(t *testing.T) {
	l := start(t, idle)
	ours, theirs := pair(t)
	fd, err := TakeOver(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if err := theirs.SetLinger(0); err == nil {
		t.Error("the connection is still Go's")
	}
	e := &echo{loop: l, fd: fd, ended: make(chan struct{}), turns: new(atomic.Int64)}
	l.Post(func() {
		if err := l.Register(fd, e); err != nil {
			t.Error(err)
		}
	})
	for n := 2; n < 3000; n *= 3 {
		want := bytes.Repeat([]byte{byte(n)}, n)
		if _, err := ours.Write(want); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, n)
		if _, err := io.ReadFull(ours, got); err != nil || !bytes.Equal(got, want) {
			t.Fatal(err)
		}
	}
	turns := e.turns.Load()
	time.Sleep(20 * time.Millisecond)
	if e.turns.Load() > turns+2 { // the edges of what was sent last
		t.Error("events while nothing happens")
	}
	ours.Close()
	<-e.ended
}

func TestAbort(t *testing.T) {
	ours, theirs := pair(t)
	defer ours.Close()
	fd, err := TakeOver(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if e := SocketError(fd); e != 0 {
		t.Error(e)
	}
	Abort(fd)
	if _, err := ours.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("read: %v, want a RST", err)
	}
	if _, err := TakeOver(theirs); err == nil {
		t.Error("a closed connection was taken over")
	}
}

// TestTurn: work that waits for no event is done without parking.
func TestTurn(t *testing.T) {
	var left atomic.Int64
	done := make(chan struct{})
	l := start(t, func() bool {
		if left.Load() == 0 {
			return false
		}
		if left.Add(-1) == 0 {
			close(done)
		}
		return left.Load() > 0
	})
	l.Post(func() { left.Store(1000) })
	<-done
}

func TestNeverRun(t *testing.T) {
	l, err := New(idle)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func pair(t testing.TB) (ours, theirs *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

// TestRemove: a socket that another descriptor keeps open gives no events after
// Remove, and tells what is there when it is registered again.
func TestRemove(t *testing.T) {
	l := start(t, idle)
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer CloseSocket(fds[1])
	kept, err := syscall.Dup(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := Prepare(kept); err != nil {
		t.Fatal(err)
	}
	events := make(chan Events, 16)
	on := func(fn func() error) {
		t.Helper()
		failed := make(chan error, 1)
		l.Post(func() { failed <- fn() })
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
	}
	on(func() error { return l.Register(fds[0], heard(events)) })
	if e := <-events; e.Readable() || !e.Writable() {
		t.Errorf("events %b of a socket without bytes", e)
	}
	on(func() error { return l.Remove(fds[0]) })
	CloseSocket(fds[0]) // the socket stays: kept has it
	if _, errno := Write(fds[1], []byte("x")); errno != 0 {
		t.Fatal(errno)
	}
	time.Sleep(20 * time.Millisecond)
	select {
	case e := <-events:
		t.Errorf("events %b after Remove", e)
	default:
	}
	on(func() error { return l.Register(kept, heard(events)) })
	if e := <-events; !e.Readable() {
		t.Errorf("events %b of a socket with bytes", e)
	}
	on(func() error { l.Forget(kept); CloseSocket(kept); return nil })
}

// heard is a source that tells.
type heard chan Events

func (h heard) Ready(e Events) { h <- e }

func TestLeft(t *testing.T) {
	l := start(t, idle)
	checked := make(chan struct{})
	l.Post(func() {
		defer close(checked)
		var timer Timer
		if l.Left(&timer) != 0 {
			t.Error("time left of a timer that is off")
		}
		l.SetAfter(&timer, time.Hour, nil)
		if l.Left(&timer) != time.Hour {
			t.Errorf("%v left of an hour", l.Left(&timer))
		}
		l.Clear(&timer)
	})
	<-checked
}

// TestPostBesideStop: what Post took runs, whoever stops the loop meanwhile.
func TestPostBesideStop(t *testing.T) {
	for range 300 {
		l, err := New(idle)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- l.Run() }()
		var taken, ran atomic.Int64
		posted := make(chan struct{})
		go func() {
			defer close(posted)
			for l.Post(func() { ran.Add(1) }) {
				taken.Add(1)
			}
		}()
		l.Stop()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		<-posted
		if taken.Load() != ran.Load() {
			t.Fatalf("%d posts were taken, %d ran", taken.Load(), ran.Load())
		}
	}
}
