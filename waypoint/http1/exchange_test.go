package http1_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/waypoint/corpus"
	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

const upgradeRequest = "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

// exactly compares what was written, byte for byte.
func exactly(t *testing.T, what string, got []byte, want ...string) {
	t.Helper()
	if string(got) != strings.Join(want, "") {
		t.Errorf("%s:\ngot  %q\nwant %q", what, got, strings.Join(want, ""))
	}
}

// TestForwardedBytes: what is written of a request and of its response, exactly.
func TestForwardedBytes(t *testing.T) {
	config := http1.Defaults()
	config.Via = "heddle"
	p := proxy(t, config)
	p.answer = []byte("HTTP/1.1 200 Fine\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nServer: s\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n" +
		"3;ext=1\r\nabc\r\n0\r\nX-Sum: 2\r\n\r\n")
	p.send([]byte("POST http://h/a?b HTTP/1.1\r\nhost:h\r\nX-A:  b \r\nTE: trailers, deflate\r\nConnection: TE, keep-alive\r\nKeep-Alive: 5\r\n" +
		"Proxy-Connection: close\r\nUpgrade: h2c\r\nExpect: 100-Continue\r\ncontent-length: 5\r\nSec-WebSocket-Key: stray\r\n\r\nhello"))
	exactly(t, "the request", p.backend, "POST /a?b HTTP/1.1\r\nHost: h\r\nX-A: b\r\nContent-Length: 5\r\nExpect: 100-continue\r\nVia: 1.1 heddle\r\n",
		"Connection: TE\r\nTE: trailers\r\n\r\nhello")
	exactly(t, "the response", p.client, "HTTP/1.1 200 Fine\r\nServer: s\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n",
		"3\r\nabc\r\n0\r\nX-Sum: 2\r\n\r\n")
	if p.reusable || p.x.Closing() { // there was no 100
		t.Error("the client's connection does not go on, or the backend's does")
	}
}

// TestPipelining: requests that come at once are served one after the other, and
// the next is not read before the response has ended.
func TestPipelining(t *testing.T) {
	p := proxy(t, http1.Defaults())
	p.answer = nil
	p.send([]byte("GET /1 HTTP/1.1\r\nHost: h\r\n\r\nPOST /2 HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nabGET /3 HTTP/1.1\r\nHost: h\r\n\r\n"))
	for i, want := range []string{"GET /1", "POST /2", "GET /3"} {
		if p.requests != i+1 || !strings.HasPrefix(string(p.backend), want) {
			t.Fatalf("after %d responses the backend has %q", i, p.backend)
		}
		p.backend = nil
		p.receive([]byte("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"))
		p.send(nil)
		if len(p.backend) > 0 {
			t.Fatalf("%d: the next is forwarded before the response has ended", i)
		}
		p.receive([]byte{'1' + byte(i)})
		p.send(nil)
	}
	if got := corpus.ReadResponses(p.client, "GET"); !slices.Equal(got, []string{`200 "1"`}) || strings.Count(string(p.client), "HTTP/1.1 200") != 3 {
		t.Errorf("the client has %q", p.client)
	}
}

