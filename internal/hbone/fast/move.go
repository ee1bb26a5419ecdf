package fast

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/frozen"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/tunnel"
)

const (
	// A batch moves at once, so it bounds what one connection waits for another.
	batchConns = 16
	batchFiles = 128
	batchBytes = 1 << 20
	// holdFor is how long what a peer sends may wait for the Accepts that run,
	// holdPause how long its connection is then left alone.
	holdFor   = 60 * time.Millisecond
	holdPause = 200 * time.Millisecond
	// divertAfter is how long a connection may stay for the streams that its peer
	// opens, before it takes no more, and refuseAfter, before those that are
	// being decided on are refused, too.
	divertAfter = time.Second
	refuseAfter = 3 * time.Second
	// moveAgain is how long Freeze waits when nothing could be moved.
	moveAgain = 3 * time.Millisecond
)

var _ hbone.Mover = (*Engine)(nil)

// batch is connections at rest.
type batch struct {
	conns  []*tunnel.Conn
	frozen []*hbone.Frozen
	files  int
	bytes  int
	alone  bool
}

func (b *batch) full() bool {
	return b.alone || len(b.conns) >= batchConns || b.files >= batchFiles || b.bytes >= batchBytes
}

func (b *batch) add(c *tunnel.Conn, state, data []byte, files []int) {
	b.conns = append(b.conns, c)
	b.frozen = append(b.frozen, &hbone.Frozen{Source: c.Identity().Source, State: state, Data: data, Files: files})
	b.files, b.bytes = b.files+len(files), b.bytes+len(state)+len(data)
}

// mover moves one loop's connections in one Freeze. Its maps are the loop's.
type mover struct {
	*worker
	// alone are those of a batch of which something cannot move: each is tried by
	// itself. stays are those that cannot, with the reason.
	alone map[*tunnel.Conn]bool
	stays map[*tunnel.Conn]error
}

// Freeze is Mover.Freeze. One call at a time does it; another waits.
func (e *Engine) Freeze(ctx context.Context, move func([]*hbone.Frozen) error) error {
	e.freezing.Lock()
	defer e.freezing.Unlock()
	workers, err := e.enter()
	if err != nil {
		return err
	}
	defer e.release()
	movers := make([]*mover, len(workers))
	for i, w := range workers {
		movers[i] = &mover{w, map[*tunnel.Conn]bool{}, map[*tunnel.Conn]error{}}
	}
	defer func() {
		for _, w := range workers {
			w.on(w.settle)
		}
	}()
	for {
		moved := false
		for _, m := range movers {
			for ctx.Err() == nil {
				n, err := m.move(move)
				if err != nil {
					return err
				}
				if n == 0 {
					break
				}
				moved = true
			}
		}
		switch {
		case e.onlyStays(movers):
			return whyStay(movers)
		case ctx.Err() != nil:
			return errors.Join(ctx.Err(), whyStay(movers))
		case !moved:
			rest(ctx)
		}
	}
}

