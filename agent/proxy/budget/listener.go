package budget

import (
	"errors"
	"net"
	"time"
)

// Listener is a net.Listener for Serve loops that give up at an error. Its
// fields must be set before it is used; it is as safe for concurrent use as what
// it wraps.
type Listener struct {
	net.Listener
	// Stop is closed when no more connections are taken.
	Stop <-chan struct{}
	// Starved is told once of each time that accepting begins to fail for want
	// of descriptors or memory.
	Starved func(error)
	// End says what Accept returns once the listener is closed or Stop is.
	End func() error
	// Handshakes, when not nil, bounds what is let through.
	Handshakes *Handshakes
	// Accepting, when not nil, is called by each Accept: whoever asks for connections
	// is ready for them.
	Accepting func()
	// Over is told of a connection that Handshakes refused, and closes it.
	Over func(conn net.Conn, why error)
}

// Accept returns the next connection within the budget.
func (l *Listener) Accept() (net.Conn, error) {
	if l.Accepting != nil {
		l.Accepting()
	}
	var b backoff
	for {
		conn, err := l.Listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil, l.End()
		case err != nil:
			if b.delay == 0 {
				l.Starved(err)
			}
			if !b.wait(l.Stop) {
				return nil, l.End()
			}
			continue
		}
		b.delay = 0
		if l.Handshakes != nil {
			if err := l.Handshakes.Take(source(conn)); err != nil {
				l.Over(conn, err)
				continue
			}
		}
		return conn, nil
	}
}

// backoff waits longer and longer while accepting fails for want of
// descriptors or memory, so that a full process does not spin.
type backoff struct{ delay time.Duration }

const minBackoff, maxBackoff = 5 * time.Millisecond, time.Second

// wait returns false when stop was closed meanwhile.
func (b *backoff) wait(stop <-chan struct{}) bool {
	b.delay = min(max(2*b.delay, minBackoff), maxBackoff)
	t := time.NewTimer(b.delay)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-stop:
		return false
	}
}
