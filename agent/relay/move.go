package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone"
)

// A batch of Freeze: what one message of SCM_RIGHTS can carry (SCM_MAX_FD in
// include/net/scm.h is 253), and no more bytes than soon sent.
const batchPairs, batchBytes = 64, 4 << 20

// Frozen is one pair at rest: Files are its two sockets. Source is empty; what
// the pair is for is its owner's to know.
type Frozen = hbone.Frozen

// Adopted is an owner's side of a pair that has come from another process. Its
// fields are those of Pair, and Start's done. The counters are set by Thaw to
// where they were.
type Adopted struct {
	Sent, Received *atomic.Uint64
	Measure        func(a, b int)
	Owner          hbone.Owner
	Done           func(error)
}

// batch is the pairs that are at rest while move runs.
type batch struct {
	pairs  []*Carrying
	frozen []*Frozen
	bytes  int
}

// Freeze takes the pairs that have an owner out of the relay, and gives them to
// move, some at a time, until none is left that can be moved or ctx is done. One of
// which an end has broken is about to end, and does so here. The
// caller starts no more. Pairs go on until the moment that they are moved, and
// are at rest for as long as move runs; the others go on.
//
// When move returns nil, the other process has them: their owners are told by
// Left, nothing else of them is called, and their sockets are closed here, which
// nobody at their other ends sees. When it returns an error, the other process
// has not begun to use them: they go on here as if nothing had been, and Freeze
// returns that error. It returns ctx's error when pairs were left.
//
// After an error of move's that matches hbone.ErrStays each of what it got is
// tried alone. Those for which move says so then go on here, as do those whose
// owner's Freeze fails; the others move, and Freeze's error matches
// hbone.ErrStays in the end.
func (r *Relay) Freeze(ctx context.Context, move func([]*Frozen) error) error {
	r.moving.RLock()
	defer r.moving.RUnlock()
	var stay []error
	for _, w := range r.workers() {
		stayed, err := w.moveAll(ctx, move)
		if err != nil {
			return err
		}
		stay = append(stay, stayed...)
	}
	return errors.Join(stay...)
}

// mover moves one worker's pairs in one Freeze. Its maps are the loop's while
// that does something for it.
type mover struct {
	*worker
	// alone are those of a batch of which something cannot move: each is tried by
	// itself. stays are those that cannot, with the reason.
	alone map[*Carrying]bool
	stays map[*Carrying]error
}

// moveAll moves a worker's pairs; stayed is why some could not be.
func (w *worker) moveAll(ctx context.Context, move func([]*Frozen) error) (stayed []error, err error) {
	m := &mover{w, map[*Carrying]bool{}, map[*Carrying]error{}}
	for {
		var b batch
		if !m.call(func() { b = m.freeze() }) {
			return nil, ErrClosed
		}
		if len(b.pairs) == 0 {
			return slices.Collect(maps.Values(m.stays)), nil
		}
		if err = ctx.Err(); err == nil {
			err = move(b.frozen)
		}
		if !m.call(func() { m.land(&b, err) }) {
			return nil, ErrClosed
		}
		if err != nil && !errors.Is(err, hbone.ErrStays) {
			return nil, err
		}
	}
}

// freeze brings some pairs to rest.
func (m *mover) freeze() (b batch) {
	for _, c := range slices.Clone(m.pairs) { // a pair that fails leaves the list
		if len(b.pairs) == batchPairs || b.bytes > batchBytes {
			break
		}
		alone := m.alone[c]
		if c.owner == nil || c.frozen || c.last != nil || m.stays[c] != nil || alone && len(b.pairs) > 0 {
			continue
		}
		f, err := c.freeze()
		if err != nil {
			m.stays[c] = fmt.Errorf("%w: %w", hbone.ErrStays, err)
			c.look() // what was in its pipe is held now
			continue
		}
		if c.over {
			continue
		}
		c.frozen = true
		b.pairs, b.frozen, b.bytes = append(b.pairs, c), append(b.frozen, f), b.bytes+len(f.Data)
		if alone {
			break
		}
	}
	return b
}

// land is settle, and notes what cannot move.
func (m *mover) land(b *batch, err error) {
	if errors.Is(err, hbone.ErrStays) {
		for _, c := range b.pairs {
			if len(b.pairs) > 1 {
				m.alone[c] = true
			} else {
				m.stays[c] = fmt.Errorf("pair: %w", err)
			}
		}
	}
	m.settle(b, err)
}

