package serve

import (
	"time"

	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/sniff"
)

// look is what a relay has seen at a port of which nobody says whether it is HTTP. Without it a
// client might be silent until it is passed on as it is, and then say to a server of HTTP that
// it is somebody else.
type look struct {
	on   bool
	line sniff.Line
	seen int // bytes of the connection's In that line has read
	// until is when what is held goes on though nobody knows yet what it is: it is a part of a line, to
	// which an application may answer. The rest is judged with it when it comes.
	until time.Time
	held  bool
	gave  bool // the backend has got something
	said  bool // the client has got something
}

// mostHeld is how much is held.
const mostHeld = 16 << 10

// judge reads what has come.
func (r *relay) judge() sniff.Spoken {
	l := &r.look
	is := l.line.Read(r.c.In[l.seen:])
	l.seen = len(r.c.In)
	return is
}

// first reads what the client says first, and reports whether it may go on.
func (r *relay) first() bool {
	c, l := r.c, &r.look
	for {
		switch r.judge() {
		case sniff.HTTP:
			r.isHTTP()
			return false
		case sniff.Opaque:
			l.on, l.held = false, false
			return true
		}
		n := 0
		if len(c.In) < mostHeld {
			n = c.More(c.w.in, &c.w.buffers)
			c.budget -= n
		}
		if n == 0 {
			break
		}
	}
	if len(c.In) == 0 {
		return false
	}
	now := c.w.loop.Now()
	if l.until.IsZero() {
		l.until = now.Add(c.w.cfg.Timeouts.Sniff)
	}
	if l.held = l.line.Begun() && !c.EOF() && len(c.In) < mostHeld && now.Before(l.until); l.held {
		return false
	}
	l.gave, l.seen = true, 0
	return true
}

// answers takes note of what the backend says first, and reports whether that says that the client will
// speak HTTP.
func (r *relay) answers(b []byte) bool {
	if l := &r.look; l.said || l.gave || !sniff.Settings(b) {
		l.said = true
		return false
	}
	r.isHTTP()
	return true
}

// isHTTP has the client be served as one of HTTP, or ended when something has gone to or fro:
// then it is in the middle of something else.
func (r *relay) isHTTP() {
	c := r.c
	if r.note != nil {
		r.refuse(plan.UnexpectedHTTP)
		return
	}
	if r.look.gave || r.look.said {
		c.w.refused(plan.LateHTTP)
		c.close(true)
		return
	}
	r.gone()
	c.proto, c.stage, c.says, c.since = nil, atSniff, sniff.HTTP, c.w.loop.Now()
}
