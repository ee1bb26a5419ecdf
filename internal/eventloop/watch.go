package eventloop

import (
	"syscall"
	"time"
)

// patience is how long a loop goes on without a rest before it makes sure that
// others are not forgotten.
const patience = time.Millisecond

// watch keeps a busy loop from making the others of its process wait.
//
// The thread that a loop has woken from the netpoller goes on with that loop,
// and nobody waits in the netpoller then, though a processor may be idle; what
// looks there instead, every 10 ms, is the runtime's monitor. But that sleeps
// deeply since all processors were idle, and only a system call that the
// scheduler is told of wakes it, or a timer (runtime/proc.go, findRunnable and
// sysmon, Go 1.26). A loop makes no such calls. Without the watch another loop's
// connections have been seen to stand still for 700 ms.
type watch struct {
	since  time.Time // the end of the last rest
	rested bool      // the loop found nothing, and parked
	called bool      // since that rest
	call   chan struct{}
	ended  chan struct{}
}

func (w *watch) begin() {
	w.since = time.Now()
	w.call, w.ended = make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(w.ended)
		for range w.call {
			// Running is all: a thread that comes for it stays, and waits in the netpoller.
		}
	}()
}

func (w *watch) end() {
	close(w.call)
	<-w.ended
}

// turn is told of each turn.
func (w *watch) turn(now time.Time) {
	switch {
	case w.rested:
		w.since, w.rested, w.called = now, false, false
	case !w.called && now.Sub(w.since) >= patience:
		w.called = true
		select {
		case w.call <- struct{}{}:
		default: // it has not run since the last time
		}
		// The monitor is woken too: it preempts whoever keeps a processor from others.
		_, _, _ = syscall.Syscall(syscall.SYS_GETPID, 0, 0, 0)
	}
}
