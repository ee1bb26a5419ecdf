package http2_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	xhttp2 "golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

// verdict is what becomes of what a client sends: a reason for the connection's end, or of a stream's, and what it is told.
type verdict struct {
	rule   string
	wire   *talk
	reason reason.Reason
	code   xhttp2.ErrCode
}

func openStream() *talk { return client().post(1) }

func bad(fields ...string) *talk { return client().head(1, true, fields...) }

func good(more ...string) *talk { return client().get(1, more...) }

// connectionErrors end a connection.
func connectionErrors() []verdict {
	const protocol, size, flow = xhttp2.ErrCodeProtocol, xhttp2.ErrCodeFrameSize, xhttp2.ErrCodeFlowControl
	preface := newTalk()
	preface.WriteString("GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	late := newTalk()
	late.WriteString(http2.Preface)
	acked := newTalk()
	acked.WriteString(http2.Preface)
	overflow := client()
	for range 2 {
		must(overflow.WriteWindowUpdate(0, 1<<31-1))
	}
	growing := openStream()
	must(growing.WriteWindowUpdate(1, 1<<31-1-65535))
	must(growing.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 65536}))
	setting := func(id xhttp2.SettingID, v uint32) *talk {
		k := client()
		must(k.WriteSettings(xhttp2.Setting{ID: id, Val: v}))
		return k
	}
	reset := client()
	must(reset.WriteRSTStream(1, xhttp2.ErrCodeCancel))
	zero, ended := client(), client().get(1)
	must(zero.WriteWindowUpdate(0, 0))
	must(ended.WriteRSTStream(1, xhttp2.ErrCodeCancel))
	idle := client()
	must(idle.WriteWindowUpdate(1, 1))
	return []verdict{
		{"3.4: the preface", preface, reason.BadPreface, protocol},
		{"3.4: SETTINGS first", late.get(1), reason.SettingsMissing, protocol},
		{"3.4: an ACK is none", acked.raw(xhttp2.FrameSettings, 1, 0, ""), reason.SettingsMissing, protocol},
		{"4.2: a frame of more than 2^14", openStream().data(1, false, strings.Repeat("x", 1<<14+1)), reason.FrameTooLarge, size},
		{"4.3: a block that is no block", client().raw(xhttp2.FrameHeaders, 5, 1, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), reason.BadCompression, xhttp2.ErrCodeCompression},
		{"4.3: a table larger than ours", client().raw(xhttp2.FrameHeaders, 5, 1, "\x3f\xe1\xff\x03"), reason.BadCompression, xhttp2.ErrCodeCompression},
		{"5.1: DATA on an idle stream", client().data(1, false, "x"), reason.BadStream, protocol},
		{"5.1: RST_STREAM of an idle stream", reset, reason.BadStream, protocol},
		{"5.1: WINDOW_UPDATE of an idle stream", idle, reason.BadStream, protocol},
		{"5.1: HEADERS of a stream that has ended", ended.get(1), reason.StreamClosed, xhttp2.ErrCodeStreamClosed},
		{"5.1.1: HEADERS of a stream passed over", client().get(3).get(1), reason.StreamClosed, xhttp2.ErrCodeStreamClosed},
		{"5.1.1: an even stream", client().get(2), reason.BadStream, protocol},
		{"6.1: DATA on stream 0", client().data(0, false, "x"), reason.BadStream, protocol},
		{"6.1: padding longer than DATA", openStream().raw(xhttp2.FrameData, 8, 1, "\x05abc"), reason.BadPadding, protocol},
		{"6.1: padded DATA without a length", openStream().raw(xhttp2.FrameData, 8, 1, ""), reason.BadFrameSize, size},
		{"6.2: HEADERS on stream 0", client().raw(xhttp2.FrameHeaders, 4, 0, "\x82"), reason.BadStream, protocol},
		{"6.2: padding longer than HEADERS", client().raw(xhttp2.FrameHeaders, 12, 1, "\x05\x82"), reason.BadPadding, protocol},
		{"6.2: HEADERS without their priority", client().raw(xhttp2.FrameHeaders, 0x24, 1, "\x00"), reason.BadFrameSize, size},
		{"6.2: DATA inside a head", client().raw(xhttp2.FrameHeaders, 0, 1, "\x82").data(1, false, "x"), reason.HeadInterrupted, protocol},
		{"6.3: PRIORITY on stream 0", client().raw(xhttp2.FramePriority, 0, 0, "\x00\x00\x00\x01\x00"), reason.BadStream, protocol},
		{"6.3: PRIORITY of another length", client().raw(xhttp2.FramePriority, 0, 1, "\x00\x00\x00"), reason.BadFrameSize, size},
		{"RFC 7540 5.3.1: a stream that depends on itself", client().raw(xhttp2.FramePriority, 0, 1, "\x00\x00\x00\x01\x00"), reason.SelfDependency, protocol},
		{"6.4: RST_STREAM on stream 0", client().raw(xhttp2.FrameRSTStream, 0, 0, "\x00\x00\x00\x08"), reason.BadStream, protocol},
		{"6.4: RST_STREAM of another length", openStream().raw(xhttp2.FrameRSTStream, 0, 1, "\x00"), reason.BadFrameSize, size},
		{"6.5: SETTINGS on a stream", client().raw(xhttp2.FrameSettings, 0, 1, ""), reason.BadStream, protocol},
		{"6.5: SETTINGS of another length", client().raw(xhttp2.FrameSettings, 0, 0, "\x00"), reason.BadFrameSize, size},
		{"6.5: an ACK with a payload", client().raw(xhttp2.FrameSettings, 1, 0, "\x00\x03\x00\x00\x00\x01"), reason.BadFrameSize, size},
		{"6.5.2: ENABLE_PUSH of 2", setting(xhttp2.SettingEnablePush, 2), reason.BadSetting, protocol},
		{"6.5.2: a window of 2^31", setting(xhttp2.SettingInitialWindowSize, 1<<31), reason.WindowTooLarge, flow},
		{"6.5.2: a frame of less than 2^14", setting(xhttp2.SettingMaxFrameSize, 1<<14-1), reason.BadSetting, protocol},
		{"6.5.2: a frame of 2^24", setting(xhttp2.SettingMaxFrameSize, 1<<24), reason.BadSetting, protocol},
		{"RFC 8441 3: ENABLE_CONNECT_PROTOCOL of 2", setting(8, 2), reason.BadSetting, protocol},
		{"6.6: PUSH_PROMISE", openStream().raw(xhttp2.FramePushPromise, 4, 1, "\x00\x00\x00\x02\x82"), reason.PushRefused, protocol},
		{"6.7: PING on a stream", client().raw(xhttp2.FramePing, 0, 1, "12345678"), reason.BadStream, protocol},
		{"6.7: PING of another length", client().raw(xhttp2.FramePing, 0, 0, "1234567"), reason.BadFrameSize, size},
		{"6.8: GOAWAY on a stream", client().raw(xhttp2.FrameGoAway, 0, 1, "12345678"), reason.BadStream, protocol},
		{"6.8: GOAWAY that is too short", client().raw(xhttp2.FrameGoAway, 0, 0, "1234567"), reason.BadFrameSize, size},
		{"6.9: WINDOW_UPDATE of 0", zero, reason.ZeroUpdate, protocol},
		{"6.9: WINDOW_UPDATE of another length", client().raw(xhttp2.FrameWindowUpdate, 0, 0, "\x00\x00\x00"), reason.BadFrameSize, size},
		{"6.9.1: a window beyond 2^31-1", overflow, reason.WindowTooLarge, flow},
		{"6.9.2: a stream's window beyond it, by SETTINGS", growing, reason.WindowTooLarge, flow},
		{"6.10: CONTINUATION of nothing", client().raw(xhttp2.FrameContinuation, 4, 1, "\x82"), reason.HeadInterrupted, protocol},
		{"6.10: CONTINUATION of another stream", client().raw(xhttp2.FrameHeaders, 0, 1, "\x82").raw(xhttp2.FrameContinuation, 4, 3, "\x82"), reason.HeadInterrupted, protocol},
	}
}