// TestTunnel: after a 101 all bytes pass, those that came before it included.
func TestTunnel(t *testing.T) {
	p := proxy(t, http1.Defaults())
	p.answer = nil
	p.send([]byte(upgradeRequest + "early"))
	exactly(t, "the request", p.backend, "GET /chat HTTP/1.1\r\nHost: h\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	p.backend = nil
	p.receive([]byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nfirst"))
	p.send([]byte(" GET / HTTP/1.1\r\n\r\n"))
	p.receive([]byte(" second"))
	exactly(t, "to the backend", p.backend, "early GET / HTTP/1.1\r\n\r\n")
	exactly(t, "to the client", p.client, "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n",
		"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst second")
	if p.reusable || p.x.RequestEOF() != nil {
		t.Error("a tunnel that is reusable, or whose end is an error")
	}
}

// TestOldClient: an HTTP/1.0 client gets no interim response, no chunked coding, and is told
// what becomes of the connection.
func TestOldClient(t *testing.T) {
	const old = "GET / HTTP/1.0\r\nHost: h\r\nConnection: Keep-Alive\r\n\r\n"
	for answer, want := range map[string]string{
		"HTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab":            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nab",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nX-T: 1\r\n\r\n": "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nab",
	} {
		p := proxy(t, http1.Defaults())
		p.answer = []byte(answer)
		p.send([]byte(old))
		exactly(t, "the response", p.client, want)
		if !p.reusable || p.x.Closing() != strings.Contains(want, "close") {
			t.Errorf("%q: reusable %v, closing %v", answer, p.reusable, p.x.Closing())
		}
	}
	config := http1.Defaults()
	config.DefaultHost, config.Via = "shop", "w"
	p := proxy(t, config)
	p.send([]byte("GET / HTTP/1.0\r\n\r\n"))
	exactly(t, "the request", p.backend, "GET / HTTP/1.1\r\nHost: shop\r\nVia: 1.0 w\r\n\r\n")
}

// TestContinue: a 100 goes to who waits for it; without one, a final response ends the backend's
// connection, and the client's unless the body has come all the same (RFC 9110 section 10.1.1).
func TestContinue(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
	const final = "HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"
	for _, c := range []struct {
		name             string
		lead             func(*proxied)
		goesOn, reusable bool
	}{
		{"a 100, then the body", func(p *proxied) {
			p.send([]byte(head))
			p.receive([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
			p.answer = []byte(final)
			p.send([]byte("ab"))
		}, true, true},
		{"no 100, no body", func(p *proxied) {
			p.send([]byte(head))
			p.receive([]byte(final))
			p.send([]byte("GET / HTTP/1.1\r\nHost: h\r\n\r\n"))
		}, false, false},
		{"the body at once", func(p *proxied) { p.answer = []byte(final); p.send([]byte(head + "ab")) }, true, false},
		{"half of the body", func(p *proxied) { p.send([]byte(head + "a")); p.receive([]byte(final)) }, false, false},
	} {
		p := proxy(t, http1.Defaults())
		p.answer = nil
		c.lead(p)
		if p.err != nil || p.requests != 1 || p.x.Closing() == c.goesOn || p.reusable != c.reusable {
			t.Errorf("%s: %v, %d requests, closing %v, reusable %v", c.name, p.err, p.requests, p.x.Closing(), p.reusable)
		}
		if strings.Contains(string(p.client), "Connection: close") == c.goesOn { // who is not told may have sent the next request
			t.Errorf("%s: the client is told %q", c.name, p.client)
		}
		if strings.Contains(string(p.client), "100 Continue") != (c.name == "a 100, then the body") {
			t.Errorf("%s: the client has %q", c.name, p.client)
		}
	}
}

// TestToldToContinue: who waits for a 100, and nobody else, is told to go on, by the backend, by us, or by both.
func TestToldToContinue(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
	const granted, final = "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	for _, c := range []struct {
		name        string
		sent, heard string // before we tell
		late        string // of the backend, behind it
		told        bool
		reusable    bool
	}{
		{"it waits", head, "", "", true, false},
		{"and the backend says so late", head, "", granted, true, true},
		{"the backend has said so", head, granted, "", false, true},
		{"it does not wait", head + "a", "", "", false, false},
		{"it has not asked", strings.Replace(head, "Expect: 100-continue\r\n", "", 1), "", "", false, true},
		{"it cannot read one", strings.Replace(head, "HTTP/1.1", "HTTP/1.0", 1), "", "", false, true},
		{"it was answered", head, "HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", "", false, false},
	} {
		p := proxy(t, http1.Defaults())
		p.answer = nil
		p.send([]byte(c.sent))
		if c.heard != "" {
			p.receive([]byte(c.heard))
		}
		if waits := p.x.Waits(); waits != c.told {
			t.Errorf("%s: it waits: %v", c.name, waits)
		}
		if c.told {
			p.client = p.x.Continue(p.client)
		}
		if p.x.Waits() {
			t.Errorf("%s: it is told twice", c.name)
		}
		if c.late != "" {
			p.receive([]byte(c.late))
		}
		want := strings.Count(c.heard+c.late, "100 Continue")
		if c.told {
			want++
		}
		if strings.Count(string(p.client), "100 Continue") != want {
			t.Errorf("%s: the client has %q", c.name, p.client)
		}
		if c.name == "it was answered" {
			continue
		}
		p.answer = []byte(final)
		if p.send([]byte("ab"[strings.Count(c.sent, "\r\n\r\na"):])); p.err != nil || p.reusable != c.reusable {
			t.Errorf("%s: %v, reusable %v", c.name, p.err, p.reusable)
		}
	}
}

// TestInterimBound: 1xx responses come to an end.
func TestInterimBound(t *testing.T) {
	p := proxy(t, http1.Defaults())
	p.answer = nil
	p.send([]byte("GET / HTTP/1.1\r\nHost: h\r\n\r\n"))
	p.receive([]byte(strings.Repeat("HTTP/1.1 103 Hints\r\n\r\n", 16)))
	if p.err != nil {
		t.Fatal(p.err)
	}
	p.receive([]byte("HTTP/1.1 103 Hints\r\n\r\n"))
	if wrong, ok := errors.AsType[*http1.Error](p.err); !ok || wrong.Reason != reason.TooManyInterim {
		t.Errorf("17 of them: %v", p.err)
	}
}

// TestEdits: what a route changes is written in place of what came, and nothing that
// would make another message of it.
func TestEdits(t *testing.T) {
	x := http1.NewExchange(http1.Defaults())
	if _, _, at, err := x.Request(nil, []byte("GET /old?q HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nX-B: 2\r\n\r\n")); at != http1.HeadRead || err != nil {
		t.Fatal(at, err)
	}
	got, err := x.Forward(nil, &http1.Edit{Host: []byte("b:80"), Path: []byte("/new"), Remove: []string{"x-a"}, Add: []http1.Field{http1.NewField("X-C", "3")}})
	if err != nil {
		t.Fatal(err)
	}
	exactly(t, "the request", got, "GET /new HTTP/1.1\r\nHost: b:80\r\nX-B: 2\r\nX-C: 3\r\n\r\n")
	for _, e := range []http1.Edit{
		{Host: []byte("h\r\nX: y")}, {Host: []byte{}}, {Host: []byte("a@b")}, {Path: []byte("new")}, {Path: []byte{}}, {Path: []byte("/ HTTP/1.1\r\nX: y")}, {Path: []byte("/%zz")},
		{Add: []http1.Field{http1.NewField("X", "a\r\nSet-Cookie: b")}}, {Add: []http1.Field{http1.NewField("X", "a\nb")}}, {Add: []http1.Field{http1.NewField("X", "a\x00")}},
		{Add: []http1.Field{http1.NewField("X: y\r\nZ", "a")}}, {Add: []http1.Field{http1.NewField("", "a")}}, {Add: []http1.Field{http1.NewField("Content-Length", "5")}},
		{Add: []http1.Field{http1.NewField("transfer_encoding", "chunked")}}, {Add: []http1.Field{http1.NewField("Connection", "close")}}, {Add: []http1.Field{http1.NewField("X", " a")}},
	} {
		if got, err := x.Forward([]byte("before"), &e); !errors.Is(err, http1.ErrEdit) || string(got) != "before" {
			t.Errorf("%+v: %q, %v", e, got, err)
		}
	}
	if got, err := x.Reply(nil, 302, "", []http1.Field{http1.NewField("Location", "/a\r\nSet-Cookie: b")}, nil); !errors.Is(err, http1.ErrEdit) || got != nil {
		t.Errorf("a redirect with a line break: %q, %v", got, err)
	}
}

// TestReply: a response of our own takes a backend's place, and the connection goes on
// where its next byte is known.
func TestReply(t *testing.T) {
	for _, c := range []struct {
		request, want string
		goesOn        bool
	}{
		{"GET / HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.1 404 Not Found\r\nX-A: b\r\nContent-Length: 2\r\n\r\nno", true},
		{"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.1 404 Not Found\r\nX-A: b\r\nContent-Length: 2\r\n\r\n", true},
		{"GET / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n", "HTTP/1.1 404 Not Found\r\nX-A: b\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nno", true},
		{"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", "HTTP/1.1 404 Not Found\r\nX-A: b\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno", false},
		{"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n", "HTTP/1.1 404 Not Found\r\nX-A: b\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno", false},
		{upgradeRequest, "HTTP/1.1 404 Not Found\r\nX-A: b\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno", false},
	} {
		x := http1.NewExchange(http1.Defaults())
		_, n, at, err := x.Request(nil, []byte(c.request))
		if at != http1.HeadRead || err != nil {
			t.Fatal(at, err)
		}
		got, err := x.Reply(nil, 404, "", []http1.Field{http1.NewField("X-A", "b")}, []byte("no"))
		if err != nil {
			t.Fatal(err)
		}
		exactly(t, c.request, got, c.want)
		if _, err := x.Reply(nil, 200, "", nil, nil); err == nil {
			t.Errorf("%q: two responses", c.request)
		}
		next := c.request[n:] + c.request
		out, n, _, err := x.Request(nil, []byte(next))
		if x.Closing() == c.goesOn || len(out) > 0 || err != nil {
			t.Errorf("%q: closing %v, %q to nobody, %v", c.request, x.Closing(), out, err)
		}
		if c.goesOn {
			_, _, at, err := x.Request(nil, []byte(next[n:]))
			if at != http1.HeadRead || err != nil {
				t.Errorf("%q: the next is not read: %v, %v", c.request, at, err)
			}
		}
	}
}

// TestRefuse: a refusal names its status and reason while there is still something to be answered.
func TestRefuse(t *testing.T) {
	p := proxy(t, http1.Defaults())
	p.send([]byte("GET /#a HTTP/1.1\r\nHost: h\r\n\r\n"))
	exactly(t, "the refusal", p.client, "HTTP/1.1 400 Bad Request\r\nX-Heddle-Reason: bad_target\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	if !p.x.Closing() || p.reusable || len(p.backend) > 0 {
		t.Error("it goes on")
	}
	p = proxy(t, http1.Defaults())
	p.send([]byte("GET / HTTP/1.1\r\nHost: h\r\n\r\n\r\n\r\n\r\n"))
	if !bytes.HasPrefix(p.client, []byte(okAnswer+"HTTP/1.1 400 ")) {
		t.Errorf("a bad one after a good one: %q", p.client)
	}
	p = proxy(t, http1.Defaults())
	p.answer = []byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n?")
	p.send([]byte("GET / HTTP/1.1\r\nHost: h\r\n\r\n"))
	if out, ok := p.x.Refuse(nil, p.err); ok || len(out) > 0 || !bytes.HasSuffix(p.client, []byte("1\r\na\r\n")) {
		t.Errorf("a refusal inside of a response: %v %q after %q", ok, out, p.client)
	}
	p = proxy(t, http1.Defaults())
	p.answer = []byte("HTTP/1.1 200 OK\r\nX\r\n\r\n")
	p.send([]byte("GET / HTTP/1.1\r\nHost: h\r\n\r\n"))
	exactly(t, "a bad response", p.client, "HTTP/1.1 502 Bad Gateway\r\nX-Heddle-Reason: bad_field_line\r\nContent-Length: 0\r\n\r\n")
	if p.x.Closing() || p.reusable {
		t.Error("the client is to blame, or the backend's connection is good")
	}
}

// TestRelease: a connection that idles holds nothing, and goes on.
func TestRelease(t *testing.T) {
	p := proxy(t, http1.Defaults())
	request := []byte("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: y\r\n\r\n")
	for range 2 {
		inPieces(request, 3, p.send)
		if p.x.Held() == 0 {
			t.Error("nothing is held between two requests: nothing to be released")
		}
		p.x.Release()
		if n := p.x.Held(); n != 0 {
			t.Errorf("%d bytes are held", n)
		}
	}
	p.send(request[:30])
	p.x.Release()
	p.send(request[30:])
	if whole, begun, err := corpus.ReadRequests(p.backend); len(whole) != 3 || begun != "" || err != nil {
		t.Errorf("%q, %q, %v", whole, begun, err)
	}
}
