package pool

import "time"

// links are a connection's neighbours in a list.
type links struct {
	before, after *Conn
	until         time.Time // of the pool's: when it has idled long enough
}

// list has connections that idle, the one that was used last at its end. A connection is in
// two: its place's and the pool's.
type list struct {
	pool        bool
	first, last *Conn
	n           int
}

func (l *list) of(c *Conn) *links {
	if l.pool {
		return &c.ofPool
	}
	return &c.ofPlace
}

func (l *list) push(c *Conn) {
	at := l.of(c)
	at.before, at.after = l.last, nil
	if l.last != nil {
		l.of(l.last).after = c
	} else {
		l.first = c
	}
	l.last = c
	l.n++
}

func (l *list) remove(c *Conn) {
	at := l.of(c)
	if at.before != nil {
		l.of(at.before).after = at.after
	} else {
		l.first = at.after
	}
	if at.after != nil {
		l.of(at.after).before = at.before
	} else {
		l.last = at.before
	}
	at.before, at.after = nil, nil
	l.n--
}
