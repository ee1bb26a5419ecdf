package http2_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	xhttp2 "golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

// offering begins a backend's side that takes WebSockets, or says again that it does not.
func offering(values ...uint32) *talk {
	k := newTalk()
	for _, v := range values {
		must(k.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingEnableConnectProtocol, Val: v}))
	}
	return k
}

// takingWebSocket is a client's side whose backend has said so.
func takingWebSocket(t testing.TB, c *http2.Config) *http2.Conn {
	t.Helper()
	conn := http2.NewClient(c)
	if _, _, step, err := conn.Next(nil, offering(1).Bytes()); err != nil || step.Event != http2.More {
		t.Fatal(step, err)
	}
	return conn
}

// upgradeHead is a WebSocket's, as HTTP/1.1 has it.
func upgradeHead(t testing.TB, more string) *http1.Exchange {
	t.Helper()
	x := http1.NewExchange(http1.Defaults())
	raw := "GET /chat?room=1 HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n" + more + "\r\n"
	if _, n, at, err := x.Request(nil, []byte(raw)); err != nil || at != http1.HeadRead || n != len(raw) {
		t.Fatal(n, at, err)
	}
	return x
}

// TestWebSocketIsOffered: an extended CONNECT goes to who has said that it takes one, and to nobody else (RFC 8441 section 3).
func TestWebSocketIsOffered(t *testing.T) {
	for _, c := range []struct {
		rule   string
		wire   *talk
		takes  bool
		known  bool
		reason reason.Reason
	}{
		{"nothing has come", newTalk(), false, false, 0},
		{"no word of it", backend(), false, true, 0},
		{"0", offering(0), false, true, 0},
		{"1", offering(1), true, true, 0},
		{"later", offering(0, 1), true, true, 0},
		{"twice", offering(1, 1), true, true, 0},
		{"taken back", offering(1, 0), true, true, reason.BadSetting},
		{"2", offering(2), false, true, reason.BadSetting},
	} {
		conn := http2.NewClient(http2.Defaults())
		s := newSide(conn)
		if c.wire.Len() > 0 {
			s.whole(c.wire)
		}
		wrong, _ := s.err.(*http2.Error)
		if (c.reason != 0) != (wrong != nil) || wrong != nil && (wrong.Reason != c.reason || wrong.Code != http2.ProtocolError) {
			t.Errorf("%s: %v, want %v", c.rule, s.err, c.reason)
		}
		if takes, known := conn.WebSocket(); takes != c.takes || known != c.known {
			t.Errorf("%s: takes %v, known %v", c.rule, takes, known)
		}
		before := len(s.out)
		out, id, err := s.Open(s.out, upgradeHead(t, "").RequestHead(), nil)
		switch {
		case c.reason != 0 && !errors.Is(err, http2.ErrFull):
			t.Errorf("%s: a request of a connection that has ended: %v", c.rule, err)
		case c.reason == 0 && c.takes && (err != nil || id != 1):
			t.Errorf("%s: %d, %v", c.rule, id, err)
		case c.reason == 0 && !c.takes && (!errors.Is(err, http2.ErrNoWebSocket) || len(out) != before || conn.Streams() != 0):
			t.Errorf("%s: %v, %d bytes, %d streams", c.rule, err, len(out)-before, conn.Streams())
		}
	}
	// What a client says of it has no meaning.
	k := client()
	for _, v := range []uint32{1, 0} {
		must(k.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingEnableConnectProtocol, Val: v}))
	}
	if s := server(http2.Defaults()).whole(k.get(1)); s.err != nil || len(s.steps) != 2 {
		t.Errorf("of a client: %q, %v", s.steps, s.err)
	}
}

