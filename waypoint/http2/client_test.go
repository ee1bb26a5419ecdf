package http2_test

import (
	"slices"
	"strings"
	"testing"

	xhttp2 "golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

// asked is a client's side with one open request of the given method.
func asked(t testing.TB, method string) *side {
	t.Helper()
	s := newSide(http2.NewClient(http2.Defaults()))
	fields := []string{":method: " + method, ":scheme: http", ":authority: h", ":path: /"}
	if method == "CONNECT" {
		fields = []string{":method: CONNECT", ":authority: h:80"}
	}
	out, id, err := s.Open(s.out, requestHead(t, fields...), nil)
	if err != nil || id != 1 {
		t.Fatal(id, err)
	}
	s.out = out
	if method == "GET" || method == "HEAD" {
		s.out = s.End(s.out, 1, nil)
	}
	return s
}

// TestResponses: what a backend may say, and what becomes of the rest.
func TestResponses(t *testing.T) {
	const ok = "1 head 200 -1"
	goAway, refused := backend(), backend()
	must(goAway.WriteGoAway(0, xhttp2.ErrCodeNo, nil))
	must(refused.WriteRSTStream(1, xhttp2.ErrCodeRefusedStream))
	for _, c := range []struct {
		rule, method string
		wire         *talk
		want         []string
		said         string
	}{
		{"8.1: with a body", "GET", backend().head(1, false, ":status: 200", "content-length: 2").data(1, true, "ab"), []string{"1 head 200 2 content-length=2", "1 data ab", "1 end"}, ""},
		{"8.1: trailers alone", "POST", backend().head(1, true, ":status: 200", "grpc-status: 12"), []string{ok + " grpc-status=12", "1 end"}, "1 reset CANCEL"},
		{"8.1: trailers", "GET", backend().head(1, false, ":status: 200").data(1, false, "a").head(1, true, "grpc-status: 0"), []string{ok, "1 data a", "1 end grpc-status=0"}, ""},
		{"8.1: interim responses", "GET", backend().head(1, false, ":status: 103", "link: a").head(1, false, ":status: 100").head(1, true, ":status: 204"), []string{"1 head 103 -1 link=a", "1 head 100 -1", "1 head 204 -1", "1 end"}, ""},
		{"8.1: HEAD", "HEAD", backend().head(1, true, ":status: 200", "content-length: 5"), []string{"1 head 200 5 content-length=5", "1 end"}, ""},
		{"8.1: HEAD, with a body", "HEAD", backend().head(1, false, ":status: 200", "content-length: 5").data(1, true, "hello"), []string{"1 head 200 5 content-length=5", "1 reset length_differs PROTOCOL_ERROR"}, "1 reset PROTOCOL_ERROR"},
		{"9110 15.4.5: 304", "GET", backend().head(1, true, ":status: 304", "content-length: 5"), []string{"1 head 304 5 content-length=5", "1 end"}, ""},
		{"8.1.1: a body that is cut short", "GET", backend().head(1, false, ":status: 200", "content-length: 5").data(1, true, "a"), []string{"1 head 200 5 content-length=5", "1 data a", "1 reset length_differs PROTOCOL_ERROR"}, "1 reset PROTOCOL_ERROR"},
		{"8.1.1: a body that does not come", "GET", backend().head(1, true, ":status: 200", "content-length: 5"), []string{"1 reset length_differs PROTOCOL_ERROR"}, "1 reset PROTOCOL_ERROR"},
		{"8.1: a body without a head", "GET", backend().data(1, true, "a"), []string{"1 reset bad_status_line PROTOCOL_ERROR"}, "1 reset PROTOCOL_ERROR"},
		{"8.1: an interim response that ends", "GET", backend().head(1, true, ":status: 103"), []string{"1 reset length_differs PROTOCOL_ERROR"}, "1 reset PROTOCOL_ERROR"},
		{"8.1: a body behind an interim response", "GET", backend().head(1, false, ":status: 103").data(1, true, "a"), []string{"1 head 103 -1", "1 reset bad_status_line PROTOCOL_ERROR"}, "1 reset PROTOCOL_ERROR"},
		{"9110 15.2: interim without end", "GET", interims(17), slices.Concat(slices.Repeat([]string{"1 head 103 -1"}, 16), []string{"1 reset too_many_interim CANCEL"}), "1 reset CANCEL"},
		{"8.3.2: no :status", "GET", backend().head(1, true, "x-a: b"), []string{"1 reset bad_pseudo_field PROTOCOL_ERROR"}, "1 reset PROTOCOL_ERROR"},
		{"8.3.2: a :status that is none", "GET", backend().head(1, true, ":status: 2x0"), []string{"1 reset bad_status_line PROTOCOL_ERROR"}, "1 reset PROTOCOL_ERROR"},
		{"8.3.2: a :status of 600", "GET", backend().head(1, true, ":status: 600"), []string{"1 reset bad_status_line PROTOCOL_ERROR"}, "1 reset PROTOCOL_ERROR"},
		{"8.6: 101", "GET", backend().head(1, true, ":status: 101"), []string{"1 reset upgrade_not_asked PROTOCOL_ERROR"}, "1 reset PROTOCOL_ERROR"},
		{"9110 8.6: 204 with a length", "GET", backend().head(1, true, ":status: 204", "content-length: 5"), []string{"1 head 204 -1 content-length=5", "1 end"}, ""},
		{"9110 8.6: 204 with a body", "GET", backend().head(1, false, ":status: 204").data(1, true, "a"), []string{"1 head 204 -1", "1 reset length_differs PROTOCOL_ERROR"}, "1 reset PROTOCOL_ERROR"},
		{"8.2.2: Transfer-Encoding", "GET", backend().head(1, true, ":status: 200", "transfer-encoding: chunked"), []string{"1 reset connection_field PROTOCOL_ERROR"}, "1 reset PROTOCOL_ERROR"},
		{"8.2.1: CR LF in a value", "GET", backend().head(1, true, ":status: 200", "x: a\r\nset-cookie: b"), []string{"1 reset bare_cr PROTOCOL_ERROR"}, "1 reset PROTOCOL_ERROR"},
		{"8.7: a stream that is refused", "GET", refused, []string{"1 reset reset_by_peer REFUSED_STREAM retry"}, ""},
		{"6.8: a request that is not taken", "GET", goAway, []string{"0 goaway NO_ERROR", "1 reset peer_gone_away REFUSED_STREAM retry"}, ""},
		{"8.5: CONNECT", "CONNECT", backend().head(1, false, ":status: 200").data(1, false, "a"), []string{ok, "1 data a"}, ""},
	} {
		for _, size := range []int{1, c.wire.Len()} {
			s := asked(t, c.method)
			s.out = nil
			s.feed(c.wire.Bytes(), func() int { return size })
			if s.err != nil || !slices.Equal(s.steps, c.want) {
				t.Errorf("%s: %q %v\nwant %q", c.rule, s.steps, s.err, c.want)
			}
			if lines := said(t, s.out); c.said == "" && len(lines) > 0 || c.said != "" && !slices.Contains(lines, c.said) {
				t.Errorf("%s: the backend is told %q, want %q", c.rule, lines, c.said)
			}
		}
	}
}

func interims(n int) *talk {
	k := backend()
	for range n {
		k.head(1, false, ":status: 103")
	}
	return k
}

// TestBackendErrors: what ends a backend's connection, with each of its requests.
func TestBackendErrors(t *testing.T) {
	push := backend()
	must(push.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingEnablePush, Val: 1}))
	for _, v := range []verdict{
		{"6.5.2: ENABLE_PUSH of a server", push, reason.BadSetting, xhttp2.ErrCodeProtocol},
		{"8.4: PUSH_PROMISE", backend().raw(xhttp2.FramePushPromise, 4, 1, "\x00\x00\x00\x02\x82"), reason.PushRefused, xhttp2.ErrCodeProtocol},
		{"5.1.1: a response to nothing", backend().head(3, true, ":status: 200"), reason.BadStream, xhttp2.ErrCodeProtocol},
		{"5.1.1: a server's stream", backend().head(2, true, ":status: 200"), reason.BadStream, xhttp2.ErrCodeProtocol},
		{"3.4: SETTINGS first", newTalk().head(1, true, ":status: 200"), reason.SettingsMissing, xhttp2.ErrCodeProtocol},
	} {
		s := asked(t, "POST").whole(v.wire)
		if wrong, ok := s.err.(*http2.Error); !ok || wrong.Reason != v.reason || wrong.Status() != 502 || s.Room() != 0 || !s.Done() {
			t.Errorf("%s: %v, %d, %v", v.rule, s.err, s.Room(), s.Done())
		}
	}
}

