package http1_test

import (
	"errors"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/corpus"
	"github.com/heddle-mesh/heddle/waypoint/http1"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// proxied is a connection through an Exchange, as an owner of sockets would lead
// it: bytes that are not used wait.
type proxied struct {
	t        testing.TB
	x        *http1.Exchange
	answer   []byte // of the backend, to each request
	early    bool   // as soon as no more of the request has come
	unheard  bool   // a request has had no answer yet
	pending  []byte // of the client
	backend  []byte // what it has got
	client   []byte // likewise
	requests int
	err      error // what has ended it
	closed   bool
	reusable bool // at the end of the last response
}

const okAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

func proxy(t testing.TB, c *http1.Config) *proxied {
	return &proxied{t: t, x: http1.NewExchange(c), answer: []byte(okAnswer)}
}

// send is the client's next bytes.
func (p *proxied) send(b []byte) {
	p.t.Helper()
	p.pending = append(p.pending, b...)
	for p.err == nil && !p.closed {
		var n int
		var at http1.Event
		p.backend, n, at, p.err = p.x.Request(p.backend, p.pending)
		p.pending = p.pending[n:]
		switch {
		case p.err != nil:
			p.refuse()
		case at == http1.HeadRead:
			p.requests++
			p.unheard = true
			if p.backend, p.err = p.x.Forward(p.backend, nil); p.err != nil {
				p.t.Fatal(p.err)
			}
		case at == http1.More && p.early && p.unheard:
			p.receive(p.answer)
		case at == http1.End && !p.x.Done():
			p.receive(p.answer)
			if !p.x.Done() {
				return
			}
		case at == http1.More || p.x.Tunnel():
			return
		}
	}
}

// receive is the backend's next bytes.
func (p *proxied) receive(b []byte) {
	p.t.Helper()
	for p.err == nil {
		var n int
		var at http1.Event
		p.client, n, at, p.err = p.x.Response(p.client, b)
		b = b[n:]
		switch {
		case p.err != nil:
			p.refuse()
		case at == http1.HeadRead:
			if p.client, p.err = p.x.Answer(p.client, nil); p.err != nil {
				p.t.Fatal(p.err)
			}
		default:
			p.closed, p.reusable = p.x.Closing(), p.x.Reusable()
			p.unheard = p.unheard && !p.x.Answered()
			return
		}
	}
}

func (p *proxied) receiveEOF() {
	if p.err == nil {
		if p.client, _, p.err = p.x.ResponseEOF(p.client); p.err != nil {
			p.refuse()
		}
	}
}

func (p *proxied) refuse() {
	if p.client, _ = p.x.Refuse(p.client, p.err); p.x.Closing() {
		p.closed = true
	}
}

// inPieces calls f with b cut into pieces of a size.
func inPieces(b []byte, size int, f func([]byte)) {
	for len(b) > 0 {
		n := min(size, len(b))
		f(b[:n:n])
		b = b[n:]
	}
}

// readRequests runs a case of what a client sends.
func readRequests(t testing.TB, c corpus.Case, piece int) (lines []string, p *proxied) {
	t.Helper()
	p = proxy(t, http1.Defaults())
	if len(c.Answer) > 0 {
		p.answer, p.early = c.Answer, true
	}
	inPieces(c.Send, piece, p.send)
	inPieces(c.Then, piece, p.send)
	lines, begun, err := corpus.ReadRequests(p.backend)
	if err != nil {
		t.Fatalf("%s: net/http refuses what was forwarded: %v\n%q", c.Name, err, p.backend)
	}
	wrong, refused := errors.AsType[*http1.Error](p.err)
	switch {
	case refused && begun != "" && p.requests == len(lines):
		t.Fatalf("%s: a head was refused, and the backend has some of it: %q", c.Name, p.backend)
	case refused:
		lines = append(lines, "refused "+wrong.Reason.String())
	case p.closed && begun != "":
		lines = append(lines, begun+" cut off")
	case !p.closed && p.x.RequestEOF() != nil:
		lines = append(lines, "waits")
	case begun != "":
		t.Fatalf("%s: the backend has half of %s", c.Name, begun)
	}
	return lines, p
}

// readResponses runs a case of what a backend sends.
func readResponses(t testing.TB, c corpus.Case, piece int) (lines []string, p *proxied) {
	t.Helper()
	p = proxy(t, http1.Defaults())
	p.answer = nil
	p.send(c.Request())
	inPieces(c.Send, piece, p.receive)
	if c.EOF {
		p.receiveEOF()
	}
	return corpus.ReadResponses(p.client, c.Asked), p
}
