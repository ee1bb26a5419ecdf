package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Giver is the running agent. Its methods are called one at a time.
type Giver interface {
	// Hold leaves the node's pods as they are until Resume: nothing is enrolled,
	// taken out or tidied that a successor is about to adopt. Accepting and
	// carrying go on. The descriptors in the estate stay the agent's, and open
	// until Resume or the agent's end.
	Hold(ctx context.Context) (*Estate, error)
	// Move ends accepting and whatever only one process may do, and calls move
	// with the connections, a few at a time and at rest, until none is left that
	// can move. After nil from move they are the successor's; after an error
	// they go on here. An error that matches ErrLate means that the same may be
	// tried again, a *Late when. After one that matches ErrStays these stay, and others may
	// move; after any other there is no successor any more. left is how many
	// connections stay because they cannot move.
	Move(ctx context.Context, move func([]*Connection) error) (left int, err error)
	// Records returns the flow records with an ID above after, oldest first, and
	// the highest ID.
	Records(after uint64) (records [][]byte, last uint64)
	// Resume undoes Hold and Move: the agent goes on as if there had been no
	// successor, with the connections that it has.
	Resume()
}

// ErrLate is matched by what Giver.Move is told when the successor did not
// answer in time: the connections go on where they are.
var ErrLate = errors.New("the successor did not answer in time")

// ErrStays is matched by what Giver.Move is told when these connections cannot
// move, now or later: they go on where they are, and the hand-over, too.
var ErrStays = errors.New("the connections cannot move")

// errLost is matched when there is no successor any more.
var errLost = errors.New("the successor is gone")

// DonorConfig is what a Donor works with.
type DonorConfig struct {
	Self     Self
	Versions Versions
	Giver    Giver
	Timeouts Timeouts
	// Deed, when not nil, is what makes its owner the node's agent, and goes to the
	// successor with the last connection: a file with a lock. It stays the
	// caller's, too.
	Deed *os.File
	Log  *slog.Logger
}

// Donor gives the agent's work to successors that ask for it.
type Donor struct {
	cfg  DonorConfig
	busy atomic.Bool
}

// NewDonor returns a Donor; Serve starts it.
func NewDonor(cfg DonorConfig) *Donor {
	cfg.Timeouts, cfg.Versions = cfg.Timeouts.orDefaults(), cfg.Versions.orDefault()
	return &Donor{cfg: cfg}
}

// Serve answers successors on l, which it closes and whose Accept checks who
// they are, until one has taken over, which is true, or ctx is done.
func (d *Donor) Serve(ctx context.Context, l net.Listener) (given bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })() // whoever is waiting hears of it
	defer l.Close()
	sessions := make(chan bool)
	running := 0
	defer func() {
		cancel()
		for ; running > 0; running-- {
			given = <-sessions || given
		}
	}()
	accepted := make(chan *net.UnixConn)
	go d.acceptAll(ctx, l, accepted)
	for {
		select {
		case conn := <-accepted:
			running++
			go func() { sessions <- d.session(ctx, conn) }()
		case given := <-sessions:
			running--
			if given {
				return true
			}
		case <-ctx.Done():
			return false
		}
	}
}

// acceptAll accepts until l is closed. That there is no descriptor left is no
// reason for an agent to end.
func (d *Donor) acceptAll(ctx context.Context, l net.Listener, accepted chan<- *net.UnixConn) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			d.cfg.Log.Warn("a successor cannot be heard", "error", err)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
			continue
		}
		c, ok := conn.(*net.UnixConn)
		if !ok {
			_ = conn.Close() // a mistake in the wiring: nothing was said
			continue
		}
		select {
		case accepted <- c:
		case <-ctx.Done():
			_ = c.Close() // nothing was said
		}
	}
}

