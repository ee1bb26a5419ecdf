package relay_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/relay"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// world is the owners of pairs, by number, whichever relay they are on.
type world struct {
	sync.Mutex
	owners []*owner
}

// owner is an hbone.Owner of one pair.
type owner struct {
	id     int
	pair   *carried
	left   atomic.Int32
	refuse atomic.Bool
}

var errRefused = errors.New("owner does not freeze")

func (o *owner) Freeze() ([]byte, error) {
	if o.refuse.Load() {
		return nil, errRefused
	}
	return []byte(strconv.Itoa(o.id)), nil
}

func (o *owner) Left() { o.left.Add(1) }

// carry starts a pair that can move.
func (w *world) carry(t testing.TB, r *relay.Relay) *owner {
	w.Lock()
	defer w.Unlock()
	o := &owner{id: len(w.owners)}
	w.owners = append(w.owners, o)
	o.pair = carryBy(t, r, o)
	return o
}

// adopt makes the same owner of a pair again.
func (w *world) adopt(state []byte) (*relay.Adopted, error) {
	id, err := strconv.Atoi(string(state))
	if err != nil {
		return nil, err
	}
	w.Lock()
	defer w.Unlock()
	o := w.owners[id]
	c := o.pair
	// What was counted must come with the pair.
	c.sent.Store(1 << 60)
	c.received.Store(1 << 60)
	return &relay.Adopted{
		Sent: &c.sent, Received: &c.received, Owner: o,
		Measure: func(int, int) { c.endings.Add(1) }, Done: func(err error) { c.done <- err },
	}, nil
}

// thaw takes frozen pairs over as another process does, with descriptors of its
// own, and all at once: each waits for its loop.
func thaw(to *relay.Relay, frozen []*relay.Frozen, adopt func([]byte) (*relay.Adopted, error)) ([]*relay.Carrying, error) {
	pairs, errs := make([]*relay.Carrying, len(frozen)), make([]error, len(frozen))
	var wg sync.WaitGroup
	for i, f := range frozen {
		wg.Go(func() { pairs[i], errs[i] = thawOne(to, f, adopt) })
	}
	wg.Wait()
	return pairs, errors.Join(errs...)
}

func thawOne(to *relay.Relay, f *relay.Frozen, adopt func([]byte) (*relay.Adopted, error)) (*relay.Carrying, error) {
	files := make([]int, len(f.Files))
	for i, fd := range f.Files {
		var err error
		if files[i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return nil, err
		}
	}
	c, err := to.Thaw(&relay.Frozen{State: f.State, Data: f.Data, Files: files}, adopt)
	if err != nil {
		for _, fd := range files {
			unix.Close(fd)
		}
	}
	return c, err
}

