package serve

import (
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/pool"
)

// request takes what the client sent.
func (h *h1) request(data []byte, kept bool) {
	n := 0
	for {
		out, used, at, err := h.x.Request(h.sent, data[n:])
		h.sent = out
		n += used
		h.got(used)
		h.hand()
		if err != nil {
			h.refuse(err)
			break
		}
		if at == http1.HeadRead {
			if h.head(); h.c.stage != closed {
				continue
			}
			break
		}
		if at == http1.End && !(h.answered && h.x.Closing()) {
			h.done = true
			if h.carried != nil {
				h.carried.BodyEnd(h.x.RequestTrailers())
			}
			if len(h.mirrors) > 0 {
				h.mirror()
			}
		}
		break
	}
	if h.c.stage != closed {
		h.c.used(data, kept, n)
	}
}

// head decides what becomes of a request.
func (h *h1) head() {
	c := h.c
	w := c.w
	h.begun, h.began = true, w.loop.Now()
	w.active++
	h.counted = true
	w.use()
	head := h.x.RequestHead()
	r := &w.request
	h.remove = r.Read(head, h.remove)
	h.grpc, h.idempotent = r.GRPC, plan.Idempotent(head)
	h.asksHead = r.Method == "HEAD" // the head is read over later
	h.note.Head(&w.cfg.Sinks, head)
	p := &w.plan
	w.planner.Plan(p, &c.client, r, h.began)
	h.note.Planned(&w.cfg.Sinks, p, r.Path)
	switch {
	case p.Way == nil:
		h.reply(&p.Reply)
		return
	case w.active > w.limits.Requests || w.held > w.limits.Bytes:
		h.refuseWith(503, plan.Overloaded)
		return
	}
	h.way = p.Way
	if h.carries(p, head) {
		h.carry(p, head)
		return
	}
	h.to, h.view, h.stay = p.To, w.snap.View, p.Stay
	h.mirrors = append(h.mirrors, p.Mirrors...)
	if h.way.CORS {
		h.origin = plan.Origin(head)
	}
	h.way.Budget.Asked()
	h.forward(p, head)
}

// forward writes a request's head anew, and sends it.
func (h *h1) forward(p *plan.Plan, head *http1.Head) {
	w := h.c.w
	e := &w.edit
	*e = http1.Edit{}
	if p.Path != "" {
		e.Path = []byte(p.Path)
	}
	if p.Way.Host != "" {
		e.Host = []byte(p.Way.Host)
	}
	h.remove = append(h.remove, p.Way.Request.Remove...)
	w.fields = append(w.fields[:0], p.Way.Request.Add...)
	w.fields, w.text = w.planner.Forwarded(w.fields, w.text[:0], &h.c.client)
	h.remove, w.fields = h.note.Trace(&w.cfg.Sinks, h.remove, w.fields)
	e.Remove, e.Add = h.remove, w.fields
	h.asked.Keep(w.planner, head, e)
	out, err := h.x.Forward(h.sent, e)
	h.sent = out
	if err != nil {
		h.refuseWith(500, plan.BadEdit)
		return
	}
	if head.Upgrade {
		h.mirrors = h.mirrors[:0]
	}
	h.dispatch()
}

// mirror sends the copies of a request that has come whole.
func (h *h1) mirror() {
	w, c := h.c.w, h.c
	if h.cut || w.held > w.limits.Bytes {
		h.dropMirrors()
	}
	for _, way := range h.mirrors {
		to := w.planner.Lead(way, &c.client)
		workload, place := w.pool.Pick(&to, c.client.To.Addr(), nil, nil)
		if place == nil || h.authorize(workload, place).Verdict == mesh.VerdictDeny {
			w.mirrors.Fail()
			continue
		}
		w.mirrors.Send(place, h.sent, h.asksHead)
	}
	h.mirrors = h.mirrors[:0]
}

// dropMirrors counts copies that are not sent.
func (h *h1) dropMirrors() {
	h.c.w.mirrors.Drop(len(h.mirrors))
	h.mirrors = h.mirrors[:0]
}

// authorize asks policy whether a client may reach a workload with the request.
func (h *h1) authorize(to *mesh.Workload, at *pool.Place) mesh.Decision {
	return plan.Authorize(h.view, &h.c.client, to, at.At.Port(), h.asked.Request())
}

// reply answers a request in the name of the waypoint.
func (h *h1) reply(r *plan.Reply) {
	c := h.c
	h.giveUp()
	if h.answered || h.x.Answered() {
		c.close(true) // what the client has got must not look whole
		return
	}
	if r.Reason != "" {
		c.w.refused(r.Reason)
	}
	h.note.Status, h.note.Reason, h.answered = r.Status, r.Reason, true
	if r.Counted != 0 {
		h.note.Status = r.Counted
	}
	out, err := h.x.Reply(c.w.out[:0], r.Status, r.Reason, r.Fields, r.Body)
	if err != nil { // a field that a route asks for
		h.note.Status, h.note.Reason = 500, plan.BadEdit
		out, _ = h.x.Reply(c.w.out[:0], 500, plan.BadEdit, nil, nil)
	}
	c.w.out = out[:0]
	h.note.Sent += int64(len(out))
	c.send(out)
}

// giveUp is the end of all that is done for a request. Of one that no workload has seen there are no copies either.
func (h *h1) giveUp() {
	h.takeBack()
	if h.written == 0 {
		h.mirrors = h.mirrors[:0]
	}
	h.leave(true)
	h.until, h.pause = time.Time{}, time.Time{}
}

// refuseWith answers with a status and a reason.
func (h *h1) refuseWith(status int, reason string) {
	r := plan.Refusal(status, reason, h.grpc)
	h.reply(&r)
}

// fail ends a request that has no answer, or not all of it.
func (h *h1) fail(status int, reason string) {
	if h.note.Reason == "" {
		h.note.Reason = reason
	}
	h.refuseWith(status, reason)
}

// refuse answers what is wrong with a request, or with a response.
func (h *h1) refuse(wrong error) {
	c := h.c
	h.giveUp()
	out, ok := h.x.Refuse(c.w.out[:0], wrong)
	c.w.out = out[:0]
	if e, is := wrong.(*http1.Error); is {
		h.note.Reason = e.Reason.String()
		c.w.refused(h.note.Reason)
		h.note.Status = e.Status()
	}
	if !h.counted { // it has no head
		h.counted, h.began = true, c.w.loop.Now()
		c.w.active++
	}
	if !ok {
		c.close(true)
		return
	}
	h.answered = true
	h.note.Sent += int64(len(out))
	c.send(out)
}
