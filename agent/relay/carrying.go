package relay

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/hbone"
)

// Carrying is a pair under way. Its fields belong to its loop.
type Carrying struct {
	worker *worker
	ways   [2]way // what comes from A, and from B

	measure func(a, b int)
	owner   hbone.Owner
	done    func(error)

	index  int  // in the worker's list
	frozen bool // at rest, until it is known where it goes on
	cut    bool // while it was frozen
	over   bool

	last *ending // nil until one end has broken
}

// Start carries bytes both ways until both directions have ended or one
// connection is reset. It returns at once and takes A and B over in every case:
// after an error they are reset, and nothing of the pair is called.
//
// Done is called exactly once, from a loop that it must not block, when both are
// closed: with nil when both directions ended with FIN, and with an error that
// matches ErrReset when one end reset its connection, or the pair was cut.
func (r *Relay) Start(p Pair, done func(error)) (*Carrying, error) {
	w, err := r.worker()
	if err != nil {
		Reset(p.A)
		Reset(p.B)
		return nil, err
	}
	fds, err := takeOver(p.A, p.B)
	if err != nil {
		return nil, err
	}
	c := &Carrying{worker: w, measure: p.Measure, owner: p.Owner, done: done}
	c.join(fds, p.Sent, p.Received)
	if !w.post(c.begin) {
		eventloop.Abort(fds[0])
		eventloop.Abort(fds[1])
		return nil, ErrClosed
	}
	return c, nil
}

func takeOver(a, b *net.TCPConn) (fds [2]int, err error) {
	if fds[0], err = eventloop.TakeOver(a); err != nil {
		Reset(b)
		return fds, err
	}
	if fds[1], err = eventloop.TakeOver(b); err != nil {
		eventloop.Abort(fds[0])
	}
	return fds, err
}

// join gives the pair its sockets.
func (c *Carrying) join(fds [2]int, sent, received *atomic.Uint64) {
	for i, n := range []*atomic.Uint64{sent, received} {
		c.ways[i] = way{pair: c, fd: fds[i], to: &c.ways[1-i], n: n}
	}
}

func (c *Carrying) begin() {
	if err := c.worker.watch(c); err != nil {
		c.close(fmt.Errorf("carry: %w", err))
	}
}

// Cut ends the pair with a RST both ways, as if both ends had been reset. It
// may be called from any goroutine, at any time and more than once. A pair that
// is being moved ends wherever it goes on; after Owner.Left, it is the other
// process's to cut.
func (c *Carrying) Cut() {
	c.worker.post(func() {
		if c.frozen {
			c.cut = true
		} else {
			c.fail(ErrReset)
		}
	})
}

// fail ends the pair: nothing of it is worth keeping, and both ends learn of it
// by RST.
func (c *Carrying) fail(err error) {
	if !c.over {
		c.worker.forget(c)
		c.close(translate(err))
	}
}

// finish ends the pair when both directions have.
func (c *Carrying) finish() {
	if c.ways[0].ended && c.ways[1].ended {
		c.worker.forget(c)
		c.close(nil)
	}
}

// close closes the sockets: nil in good order, else with RST.
func (c *Carrying) close(err error) {
	c.over = true
	if c.last != nil {
		c.worker.loop.Clear(&c.last.Timer)
	}
	if c.measure != nil {
		c.measure(c.ways[0].fd, c.ways[1].fd)
	}
	for i := range c.ways {
		d := &c.ways[i]
		d.drop()
		if err == nil {
			eventloop.CloseSocket(d.fd)
		} else {
			eventloop.Abort(d.fd)
		}
	}
	c.done(err)
}

// errLost is a pipe that has not what was put into it.
var errLost = errors.New("bytes are missing in a pipe")