// TestRoom: a client opens what it may, and what its server allows, and no more after GOAWAY.
func TestRoom(t *testing.T) {
	c := http2.Defaults()
	c.Streams = 3
	s := newSide(http2.NewClient(c))
	h := requestHead(t, ":method: GET", ":scheme: http", ":authority: h", ":path: /")
	open := func() (id uint32, err error) { s.out, id, err = s.Open(s.out, h, nil); return id, err }
	for i := range 3 {
		if id, err := open(); err != nil || id != uint32(2*i+1) {
			t.Fatal(id, err)
		}
	}
	if _, err := open(); err != http2.ErrFull {
		t.Error(err)
	}
	k := backend()
	must(k.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingMaxConcurrentStreams, Val: 2}))
	if s.whole(k.head(1, true, ":status: 200")); s.Room() != 0 {
		t.Errorf("room for %d", s.Room())
	}
	k.Reset()
	if s.whole(k.head(3, true, ":status: 200")); s.Room() != 1 {
		t.Errorf("room for %d", s.Room())
	}
	k.Reset()
	must(k.WriteGoAway(5, xhttp2.ErrCodeNo, nil))
	if s.whole(k); s.Room() != 0 || s.Done() {
		t.Errorf("after GOAWAY: room for %d, done %v", s.Room(), s.Done())
	}
	k.Reset()
	if s.whole(k.head(5, true, ":status: 200")); !s.Done() || s.err != nil {
		t.Errorf("%v, %q", s.err, s.steps)
	}
}

