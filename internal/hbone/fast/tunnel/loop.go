package tunnel

import (
	"maps"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/window"
	"github.com/heddle-mesh/heddle/internal/hbone/fast/wire"
)

// readBytes is what one read of a tunnel connection may bring.
const readBytes = 256 << 10

// Loop is one event loop, the connections that live on it, and the buffers that
// they share.
type Loop struct {
	*eventloop.Loop
	wire.Buffers
	scratch []byte // what a connection reads into
	conns   map[*Conn]struct{}

	// What has something to do in this turn, and lists to be used again.
	readyConns, connsBefore []*Conn
	readers                 window.Queue[*Stream]
	dirty                   []*Conn
	delivering              []*Stream
}

// NewLoop makes a loop; nothing runs before Run.
func NewLoop() (*Loop, error) {
	l := &Loop{scratch: make([]byte, readBytes), conns: map[*Conn]struct{}{}}
	var err error
	l.Loop, err = eventloop.New(l.turn)
	return l, err
}

// Conns are the loop's connections; whoever iterates may end them.
func (l *Loop) Conns(yield func(*Conn) bool) { maps.Keys(l.conns)(yield) }

// turn does what the events of this turn gave rise to: read tunnels, read local
// connections, and then write each tunnel once.
func (l *Loop) turn() bool {
	conns := l.readyConns
	l.readyConns = l.connsBefore[:0]
	for i, c := range conns {
		conns[i] = nil
		c.queued = false
		if !c.closed && c.read() {
			l.queueConn(c)
		}
	}
	l.connsBefore = conns
	l.readers.Turn()
	for i := 0; i < len(l.dirty); i++ { // flushing may add to it
		c := l.dirty[i]
		l.dirty[i] = nil
		c.out.dirty = false
		c.flush()
	}
	l.dirty = l.dirty[:0]
	return l.readers.Waits() || len(l.readyConns) > 0 || len(l.dirty) > 0
}

func (l *Loop) queueConn(c *Conn) {
	if !c.queued && !c.closed {
		c.queued = true
		l.readyConns = append(l.readyConns, c)
	}
}

func (l *Loop) queueStream(s *Stream) {
	if !s.dead {
		l.readers.Add(s)
	}
}

// deliver writes what the streams got from the tunnel's last read.
func (l *Loop) deliver() {
	for i, s := range l.delivering {
		l.delivering[i] = nil
		s.deliver()
	}
	l.delivering = l.delivering[:0]
}