// TestMovesUnderTraffic moves pairs to and fro between two relays while they are
// busy, half closed, stuck and idle.
func TestMovesUnderTraffic(t *testing.T) {
	const each, moves = 4, 20
	relays := [2]*relay.Relay{relay.New(8), relay.New(8)}
	for _, r := range relays {
		t.Cleanup(r.Close)
	}
	var w world
	var stop atomic.Bool
	var transfers []*transfer
	var pairs, stuck []*carried
	for i := range 4 * each {
		c := w.carry(t, relays[0]).pair
		pairs = append(pairs, c)
		switch i % 4 {
		case 0: // both ways
			transfers = append(transfers, begin(c.client, c.server, 1<<40, &stop), begin(c.server, c.client, 1<<40, &stop))
		case 1: // half closed, by either end
			from, to := c.client, c.server
			if i%8 == 1 {
				from, to = to, from
			}
			to.CloseWrite()
			transfers = append(transfers, begin(from, to, 1<<40, &stop))
		case 2:
			stuck = append(stuck, c)
		}
	}
	stalled := stick(t, stuck)
	pause := time.Duration(0)
	for i := range moves {
		from, to := relays[i%2], relays[(i+1)%2]
		moved := 0
		err := from.Freeze(t.Context(), func(f []*relay.Frozen) error {
			moved += len(f)
			began := time.Now()
			_, err := thaw(to, f, w.adopt)
			pause = max(pause, time.Since(began))
			return err
		})
		if err != nil || moved != len(pairs) {
			t.Fatalf("move %d: %d pairs, %v", i, moved, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	stop.Store(true)
	for i, f := range stalled {
		f.unstick(stuck[i])
	}
	total := int64(0)
	for _, f := range append(transfers, stalled...) {
		total += f.check(t)
	}
	t.Logf("%d bytes, and at most %v for a batch", total, pause)
	for i, c := range pairs {
		checkMoved(t, c, w.owners[i], i%4 == 3, moves)
	}
}

// checkMoved ends a pair in good order, after a word if it was idle.
func checkMoved(t *testing.T, c *carried, o *owner, idle bool, moves int) {
	t.Helper()
	if idle {
		c.client.Write([]byte("x"))
		if _, err := io.ReadFull(c.server, make([]byte, 1)); err != nil {
			t.Error(err)
		}
	}
	c.client.CloseWrite()
	c.server.CloseWrite()
	if err := c.wait(t); err != nil {
		t.Errorf("pair %d: %v", o.id, err)
	}
	if idle && (c.sent.Load() != 1 || c.received.Load() != 0) {
		t.Errorf("pair %d counted %d and %d", o.id, c.sent.Load(), c.received.Load())
	}
	if n := int(o.left.Load()); n != moves {
		t.Errorf("pair %d left %d times in %d moves", o.id, n, moves)
	}
}

// TestCountersMove: what was carried is counted from where it was.
func TestCountersMove(t *testing.T) {
	from, to := relay.New(8), relay.New(8)
	t.Cleanup(from.Close)
	t.Cleanup(to.Close)
	var w world
	c := w.carry(t, from).pair
	for range 2 {
		there, back := make([]byte, 300), make([]byte, 70)
		c.client.Write(there)
		io.ReadFull(c.server, there)
		c.server.Write(back)
		io.ReadFull(c.client, back)
		if err := from.Freeze(t.Context(), func(f []*relay.Frozen) error {
			_, err := thaw(to, f, w.adopt)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		from, to = to, from
	}
	c.client.Close()
	c.server.Close()
	if err := c.wait(t); err != nil || c.sent.Load() != 600 || c.received.Load() != 140 {
		t.Errorf("counted %d and %d, %v", c.sent.Load(), c.received.Load(), err)
	}
}

// TestFailedMove: the pairs go on as if nothing had been, what they held
// included, and whatever their ends did meanwhile.
func TestFailedMove(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // one loop: all are at rest at once
	r := relay.New(8)
	t.Cleanup(r.Close)
	var w world
	busy, stuck, idle, reset, cut := w.carry(t, r), w.carry(t, r), w.carry(t, r), w.carry(t, r), w.carry(t, r)
	var stop atomic.Bool
	there := begin(busy.pair.client, busy.pair.server, 1<<40, &stop)
	back := begin(busy.pair.server, busy.pair.client, 1<<40, &stop)
	stalled := stick(t, []*carried{stuck.pair})[0]
	failed := errors.New("the other process is not able")
	for i := range 10 {
		err := r.Freeze(t.Context(), func(f []*relay.Frozen) error {
			if i == 0 {
				idle.pair.client.Write([]byte("meanwhile"))
				relay.Reset(reset.pair.client)
				cut.pair.cut()
				time.Sleep(10 * time.Millisecond)
			}
			return failed
		})
		if !errors.Is(err, failed) {
			t.Fatal(err)
		}
	}
	if _, err := io.ReadFull(idle.pair.server, make([]byte, 9)); err != nil {
		t.Error(err)
	}
	stop.Store(true)
	there.check(t)
	back.check(t)
	stalled.unstick(stuck.pair)
	stalled.check(t)
	for _, o := range []*owner{busy, stuck, idle, reset, cut} {
		if o == idle {
			o.pair.client.Close()
		}
		o.pair.server.Close()
		err := o.pair.wait(t)
		if want := o == reset || o == cut; want != errors.Is(err, relay.ErrReset) || !want && err != nil {
			t.Errorf("pair %d: %v", o.id, err)
		}
		if o.left.Load() != 0 {
			t.Errorf("pair %d left", o.id)
		}
	}
}

// TestNotEverythingMoves: pairs without owner, and those whose owner cannot,
// stay and go on, and the others move.
func TestNotEverythingMoves(t *testing.T) {
	from, to := relay.New(8), relay.New(8)
	t.Cleanup(from.Close)
	t.Cleanup(to.Close)
	var w world
	moves, stays := w.carry(t, from), w.carry(t, from)
	stays.refuse.Store(true)
	nobodys := carryBy(t, from, nil)
	err := from.Freeze(t.Context(), func(f []*relay.Frozen) error {
		if len(f) != 1 {
			t.Errorf("%d at once", len(f))
		}
		_, err := thaw(to, f, w.adopt)
		return err
	})
	if !errors.Is(err, errRefused) {
		t.Error(err)
	}
	from.Close()
	for c, want := range map[*carried]bool{moves.pair: false, stays.pair: true, nobodys: true} {
		c.client.Write([]byte("x"))
		c.server.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, err := io.ReadFull(c.server, make([]byte, 1))
		if want != isReset(err) || !want && err != nil {
			t.Errorf("after the old relay's end: %v", err)
		}
		c.client.Close()
		c.server.Close()
		if err := c.wait(t); want != errors.Is(err, relay.ErrReset) {
			t.Error(err)
		}
	}
}

// TestOnlyWhatCannotMoveStays: of many pairs one cannot move, whoever else is in
// its batch. It goes on, and the others move.
func TestOnlyWhatCannotMoveStays(t *testing.T) {
	from, to := relay.New(8), relay.New(8)
	t.Cleanup(from.Close)
	t.Cleanup(to.Close)
	var w world
	for range 9 {
		w.carry(t, from)
	}
	const stays = 4
	moved := 0
	err := from.Freeze(t.Context(), func(f []*relay.Frozen) error {
		for _, one := range f {
			if owner, err := relay.Check(one); err != nil || string(owner) == strconv.Itoa(stays) {
				return fmt.Errorf("%w: one of %d (%v)", hbone.ErrStays, len(f), err)
			}
		}
		moved += len(f)
		_, err := thaw(to, f, w.adopt)
		return err
	})
	if !errors.Is(err, hbone.ErrStays) || moved != len(w.owners)-1 {
		t.Errorf("%d moved: %v", moved, err)
	}
	for i, o := range w.owners {
		if left := o.left.Load() == 1; left == (i == stays) {
			t.Errorf("pair %d: left %v", i, left)
		}
		o.pair.client.Write([]byte("x"))
		if _, err := io.ReadFull(o.pair.server, make([]byte, 1)); err != nil {
			t.Errorf("pair %d: %v", i, err)
		}
		o.pair.client.Close()
		o.pair.server.Close()
		if err := o.pair.wait(t); err != nil {
			t.Errorf("pair %d: %v", i, err)
		}
	}
}

// TestFreezeStopsWithContext: the pairs that are left go on.
func TestFreezeStopsWithContext(t *testing.T) {
	r := relay.New(8)
	t.Cleanup(r.Close)
	var w world
	o := w.carry(t, r)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := r.Freeze(ctx, func([]*relay.Frozen) error { t.Error("moved"); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	o.pair.client.Write([]byte("x"))
	if _, err := io.ReadFull(o.pair.server, make([]byte, 1)); err != nil {
		t.Error(err)
	}
	o.pair.client.Close()
	o.pair.server.Close()
	if err := o.pair.wait(t); err != nil {
		t.Error(err)
	}
	r.Close()
	if err := r.Freeze(t.Context(), nil); err != nil {
		t.Errorf("freeze nothing: %v", err)
	}
}

// TestCutWhileItMoves: policy counts, wherever the pair is by then.
func TestCutWhileItMoves(t *testing.T) {
	from, to := relay.New(8), relay.New(8)
	t.Cleanup(from.Close)
	t.Cleanup(to.Close)
	var w world
	o := w.carry(t, from)
	o.pair.client.Write([]byte("x"))
	io.ReadFull(o.pair.server, make([]byte, 1))
	err := from.Freeze(t.Context(), func(f []*relay.Frozen) error {
		o.pair.cut()
		_, err := thaw(to, f, w.adopt)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, end := range []*net.TCPConn{o.pair.client, o.pair.server} {
		end.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := end.Read(make([]byte, 1)); !isReset(err) {
			t.Errorf("read: %v, want a reset", err)
		}
	}
	if err := o.pair.wait(t); !errors.Is(err, relay.ErrReset) {
		t.Error(err)
	}
	if o.left.Load() != 1 {
		t.Error("the owner was not told")
	}
}

// TestCutAfterMove: a thawed pair's own Cut.
func TestCutAfterMove(t *testing.T) {
	from, to := relay.New(8), relay.New(8)
	t.Cleanup(from.Close)
	t.Cleanup(to.Close)
	var w world
	o := w.carry(t, from)
	var thawed []*relay.Carrying
	err := from.Freeze(t.Context(), func(f []*relay.Frozen) (err error) {
		thawed, err = thaw(to, f, w.adopt)
		return err
	})
	if err != nil || len(thawed) != 1 {
		t.Fatalf("%d thawed, %v", len(thawed), err)
	}
	o.pair.cut() // the old one's does nothing any more
	o.pair.client.Write([]byte("x"))
	if _, err := io.ReadFull(o.pair.server, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	thawed[0].Cut()
	if err := o.pair.wait(t); !errors.Is(err, relay.ErrReset) {
		t.Error(err)
	}
}

// TestManyMove: more than one batch of pairs, from all loops, and no trace of
// them is left on the old relay.
func TestManyMove(t *testing.T) {
	const pairs = 300
	from, to := relay.New(8), relay.New(8)
	t.Cleanup(from.Close)
	t.Cleanup(to.Close)
	var w world
	for range pairs {
		w.carry(t, from)
	}
	moved, most := 0, 0
	err := from.Freeze(t.Context(), func(f []*relay.Frozen) error {
		moved, most = moved+len(f), max(most, len(f))
		_, err := thaw(to, f, w.adopt)
		return err
	})
	if err != nil || moved != pairs || most > 64 {
		t.Fatalf("%d moved, %d at once, %v", moved, most, err)
	}
	from.Close()
	for _, o := range w.owners {
		checkMoved(t, o.pair, o, true, 1)
	}
}

// TestThawRefuses: bad states are refused, and the files are the caller's still.
func TestThawRefuses(t *testing.T) {
	r := relay.New(8)
	t.Cleanup(r.Close)
	_, a := tcpPair(t)
	_, b := tcpPair(t)
	fds := []int{rawFd(t, a), rawFd(t, b)}
	const good = `{"version":1,"fromA":{"ended":true,"carried":3,"held":0},"fromB":{"held":2},"owner":"MA=="}`
	refused := errors.New("no such owner")
	adopt := func([]byte) (*relay.Adopted, error) { return nil, refused }
	for name, f := range map[string]*relay.Frozen{
		"no state":       {Data: []byte("ab"), Files: fds},
		"version 2":      {State: []byte(`{"version":2,"fromB":{"held":2}}`), Data: []byte("ab"), Files: fds},
		"too few bytes":  {State: []byte(good), Data: []byte("a"), Files: fds},
		"too many bytes": {State: []byte(good), Data: []byte("abc"), Files: fds},
		"one file":       {State: []byte(good), Data: []byte("ab"), Files: fds[:1]},
		"no socket":      {State: []byte(good), Data: []byte("ab"), Files: []int{fds[0], 0}},
		"no descriptor":  {State: []byte(good), Data: []byte("ab"), Files: []int{fds[0], -1}},
		"both ended":     {State: []byte(`{"version":1,"fromA":{"ended":true},"fromB":{"ended":true}}`), Files: fds},
		"ended and held": {State: []byte(`{"version":1,"fromA":{"ended":true,"held":2}}`), Data: []byte("ab"), Files: fds},
		"negative":       {State: []byte(`{"version":1,"fromA":{"held":-1},"fromB":{"held":3}}`), Data: []byte("ab"), Files: fds},
		"too much held":  {State: []byte(`{"version":1,"fromA":{"held":1048577}}`), Data: make([]byte, 1<<20+1), Files: fds},
	} {
		if c, err := r.Thaw(f, adopt); c != nil || err == nil || errors.Is(err, refused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.Thaw(&relay.Frozen{State: []byte(good), Data: []byte("ab"), Files: fds}, adopt); !errors.Is(err, refused) {
		t.Errorf("a good one, and an owner that is not: %v", err)
	}
	testenv.Eventually(t, time.Second, "the sockets are still there", func() bool {
		_, errA := a.Write([]byte("x"))
		_, errB := b.Write([]byte("x"))
		return errA == nil && errB == nil
	})
}

func rawFd(t testing.TB, c *net.TCPConn) (fd int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(f uintptr) { fd = int(f) }); err != nil {
		t.Fatal(err)
	}
	return fd
}