// TestConnectionErrors: each ends with a GOAWAY of its code, however it is cut, and says nothing about what comes after.
func TestConnectionErrors(t *testing.T) {
	for _, v := range connectionErrors() {
		for _, size := range []int{1 + v.wire.Len()/2000, 7, v.wire.Len()} {
			s := server(http2.Defaults()).feed(v.wire.Bytes(), func() int { return size })
			wrong, ok := s.err.(*http2.Error)
			if !ok || wrong.Reason != v.reason || wrong.Stream != 0 {
				t.Errorf("%s: %v, want %v", v.rule, s.err, v.reason)
				continue
			}
			lines := said(t, s.out)
			if last := lines[len(lines)-1]; !strings.HasPrefix(last, "goaway ") || !strings.HasSuffix(last, v.code.String()) {
				t.Errorf("%s: the client is told %q", v.rule, last)
			}
			if _, n, step, err := s.Next(nil, []byte("more")); n != 0 || step.Event != http2.More || err == nil {
				t.Errorf("%s: it goes on after that", v.rule)
			}
			if s.Streams() != 0 {
				t.Errorf("%s: streams outlive their connection", v.rule)
			}
		}
	}
}

// streamErrors end a stream, and leave the others: those that are not of the corpus.
func streamErrors() []verdict {
	const protocol, closed, flow, none = xhttp2.ErrCodeProtocol, xhttp2.ErrCodeStreamClosed, xhttp2.ErrCodeFlowControl, xhttp2.ErrCodeNo
	zero, over := openStream(), openStream()
	must(zero.WriteWindowUpdate(1, 0))
	for range 2 {
		must(over.WriteWindowUpdate(1, 1<<31-1))
	}
	window := openStream()
	for range 5 {
		window.data(1, false, strings.Repeat("x", 16000))
	}
	return []verdict{
		{"5.1: DATA behind END_STREAM", good().data(1, false, "x"), reason.StreamClosed, closed},
		{"5.1: HEADERS behind END_STREAM", good().head(1, true, "x-a: b"), reason.StreamClosed, closed},
		{"6.9: WINDOW_UPDATE of 0", zero, reason.ZeroUpdate, protocol},
		{"6.9.1: a window beyond 2^31-1", over, reason.WindowTooLarge, flow},
		{"6.9.1: DATA beyond the window", window, reason.WindowExceeded, flow},
		{"10.5.1: a head that is too large", good("x-a: " + strings.Repeat("a", 65500)), reason.HeadTooLarge, none},
		{"10.5.1: too many fields", good(slices.Repeat([]string{"x-a: b"}, 101)...), reason.TooManyFields, none},
		{"9110 15.5.15: a long target", bad(":method: GET", ":scheme: http", ":authority: h", ":path: /"+strings.Repeat("a", 9000)), reason.TargetTooLong, none},
		{"9110 15.6.2: a long method", bad(":method: "+strings.Repeat("A", 40), ":scheme: http", ":authority: h", ":path: /"), reason.MethodTooLong, none},
	}
}

