package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/admin/rootsocket"
	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/overdue"
)

// ErrNobody is matched when no agent answers at the socket.
var ErrNobody = errors.New("no agent to take over from")

// Taker is the new agent.
type Taker interface {
	// Check says whether these connections can go on here. It must be quick,
	// and must not touch their descriptors.
	Check([]*Connection) error
	// Thaw goes on with a connection, which is its own, with its descriptors,
	// unless it returns an error.
	Thaw(*Connection) error
	// Records takes flow records of the donor, oldest first.
	Records([][]byte)
}

// SuccessorConfig is what a Successor works with.
type SuccessorConfig struct {
	// Socket is the donor's.
	Socket   string
	Self     Self
	Versions Versions
	// Drain accepts that connections that cannot move are drained.
	Drain bool
	// Mortal says that this process is the successor and nothing else: a donor that
	// goes on ends it.
	Mortal   bool
	Timeouts Timeouts
	Log      *slog.Logger
}

// Successor is the new agent's end of a hand-over. Its methods are called one
// after the other, in the order in which they stand here; Close comes last.
type Successor struct {
	cfg     SuccessorConfig
	channel channel
	process int // a pidfd; -1 when the donor is in another pid namespace
	stop    func() bool
	begun   time.Time

	// Version was agreed on, Donor is who gives, and Moves says whether
	// connections move.
	Version int
	Donor   Self
	Moves   bool
}

// Summary says how a hand-over went, as its successor saw it.
type Summary struct {
	// Donor is who gave, by which version of the protocol.
	Donor   Self
	Version int
	// Connections went on here; Failed could not; Left stayed with the donor.
	Connections, Failed, Left int
	// Pause is the longest that a connection was at rest, Took the time from
	// hello to done.
	Pause, Took time.Duration
	// Alone says that the donor died before it was done.
	Alone bool
	// Deed is the donor's, and now the caller's; nil when it had none.
	Deed *os.File
}

// Dial asks the agent at the socket for its work, and reads its answer, which
// may be a *Refused. The error matches ErrNobody when there is none, or when it has
// ended before it answered: a process that was killed keeps its socket until the last
// of its threads has left the kernel. Dial says in the log for whom it waits.
func Dial(ctx context.Context, cfg SuccessorConfig) (*Successor, error) {
	cfg.Timeouts = cfg.Timeouts.orDefaults()
	conn, err := rootsocket.Dial(ctx, cfg.Socket)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("%w at %s", ErrNobody, cfg.Socket)
	}
	if err != nil {
		return nil, fmt.Errorf("ask the running agent: %w", err)
	}
	s := &Successor{cfg: cfg, channel: channel{conn}, process: -1, begun: time.Now()}
	// A conversation that is cut off is the donor's to go on from.
	s.stop = context.AfterFunc(ctx, func() { _ = conn.Close() })
	if err := s.open(conn); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Successor) open(conn *net.UnixConn) error {
	pid, err := rootsocket.Peer(conn)
	if err != nil {
		return err
	}
	if pid > 0 {
		s.process, err = unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("%w at %s: process %d has ended", ErrNobody, s.cfg.Socket, pid)
		}
		if err != nil {
			return fmt.Errorf("watch the running agent: %w", err)
		}
	}
	defer overdue.Say(s.cfg.Log, "for the agent that runs to answer", func() []any {
		return []any{"socket", s.cfg.Socket, "process", overdue.Process(pid)}
	})()
	err = s.say(kindHello, hello{Versions: s.cfg.Versions.orDefault(), Self: s.cfg.Self, Drain: s.cfg.Drain, Mortal: s.cfg.Mortal})
	var m *message
	if err == nil {
		m, err = s.channel.receive(s.cfg.Timeouts.Test)
	}
	if err != nil && !errors.Is(err, net.ErrClosed) && s.donorDied() {
		return fmt.Errorf("%w at %s: process %d has ended", ErrNobody, s.cfg.Socket, pid)
	}
	if err != nil {
		return fmt.Errorf("the running agent does not answer (process %s): %w", overdue.Process(pid), err)
	}
	defer m.closeFiles()
	if m.kind == kindRefused {
		refused := &Refused{}
		return errors.Join(unmarshal(m, kindRefused, refused), refused)
	}
	var w welcome
	if err := unmarshal(m, kindWelcome, &w); err != nil {
		return err
	}
	own := s.cfg.Versions.orDefault()
	if w.Version < own.Oldest || w.Version > own.Newest {
		return fmt.Errorf("the running agent chose version %d of the hand-over, which this one does not speak", w.Version)
	}
	s.Version, s.Donor, s.Moves = w.Version, w.Self, w.Moves
	s.Donor.PID = pid
	return nil
}

func (s *Successor) say(k kind, what any) error {
	body, err := json.Marshal(what)
	if err != nil {
		return fmt.Errorf("say %d: %w", k, err)
	}
	return s.channel.send(k, 0, body, nil, s.cfg.Timeouts.Hello)
}

// Estate reads what the donor has besides connections. Its descriptors are the
// caller's, also after an error.
func (s *Successor) Estate(records func([][]byte)) (*Estate, error) {
	e := &Estate{}
	for {
		m, err := s.channel.receive(s.cfg.Timeouts.Test)
		if err != nil {
			return e, fmt.Errorf("hear of the running agent's listeners: %w", err)
		}
		switch m.kind {
		case kindListeners:
			var part estatePart
			if err = unmarshal(m, kindListeners, &part); err == nil {
				err = e.add(part, m.files)
			}
			if err == nil {
				m.files = nil
			}
		case kindRecords:
			err = takeRecords(m, records)
		case kindStandby:
			m.closeFiles()
			return e, nil
		default:
			err = fmt.Errorf("message %d came among the listeners", m.kind)
		}
		m.closeFiles()
		if err != nil {
			return e, err
		}
	}
}