// settle lets a batch go: to another process, or on here.
func (w *worker) settle(b *batch, err error) {
	for _, c := range b.pairs {
		c.frozen = false
		switch {
		case err == nil:
			c.leave()
		case c.cut:
			c.fail(ErrReset)
		default:
			c.look()
		}
	}
}

// freeze writes a pair down. It may end the pair.
func (c *Carrying) freeze() (*Frozen, error) {
	owner, err := c.owner.Freeze()
	if err != nil {
		return nil, fmt.Errorf("freeze the owner of a pair: %w", err)
	}
	s, f := state{Version: stateVersion, Owner: owner}, &Frozen{}
	for i, to := range []*wayState{&s.FromA, &s.FromB} {
		d := &c.ways[i]
		if !d.unload() {
			return nil, nil
		}
		*to = wayState{Ended: d.ended, Carried: d.n.Load(), Held: len(d.held)}
		f.Data = append(f.Data, d.held...)
		f.Files = append(f.Files, d.fd)
	}
	f.State, err = s.encode()
	return f, err
}

// unload takes what the direction holds out of its pipe. It ends the pair, and
// returns false, when that cannot be.
func (d *way) unload() bool {
	if d.pipe == nil {
		return true
	}
	held := make([]byte, d.inPipe)
	for got := 0; got < len(held); {
		n, errno := eventloop.Read(d.pipe.r, held[got:])
		if errno != 0 || n == 0 {
			d.pair.fail(fmt.Errorf("%w: %w", errLost, errno))
			return false
		}
		got += n
	}
	d.inPipe = 0
	d.drop()
	d.held = held
	return true
}

// leave is the end of a pair that another process has. A cut that came too late
// to keep the pair from moving still counts: disconnecting ends it everywhere.
func (c *Carrying) leave() {
	c.over = true
	c.worker.remove(c)
	for i := range c.ways {
		d := &c.ways[i]
		d.drop()
		if c.cut {
			disconnect(d.fd)
		}
		eventloop.CloseSocket(d.fd)
	}
	c.owner.Left()
}

// look tries everything once, as nobody has listened for a while and an edge
// is not told of twice.
func (c *Carrying) look() {
	for i := range c.ways {
		c.ways[i].Ready(everything)
	}
}

const everything = eventloop.Events(unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLERR)

// Thaw goes on with a pair that Freeze gave away in another process, which owns
// its files from then on. Adopt makes the owner again from what its Freeze gave.
// After an error nothing was taken over, and the files are still the caller's;
// an owner that was made already is told by Left.
//
// It waits for a turn of the pair's loop: several may be thawed at once, and it
// must not be called from a done.
func (r *Relay) Thaw(f *Frozen, adopt func(state []byte) (*Adopted, error)) (*Carrying, error) {
	r.moving.RLock()
	defer r.moving.RUnlock()
	s, err := decode(f)
	if err != nil {
		return nil, err
	}
	for _, fd := range f.Files {
		if err := prepare(fd); err != nil {
			return nil, err
		}
	}
	w, err := r.worker()
	if err != nil {
		return nil, err
	}
	a, err := adopt(s.Owner)
	if err != nil {
		return nil, fmt.Errorf("adopt the owner of a pair: %w", err)
	}
	c := &Carrying{worker: w, measure: a.Measure, owner: a.Owner, done: a.Done}
	c.join([2]int(f.Files), a.Sent, a.Received)
	c.restore(s, f.Data)
	if !w.call(func() { err = c.resume() }) {
		err = ErrClosed
	}
	if err != nil {
		if a.Owner != nil {
			a.Owner.Left()
		}
		return nil, fmt.Errorf("thaw a pair: %w", err)
	}
	return c, nil
}

// restore gives both directions what they had.
func (c *Carrying) restore(s *state, data []byte) {
	for i, from := range []wayState{s.FromA, s.FromB} {
		d := &c.ways[i]
		d.ended = from.Ended
		d.n.Store(from.Carried)
		d.held, data = slices.Clone(data[:from.Held]), data[from.Held:]
	}
}

func (c *Carrying) resume() error {
	if err := c.worker.watch(c); err != nil {
		return err
	}
	c.look() // the loop will tell of the same, a turn later
	return nil
}