// TestOpen: what is written of a request, as x/net reads it.
func TestOpen(t *testing.T) {
	long := strings.Repeat("v", 40_000)
	for _, c := range []struct {
		fields []string
		edit   *http1.Edit
		want   string
	}{
		{[]string{":method: GET", ":scheme: https", ":authority: h", ":path: /a?b", "x-a: b", "cookie: a", "cookie: b"}, nil,
			"1 head false :method=GET|:scheme=http|:authority=h|:path=/a?b|x-a=b|cookie=a; b|via=2.0 heddle"},
		{[]string{":method: PUT", ":scheme: http", ":authority: h", ":path: /", "content-length: 3", "te: trailers", "expect: 100-continue", "host: h"}, nil,
			"1 head false :method=PUT|:scheme=http|:authority=h|:path=/|content-length=3|te=trailers|expect=100-continue|via=2.0 heddle"},
		{[]string{":method: GET", ":scheme: http", ":authority: h", ":path: /", "x-a: b", "x-heddle-reason: mine"},
			&http1.Edit{Host: []byte("other:80"), Path: []byte("/new"), Remove: []string{"X-A"}, Add: []http1.Field{http1.NewField("X-New", "c")}},
			"1 head false :method=GET|:scheme=http|:authority=other:80|:path=/new|x-new=c|via=2.0 heddle"},
		{[]string{":method: GET", ":scheme: http", ":authority: h", ":path: /", "x-long: " + long}, nil,
			"1 head false :method=GET|:scheme=http|:authority=h|:path=/|x-long=" + long + "|via=2.0 heddle"},
		{[]string{":method: CONNECT", ":authority: h:80"}, nil, "1 head false :method=CONNECT|:authority=h:80|via=2.0 heddle"},
	} {
		config := http2.Defaults()
		config.Messages.Via = "heddle"
		s := newSide(http2.NewClient(config))
		out, _, err := s.Open(s.out, requestHead(t, c.fields...), c.edit)
		if err != nil {
			t.Fatal(err)
		}
		if lines := said(t, out); len(lines) != 1 || lines[0] != c.want {
			t.Errorf("%.300q\nwant %.300q", lines, c.want)
		}
	}
}

// TestEdits: what an edit adds makes no other message, and nothing is written of one that would.
func TestEdits(t *testing.T) {
	h := requestHead(t, ":method: GET", ":scheme: http", ":authority: h", ":path: /")
	for _, e := range []*http1.Edit{
		{Path: []byte("/ HTTP/1.1\r\n")}, {Path: []byte("a")}, {Host: []byte("h\r\nx: y")}, {Host: []byte("u@h")},
		{Add: []http1.Field{http1.NewField("x", "a\r\nb: c")}}, {Add: []http1.Field{http1.NewField(":path", "/")}}, {Add: []http1.Field{http1.NewField("", "a")}},
		{Add: []http1.Field{http1.NewField("Connection", "close")}}, {Add: []http1.Field{http1.NewField("content-length", "5")}},
		{Add: []http1.Field{http1.NewField("Transfer-Encoding", "chunked")}},
	} {
		c := http2.NewClient(http2.Defaults())
		if out, id, err := c.Open(nil, h, e); err != http1.ErrEdit || len(out) > 0 || id != 0 || c.Streams() != 0 {
			t.Errorf("%+v: %q, %d, %v", e, out, id, err)
		}
		s := server(http2.Defaults()).whole(client().get(1))
		if out, err := s.Answer(nil, 1, responseHead(t, 200), &http1.Edit{Add: e.Add}); len(e.Add) > 0 && (err != http1.ErrEdit || len(out) > 0) {
			t.Errorf("%+v: %q, %v", e, out, err)
		}
		if out, err := s.Reply(nil, 1, 302, "", e.Add, nil); len(e.Add) > 0 && (err != http1.ErrEdit || len(out) > 0) {
			t.Errorf("%+v: %q, %v", e, out, err)
		}
	}
}

// TestRemovedTrailers: what an edit removes does not come behind the body.
func TestRemovedTrailers(t *testing.T) {
	e := &http1.Edit{Remove: []string{"X-Secret"}}
	s := server(http2.Defaults()).whole(client().get(1))
	out, err := s.Answer(nil, 1, responseHead(t, 200, "x-secret: a", "x-a: b"), e)
	if err != nil {
		t.Fatal(err)
	}
	out, _ = s.Data(out, 1, []byte("hello"))
	out = s.End(out, 1, []http1.Field{http1.NewField("x-secret", "a"), http1.NewField("X-Sum", "1")})
	want := []string{"1 head false :status=200|x-a=b", "1 data false hello", "1 head true x-sum=1"}
	if lines := said(t, out); !slices.Equal(lines, want) || s.Streams() != 0 {
		t.Errorf("%q", lines)
	}
}