// TestStreamErrors: each ends its stream with its code, and a request that could be answered says why; the next stream works.
func TestStreamErrors(t *testing.T) {
	for _, v := range streamErrors() {
		v.wire.get(5)
		for _, size := range []int{1 + v.wire.Len()/2000, v.wire.Len()} {
			s := server(http2.Defaults())
			s.hold = true
			s.feed(v.wire.Bytes(), func() int { return size })
			if s.err != nil {
				t.Errorf("%s: %v", v.rule, s.err)
				continue
			}
			if !slices.ContainsFunc(s.steps, func(l string) bool {
				return strings.Contains(l, " reset "+v.reason.String()) || strings.HasSuffix(l, " refused "+v.reason.String())
			}) {
				t.Errorf("%s: %q, want %v", v.rule, s.steps, v.reason)
			}
			lines := strings.Join(said(t, s.out), "\n")
			if v.code != xhttp2.ErrCodeNo && !strings.Contains(lines, "reset "+v.code.String()) {
				t.Errorf("%s: the client is told %q", v.rule, lines)
			}
			if status := v.reason.Status(); status != 0 && (!strings.Contains(lines, fmt.Sprintf(":status=%d", status)) || !strings.Contains(lines, "x-heddle-reason="+v.reason.String())) {
				t.Errorf("%s: the answer is %q", v.rule, lines)
			}
			if !slices.Contains(s.steps, "5 end") {
				t.Errorf("%s: the next stream is %q", v.rule, s.steps)
			}
		}
	}
}