func takeRecords(m *message, records func([][]byte)) error {
	all, err := decodeRecords(m.body)
	if err != nil {
		return fmt.Errorf("read flow records: %w", err)
	}
	records(all)
	return nil
}

// Fail tells the donor that it must go on.
func (s *Successor) Fail(why error) {
	reason := why.Error()
	_ = s.say(kindFailed, failed{reason[:min(len(reason), maxControl/8)]}) // one that hears nothing goes on, too
}

// Ready tells the donor that everything is fit, and waits for its word. After
// nil, accept, beside the donor. alone means that the donor has died: there is
// nobody else any more, and nothing to receive.
func (s *Successor) Ready() (alone bool, err error) {
	err = s.say(kindReady, struct{}{})
	if err == nil {
		var m *message
		if m, err = s.channel.receive(s.cfg.Timeouts.Hello); err == nil {
			m.closeFiles()
			return false, unmarshal(m, kindMoving, &struct{}{})
		}
	}
	if s.donorDied() {
		return true, nil
	}
	return false, fmt.Errorf("the running agent does not hand over: %w", err)
}

// Receive tells the donor that everything is accepted from here, so that it can
// stop, and takes connections until it is done. An error means that the
// donor goes on, and this agent must not.
func (s *Successor) Receive(t Taker) (Summary, error) {
	sum := Summary{Donor: s.Donor, Version: s.Version}
	err := s.say(kindAccepting, struct{}{})
	if err == nil {
		err = s.receive(t, &sum)
	}
	sum.Took = time.Since(s.begun)
	if err != nil && s.donorDied() {
		sum.Alone, err = true, nil
	}
	if err != nil {
		return sum, fmt.Errorf("receive connections, after %d: %w", sum.Connections, err)
	}
	return sum, nil
}

func (s *Successor) receive(t Taker, sum *Summary) error {
	var ready *prepared
	defer func() { ready.drop() }()
	for {
		m, err := s.channel.receive(s.cfg.Timeouts.Move + 2*s.cfg.Timeouts.Hello)
		if err != nil {
			return err
		}
		switch m.kind {
		case kindBatch:
			ready.drop() // the donor has given it up
			ready, err = s.prepare(t, m)
		case kindAbort:
			ready.drop()
			ready = nil
		case kindCommit:
			if ready == nil || ready.batch != m.batch {
				err = fmt.Errorf("commit of batch %d, which is not prepared", m.batch)
				break
			}
			s.thaw(t, ready, sum)
			ready = nil
		case kindRecords:
			err = takeRecords(m, t.Records)
		case kindDone:
			var done doneMessage
			if err = unmarshal(m, kindDone, &done); err == nil {
				sum.Left, sum.Deed = done.Left, m.deed()
			}
			m.closeFiles()
			return err
		default:
			err = fmt.Errorf("message %d came among the connections", m.kind)
		}
		m.closeFiles()
		if err != nil {
			return err
		}
	}
}

// prepared is a batch that the donor has not committed yet.
type prepared struct {
	batch uint32
	all   []*Connection
	rest  int64
	body  []byte // holds keys; all points into it
}

// drop closes the duplicates and wipes the keys of a batch that was given up.
func (p *prepared) drop() {
	if p == nil {
		return
	}
	for _, c := range p.all {
		closeAll(c.Files)
	}
	clear(p.body)
	p.all = nil
}

// prepare answers a batch. It takes m's files; nil means that it was rejected.
func (s *Successor) prepare(t Taker, m *message) (*prepared, error) {
	all, rest, err := decodeBatch(m.body, m.files)
	if err == nil {
		err = t.Check(all)
	}
	if err != nil {
		m.closeFiles()
		clear(m.body)
		reason := err.Error()
		return nil, s.channel.send(kindRejected, m.batch, []byte(reason[:min(len(reason), 1024)]), nil, s.cfg.Timeouts.Hello)
	}
	m.files = nil
	p := &prepared{batch: m.batch, all: all, rest: rest, body: m.body}
	if err := s.channel.send(kindPrepared, m.batch, nil, nil, s.cfg.Timeouts.Hello); err != nil {
		p.drop()
		return nil, err
	}
	return p, nil
}

// thaw goes on with a batch that is this process's now.
func (s *Successor) thaw(t Taker, p *prepared, sum *Summary) {
	for _, c := range p.all {
		err := t.Thaw(c)
		clear(c.State) // keys
		if err != nil {
			sum.Failed++
			s.cfg.Log.Error("a connection that was handed over is lost", "workload", c.Pod, "error", err)
			// Its peers must not take the end for an orderly one.
			for _, fd := range c.Files {
				eventloop.Abort(fd)
			}
			continue
		}
		sum.Connections++
	}
	p.all, p.body = nil, nil // whoever thawed them has the data
	sum.Pause = max(sum.Pause, time.Duration(monotonic()-p.rest))
}

// Taken tells the donor that this agent answers for the node. One that has died
// meanwhile need not know.
func (s *Successor) Taken() {
	if err := s.say(kindTaken, struct{}{}); err != nil {
		s.cfg.Log.Warn("the former agent cannot be told that it may end", "error", err)
	}
}

// donorDied reports whether the donor's process has ended, which it may need a
// moment for. When that cannot be known it has not.
func (s *Successor) donorDied() bool {
	if s.process < 0 {
		return false
	}
	return ended(s.process, time.Second)
}

// Close ends the conversation. Before Ready it is as good as Fail.
func (s *Successor) Close() {
	s.stop()
	_ = s.channel.conn.Close() // all that matters was said and answered
	if s.process >= 0 {
		closeAll([]int{s.process})
		s.process = -1
	}
}
