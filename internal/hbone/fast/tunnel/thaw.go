package tunnel

import (
	"errors"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/frozen"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/window"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/wire"
	"github.com/heddle-mesh/heddle/internal/hbone/flood"
)

// Adopted is the side of a stream's owner.
type Adopted struct {
	Owner    Owner
	Progress *hbone.Counters
	Cutter   *hbone.Cutter
}

// Thaw makes the connection live on the loop. Files and owners are in the order
// of Rest; after an error the files are still the caller's.
func (l *Loop) Thaw(t *frozen.Thawing, files []int, cfg Config, role Role, owners []Adopted) (*Conn, error) {
	z := t.Value
	for _, fd := range files {
		if err := eventloop.Prepare(fd); err != nil {
			return nil, err
		}
	}
	c := &Conn{loop: l, cfg: cfg, role: role, client: !z.Server, fd: files[0], session: t.Session,
		id:      Identity{Source: z.Source, Leaf: [32]byte(z.Leaf), Peer: t.Peer, Trust: t.Trust, NotAfter: z.NotAfter},
		streams: make(map[uint32]*Stream, len(z.Streams)), lastID: z.LastID, dataLen: z.DataLen, guard: flood.NewGuard(z.Guard)}
	c.in, c.out.Output = wire.NewInput(&l.Buffers, c.session, c.fd, t.Parser), wire.NewOutput(&l.Buffers, c.session, c.fd)
	c.ready, c.left = c.client, z.Life.Left
	c.flow = connFlow{send: z.Flow.Send, initial: z.Flow.Initial, recv: window.New(cfg.Memory, cfg.StreamWindow, cfg.ConnectionWindow), streams: z.Flow.Streams, sent: z.Flow.Sent}
	c.flow.recv.Thaw(z.Flow.Recv, z.Flow.StreamWindow, z.Flow.Late, z.Flow.Acked)
	c.life.heard, c.life.asked, c.life.announced = z.Life.Heard, z.Life.Asked, z.Life.Announced
	c.life.goaway, c.life.idleLeft = z.Life.GoAway, z.Life.IdleLeft
	for i := range z.Streams {
		s := c.thawStream(&z.Streams[i], files[1+i], owners[i])
		s.local.Store(&l.Buffers, z.Bytes(z.Streams[i].Pending))
		s.account()
		if err := l.Register(s.local.FD, s); err != nil {
			return nil, errors.Join(err, c.unthaw(files[1:1+i]))
		}
	}
	if err := l.Register(c.fd, c); err != nil {
		return nil, errors.Join(err, c.unthaw(files[1:]))
	}
	c.data = c.streams[z.DataID]
	l.conns[c] = struct{}{}
	for i, a := range owners {
		c.streams[z.Streams[i].ID].bind(a.Cutter)
	}
	c.in.Store(z.Bytes(z.Partial))
	c.in.Age(l.Now(), z.Life.FrameAge, z.Life.RecordAge)
	c.out.Queue(z.Bytes(z.Out))
	c.account()
	c.grant() // which a full budget may have withheld
	c.startClocks()
	l.queueConn(c)
	c.touch()
	return c, nil
}

// unthaw takes streams back that were registered before another could not be.
func (c *Conn) unthaw(files []int) (err error) {
	for _, fd := range files {
		err = errors.Join(err, c.loop.Remove(fd))
	}
	for _, s := range c.streams {
		s.free()
	}
	c.flow.recv.Leave()
	return err
}

func (c *Conn) thawStream(z *frozen.Stream, fd int, a Adopted) *Stream {
	s := &Stream{conn: c, owner: a.Owner, id: z.ID, local: wire.Socket{FD: fd, FinSent: z.FinSent}, sendWindow: z.SendWindow, recv: c.flow.recv.ThawStream(z.Recv), sent: z.Sent, received: z.Received, progress: a.Progress}
	s.flags = flags{answered: true, placed: z.Placed && !c.client, recvEnd: z.RecvEnd, sentEnd: z.SentEnd, finishing: z.Finishing, parting: z.Parting}
	c.streams[s.id] = s
	if s.placed {
		c.flow.places++
	}
	if s.finishing {
		c.out.finishing = append(c.out.finishing, s)
	}
	return s
}
