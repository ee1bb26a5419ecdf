package http1

import (
	"slices"

	"github.com/heddle-mesh/heddle/waypoint/http1/names"
)

// An Exchange can have HTTP/2 on one side. What came there is told to it, heads by TakeRequest or TakeResponse; on
// its own side it reads and writes as ever, and what it appends for the other one is a body's bytes without coding.

// TakeRequest is a request of a client that speaks HTTP/2, in place of Request's HeadRead: Forward or nothing is to
// follow, and its answer is written by whoever speaks to the client. Response then stops at interim heads, too.
func (x *Exchange) TakeRequest(h *Head) {
	h.CopyTo(&x.requests.Head)
	x.begin()
	x.now.other = true
}

// TakeRequestData appends a part of its body. There is never more of it than its Content-Length: http2 sees to that. What
// is meant for a tunnel is to wait until there is one: before Tunnel says so, it goes nowhere.
func (x *Exchange) TakeRequestData(dst, data []byte) []byte {
	x.now.continued = true
	switch {
	case x.now.tunnel:
		return append(dst, data...)
	case !x.now.forwarded || x.now.out == NoBody || len(data) == 0: // an empty chunk would be the last one
		return dst
	}
	return appendData(dst, x.now.out, data)
}

// TakeRequestEnd appends its end.
func (x *Exchange) TakeRequestEnd(dst []byte, trailers []Field) []byte {
	x.now.requestDone = true
	if x.now.tunnel || !x.now.forwarded {
		return dst
	}
	x.requests.Trailers = append(x.requests.Trailers[:0], trailers...)
	return appendEnd(dst, x.now.out, &x.requests, x.now.removed)
}

// answeredElsewhere is what Answer does when the client speaks HTTP/2.
func (x *Exchange) answeredElsewhere() {
	h := &x.responses.Head
	if h.Interim() {
		x.now.granted = x.now.granted || h.Status == 100
		return
	}
	x.now.answered, x.now.back = true, UntilClose // as it is
	x.now.tunnel = h.Upgrade || x.asked.Connect && h.Status < 300
}

// ResponseTrailers came behind the last response, without those that go no further.
func (x *Exchange) ResponseTrailers() []Field { return x.responses.trailersToGo(x.now.removedBack) }

// RequestTrailers came behind the last request, likewise.
func (x *Exchange) RequestTrailers() []Field { return x.requests.trailersToGo(x.now.removed) }

func (p *Parser) trailersToGo(removed []string) []Field {
	p.Trailers = slices.DeleteFunc(p.Trailers, func(f Field) bool { return p.Head.stays(&f, removed) })
	return p.Trailers
}

// Carry is Forward to a backend that speaks HTTP/2: whoever speaks to it has written the head, and Request appends
// the body. What follows an upgrade is a tunnel's, once it is granted (TakeResponse): until then it is not read.
func (x *Exchange) Carry(e *Edit) {
	x.ask()
	x.now.other, x.now.forwarded, x.now.removed = true, true, e.removed()
	if x.now.out != NoBody {
		x.now.out = UntilClose // as it is
	}
}

// TakeResponse is the head of such a backend's response. An interim one is appended; for a final one Answer or
// Reply is to follow. With a 101 whoever speaks to the backend says that it grants the upgrade: in HTTP/2 that is a success
// (RFC 8441 section 5), and says nothing of the key, whose Sec-WebSocket-Accept is made here.
func (x *Exchange) TakeResponse(dst []byte, h *Head) []byte {
	h.CopyTo(&x.responses.Head)
	if h.Interim() {
		return x.interim(dst)
	}
	if to := &x.responses.Head; to.Status == 101 {
		to.Upgrade, to.Body, to.Length, to.Phrase = x.asked.Accept != "", NoBody, -1, []byte("Switching Protocols")
		to.Fields = slices.DeleteFunc(to.Fields, func(f Field) bool { return f.kind == names.WebSocketAccept })
		to.Fields = append(to.Fields, Field{[]byte("Sec-WebSocket-Accept"), []byte(x.asked.Accept), names.WebSocketAccept})
	} else if to.Body == NoBody && to.Length < 0 && !x.now.head && !x.asked.Connect && to.Status != 204 && to.Status != 304 {
		to.Length = 0 // END_STREAM has said so; HTTP/1.1 would wait for the connection's end
	}
	return dst
}

// TakeResponseData appends a part of its body.
func (x *Exchange) TakeResponseData(dst, data []byte) []byte {
	switch {
	case x.now.tunnel:
		return append(dst, data...)
	case !x.now.answered || x.now.responseDone || len(data) == 0:
		return dst
	}
	return appendData(dst, x.now.back, data)
}

// TakeResponseEnd appends its end.
func (x *Exchange) TakeResponseEnd(dst []byte, trailers []Field) []byte {
	if x.now.tunnel || !x.now.answered || x.now.responseDone {
		return dst
	}
	x.responses.Trailers = append(x.responses.Trailers[:0], trailers...)
	return x.endResponse(dst, false)
}
