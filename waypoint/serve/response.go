package serve

import (
	"time"

	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/plan"
)

// readResponse reads what the backend answers, as long as the client takes it.
func (h *h1) readResponse() {
	for h.backend != nil && !h.backend.Connecting() && !h.answered && h.c.budget > 0 && len(h.c.Out) < backlog {
		b, w := h.backend, h.c.w
		n := b.Read(w.in)
		if n > 0 {
			h.c.budget -= n
			h.response(w.in[:n])
			if h.c.stage != active || h.c.proto != protocol(h) {
				return
			}
			continue
		}
		if b.EOF() || b.Broken() {
			h.backendEnded()
		}
		return
	}
}

// response takes what the backend sent.
func (h *h1) response(data []byte) {
	w := h.c.w
	h.heard = true
	out := w.out[:0]
	for {
		var n int
		var at http1.Event
		var err error
		out, n, at, err = h.x.Response(out, data)
		data = data[n:]
		switch {
		case err != nil:
			w.out = out[:0]
			h.badResponse(out, err)
			return
		case at == http1.HeadRead:
			if h.retryStatus(h.x.ResponseHead().Status) {
				return
			}
			if out, err = h.answer(out); err != nil {
				h.refuseWith(500, plan.BadEdit)
				return
			}
			if h.x.Tunnel() {
				h.tunnel(append(out, data...))
				return
			}
			continue
		}
		w.out = out[:0]
		h.note.Sent += int64(len(out))
		h.c.send(out)
		if at == http1.End {
			h.ended()
		}
		return
	}
}

// answer writes a response's head for the client.
func (h *h1) answer(out []byte) ([]byte, error) {
	w := h.c.w
	head := h.x.ResponseHead()
	e := &w.edit
	*e = http1.Edit{}
	edit := h.way.Response
	if h.way.CORS {
		edit = h.way.Answer(h.origin, head)
	}
	h.removeBack = append(h.removeBack[:0], edit.Remove...)
	w.fields = h.stay.Append(append(w.fields[:0], edit.Add...), h.workload, w.loop.Now())
	e.Remove, e.Add = h.removeBack, w.fields
	h.note.Status = head.Status
	return h.x.Answer(out, e)
}

// ended is the end of a response.
func (h *h1) ended() {
	h.answered = true
	h.until = time.Time{}
	h.place.Answered()
	if h.x.Reusable() && h.written == len(h.sent) { // else a part of this request is still owed to it
		h.backend.Keep()
		h.backend = nil
		return
	}
	h.leave(false)
}

// badResponse is a response that cannot be read.
func (h *h1) badResponse(out []byte, wrong error) {
	if h.x.Answered() {
		h.c.send(out)
	}
	h.broke(kindReset, wrong.(*http1.Error).Reason.String(), wrong)
}

// backendEnded is the end of a backend's connection before that of a response, unless it is
// the response's.
func (h *h1) backendEnded() {
	c := h.c
	if h.backend.Broken() {
		h.lost()
		return
	}
	out, at, _ := h.x.ResponseEOF(c.w.out[:0])
	c.w.out = out[:0]
	if at != http1.End {
		h.lost()
		return
	}
	h.note.Sent += int64(len(out))
	c.send(out)
	h.ended()
}

// cutShort resets a client whose answer has begun and does not end, so that it does not look whole.
func (h *h1) cutShort(reason string) {
	h.note.Reason = reason
	h.c.w.refused(reason)
	h.c.close(true)
}

// lost is a backend's connection that has ended too early.
func (h *h1) lost() {
	kind := kindReset
	if h.backend.Used > 0 && !h.heard {
		kind = kindStale
	}
	h.broke(kind, plan.BackendReset, nil)
}

// flush writes to the backend.
func (h *h1) flush() {
	b := h.backend
	if b == nil || b.Connecting() || h.written == len(h.sent) {
		return
	}
	h.written += b.Write(h.sent[h.written:])
	if h.written < len(h.sent) || len(h.sent) <= h.c.w.limits.ReplayBytes && !h.cut && !h.c.w.full() {
		return
	}
	// It is too much to be kept for another try, or for mirrors.
	h.cut, h.written = true, 0
	if len(h.mirrors) > 0 {
		h.dropMirrors()
	}
	if h.sent = h.sent[:0]; cap(h.sent) > 2*backlog {
		h.sent = nil
	}
}
