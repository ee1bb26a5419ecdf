package eventloop

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// alarm is a timerfd: it fires without Go's runtime having a part in it.
type alarm struct {
	fd   int
	at   time.Time
	fire func(late time.Duration)
}

func (a *alarm) Ready(Events) {
	var expired [8]byte
	if _, errno := Read(a.fd, expired[:]); errno != 0 { // around the scheduler, as all that loops do
		return // once more than there is something to do
	}
	a.fire(time.Since(a.at))
}

func setAlarm(t testing.TB, l *Loop, after time.Duration, fire func(late time.Duration)) {
	t.Helper()
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	a := &alarm{fd: fd, at: time.Now().Add(after), fire: fire}
	when := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(after))}
	if err := unix.TimerfdSettime(fd, 0, &when, nil); err != nil {
		t.Fatal(err)
	}
	l.Post(func() {
		if err := l.Register(fd, a); err != nil {
			t.Error(err)
		}
	})
}

// A loop that is busy for half a second, after the whole process was at rest, does
// not keep another one from hearing of its sockets.
func TestABusyLoopKeepsNoOtherWaiting(t *testing.T) {
	var until time.Time // the busy loop's own
	busy := start(t, func() bool { return time.Now().Before(until) })
	quiet := start(t, idle)
	const rest, work = 200 * time.Millisecond, 500 * time.Millisecond
	setAlarm(t, busy, rest, func(time.Duration) { until = time.Now().Add(work) })
	late := make(chan time.Duration, 1)
	setAlarm(t, quiet, rest+work/5, func(d time.Duration) { late <- d })
	if d := <-late; d > work/5 {
		t.Errorf("the other loop heard of its socket %v late", d)
	}
}