// TestWebSocketAnswers: what a backend of HTTP/2 answers, and what the client of HTTP/1.1 gets: a 101 with the key's accept, or the
// answer as it is, and nothing else can become a tunnel.
func TestWebSocketAnswers(t *testing.T) {
	const accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
	for _, c := range []struct {
		rule   string
		wire   *talk
		status int
		body   string
		said   string
	}{
		{"granted", offering(1).head(1, false, ":status: 200", "sec-websocket-protocol: chat", "x-a: b").data(1, false, "he").data(1, false, "llo").data(1, true, ""), 101, "hello", ""},
		{"granted by 204", offering(1).head(1, false, ":status: 204").data(1, true, "hello"), 101, "hello", ""},
		{"granted with a length", offering(1).head(1, false, ":status: 200", "content-length: 2").data(1, true, "hello"), 101, "hello", ""},
		{"granted with an accept of another", offering(1).head(1, false, ":status: 200", "sec-websocket-accept: mine").data(1, true, "hello"), 101, "hello", ""},
		{"granted and ended", offering(1).head(1, true, ":status: 200"), 101, "", ""},
		{"early hints before", offering(1).head(1, false, ":status: 103").head(1, false, ":status: 200").data(1, true, "hello"), 101, "hello", ""},
		{"refused", offering(1).head(1, false, ":status: 403", "content-length: 2").data(1, true, "no"), 403, "no", "1 reset CANCEL"},
		{"another place", offering(1).head(1, true, ":status: 302", "location: /b"), 302, "", "1 reset CANCEL"},
		{"101", offering(1).head(1, false, ":status: 101"), 502, "upgrade_not_asked", "1 reset PROTOCOL_ERROR"},
		{"Upgrade", offering(1).head(1, false, ":status: 200", "upgrade: websocket"), 502, "connection_field", "1 reset PROTOCOL_ERROR"},
		{"trailers", offering(1).head(1, false, ":status: 200").data(1, false, "hello").head(1, true, "x-sum: 1"), 101, "hello", "1 reset PROTOCOL_ERROR"},
		{"reset", func() *talk {
			k := offering(1)
			must(k.WriteRSTStream(1, xhttp2.ErrCodeProtocol)) // RFC 8441 section 4: it does not take the protocol
			return k
		}(), 502, "reset_by_peer", ""},
	} {
		for _, size := range []int{1, 1 << 20} {
			x := upgradeHead(t, "")
			x.Carry(nil)
			s := newSide(http2.NewClient(http2.Defaults()))
			first := offering(1).Len()
			s.feed(c.wire.Bytes()[:first], func() int { return size })
			out, _, err := s.Open(nil, x.RequestHead(), nil)
			if err != nil {
				t.Fatal(err)
			}
			s.out = out
			var got []byte
			s.on = func(step http2.Step) {
				switch step.Event {
				case http2.HeadRead:
					if step.Head.Status >= 200 && step.Head.Status < 300 {
						step.Head.Status = 101
					}
					if got = x.TakeResponse(got, step.Head); step.Head.Interim() {
						return
					}
					if got, err = x.Answer(got, nil); err != nil {
						t.Fatal(err)
					}
				case http2.Data:
					got = x.TakeResponseData(got, step.Data)
				case http2.End:
					got = x.TakeResponseEnd(got, step.Trailers)
				case http2.Reset:
					if !x.Answered() {
						got, _ = x.Reply(got, 502, step.Err.Reason.String(), nil, nil)
					}
				}
			}
			s.feed(c.wire.Bytes()[first:], func() int { return size })
			status, body := readUpgraded(t, got, accept)
			if status != c.status || body != c.body || x.Tunnel() != (c.status == 101) || !x.Tunnel() && !x.Closing() {
				t.Errorf("%s: %d %q, want %d %q; a tunnel %v, closing %v\n%q", c.rule, status, body, c.status, c.body, x.Tunnel(), x.Closing(), got)
			}
			if lines := said(t, s.out); c.said != "" && !slices.Contains(lines, c.said) || c.said == "" && strings.Contains(fmt.Sprint(lines), "reset") {
				t.Errorf("%s: the backend is told %q, want %q", c.rule, lines, c.said)
			}
		}
	}
}

// readUpgraded is what net/http reads of an answer, behind 1xx: of a 101 what follows, of others the body or the reason.
func readUpgraded(t testing.TB, raw []byte, accept string) (status int, body string) {
	t.Helper()
	if i := bytes.Index(raw, []byte("HTTP/1.1 1")); i == 0 && !bytes.HasPrefix(raw, []byte("HTTP/1.1 101 ")) {
		raw = raw[bytes.Index(raw, []byte("\r\n\r\n"))+4:]
	}
	head, rest, _ := bytes.Cut(raw, []byte("\r\n\r\n"))
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 101 ")) {
		line := readOne(raw, "GET")
		fmt.Sscanf(line, "%d %q", &status, &body)
		if body == "" {
			fmt.Sscanf(line, "%d %s", &status, &body)
			body = strings.Trim(body, `"`)
		}
		return status, body
	}
	h := http.Header{}
	for _, line := range strings.Split(string(head), "\r\n")[1:] {
		name, value, _ := strings.Cut(line, ": ")
		h.Add(name, value)
	}
	if got := h.Values("Sec-Websocket-Accept"); len(got) != 1 || got[0] != accept || h.Get("Upgrade") != "websocket" || h.Get("Connection") != "Upgrade" || h.Get("Content-Length") != "" || h.Get("Transfer-Encoding") != "" {
		t.Errorf("a 101 with %v", h)
	}
	return 101, string(rest)
}