func rest(ctx context.Context) {
	t := time.NewTimer(moveAgain)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// onlyStays says that nothing is left but Serve calls, the Freeze that asks, and
// connections that stay. What these are may change while it counts.
func (e *Engine) onlyStays(movers []*mover) bool {
	before := staying(movers)
	e.live.Lock()
	left := e.live.n - 1 - len(e.live.servers)
	e.live.Unlock()
	return left == before && before == staying(movers)
}

// staying counts what the engine has counted of connections that stay, or are over but
// for a slow reader: each, and the streams of our own.
func staying(movers []*mover) (n int) {
	for _, m := range movers {
		m.on(func() {
			for c := range m.Conns {
				if m.stays[c] == nil && !c.Departs() {
					continue
				}
				n++
				if _, ours := c.Role().(*clientSide); ours {
					n += c.Streams()
				}
			}
		})
	}
	return n
}

// whyStay is Freeze's error for the connections that stay; the Freeze is over.
func whyStay(movers []*mover) error {
	var all []error
	for _, m := range movers {
		for _, why := range m.stays {
			all = append(all, why)
		}
	}
	return errors.Join(all...)
}

// on calls fn on the loop and waits for it.
func (w *worker) on(fn func()) {
	done := make(chan struct{})
	w.Post(func() { // runs: whoever calls is counted
		defer close(done)
		fn()
	})
	<-done
}

// move moves one batch, and says for how many connections it was tried.
func (m *mover) move(move func([]*hbone.Frozen) error) (int, error) {
	var b batch
	m.on(func() { b = m.collect() })
	if len(b.conns) == 0 {
		return 0, nil
	}
	err := move(b.frozen)
	m.on(func() { m.land(&b, err) })
	if errors.Is(err, hbone.ErrStays) {
		err = nil // for the others
	}
	return len(b.conns), err
}

// land lets a batch go: to another process, or on here.
func (m *mover) land(b *batch, err error) {
	for i, c := range b.conns {
		clear(b.frozen[i].State) // keys
		if err == nil {
			c.Gone()
			continue
		}
		c.Resume()
		switch {
		case !errors.Is(err, hbone.ErrStays):
		case len(b.conns) > 1:
			m.alone[c] = true
		default:
			m.stay(c, err)
		}
	}
}

// stay is for a connection that cannot move: its peer opens its next streams on
// another one.
func (m *mover) stay(c *tunnel.Conn, why error) {
	id := c.Identity()
	m.eng.log.Warn("tunnel connection does not move", "source", id.Source, "peer", id.Peer, "streams", c.Streams(), "error", why)
	m.stays[c] = fmt.Errorf("tunnel connection of %s with %s: %w", id.Source, id.Peer, why)
	if side, ok := c.Role().(*serverSide); ok {
		m.release(side)
		c.Diverted = true
	}
	c.Drain()
}

// collect brings connections to rest that can move, those first whose peers
// wait.
func (m *mover) collect() (b batch) {
	for _, side := range slices.Clone(m.held) {
		m.consider(side.conn, &b)
	}
	for c := range m.Conns {
		m.consider(c, &b)
	}
	return b
}

// consider tries a connection if there is room for it, and it has not turned out
// to stay.
func (m *mover) consider(c *tunnel.Conn, b *batch) {
	alone := m.alone[c]
	if b.full() || alone && len(b.conns) > 0 || m.stays[c] != nil {
		return
	}
	m.try(c, b)
	b.alone = alone && len(b.conns) > 0
}

// try brings a connection to rest, or does what lets it come to rest soon.
func (m *mover) try(c *tunnel.Conn, b *batch) {
	obstacle := c.Obstacle()
	switch side := c.Role().(type) {
	case *clientSide:
		side.moving = true // no new streams
	case *serverSide:
		if side.triedAt.IsZero() || obstacle == frozen.Delivering { // of which the peer's streams are not the cause
			side.triedAt = m.Now()
		}
		if obstacle == frozen.Deciding {
			m.wait(side)
		} else {
			m.release(side)
		}
	}
	if obstacle == frozen.None {
		m.rest(c, b)
	}
}

// rest brings one connection to rest; one that cannot be stays.
func (m *mover) rest(c *tunnel.Conn, b *batch) {
	z, files, err := c.Rest()
	if errors.Is(err, hbone.ErrStays) { // it would be so the next time
		m.stay(c, err)
	} else if err != nil {
		m.eng.log.Warn("tunnel connection does not move", "peer", c.Identity().Peer, "error", err)
	}
	if err != nil || z == nil {
		return
	}
	state, data, err := z.Encode()
	if err != nil {
		c.Resume()
		m.stay(c, fmt.Errorf("%w: %w", hbone.ErrStays, err))
		return
	}
	b.add(c, state, data, files)
}

// wait lets Accepts return. A peer that opens streams faster than that is sent
// elsewhere after a while: there is always one of which the Accept runs.
func (w *worker) wait(side *serverSide) {
	tried := w.Now().Sub(side.triedAt)
	if tried <= divertAfter {
		w.hold(side)
		return
	}
	w.release(side)
	side.conn.Diverted = true
	side.conn.Drain() // its peer opens them on another connection (RFC 9113 section 6.8)
	if tried > refuseAfter {
		side.conn.RefuseUndecided()
	}
}

// hold makes what a peer sends wait while Accepts return. Accepts that take
// longer must not stall the other streams.
func (w *worker) hold(side *serverSide) {
	age := w.Now().Sub(side.heldAt)
	switch held := slices.Contains(w.held, side); {
	case held && age > holdFor:
		w.release(side)
	case !held && len(w.held) < batchConns && age > holdFor+holdPause:
		side.heldAt = w.Now()
		side.conn.Hold()
		w.held = append(w.held, side)
	}
}

// release lets a peer's bytes in again; one that comes to rest leaves them to
// the other process.
func (w *worker) release(side *serverSide) {
	if i := slices.Index(w.held, side); i >= 0 {
		w.held = slices.Delete(w.held, i, i+1)
		side.conn.Release()
	}
}

// settle ends a Freeze for the connections that stay.
func (w *worker) settle() {
	for _, side := range slices.Clone(w.held) {
		w.release(side)
	}
	for c := range w.Conns {
		switch side := c.Role().(type) {
		case *clientSide:
			side.moving = false
		case *serverSide:
			side.triedAt = time.Time{}
			c.Diverted = false
		}
	}
}

// Thaw is Mover.Thaw. It returns when the connection lives on its loop.
func (e *Engine) Thaw(f *hbone.Frozen, ctx hbone.ThawContext) error {
	z, err := frozen.Decode(f.State, f.Data, len(f.Files))
	if err != nil {
		return err
	}
	t, err := z.Thaw(ctx.Bundles, e.cfg.GCM)
	if err != nil {
		return err
	}
	t.Memory = ctx.Memory
	workers, err := e.enter() // for the connection
	if err != nil {
		t.Session.Wipe()
		return err
	}
	adopted, err := adopt(z, ctx)
	if err == nil {
		if z.Server {
			err = e.thawServer(z, t, f.Files, adopted)
		} else {
			err = e.thawClient(z, t, f.Files, adopted, workers)
		}
		if err != nil {
			disown(adopted)
		}
	}
	if err != nil {
		t.Session.Wipe() // they are for whoever has the connection
		e.release()
	}
	return err
}

// adopt makes the owners of all streams, or of none.
func adopt(z *frozen.Conn, ctx hbone.ThawContext) ([]*hbone.Adopted, error) {
	all := make([]*hbone.Adopted, 0, len(z.Streams))
	for i := range z.Streams {
		a, err := ctx.Adopt(z.Streams[i].Owner)
		if err == nil && a == nil {
			err = errors.New("nobody does")
		}
		if err != nil {
			disown(all)
			return nil, fmt.Errorf("adopt stream %d: %w", z.Streams[i].ID, err)
		}
		all = append(all, a)
	}
	return all, nil
}

// disown tells owners that their streams are not here after all.
func disown(all []*hbone.Adopted) {
	for _, a := range all {
		if a.Owner != nil {
			a.Owner.Left()
		}
	}
}

// thawClient puts a connection into the pool of its key's home, or of a
// neighbour when that is busy, as new streams are.
func (e *Engine) thawClient(z *frozen.Conn, t *frozen.Thawing, files []int, adopted []*hbone.Adopted, workers []*worker) (err error) {
	key := hbone.Key{Source: z.Source, Leaf: [32]byte(z.Leaf), Peer: t.Peer, Endpoint: z.Pool.Endpoint}
	home := e.home(key, workers)
	w := home
	home.on(func() {
		if w = home.neighbour(home.busy(key)); w == home {
			err = w.thaw(z, t, key, files, adopted)
		}
	})
	if w != home {
		w.on(func() { err = w.thaw(z, t, key, files, adopted) })
	}
	return err
}

// thaw puts a connection into the loop's part of the pool.
func (w *worker) thaw(z *frozen.Conn, t *frozen.Thawing, key hbone.Key, files []int, adopted []*hbone.Adopted) (err error) {
	owners := make([]tunnel.Adopted, len(adopted))
	for i, a := range adopted {
		o := &outbound{
			eng: w.eng, w: w, timing: z.Streams[i].Timing, answered: true,
			req: &hbone.ConnectRequest{Key: key, Progress: a.Progress, Cutter: a.Cutter, Owner: a.Owner, Done: a.Done},
		}
		owners[i] = tunnel.Adopted{Owner: o, Progress: a.Progress, Cutter: a.Cutter}
	}
	side := &clientSide{w: w, key: key, memory: t.Memory}
	if side.conn, err = w.Thaw(t, files, w.eng.clientConfig(t.Memory), side, owners); err != nil {
		return err
	}
	t.Memory.Opened()
	for range owners {
		w.eng.hold()
	}
	w.load.Add(int64(len(owners)))
	if !z.Life.Left {
		ent := w.entry(key)
		ent.conns = append(ent.conns, side.conn)
	}
	return nil
}

// thawServer gives a connection to the Serve call of its pod.
func (e *Engine) thawServer(z *frozen.Conn, t *frozen.Thawing, files []int, adopted []*hbone.Adopted) error {
	s := e.servingOf(z.Source, t.Peer)
	if s == nil {
		return fmt.Errorf("%w: no Serve for %q", hbone.ErrUnreachable, z.Source)
	}
	w := e.nextWorker()
	var err error
	w.on(func() {
		side := &serverSide{serving: s, w: w, remote: z.Serving.Remote, local: z.Serving.Local, handshake: z.Serving.Handshake}
		owners := make([]tunnel.Adopted, len(adopted))
		for i, a := range adopted {
			in := &inbound{side: side, cancel: func(error) {}, accepted: &hbone.Accepted{Cutter: a.Cutter, Owner: a.Owner, Progress: a.Progress, Done: a.Done}}
			owners[i] = tunnel.Adopted{Owner: in, Progress: a.Progress, Cutter: a.Cutter}
		}
		if side.conn, err = w.Thaw(t, files, s.config(), side, owners); err != nil {
			s.left(t.Peer)
			return
		}
		s.drainIfStopped(side.conn)
	})
	return err
}

// servingOf finds the Serve call that new connections of a pod belong to, and
// counts one for it.
func (e *Engine) servingOf(local string, peer spiffeid.ID) *serving {
	servers, _ := e.everything()
	for _, s := range servers {
		if s.srv.Local == local && s.take(peer) {
			return s
		}
	}
	return nil
}

// take counts a connection that comes from another process. It has been let in
// already, so no limit applies.
func (s *serving) take(peer spiffeid.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining || s.moving {
		return false
	}
	s.peers.Keep(peer)
	s.srv.Memory.Opened()
	s.connection.Add(1)
	return true
}
