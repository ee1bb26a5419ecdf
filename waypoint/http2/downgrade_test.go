package http2_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/waypoint/corpus"
	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/http2"
)

// downgraded is what a backend of HTTP/1.1 gets of a client's requests in HTTP/2, a connection for each of them: what
// was forwarded, and whether it was whole.
type downgraded struct {
	id    uint32
	out   []byte
	whole bool
	x     *http1.Exchange
}

func downgrade(t testing.TB, s *side, wire []byte, piece func() int) (all []*downgraded) {
	t.Helper()
	s.on = func(step http2.Step) {
		i := slices.IndexFunc(all, func(d *downgraded) bool { return d.id == step.Stream })
		switch step.Event {
		case http2.HeadRead:
			d := &downgraded{id: step.Stream, x: http1.NewExchange(http1.Defaults())}
			d.x.TakeRequest(step.Head)
			var err error
			if d.out, err = d.x.Forward(nil, nil); err != nil {
				t.Fatalf("a head that was read cannot be forwarded: %v", err)
			}
			all = append(all, d)
		case http2.Data:
			all[i].out = all[i].x.TakeRequestData(all[i].out, step.Data)
		case http2.End:
			all[i].out, all[i].whole = all[i].x.TakeRequestEnd(all[i].out, step.Trailers), true
		}
	}
	s.feed(wire, piece)
	return all
}

// read is what net/http reads of it: one request if it was whole, and never a second one. Of one that says more than it has announced, a backend
// has got what was announced.
func (d *downgraded) read(t testing.TB, shown ...string) []string {
	t.Helper()
	whole, begun, err := corpus.ReadRequests(d.out, shown...)
	if err != nil || len(whole) > 1 || len(whole) == 1 && begun != "" || d.whole && len(whole) != 1 {
		t.Fatalf("whole %v, net/http reads %q, then %q, %v\n%q", d.whole, whole, begun, err, d.out)
	}
	return whole
}

// TestDowngradedBytes: what is written, to the byte.
func TestDowngradedBytes(t *testing.T) {
	wire := client().post(1, "te: trailers", "x-a: b", "cookie: a", "cookie: b", "x-heddle-reason: mine", "sec-websocket-key: k", "trailer: x-sum").
		data(1, false, "hello").head(1, true, "x-sum: 1")
	all := downgrade(t, server(http2.Defaults()), wire.Bytes(), func() int { return wire.Len() })
	want := "POST / HTTP/1.1\r\nHost: h\r\nx-a: b\r\ncookie: a; b\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\nConnection: TE\r\nTE: trailers\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n"
	if len(all) != 1 || string(all[0].out) != want {
		t.Errorf("%q\nwant %q", all[0].out, want)
	}
}

// upgraded is what a client of HTTP/2 gets of a response in HTTP/1.1, and what a backend of HTTP/2 would get of a request.
func upgraded(t testing.TB, raw []byte, eof bool) (lines []string, err error) {
	t.Helper()
	s := server(http2.Defaults()).whole(client().get(1))
	x := http1.NewExchange(http1.Defaults())
	x.TakeRequest(requestHead(t, ":method: GET", ":scheme: http", ":authority: h", ":path: /"))
	if _, err := x.Forward(nil, nil); err != nil {
		t.Fatal(err)
	}
	x.TakeRequestEnd(nil, nil)
	s.out = nil
	for err == nil {
		data, n, at, e := x.Response(nil, raw)
		raw, err = raw[n:], e
		s.out, _ = s.Data(s.out, 1, data)
		switch {
		case e != nil:
		case at == http1.HeadRead && x.ResponseHead().Interim():
			s.out = s.Interim(s.out, 1, x.ResponseHead())
		case at == http1.HeadRead:
			if s.out, err = s.Answer(s.out, 1, x.ResponseHead(), nil); err != nil {
				t.Fatal(err)
			}
		case at == http1.End:
			s.out = s.End(s.out, 1, x.ResponseTrailers())
			return said(t, s.out), nil
		case len(raw) == 0 && eof:
			_, at, err = x.ResponseEOF(nil)
			if at == http1.End {
				s.out = s.End(s.out, 1, nil)
				return said(t, s.out), nil
			}
		case len(raw) == 0:
			return said(t, s.out), nil
		}
	}
	s.out = s.Refuse(s.out, 1, err)
	return said(t, s.out), err
}

