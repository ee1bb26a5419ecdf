package handover

import (
	"errors"
	"fmt"
	"os"
	"time"
)

// Late is an ErrLate that says when to try again.
type Late struct {
	// Again is closed when the successor has read what it was told.
	Again <-chan struct{}
}

// Error is ErrLate's.
func (l *Late) Error() string { return ErrLate.Error() }

// Is makes it match ErrLate.
func (l *Late) Is(target error) bool { return target == ErrLate }

// backlog is the rest of a message that the successor did not read in time, and of
// which nothing may be missing: what comes behind it could not be read. Its
// connections have gone on here long before it is sent.
type backlog struct {
	done chan struct{} // closed at the end of its goroutine
	err  error         // then
}

// owe sends the rest of o, and that its batch is given up, while the connections
// go on. all is cleared then: it holds keys.
func (s *session) owe(o *outgoing, all []byte) error {
	if err := o.keep(); err != nil {
		clear(all)
		return errors.Join(errLost, err, s.conn.Close())
	}
	kept := o.files
	b := &backlog{done: make(chan struct{})}
	s.backlog = b
	go func() {
		defer close(b.done)
		b.err = o.push(s.cfg.Timeouts.Stuck)
		clear(all)
		closeAll(kept)
		if b.err == nil && o.kind != kindAbort {
			b.err = s.channel.send(kindAbort, o.batch, nil, nil, s.cfg.Timeouts.Stuck)
		}
	}()
	return s.lateFor(b.done)
}

// settle waits for the backlog, if there is one.
func (s *session) settle(within time.Duration) error {
	if s.backlog == nil {
		return nil
	}
	select {
	case <-s.backlog.done:
	case <-time.After(within):
		return &Late{Again: s.backlog.done}
	}
	err := s.backlog.err
	s.backlog = nil
	if err != nil {
		return errors.Join(fmt.Errorf("%w: it does not read: %w", errLost, err), s.conn.Close())
	}
	return nil
}

// endBacklog waits for the goroutine of a conversation that is over.
func (s *session) endBacklog() {
	_ = s.conn.Close() // ends it
	if s.backlog != nil {
		<-s.backlog.done
	}
}

// lateFor counts a batch that the successor did not take in time, and gives it up
// for lost when it has taken nothing for long. again may be nil.
func (s *session) lateFor(again <-chan struct{}) error {
	if s.late++; s.late >= patiently {
		s.rest = min(2*s.rest, maxRest)
	}
	if s.since.IsZero() {
		s.since = time.Now()
	}
	if silent := time.Since(s.since); silent > s.cfg.Timeouts.Stuck {
		return errors.Join(fmt.Errorf("%w: it has answered nothing in time for %v", errLost, silent.Round(time.Second)), s.conn.Close())
	}
	if again == nil {
		return ErrLate
	}
	return &Late{Again: again}
}

// tell sends a message about a batch within the time that connections may rest.
// What does not leave in that time is owed.
func (s *session) tell(k kind, body []byte, files []int) error {
	o := &outgoing{channel: s.channel, kind: k, batch: s.batch, body: body, files: files}
	err := o.push(maxRest)
	switch {
	case err == nil:
		clear(body)
		return nil
	case !errors.Is(err, os.ErrDeadlineExceeded):
		clear(body)
		return errors.Join(errLost, err, s.conn.Close())
	case k == kindCommit: // of which nothing is sent: it is no commit
		o.kind = kindAbort
	case k == kindBatch && !o.begun:
		clear(body)
		return s.lateFor(nil)
	}
	return s.owe(o, body)
}
