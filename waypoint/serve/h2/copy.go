package h2

import (
	"bytes"
	"slices"

	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/serve/h2/turn"
	"github.com/heddle-mesh/heddle/waypoint/telemetry"
)

// copied is the Front of a copy for a mirror: nobody waits for what it is answered.
type copied struct {
	l       *Loop
	q       *Request
	who     plan.Client
	timer   eventloop.Timer
	outcome string
	bytes   int // of the body
	turn    turn.Step
}

// mirror sends the copies of a request that has come whole.
func (q *Request) mirror() {
	l := q.l
	if len(q.mirrors) == 0 {
		return
	}
	if q.up.Cut || len(q.up.Data) > l.Limits.ReplayBytes || *l.Held > l.Limits.Bytes {
		l.Mirrors.Drop(len(q.mirrors))
	} else {
		for _, way := range q.mirrors {
			if l.Mirrors.Begin(len(q.up.Data)) {
				l.sendCopy(q, way)
			}
		}
	}
	q.mirrors = q.mirrors[:0]
}

// sendCopy sends one, in the version that its workloads are spoken to in.
func (l *Loop) sendCopy(of *Request, way *plan.Way) {
	c := &copied{l: l, who: *of.who, outcome: telemetry.Failed, bytes: len(of.up.Data)}
	q := l.newRequest(c, &c.who, 0)
	c.q, c.turn.Do, q.copied, q.old = q, c.step, true, of.old
	of.head.CopyTo(&q.head)
	q.head.Continue = false // nothing is waited for: the body is there
	q.edit = http1.Edit{Host: of.edit.Host, Path: of.edit.Path, Remove: slices.Clone(of.edit.Remove), Add: q.edit.Add[:0]}
	for _, f := range of.edit.Add {
		f.Value = bytes.Clone(f.Value) // it lies in the request's text
		q.edit.Add = append(q.edit.Add, f)
	}
	q.remove = q.edit.Remove
	q.grpc, q.way, q.to, q.view = of.grpc, way, l.Planner.Lead(way, &c.who), of.view
	q.up.Data = append(q.up.Data[:0], of.up.Data...)
	q.up.End(of.up.Trailers)
	if l.copies == nil {
		l.copies = map[*copied]struct{}{}
	}
	l.copies[c] = struct{}{}
	l.Loop.SetAfter(&c.timer, l.Timeouts.Mirror, c.late)
	q.dispatch()
}

// late ends a copy that takes too long.
func (c *copied) late() { c.q.cut(http2.Cancel, "") }

func (c *copied) Interim(uint32, *http1.Head) {}

func (c *copied) Answer(uint32, *http1.Head, *http1.Edit) error { return nil }

func (c *copied) Data(_ uint32, p []byte) int { return len(p) }

func (c *copied) End(uint32, []http1.Field) { c.outcome = telemetry.Sent }

func (c *copied) Reset(uint32, http2.Code) {}

func (c *copied) Reply(uint32, int, string, []http1.Field, []byte) error { return nil }

func (c *copied) Consumed(uint32, int) {}

func (c *copied) Wake() { c.l.Turn.Last(&c.turn) }

func (c *copied) step() {
	if c.q != nil {
		c.q.Step()
	}
}

func (c *copied) Over(*Request) {
	c.q = nil
	delete(c.l.copies, c)
	c.l.Loop.Clear(&c.timer)
	c.l.Mirrors.End(c.outcome, c.bytes)
}
