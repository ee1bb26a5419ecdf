package relay

import (
	"time"

	"github.com/heddle-mesh/heddle/internal/eventloop"
)

const (
	// lastWordsWithin bounds how long what an end said before its RST waits for the
	// other end to take it.
	lastWordsWithin = 3 * time.Second
	// partEvery is how often the kernel is asked whether it has, of which it tells
	// nobody.
	partEvery = 20 * time.Millisecond
)

// lastWords is for an end that takes no more, for the error. What it said before is
// still read and passed on, as it would arrive without a relay: an answer, and then
// a close with bytes unread, of which the kernel makes a RST. Reading meets the
// error, or the end, behind that.
func (d *way) lastWords(err error) {
	c := d.pair
	switch {
	case c.over || d.broken:
	case d.to.broken:
		c.fail(err)
	case d.ended:
		d.part(err)
	default:
		d.broken = true
		d.to.drop() // nobody takes it
		c.hurry()
		c.worker.queue(d)
	}
}

// part ends the pair for an error of an end of which all is read, once the other end's
// kernel has what was passed on, which a RST would drop, or has had its time.
func (d *way) part(err error) {
	c := d.pair
	if c.over {
		return
	}
	c.hurry()
	c.last.parting = true
	if d.to.broken || !c.worker.loop.Now().Before(c.last.until) || eventloop.Unsent(d.to.fd) == 0 {
		c.fail(err)
		return
	}
	c.worker.loop.SetAfter(&c.last.Timer, partEvery, func() { d.part(err) })
}

// ending is of a pair of which one end has broken.
type ending struct {
	eventloop.Timer
	until   time.Time
	parting bool // everything is passed on
}

// hurry ends the pair soon, whatever happens.
func (c *Carrying) hurry() {
	if c.last != nil {
		return
	}
	l, patience := c.worker.loop, c.worker.relay.patience
	c.last = &ending{until: l.Now().Add(patience)}
	l.SetAfter(&c.last.Timer, patience, func() { c.fail(ErrReset) })
}

func (c *Carrying) isParting() bool { return c.last != nil && c.last.parting }