// TestTunnelEnds: each direction of an extended CONNECT ends by itself, and the stream with the second one.
func TestTunnelEnds(t *testing.T) {
	for _, first := range []string{"we", "they"} {
		conn := takingWebSocket(t, http2.Defaults())
		s := &side{Conn: conn}
		out, id, err := s.Open(nil, upgradeHead(t, "").RequestHead(), nil)
		if err != nil {
			t.Fatal(err)
		}
		s.out = out
		s.whole(newTalk().head(id, false, ":status: 200"))
		if first == "we" {
			s.out = s.End(s.out, id, nil)
			s.whole(newTalk().data(id, false, "still"))
			if s.Streams() != 1 {
				t.Errorf("%d streams when one direction has ended", s.Streams())
			}
			s.whole(newTalk().data(id, true, ""))
		} else {
			s.whole(newTalk().data(id, true, "last"))
			var n int
			if s.out, n = s.Data(s.out, id, []byte("still")); n != 5 || s.Streams() != 1 {
				t.Errorf("%d bytes, %d streams", n, s.Streams())
			}
			s.out = s.End(s.out, id, nil)
		}
		if lines := fmt.Sprint(said(t, s.out)); s.Streams() != 0 || strings.Contains(lines, "reset") || !strings.Contains(lines, "1 data true") {
			t.Errorf("%s: %d streams, %s, %q", first, s.Streams(), lines, s.steps)
		}
	}
}

// FuzzExtended: whatever a backend says of a WebSocket that it was asked for, a cut changes nothing, what the client of HTTP/1.1 gets
// is one answer and no second one unless it is a tunnel, and a tunnel only behind a success.
func FuzzExtended(f *testing.F) {
	for i, k := range []*talk{
		newTalk().head(1, false, ":status: 200").data(1, false, "a").data(1, true, "HTTP/1.1 200 OK\r\n\r\n"), newTalk().head(1, true, ":status: 204"),
		newTalk().head(1, false, ":status: 403").data(1, true, "HTTP/1.1 101 Switching Protocols\r\n\r\n"), newTalk().head(1, false, ":status: 101"),
		newTalk().head(1, false, ":status: 103").head(1, false, ":status: 200", "sec-websocket-accept: x", "content-length: 3").head(1, true, "x: y"),
		offering(1).head(1, false, ":status: 200").data(1, false, ""), offering(0),
	} {
		f.Add(k.Bytes(), i)
	}
	f.Fuzz(func(t *testing.T, wire []byte, cut int) {
		read := func(piece int) (s *side, got []byte, tunnel bool) {
			s = &side{Conn: takingWebSocket(t, generous())}
			x := upgradeHead(t, "")
			x.Carry(nil)
			var err error
			if s.out, _, err = s.Open(nil, x.RequestHead(), nil); err != nil {
				t.Fatal(err)
			}
			success := false
			s.on = func(step http2.Step) {
				switch step.Event {
				case http2.HeadRead:
					if step.Head.Status >= 200 && step.Head.Status < 300 {
						success, step.Head.Status = true, 101
					}
					if got = x.TakeResponse(got, step.Head); !step.Head.Interim() {
						if got, err = x.Answer(got, nil); err != nil {
							t.Fatalf("a head that was read is not written: %v", err)
						}
					}
				case http2.Data:
					got = x.TakeResponseData(got, step.Data)
				case http2.End:
					got = x.TakeResponseEnd(got, step.Trailers)
				}
			}
			s.feed(wire, func() int { return piece })
			if x.Tunnel() != success {
				t.Fatalf("a tunnel %v, a success %v: %q", x.Tunnel(), success, s.steps)
			}
			return s, got, x.Tunnel()
		}
		whole, got, tunnel := read(len(wire) + 1)
		parts, _, _ := read(min(max(cut, 1), len(wire)+1))
		if fmt.Sprint(whole.err) != fmt.Sprint(parts.err) || !slices.Equal(whole.steps, parts.steps) || !bytes.Equal(whole.out, parts.out) {
			t.Fatalf("%q %v\nin pieces %q %v", whole.steps, whole.err, parts.steps, parts.err)
		}
		said(t, whole.out)
		if tunnel != bytes.Contains(got, []byte("HTTP/1.1 101 Switching Protocols\r\n")) && !bytes.Contains(wire, []byte("HTTP/1.1 101 ")) {
			t.Fatalf("a tunnel %v: %q", tunnel, got)
		}
	})
}