// session is one successor, from its hello to its end. It reports whether the
// successor has taken over.
func (d *Donor) session(ctx context.Context, conn *net.UnixConn) bool {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	s := &session{Donor: d, channel: channel{conn}, process: -1}
	version, err := s.greet()
	if err != nil {
		if !errors.Is(err, io.EOF) {
			d.cfg.Log.Warn("hand-over refused", "error", err)
		}
		return false
	}
	if !d.busy.CompareAndSwap(false, true) {
		_ = s.refuse("another process is taking over already", "wait until that one has ended, then try again") // it ends either way
		return false
	}
	s.watchPeer()
	defer s.endBacklog()
	defer func() {
		if s.process >= 0 {
			closeAll([]int{s.process})
		}
	}()
	if err := s.give(ctx, version); err != nil {
		s.fence()
		d.cfg.Giver.Resume()
		d.busy.Store(false)
		d.cfg.Log.Error("hand-over failed: this agent goes on", "successor", s.hello.Self.PID, "version", s.hello.Self.Program, "error", err)
		return false
	}
	return true
}

// session is one conversation with a successor.
type session struct {
	*Donor
	channel
	hello hello
	batch uint32
	rest  time.Duration
	late  int
	since time.Time // when it began to answer nothing in time; zero when it answers
	sent  uint64    // the highest ID of a flow record that was sent
	moved int
	// process is the successor's, a pidfd; -1 when it is not to be ended. moving
	// says that nobody accepts here, resigned that it has said it will do nothing.
	process          int
	moving, resigned bool
	backlog          *backlog // nil for none
}

// greet reads the hello and answers it, unless the successor may take over.
func (s *session) greet() (version int, err error) {
	m, err := s.receive(s.cfg.Timeouts.Hello)
	if err != nil {
		return 0, err
	}
	defer m.closeFiles()
	if err := unmarshal(m, kindHello, &s.hello); err != nil {
		return 0, err
	}
	own, its := s.cfg.Self, s.hello.Self
	version, ok := s.cfg.Versions.choose(s.hello.Versions)
	switch {
	case !ok:
		return 0, s.refuse(fmt.Sprintf("it speaks versions %d to %d of the hand-over, the new agent %d to %d", s.cfg.Versions.Oldest, s.cfg.Versions.Newest, s.hello.Versions.Oldest, s.hello.Versions.Newest),
			"upgrade by way of a release between the two, or stop this agent and start the new one, which ends its connections")
	case own.Node != its.Node:
		return 0, s.refuse(fmt.Sprintf("it is the agent of node %q, the new one of node %q", own.Node, its.Node), "give each node's agent a --run-dir of its own")
	case own.SameMesh(its) != nil:
		return 0, s.refuseWith(own.SameMesh(its))
	case own.Layout != its.Layout:
		return 0, s.refuse(fmt.Sprintf("its pins in the kernel have layout %q, the new agent's %q", own.Layout, its.Layout), "stop this agent and start the new one, which ends its connections")
	case !s.moves() && !s.hello.Drain:
		return 0, s.refuse(fmt.Sprintf("connections cannot move from the engine %q to %q", own.Engine, its.Engine),
			"run both with --engine loop, or let the connections be drained: --take-over=drain, `heddle local upgrade --drain`")
	}
	return version, nil
}

// moves reports whether connections can move.
func (s *session) moves() bool {
	own, its := s.cfg.Self, s.hello.Self
	return own.Moves && its.Moves && own.Engine == its.Engine
}

func (s *session) refuse(reason, remedy string) error {
	return s.refuseWith(&Refused{Reason: reason, Remedy: remedy})
}

func (s *session) refuseWith(r error) error { return errors.Join(r, s.say(kindRefused, r)) }

// say sends a control message.
func (s *session) say(k kind, what any) error {
	body, err := json.Marshal(what)
	if err != nil {
		return fmt.Errorf("say %d: %w", k, err)
	}
	return s.send(k, 0, body, nil, s.cfg.Timeouts.Hello)
}