// TestUpgradedResponses: a response in HTTP/1.1, as it is written in HTTP/2.
func TestUpgradedResponses(t *testing.T) {
	for _, c := range []struct {
		raw  string
		eof  bool
		want []string
	}{
		{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close, X-Hop\r\nX-Hop: a\r\nX-A: b\r\nKeep-Alive: 5\r\n\r\nhello", false,
			[]string{"1 head false :status=200|x-a=b|content-length=5", "1 data false hello", "1 data true "}},
		{"HTTP/1.1 103 Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n", false,
			[]string{"1 head false :status=103|link=a", "1 head false :status=200|trailer=X-Sum", "1 data false hello", "1 head true x-sum=1"}},
		{"HTTP/1.1 200 OK\r\n\r\nhello", true, []string{"1 head false :status=200", "1 data false hello", "1 data true "}},
		{"HTTP/1.1 204 No\r\n\r\n", false, []string{"1 head true :status=204"}},
		{"HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n", false, []string{"1 head true :status=304|content-length=9"}},
		{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", false, []string{"1 head true :status=502|content-length=0|x-heddle-reason=length_and_coding"}},
		{"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n", false, []string{"1 head true :status=502|content-length=0|x-heddle-reason=upgrade_not_asked"}},
		{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe", true, []string{"1 head false :status=200|content-length=5", "1 data false he", "1 reset INTERNAL_ERROR"}},
		{"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n", false, []string{"1 head true :status=200|set-cookie=a|set-cookie=b|content-length=0"}},
	} {
		if lines, _ := upgraded(t, []byte(c.raw), c.eof); !slices.Equal(lines, c.want) {
			t.Errorf("%q:\n%q\nwant %q", c.raw, lines, c.want)
		}
	}
}

// TestUpgradedRequests: a request in HTTP/1.1, as it is written in HTTP/2.
func TestUpgradedRequests(t *testing.T) {
	for raw, want := range map[string][]string{
		"POST http://h/a?b HTTP/1.1\r\nHost: H\r\nContent-Length: 5\r\nConnection: x-hop\r\nX-Hop: 1\r\nX-Mixed: Case\r\nTE: trailers, gzip\r\n\r\nhello": {
			"1 head false :method=POST|:scheme=http|:authority=h|:path=/a?b|x-mixed=Case|content-length=5|te=trailers", "1 data false hello", "1 data true "},
		"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n": {
			"1 head false :method=POST|:scheme=http|:authority=h|:path=/|expect=100-continue", "1 data false hello", "1 head true x-sum=1"},
		"GET /chat HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade, X-Hop\r\nX-Hop: 1\r\nContent-Length: 0\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n": {
			"1 head false :method=CONNECT|:protocol=websocket|:scheme=http|:authority=h|:path=/chat|sec-websocket-version=13", "1 data true "},
		"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n": {
			"1 head true :method=GET|:scheme=http|:authority=h|:path=/"},
		"OPTIONS * HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n": {"1 head true :method=OPTIONS|:scheme=http|:authority=h|:path=*|content-length=0"},
		"GET / HTTP/1.0\r\nHost: h\r\nHTTP2-Settings: a\r\n\r\n":     {"1 head true :method=GET|:scheme=http|:authority=h|:path=/"},
	} {
		x, c := http1.NewExchange(http1.Defaults()), takingWebSocket(t, http2.Defaults())
		var out []byte
		for in := []byte(raw); ; {
			data, n, at, err := x.Request(nil, in)
			in = in[n:]
			if err != nil {
				t.Fatal(err)
			}
			out, _ = c.Data(out, 1, data)
			if at == http1.HeadRead {
				if out, _, err = c.Open(out, x.RequestHead(), nil); err != nil {
					t.Fatal(err)
				}
				x.Carry(nil)
			} else if at == http1.End {
				out = c.End(out, 1, x.RequestTrailers())
				break
			}
		}
		if lines := said(t, out); !slices.Equal(lines, want) {
			t.Errorf("%q:\n%q\nwant %q", raw, lines, want)
		}
	}
}

// TestToOldClients: a response in HTTP/2, as it is written in HTTP/1.1, and what net/http reads of it.
func TestToOldClients(t *testing.T) {
	for _, c := range []struct {
		version, method string
		wire            *talk
		want            string
	}{
		{"1.1", "GET", backend().head(1, false, ":status: 200", "content-length: 5", "x-a: b").data(1, true, "hello"), `200 "hello"`},
		{"1.1", "GET", backend().head(1, false, ":status: 200").data(1, false, "hello").head(1, true, "grpc-status: 0"), `200 "hello" grpc-status`},
		{"1.1", "GET", backend().head(1, false, ":status: 200", "content-length: 5", "trailer: x-sum").data(1, false, "hello").head(1, true, "x-sum: 0"), `200 "hello" x-sum`},
		{"1.0", "GET", backend().head(1, false, ":status: 200").data(1, false, "hello").head(1, true, "grpc-status: 0"), `200 "hello"`},
		{"1.1", "HEAD", backend().head(1, true, ":status: 200", "content-length: 5"), `200 ""`},
		{"1.1", "GET", backend().head(1, true, ":status: 204", "content-length: 0"), `204 ""`},
		{"1.1", "GET", backend().head(1, false, ":status: 200").data(1, false, "0\r\n\r\nHTTP/1.1 200").data(1, true, ""), `200 "0\r\n\r\nHTTP/1.1 200"`},
		{"1.1", "GET", backend().head(1, true, ":status: 200", "x: a\r\nset-cookie: b"), "502 bare_cr"},
		{"1.1", "GET", backend().head(1, false, ":status: 200", "content-length: 5").data(1, true, "hello more"), `200 reset`},
	} {
		x := http1.NewExchange(http1.Defaults())
		in := fmt.Sprintf("%s / HTTP/%s\r\nHost: h\r\n\r\n", c.method, c.version)
		_, n, _, err := x.Request(nil, []byte(in))
		if err != nil || n != len(in) {
			t.Fatal(err)
		}
		s := asked(t, c.method)
		x.Carry(nil)
		if _, _, at, _ := x.Request(nil, nil); at != http1.End {
			t.Fatal("a request without an end")
		}
		var out []byte
		s.on = func(step http2.Step) {
			switch step.Event {
			case http2.HeadRead:
				out = x.TakeResponse(out, step.Head)
				if out, err = x.Answer(out, nil); err != nil {
					t.Fatal(err)
				}
			case http2.Data:
				out = x.TakeResponseData(out, step.Data)
			case http2.End:
				out = x.TakeResponseEnd(out, step.Trailers)
			case http2.Reset:
				out, _ = x.Reply(out, 502, step.Err.Reason.String(), nil, nil)
			}
		}
		s.whole(c.wire)
		if got := readOne(out, c.method); got != c.want {
			t.Errorf("%q: %s, want %s", out, got, c.want)
		}
		if strings.HasPrefix(c.want, "200 \"") && c.version == "1.1" != !x.Closing() {
			t.Errorf("%q: closing %v", out, x.Closing())
		}
	}
}

func readOne(raw []byte, method string) string {
	r := bufio.NewReader(bytes.NewReader(raw))
	a, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		return err.Error()
	}
	if name := a.Header.Get("X-Heddle-Reason"); name != "" {
		return fmt.Sprintf("%d %s", a.StatusCode, name)
	}
	body, err := io.ReadAll(a.Body)
	if err != nil {
		return fmt.Sprintf("%d reset", a.StatusCode)
	}
	got := fmt.Sprintf("%d %q", a.StatusCode, body)
	for name := range a.Trailer {
		got += " " + strings.ToLower(name)
	}
	if rest, _ := io.ReadAll(r); len(rest) > 0 {
		got += fmt.Sprintf(" and then %q", rest)
	}
	return got
}
