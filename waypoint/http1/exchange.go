package http1

import (
	"errors"
	"net/http"

	"github.com/heddle-mesh/heddle/waypoint/http1/grammar"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

// Exchange carries the requests of one client's connection to backends, one after
// the other, and their responses back. It is made once for a connection, and
// serves each of its requests without allocating.
//
// Its owner reads sockets and writes them. Request and Response take what was read,
// and append to dst what the other side gets; at HeadRead they stop, for Forward or
// Reply, and for Answer. When both have come to their End, Closing says whether the
// client's connection goes on, Reusable whether the backend's may be kept. Whoever keeps a
// backend's connection must watch it while it idles, and drop it as soon as it can be read: what a
// backend says before the next request looks like that one's response.
type Exchange struct {
	// Drain says that the next response to begin is the last one on this connection.
	Drain bool

	config    *Config
	requests  Parser
	responses Parser
	asked     Asked
	now       progress
}

// progress is where the exchange of one request is.
type progress struct {
	out, back Body // how the request's body is written, and the response's
	old       bool // the client speaks HTTP/1.0
	head      bool // the method is HEAD
	begun     bool // the request's head has come
	expects   bool // the client waits for a 100 ...
	granted   bool // ... which the backend has sent
	continued bool // ... and the client got, or it has not waited
	handshake bool // a tunnel was asked for
	tunnel    bool // and is there
	forwarded bool // and written to a backend
	answered  bool // a final response's head is written
	other     bool // the client, or the backend, speaks HTTP/2: what is between is raw

	requestDone, responseDone bool
	closing                   bool // the client's connection ends with this exchange
	reusable                  bool
	// Fields that an edit has taken from the request and from the response: from their trailers, too.
	removed, removedBack []string
}

// deaf says that what the client sends is not read any more: it has been refused in place of
// a 100, and may send the body or another request.
func (p *progress) deaf() bool { return p.answered && p.expects && !p.continued }

func (p *progress) waits() bool { return p.expects && !p.old && !p.continued && !p.answered }

// NewExchange begins at a connection's first byte.
func NewExchange(c *Config) *Exchange {
	return &Exchange{config: c, requests: NewRequests(c), responses: NewResponses(c)}
}

// RequestHead is the last request's, valid from its HeadRead to the next call of Request.
func (x *Exchange) RequestHead() *Head { return &x.requests.Head }

// ResponseHead is the last response's, likewise.
func (x *Exchange) ResponseHead() *Head { return &x.responses.Head }

// Request takes what the client sent: n bytes of it are used. At HeadRead it is to be
// decided where the request goes, by Forward or Reply. At End the request is whole: the
// client's next bytes stay where they are until the response has ended too. An
// error is a *Error, for Refuse.
func (x *Exchange) Request(dst, in []byte) (out []byte, n int, at Event, err error) {
	if x.now.tunnel {
		return append(dst, in...), len(in), Data, nil
	}
	switch {
	case x.now.responseDone && x.now.closing, x.now.requestDone && !x.now.responseDone, x.now.deaf():
		return dst, 0, End, nil
	case x.now.requestDone && len(in) == 0:
		return dst, 0, More, nil
	case x.now.requestDone:
		x.now = progress{}
	}
	for {
		e, data, k, err := x.requests.Next(in[n:])
		n += k
		switch {
		case err != nil || e == More:
			return dst, n, More, err
		case e == HeadRead:
			x.begin()
			return dst, n, HeadRead, nil
		case e == Data:
			if x.now.continued = true; x.now.forwarded {
				dst = appendData(dst, x.now.out, data)
			}
		case e == End:
			x.now.requestDone = true
			if x.now.forwarded {
				dst = appendEnd(dst, x.now.out, &x.requests, x.now.removed)
			}
			return dst, n, End, nil
		}
	}
}

func (x *Exchange) begin() {
	h := &x.requests.Head
	x.now = progress{begun: true, old: h.Minor == 0, head: string(h.Method) == "HEAD", expects: h.Continue,
		handshake: h.Upgrade || len(h.Path) == 0, closing: h.Close, out: h.Body}
}

// Forward appends the request's head for a backend. After an ErrEdit nothing is appended,
// and Reply is to follow, unless there was one already. After a *Error the backend has spoken
// before it was asked: its connection is to be dropped, and Refuse to follow.
func (x *Exchange) Forward(dst []byte, e *Edit) ([]byte, error) {
	h := &x.requests.Head
	if err := e.check(len(h.Path) == 0); err != nil || !x.now.begun || x.now.answered {
		return dst, ErrEdit
	}
	if wrong := x.responses.err; wrong != nil && wrong.Reason == reason.Unsolicited {
		return dst, wrong
	}
	x.ask()
	x.responses.Ask(&x.asked)
	x.now.forwarded, x.now.removed = true, e.removed()
	return appendRequest(dst, h, e, x.config.Via), nil
}

// ask has the responses read that answer the current request.
func (x *Exchange) ask() {
	h := &x.requests.Head
	x.asked = Asked{Head: x.now.head, Connect: len(h.Path) == 0}
	if h.Upgrade {
		x.asked.Accept = grammar.WebSocketAnswer(h.websocket)
	}
	x.responses.restart()
}

// Again forgets what a backend has said to the current request, which is to be sent to another
// connection: the bytes that Forward and Request have appended, from the first on. It
// reports whether it may be: not once the answer has begun.
func (x *Exchange) Again() bool {
	if !x.now.forwarded || x.now.answered || x.now.tunnel {
		return false
	}
	x.responses.restart()
	x.responses.Ask(&x.asked)
	x.now.granted = false
	return true
}

// Response takes what the backend sent, and appends what the client gets. Interim
// responses go by themselves; at HeadRead comes a final one, for Answer. At End the
// response is whole, or one of ours has taken its place; what the backend sent beyond it is
// nobody's, and not used.
func (x *Exchange) Response(dst, in []byte) (out []byte, n int, at Event, err error) {
	if x.now.tunnel {
		return append(dst, in...), len(in), Data, nil
	}
	if x.now.responseDone {
		x.now.reusable = x.now.reusable && len(in) == 0
		return dst, 0, End, nil
	}
	for {
		e, data, k, err := x.responses.Next(in[n:])
		n += k
		switch {
		case err != nil || e == More:
			x.now.reusable = x.now.reusable && err == nil
			return dst, n, More, err
		case e == HeadRead && x.now.other:
			x.answeredElsewhere()
			return dst, n, HeadRead, nil
		case e == HeadRead && x.responses.Head.Interim():
			dst = x.interim(dst)
		case e == HeadRead:
			return dst, n, HeadRead, nil
		case e == Data:
			dst = appendData(dst, x.now.back, data)
		case e == End:
			return x.endResponse(dst, n == len(in)), n, End, nil
		}
	}
}

// interim forwards a 1xx, unless the client cannot read it (RFC 9110 section 15.2) or has not
// asked for it. Of its fields only Link goes on (RFC 8297): whoever edits a response has not
// seen them.
func (x *Exchange) interim(dst []byte) []byte {
	h := &x.responses.Head
	if x.now.old || h.Status == 100 && !x.now.expects {
		return dst
	}
	x.now.granted, x.now.continued = x.now.granted || h.Status == 100, x.now.continued || h.Status == 100
	dst = appendStatus(dst, h.Status, h.Phrase)
	for i := range h.Fields {
		if f := &h.Fields[i]; grammar.FoldEqual(f.Name, "link") && !h.Hop(f) {
			dst = grammar.AppendField(dst, f.Name, f.Value)
		}
	}
	return append(dst, "\r\n"...)
}

// Waits says that the client waits for a 100 before it sends the body, and has got neither that nor
// an answer.
func (x *Exchange) Waits() bool { return x.now.waits() }

// Continue appends a 100 in the name of the backend, for a client that Waits: a server of HTTP/1.0, or one
// that does not know Expect, waits for the body without a word (RFC 9110 section 10.1.1).
// The backend's own 100 follows, if it comes after all, as a client has to expect (section 15.2).
func (x *Exchange) Continue(dst []byte) []byte {
	x.now.continued = true
	return append(dst, "HTTP/1.1 100 Continue\r\n\r\n"...)
}

// Answer appends the response's head for the client. After an ErrEdit nothing is
// appended, and Reply is to follow, unless there was an answer already.
func (x *Exchange) Answer(dst []byte, e *Edit) ([]byte, error) {
	if err := e.check(false); err != nil || !x.now.forwarded || x.now.answered {
		return dst, ErrEdit
	}
	h := &x.responses.Head
	x.now.answered, x.now.removedBack = true, e.removed()
	x.now.tunnel = h.Upgrade || x.asked.Connect && h.Status < 300
	x.now.back = h.Body
	if h.Body == Chunked || h.Body == UntilClose {
		x.now.back = Chunked
		if x.now.old {
			x.now.back, x.now.closing = UntilClose, true
		}
	}
	dst = appendStatus(dst, h.Status, h.Phrase)
	dst = appendFields(dst, h, e, x.now.back == Chunked)
	dst = appendFraming(dst, x.now.back, h.Length)
	switch {
	case h.Upgrade:
		return append(dst, "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"...), nil
	case x.now.tunnel:
		return append(dst, "\r\n"...), nil
	}
	return x.appendConnection(dst), nil
}

// appendConnection ends a final response's head, with what becomes of the connection.
func (x *Exchange) appendConnection(dst []byte) []byte {
	// A client that waits for a 100 and gets this instead may send the body or not
	// (RFC 9110 section 10.1.1); one that asked for a tunnel may have sent what is meant
	// for it. What comes next is unknown in both cases, so nothing is read.
	if x.Drain || x.now.expects && !x.now.continued || x.now.handshake {
		x.now.closing = true
	}
	// What a client still sends when it is answered may not be read to its end, and behind a connection that is closed
	// without a word the client may have sent its next request already (RFC 9112 section 9.6).
	x.now.closing = x.now.closing || !x.now.requestDone && x.now.out != NoBody
	switch {
	case x.now.closing:
		dst = append(dst, "Connection: close\r\n"...)
	case x.now.old:
		dst = append(dst, "Connection: keep-alive\r\n"...)
	}
	return append(dst, "\r\n"...)
}

func (x *Exchange) endResponse(dst []byte, clean bool) []byte {
	dst = appendEnd(dst, x.now.back, &x.responses, x.now.removedBack)
	x.now.responseDone = true
	// A backend that has sent no 100 may or may not read the body (RFC 9110 section 10.1.1),
	// and takes it for the next request if not.
	x.now.reusable = clean && x.now.requestDone && !x.responses.Head.Close && (!x.now.expects || x.now.granted)
	// A response that came before its request had ended: what is left of it is not waited for.
	x.now.closing = x.now.closing || !x.now.requestDone
	return dst
}

// ResponseEOF says that the backend has closed, and appends the end of a response that
// ends so. Any other is cut short: with an error, after Answer, the client's connection is to
// be reset, so that what it has got does not look whole.
func (x *Exchange) ResponseEOF(dst []byte) ([]byte, Event, error) {
	if x.now.tunnel || x.now.responseDone {
		return dst, End, nil
	}
	e, err := x.responses.EOF()
	if e == End {
		dst = x.endResponse(dst, false)
	}
	return dst, e, err
}

// RequestEOF says that the client sends no more; an error is a request that is cut short.
func (x *Exchange) RequestEOF() error {
	if x.now.tunnel || x.now.requestDone || x.now.deaf() {
		return nil
	}
	_, err := x.requests.EOF()
	return err
}

// Reply appends a whole response of our own, in place of a backend's, with the X-Heddle-Reason that
// says why, a token, unless it is empty. It is not for an exchange whose response has begun (Answered),
// and not for a tunnel's 101 or 2xx; after an ErrEdit nothing is appended. What the client still
// sends of a body is not read then; a request without one is to be read to its End (Request).
func (x *Exchange) Reply(dst []byte, status int, reason string, fields []Field, body []byte) ([]byte, error) {
	if x.now.answered || CheckReply(status, reason, fields) != nil {
		return dst, ErrEdit
	}
	if reason != "" {
		fields = append(fields[:len(fields):len(fields)], NewField("X-Heddle-Reason", reason))
	}
	return x.reply(dst, status, fields, body), nil
}

func (x *Exchange) reply(dst []byte, status int, fields []Field, body []byte) []byte {
	x.now.answered, x.now.responseDone, x.now.reusable = true, true, false
	x.now.closing = x.now.closing || !x.now.begun // what has come of a head is not waited for
	x.responses.restart()                         // what the backend has begun to say is nobody's
	x.responses.Ask(nil)
	dst = appendStatus(dst, status, http.StatusText(status))
	for _, f := range fields {
		dst = grammar.AppendField(dst, f.Name, f.Value)
	}
	bodiless := status == 204 || status == 304
	if !bodiless {
		dst = appendFraming(dst, Length, int64(len(body)))
	}
	dst = x.appendConnection(dst)
	if bodiless || x.now.head {
		return dst
	}
	return append(dst, body...)
}

// Refuse appends the answer to an error of Request or Response, which names its reason. The
// connection of whoever sent what is wrong is to be closed. It reports whether there was
// still something to be answered: if not, the client's connection is to be reset.
func (x *Exchange) Refuse(dst []byte, err error) ([]byte, bool) {
	wrong, ok := errors.AsType[*Error](err)
	if !ok || x.now.answered || x.now.tunnel || wrong.Response && !x.now.begun {
		return dst, false
	}
	if !wrong.Response {
		x.now.closing, x.now.requestDone = true, true
	}
	return x.reply(dst, wrong.Status(), []Field{NewField("X-Heddle-Reason", wrong.Reason.String())}, nil), true
}

// Answered says that the response to the current request has begun.
func (x *Exchange) Answered() bool { return x.now.answered }

// Tunnel says that from here on both sides' bytes are handed on as they are.
func (x *Exchange) Tunnel() bool { return x.now.tunnel }

// Done says that the current request and its response have ended.
func (x *Exchange) Done() bool { return x.now.requestDone && x.now.responseDone }

// Closing says that the client's connection is to be closed when the response has ended:
// nothing that comes on it is read any more. Like Reusable, it is about the current request, until the
// next call of Request that has bytes.
func (x *Exchange) Closing() bool { return x.now.closing }

// Reusable says that the backend's connection is as if new: request and response have
// ended, and nothing is left on it.
func (x *Exchange) Reusable() bool { return x.now.reusable }

// Held is the number of bytes of memory behind the exchange; Release gives back what is
// not needed between two requests.
func (x *Exchange) Held() int { return x.requests.Held() + x.responses.Held() }

// Release gives memory back when the connection idles.
func (x *Exchange) Release() {
	x.requests.Release()
	x.responses.Release()
}