// give is the hand-over itself. An error means that this agent must go on.
func (s *session) give(ctx context.Context, version int) error {
	begun := time.Now()
	holding, cancel := context.WithTimeout(ctx, s.cfg.Timeouts.Test)
	defer cancel()
	estate, err := s.cfg.Giver.Hold(holding)
	if err != nil {
		return s.refuse("it cannot hold still: "+err.Error(), "try again in a minute")
	}
	s.cfg.Log.Info("hand-over begins", "successor", s.hello.Self.PID, "version", s.hello.Self.Program, "protocol", version)
	if err := s.introduce(estate, version); err != nil {
		return err
	}
	if err := s.awaitReady(len(estate.Pods)); err != nil {
		return err
	}
	if err := s.say(kindMoving, struct{}{}); err != nil {
		return err
	}
	if err := s.await(kindAccepting, s.cfg.Timeouts.Accept); err != nil {
		return err
	}
	moving, cancel := context.WithTimeout(ctx, s.cfg.Timeouts.Move)
	defer cancel()
	s.rest, s.moving = s.cfg.Timeouts.Rest, true
	left, err := s.cfg.Giver.Move(moving, s.move)
	if err != nil {
		return fmt.Errorf("move connections, after %d: %w", s.moved, err)
	}
	if err := s.settle(s.cfg.Timeouts.Stuck); err != nil {
		return err
	}
	if err := s.records(version); err != nil {
		return err
	}
	if err := s.done(left); err != nil {
		return err
	}
	if err := s.awaitTaken(); err != nil {
		return err
	}
	s.cfg.Log.Info("handed over", "successor", s.hello.Self.PID, "version", s.hello.Self.Program, "moved", s.moved, "left", left, "late", s.late, "took", time.Since(begun))
	return nil
}

type doneMessage struct {
	// Left is how many connections stay with the donor, which drains them.
	Left int `json:"left"`
}

// done gives the last that there is: what makes the successor the node's agent.
func (s *session) done(left int) error {
	body, err := json.Marshal(doneMessage{Left: left})
	if err != nil {
		return fmt.Errorf("say done: %w", err)
	}
	var files []int
	if s.cfg.Deed != nil {
		files = []int{int(s.cfg.Deed.Fd())}
	}
	return s.send(kindDone, 0, body, files, s.cfg.Timeouts.Hello)
}

// introduce says everything that the successor needs for its self-test.
func (s *session) introduce(estate *Estate, version int) error {
	if err := s.say(kindWelcome, welcome{Version: version, Self: s.cfg.Self, Moves: s.moves(), Pods: len(estate.Pods)}); err != nil {
		return err
	}
	for i := range estate.Pods {
		var files []int
		for _, l := range estate.Pods[i].Listeners {
			files = append(files, l.File)
		}
		if err := s.part(estatePart{Pod: &estate.Pods[i]}, files); err != nil {
			return err
		}
	}
	if estate.Metrics != nil {
		if err := s.part(estatePart{Metrics: estate.MetricsAddress}, []int{estate.Metrics.File}); err != nil {
			return err
		}
	}
	if err := s.records(version); err != nil {
		return err
	}
	return s.say(kindStandby, struct{}{})
}

func (s *session) part(part estatePart, files []int) error {
	body, err := json.Marshal(part)
	if err != nil {
		return fmt.Errorf("say listeners: %w", err)
	}
	return s.send(kindListeners, 0, body, files, s.cfg.Timeouts.Hello)
}

// records sends the flow records that were not sent yet.
func (s *session) records(version int) error {
	if version < recordsSince {
		return nil
	}
	records, last := s.cfg.Giver.Records(s.sent)
	for len(records) > 0 {
		body, n := encodeRecords(records, 1<<20)
		if n == 0 {
			n = 1 // one that is too long for any message stays
		} else if err := s.send(kindRecords, 0, body, nil, s.cfg.Timeouts.Hello); err != nil {
			return err
		}
		records = records[n:]
	}
	s.sent = last
	return nil
}

