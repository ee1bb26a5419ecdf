package serve

import (
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/serve/h2"
	"github.com/heddle-mesh/heddle/waypoint/sniff"
)

// speaksTwo says that workloads at a service's port are spoken to in HTTP/2.
func speaksTwo(to *mesh.Route, port uint16) bool {
	_, version := sniff.Of(to.Service, port)
	return version == sniff.Two
}

// carries says that package h2 carries a request that came in HTTP/1.1: for what it leads to, or what it is copied to. A
// tunnel has no copies.
func (h *h1) carries(p *plan.Plan, head *http1.Head) bool {
	if two := speaksTwo(&p.To, p.Way.Port); two || head.Upgrade {
		return two
	}
	for _, m := range p.Mirrors {
		if to := h.c.w.planner.Lead(m, &h.c.client); speaksTwo(&to, m.Port) {
			return true
		}
	}
	return false
}

// carry has package h2 carry a request: it tries, and answers by way of ahead.
func (h *h1) carry(p *plan.Plan, head *http1.Head) {
	h.x.Carry(&http1.Edit{Remove: h.remove})
	h.counted = false
	h.carrying = true
	q := h.c.w.two.Carry((*ahead)(h), &h.c.client, &h2.Asked{Head: head, Plan: p, Remove: h.remove, GRPC: h.grpc, Idempotent: h.idempotent, Began: h.began, Note: &h.note})
	if h.carrying { // it has not ended within the call
		h.carried = q
	}
}

// got counts bytes that the client has sent.
func (h *h1) got(n int) {
	if h.carried != nil {
		h.carried.Got(n)
		return
	}
	h.note.Received += int64(n)
}

// hand gives package h2 what came of the body.
func (h *h1) hand() {
	if h.carried != nil && len(h.sent) > 0 {
		h.carried.Body(h.sent)
	}
	if h.carrying {
		if h.sent = h.sent[:0]; h.waits() > 0 {
			h.sent = nil // it is there once
		}
	}
}

// takeBack ends what package h2 does for a request, which is answered here, or not at all.
func (h *h1) takeBack() {
	if h.carried != nil {
		h.carried.GiveUp(&h.note)
		h.carried, h.carrying, h.counted = nil, false, true
	}
}

// waits is how many bytes of a request wait to be sent on.
func (h *h1) waits() int {
	if h.carried != nil {
		return h.carried.Waiting()
	}
	return len(h.sent) - h.written
}

// ahead is an h1 as the h2.Front of the request that it carries.
type ahead h1

func (a *ahead) send(out []byte) {
	a.c.w.out = out[:0]
	if len(out) > 0 {
		a.c.send(out)
	}
}

func (a *ahead) Interim(_ uint32, head *http1.Head) {
	a.send(a.x.TakeResponse(a.c.w.out[:0], head))
}

func (a *ahead) Answer(_ uint32, head *http1.Head, e *http1.Edit) error {
	out := a.x.TakeResponse(a.c.w.out[:0], head)
	out, err := a.x.Answer(out, e)
	if a.x.Tunnel() {
		a.x.Release() // it may go on for long
	}
	a.send(out)
	return err
}

func (a *ahead) Data(_ uint32, p []byte) int {
	if len(a.c.Out) >= backlog {
		return 0 // step comes back to it
	}
	a.send(a.x.TakeResponseData(a.c.w.out[:0], p))
	return len(p)
}

func (a *ahead) End(_ uint32, trailers []http1.Field) {
	a.answered = true
	a.send(a.x.TakeResponseEnd(a.c.w.out[:0], trailers))
}

func (a *ahead) Reset(uint32, http2.Code) {
	if a.c.stage != closed {
		a.c.close(true)
	}
}

func (a *ahead) Reply(_ uint32, status int, reason string, fields []http1.Field, body []byte) error {
	out, err := a.x.Reply(a.c.w.out[:0], status, reason, fields, body)
	if err == nil {
		a.answered = true
	}
	a.send(out)
	return err
}

// Consumed wakes the connection if nothing was read any more for what waited.
func (a *ahead) Consumed(uint32, int) {
	if a.stalled {
		a.stalled = false
		a.Wake()
	}
}

func (a *ahead) Wake() { a.c.soon() }

func (a *ahead) Over(*h2.Request) { a.carried, a.carrying = nil, false }