// TestReadWell: what is unusual, and means one thing only.
func TestReadWell(t *testing.T) {
	priority := client()
	must(priority.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: priority.compress(":method: GET", ":scheme: http", ":authority: h", ":path: /"),
		EndHeaders: true, EndStream: true, PadLength: 200, Priority: xhttp2.PriorityParam{StreamDep: 7, Weight: 3, Exclusive: true}}))
	padded := openStream()
	must(padded.WriteDataPadded(1, false, []byte("he"), make([]byte, 100)))
	must(padded.WriteDataPadded(1, true, []byte("llo"), nil))
	for _, c := range []struct {
		rule string
		wire *talk
		want []string
	}{
		{"5.5: unknown frames", client().raw(0x77, 0xff, 0, "anything").get(1), []string{"1 head GET / h -1", "1 end"}},
		{"6.2: padding and priority", priority, []string{"1 head GET / h -1", "1 end"}},
		{"6.1: padding", padded, []string{"1 head POST / h -1", "1 data hello", "1 end"}},
		{"6.5.2: unknown settings", client().raw(xhttp2.FrameSettings, 0, 0, "\x00\x77\xff\xff\xff\xff").get(1), []string{"1 head GET / h -1", "1 end"}},
		{"8.1: trailers", openStream().data(1, false, "a").head(1, true, "grpc-status: 0"), []string{"1 head POST / h -1", "1 data a", "1 end grpc-status=0"}},
		{"8.1: an empty end", client().post(1, "content-length: 1").data(1, false, "a").data(1, true, ""), []string{"1 head POST / h 1 content-length=1", "1 data a", "1 end"}},
		{"8.2.3: crumbs", good("cookie: a=1", "x-a: b", "cookie: b=2", "cookie: c=3"), []string{"1 head GET / h -1 cookie=a=1; b=2; c=3|x-a=b", "1 end"}},
		{"8.5: CONNECT", client().head(1, false, ":method: CONNECT", ":authority: h:80").data(1, false, "x"), []string{"1 head CONNECT  h:80 -1", "1 data x"}},
	} {
		for _, size := range []int{1, 3, c.wire.Len()} {
			s := server(http2.Defaults()).feed(c.wire.Bytes(), func() int { return size })
			if s.err != nil || !slices.Equal(s.steps, c.want) {
				t.Errorf("%s: %q %v\nwant %q", c.rule, s.steps, s.err, c.want)
			}
		}
	}
}

// TestStreams: a stream beyond the limit is refused so that it may be tried again, and the next one that ends makes room.
func TestStreams(t *testing.T) {
	config := http2.Defaults()
	config.Streams = 2
	s := server(config).whole(client().post(1).post(3).post(5))
	if lines := said(t, s.out); !slices.Contains(s.steps, "5 refused too_many_streams") || !slices.Contains(lines, "5 reset REFUSED_STREAM") || s.Streams() != 2 {
		t.Errorf("%q, %q", s.steps, lines)
	}
	s.out, _ = s.Reply(s.out, 1, 200, "", nil, nil)
	if s.whole(newTalk().post(7)); s.err != nil || !slices.Contains(s.steps, "7 head POST / h -1") {
		t.Errorf("%q, %v", s.steps, s.err)
	}
}

// TestExtendedConnect: a WebSocket over HTTP/2 (RFC 8441) is told as the upgrade that it is in HTTP/1.1, with a key of our own; when
// it is granted, each direction ends by itself.
func TestExtendedConnect(t *testing.T) {
	conn := http2.NewServer(http2.Defaults())
	out := conn.Start(nil)
	if !bytes.Contains(out, []byte{0, 8, 0, 0, 0, 1}) {
		t.Errorf("it is not offered: %q", out)
	}
	in := client().head(1, false, ":method: CONNECT", ":protocol: websocket", ":scheme: https", ":authority: h", ":path: /chat", "sec-websocket-key: "+strings.Repeat("a", 24), "origin: o").
		data(1, false, "up").data(1, true, "").Bytes()
	granted := &http1.Head{}
	granted.Begin()
	granted.JudgeResponse(200, false, false)
	var got []string
	for {
		var n int
		var step http2.Step
		var err error
		if out, n, step, err = conn.Next(out, in); err != nil {
			t.Fatal(err)
		}
		if in = in[n:]; step.Event == http2.More {
			break
		}
		got = append(got, fmt.Sprintf("%d %s", step.Event, step.Data))
		if h := step.Head; h != nil {
			keys := map[string]string{}
			for _, f := range h.Fields {
				keys[string(f.Name)] += string(f.Value)
			}
			if !h.Upgrade || string(h.Method) != "GET" || string(h.Path) != "/chat" || h.Body != http1.NoBody || keys["sec-websocket-version"] != "13" || len(keys["sec-websocket-key"]) != 24 || keys["sec-websocket-key"][0] == 'a' && keys["sec-websocket-key"][1] == 'a' {
				t.Errorf("%+v %v", h, keys)
			}
			if out, err = conn.Answer(out, 1, granted, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if want := []string{fmt.Sprintf("%d ", http2.HeadRead), fmt.Sprintf("%d up", http2.Data), fmt.Sprintf("%d ", http2.End)}; !slices.Equal(got, want) || conn.Streams() != 1 {
		t.Errorf("%q, want %q; %d streams", got, want, conn.Streams())
	}
	out, _ = conn.Data(out, 1, []byte("down"))
	out = conn.End(out, 1, nil)
	if lines := said(t, out); conn.Streams() != 0 || slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, "reset") }) || !slices.Contains(lines, "1 data false down") {
		t.Errorf("%d streams, %q", conn.Streams(), lines)
	}
}