// await waits for a message that says nothing but its kind.
func (s *session) await(k kind, within time.Duration) error {
	m, err := s.receive(within)
	if err != nil {
		return fmt.Errorf("%w: %w", errLost, err)
	}
	defer m.closeFiles()
	return unmarshal(m, k, &struct{}{})
}

// awaitReady waits for the end of the successor's self-test.
func (s *session) awaitReady(pods int) error {
	m, err := s.receive(s.cfg.Timeouts.Test + time.Duration(pods)*s.cfg.Timeouts.TestPod)
	if err != nil {
		return fmt.Errorf("%w before it was ready: %w", errLost, err)
	}
	defer m.closeFiles()
	if m.kind == kindFailed {
		var why failed
		if err := unmarshal(m, kindFailed, &why); err != nil {
			return err
		}
		s.resigned = true
		return fmt.Errorf("the successor is not fit: %s", why.Reason)
	}
	return unmarshal(m, kindReady, &struct{}{})
}

// awaitTaken waits until the successor answers for the node. One that is there
// and slow has everything all the same; only one that is gone is none.
func (s *session) awaitTaken() error {
	for deadline := time.Now().Add(s.cfg.Timeouts.Hello); ; {
		m, err := s.receive(max(time.Until(deadline), time.Millisecond))
		switch {
		case errors.Is(err, errIdle):
			s.cfg.Log.Warn("the successor has everything, and does not say so")
			return nil
		case err != nil:
			return fmt.Errorf("%w: %w", errLost, err)
		}
		m.closeFiles()
		if m.kind == kindTaken {
			return nil
		}
	}
}

// move gives one batch away, or says why it stays.
func (s *session) move(batch []*Connection) error {
	if err := s.settle(s.rest); err != nil {
		return err
	}
	s.batch++
	body, files := encodeBatch(batch, monotonic())
	if len(batch) > maxConnections || len(body) > maxBody || len(files) > maxFiles {
		clear(body) // keys
		return fmt.Errorf("%w: %d with %d bytes and %d descriptors are too many for a message", ErrStays, len(batch), len(body), len(files))
	}
	if err := s.tell(kindBatch, body, files); err != nil {
		return err
	}
	if err := s.awaitPrepared(); err != nil {
		return err
	}
	if err := s.tell(kindCommit, nil, nil); err != nil {
		return err
	}
	s.moved += len(batch)
	return nil
}

// awaitPrepared waits until the successor has said that it can go on with the
// batch; if it has not in time, it must not.
func (s *session) awaitPrepared() error {
	for deadline := time.Now().Add(s.rest); ; {
		m, err := s.receive(max(time.Until(deadline), time.Millisecond))
		if errors.Is(err, errIdle) {
			if err := s.tell(kindAbort, nil, nil); err != nil {
				return err
			}
			return s.lateFor(nil)
		}
		if err != nil {
			return errors.Join(errLost, err, s.conn.Close())
		}
		m.closeFiles()
		if m.batch != s.batch {
			continue // too late, and was told so
		}
		s.since = time.Time{}
		switch m.kind {
		case kindPrepared:
			return nil
		case kindRejected:
			return s.rejected(m.body)
		}
		return errors.Join(errLost, fmt.Errorf("message %d came in place of an answer", m.kind), s.conn.Close())
	}
}

// rejected is what becomes of connections that the successor cannot read. While
// it has none, a successor that fits better loses nothing; one that has some
// must not be given up for others.
func (s *session) rejected(reason []byte) error {
	err := fmt.Errorf("the successor cannot go on with a connection: %s", reason)
	if s.moved == 0 {
		return err
	}
	s.cfg.Log.Warn("connections stay to be drained", "successor", s.hello.Self.PID, "error", err)
	return fmt.Errorf("%w: %w", ErrStays, err)
}

// monotonic is the kernel's clock that both processes read alike, in nanoseconds.
func monotonic() int64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return 0 // cannot fail with this clock
	}
	return ts.Nano()
}
