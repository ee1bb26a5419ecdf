package http1_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

const (
	getRequest    = "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
	expectRequest = "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 32\r\n\r\n"
)

// TestExpectInterleaved: who is refused in place of a 100 is not read any more, not even between the
// two pieces of the refusal: the backend may take the body for the next request.
func TestExpectInterleaved(t *testing.T) {
	p := proxy(t, http1.Defaults())
	p.answer = nil
	p.send([]byte(expectRequest))
	forwarded := len(p.backend)
	p.receive([]byte("HTTP/1.1 403 No\r\nContent-Length: 4\r\n\r\nno"))
	p.send([]byte("GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"))
	p.receive([]byte("no"))
	if string(p.backend[forwarded:]) != "" || p.err != nil || p.x.Reusable() || !p.x.Closing() || p.x.RequestEOF() != nil {
		t.Errorf("%q to the backend, %v, reusable %v, closing %v", p.backend[forwarded:], p.err, p.x.Reusable(), p.x.Closing())
	}
}

// TestExpectWithoutGrant: a backend that has got the whole body, but has sent no 100, may still take
// it for a request: its connection is not used again, whenever the body came.
func TestExpectWithoutGrant(t *testing.T) {
	for _, c := range []struct {
		before, then string
		granted      bool
	}{
		{"", "HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", false},
		{"HTTP/1.1 103 Hints\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false},
		{"HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true},
	} {
		p := proxy(t, http1.Defaults())
		p.answer = nil
		p.send([]byte(expectRequest))
		p.receive([]byte(c.before))
		p.send([]byte(strings.Repeat("x", 32)))
		p.receive([]byte(c.then))
		if p.err != nil || p.x.Closing() || p.reusable != c.granted {
			t.Errorf("%q: %v, closing %v, reusable %v", c.before+c.then, p.err, p.x.Closing(), p.reusable)
		}
	}
}

// forwarded is an exchange whose request has been forwarded.
func forwarded(t *testing.T, request string) *http1.Exchange {
	t.Helper()
	x := http1.NewExchange(http1.Defaults())
	_, n, at, err := x.Request(nil, []byte(request))
	if at != http1.HeadRead || err != nil {
		t.Fatal(at, err)
	}
	if _, err := x.Forward(nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, at, err := x.Request(nil, []byte(request[n:])); at != http1.End || err != nil {
		t.Fatal(at, err)
	}
	return x
}

// TestAfterReply: what a backend says when our own response has taken its place reaches nobody, and
// nothing is answered or forwarded a second time.
func TestAfterReply(t *testing.T) {
	for _, c := range []struct{ name, before, late string }{
		{"nothing yet", "", okAnswer},
		{"a head that the edit does not fit", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n", "secret"},
		{"half of a head", "HTTP/1.1 200 OK\r\nX: ", "y\r\n\r\nsecret"},
	} {
		x := forwarded(t, getRequest)
		_, n, at, err := x.Response(nil, []byte(c.before))
		if err != nil || n != len(c.before) {
			t.Fatal(n, err)
		}
		if at == http1.HeadRead {
			if out, err := x.Answer(nil, &http1.Edit{Add: []http1.Field{http1.NewField("X", "a\nb")}}); !errors.Is(err, http1.ErrEdit) || out != nil {
				t.Fatalf("%q, %v", out, err)
			}
		}
		if _, err := x.Reply(nil, 500, "", nil, nil); err != nil {
			t.Fatal(err)
		}
		out, n, at, err := x.Response(nil, []byte(c.late))
		if len(out) > 0 || n != 0 || at != http1.End || err != nil || x.Reusable() {
			t.Errorf("%s: %q reaches the client: %d, %v, %v", c.name, out, n, at, err)
		}
		if out, err := x.Answer(nil, nil); !errors.Is(err, http1.ErrEdit) || out != nil {
			t.Errorf("%s: a second answer: %q, %v", c.name, out, err)
		}
		if out, err := x.Forward(nil, nil); !errors.Is(err, http1.ErrEdit) || out != nil {
			t.Errorf("%s: forwarded after the reply: %q, %v", c.name, out, err)
		}
		if x.Closing() {
			t.Errorf("%s: the client is to blame", c.name)
		}
		// The client goes on before the backend that was given up does.
		for _, part := range []string{getRequest[:9], getRequest[9:]} {
			if out, _, _, err := x.Request(nil, []byte(part)); len(out) > 0 || err != nil {
				t.Fatal(out, err)
			}
			out, _, _, err := x.Response(nil, []byte(c.late))
			if wrong, ok := errors.AsType[*http1.Error](err); len(out) > 0 || !ok || wrong.Reason != reason.Unsolicited {
				t.Errorf("%s: %q reaches the client of the next request: %v", c.name, out, err)
			}
			if out, ok := x.Refuse(nil, err); ok != (part != getRequest[:9]) || ok != (len(out) > 0) {
				t.Errorf("%s: after %q it is answered %v, %q", c.name, part, ok, out)
			}
		}
	}
}

// TestLateBytes: what a backend says beyond its response is no error of the exchange, and makes its
// connection one that is not used again.
func TestLateBytes(t *testing.T) {
	p := proxy(t, http1.Defaults())
	p.send([]byte(getRequest))
	before := len(p.client)
	if !p.reusable {
		t.Fatal("it was not reusable before")
	}
	out, n, at, err := p.x.Response(nil, []byte("HTTP/1.1 200 OK\r\n"))
	if len(out) > 0 || n != 0 || at != http1.End || err != nil || p.x.Reusable() {
		t.Errorf("%q, %d, %v, %v, reusable %v", out, n, at, err, p.x.Reusable())
	}
	if p.send([]byte(getRequest)); p.err != nil || p.requests != 2 || string(p.client[before:]) != okAnswer {
		t.Errorf("the client does not go on: %v, %q", p.err, p.client[before:])
	}
}

// TestUnsolicitedThenForward: a request is not forwarded on a connection on which the backend has spoken
// first, and not answered with what it said.
func TestUnsolicitedThenForward(t *testing.T) {
	p := proxy(t, http1.Defaults())
	p.send([]byte(getRequest))
	if _, _, at, err := p.x.Request(nil, []byte(getRequest)); at != http1.HeadRead || err != nil {
		t.Fatal(at, err)
	}
	out, _, _, err := p.x.Response(nil, []byte(okAnswer))
	wrong, ok := errors.AsType[*http1.Error](err)
	if len(out) > 0 || !ok || wrong.Reason != reason.Unsolicited {
		t.Fatalf("%q, %v", out, err)
	}
	out, err = p.x.Forward(nil, nil)
	if wrong, ok = errors.AsType[*http1.Error](err); !ok || wrong.Reason != reason.Unsolicited || out != nil {
		t.Fatalf("forwarded all the same: %q, %v", out, err)
	}
	out, ok = p.x.Refuse(nil, err)
	exactly(t, "the refusal", out, "HTTP/1.1 502 Bad Gateway\r\nX-Heddle-Reason: unsolicited\r\nContent-Length: 0\r\n\r\n")
	p.client = nil
	if p.send([]byte(getRequest)); !ok || p.err != nil || string(p.client) != okAnswer { // its request has ended with its head
		t.Errorf("the next request: %v, %q", p.err, p.client)
	}
}

// TestReplyBeforeHead: a reply to a request that does not come to its end (408) is the last one.
func TestReplyBeforeHead(t *testing.T) {
	x := http1.NewExchange(http1.Defaults())
	if _, _, at, err := x.Request(nil, []byte("GET / HTTP/1.1\r\nHo")); at != http1.More || err != nil {
		t.Fatal(at, err)
	}
	if out, err := x.Forward(nil, nil); !errors.Is(err, http1.ErrEdit) || out != nil {
		t.Errorf("forwarded before its head has come: %q, %v", out, err)
	}
	if out, err := x.Answer(nil, nil); !errors.Is(err, http1.ErrEdit) || out != nil {
		t.Errorf("answered with a backend's head that there is not: %q, %v", out, err)
	}
	got, err := x.Reply(nil, 408, "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	exactly(t, "the reply", got, "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	if out, n, at, err := x.Request(nil, []byte("st: h\r\n\r\n")); !x.Closing() || len(out) > 0 || n != 0 || at != http1.End || err != nil {
		t.Errorf("it goes on: closing %v, %q, %d, %v, %v", x.Closing(), out, n, at, err)
	}
}

// TestReleaseAfterBadResponse: what a bad response has left behind is given back too.
func TestReleaseAfterBadResponse(t *testing.T) {
	for _, raw := range []string{
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 60<<10),               // cut off
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 60<<10) + "\r\nY\r\n", // bad
	} {
		p := proxy(t, http1.Defaults())
		p.answer = nil
		p.send([]byte(getRequest))
		inPieces([]byte(raw), 1000, p.receive)
		if p.receiveEOF(); p.err == nil || p.x.Held() < 60<<10 {
			t.Fatalf("%v, and %d bytes are held: nothing to be released", p.err, p.x.Held())
		}
		if p.x.Release(); p.x.Held() != 0 {
			t.Errorf("%d bytes are held", p.x.Held())
		}
	}
}

// TestTrailersStay: what Connection names or an edit removes comes not as a trailer either, and is not
// announced, both ways.
func TestTrailersStay(t *testing.T) {
	const fields = "Connection: x-hop\r\nTrailer: X-Sum, X-Hop, X-Gone\r\nTransfer-Encoding: chunked\r\nX-Gone: 1\r\n\r\n"
	const trailers = "0\r\nX-Sum: 1\r\nX-Hop: 2\r\nX-Gone: 3\r\n\r\n"
	const wantFields, wantTrailers = "Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n", "0\r\nX-Sum: 1\r\n\r\n"
	edit := &http1.Edit{Remove: []string{"x-gone"}}
	for _, piece := range []int{1, 7, 1000} {
		x := http1.NewExchange(http1.Defaults())
		var backend, client []byte
		inPieces([]byte("POST / HTTP/1.1\r\nHost: h\r\n"+fields+trailers), piece, func(in []byte) {
			for {
				out, n, at, err := x.Request(backend, in)
				if backend, in = out, in[n:]; at == http1.HeadRead {
					backend, err = x.Forward(backend, edit)
				} else if err == nil {
					return
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		})
		exactly(t, "the request", backend, "POST / HTTP/1.1\r\nHost: h\r\n"+wantFields+wantTrailers)
		inPieces([]byte("HTTP/1.1 200 OK\r\n"+fields+trailers), piece, func(in []byte) {
			for {
				out, n, at, err := x.Response(client, in)
				if client, in = out, in[n:]; at == http1.HeadRead {
					client, err = x.Answer(client, edit)
				} else if err == nil {
					return
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		})
		exactly(t, "the response", client, "HTTP/1.1 200 OK\r\n"+wantFields+wantTrailers)
	}
}

// TestInterimFields: of a 1xx only Link goes on.
func TestInterimFields(t *testing.T) {
	p := proxy(t, http1.Defaults())
	p.answer = nil
	p.send([]byte(getRequest))
	p.receive([]byte("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nX-Internal: 1\r\nSet-Cookie: a=b\r\n\r\nHTTP/1.1 103 Early Hints\r\nConnection: link\r\nLink: </b>\r\n\r\n"))
	exactly(t, "the hints", p.client, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n")
}

// TestEditedConnect: a CONNECT goes to a host and a port.
func TestEditedConnect(t *testing.T) {
	for host, good := range map[string]bool{"other": false, "[::1]": false, "other:443": true, "[::1]:443": true} {
		x := http1.NewExchange(http1.Defaults())
		if _, _, at, err := x.Request(nil, []byte("CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n")); at != http1.HeadRead || err != nil {
			t.Fatal(at, err)
		}
		got, err := x.Forward(nil, &http1.Edit{Host: []byte(host)})
		if want := "CONNECT " + host + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n"; good && string(got) != want || !good && (got != nil || !errors.Is(err, http1.ErrEdit)) {
			t.Errorf("%s: %q, %v", host, got, err)
		}
	}
}
