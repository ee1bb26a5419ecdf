package serve_test

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/waypoint/http2"
)

// stream2 is one stream of a client that speaks HTTP/2, written by hand.
type stream2 struct {
	t        *testing.T
	c        net.Conn
	f        *xhttp2.Framer
	settings map[xhttp2.SettingID]uint32
	head     map[string]string
	data     []byte
	ended    bool
	reset    *xhttp2.RSTStreamFrame
}

// open2 begins a connection, and a stream with a head.
func (w *world) open2(t *testing.T, fields ...string) *stream2 {
	t.Helper()
	c := w.dial()
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(c, http2.Preface)
	s := &stream2{t: t, c: c, f: xhttp2.NewFramer(c, c), settings: map[xhttp2.SettingID]uint32{}}
	s.f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = s.f.WriteSettings()
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for i := 0; i < len(fields); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	_ = s.f.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
	return s
}

// until reads frames until done says so, or the stream has ended both ways.
func (s *stream2) until(done func() bool) {
	s.t.Helper()
	for !done() {
		frame, err := s.f.ReadFrame()
		if err != nil {
			s.t.Fatalf("read a frame: %v; head %v, %d bytes", err, s.head, len(s.data))
		}
		switch frame := frame.(type) {
		case *xhttp2.SettingsFrame:
			if !frame.IsAck() {
				_ = frame.ForeachSetting(func(set xhttp2.Setting) error { s.settings[set.ID] = set.Val; return nil })
				_ = s.f.WriteSettingsAck()
			}
		case *xhttp2.MetaHeadersFrame:
			s.head = map[string]string{}
			for _, f := range frame.Fields {
				s.head[f.Name] = f.Value
			}
			s.ended = s.ended || frame.StreamEnded()
		case *xhttp2.DataFrame:
			s.data = append(s.data, frame.Data()...)
			_ = s.f.WriteWindowUpdate(0, uint32(len(frame.Data())+1))
			if s.ended = s.ended || frame.StreamEnded(); !s.ended {
				_ = s.f.WriteWindowUpdate(1, uint32(len(frame.Data())+1))
			}
		case *xhttp2.RSTStreamFrame:
			s.reset = frame
			return
		}
	}
}

func (s *stream2) answered() bool { return s.head != nil }

// webSocket are the fields of an extended CONNECT (RFC 8441 section 5.1).
func webSocket(more ...string) []string {
	return append([]string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":path", "/chat?room=1", ":authority", "cart.shop", "sec-websocket-version", "13", "sec-websocket-protocol", "chat"}, more...)
}

// chat answers an upgrade as RFC 6455 has it, says hello, and sends back what comes, until the client's end.
func chat(out http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("room") != "1" || r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Sec-Websocket-Version") != "13" || r.Method != "GET" || r.Host != "cart.shop" {
		http.Error(out, "no WebSocket", 400)
		return
	}
	sum := sha1.Sum([]byte(r.Header.Get("Sec-Websocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	c, rw, err := out.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\nSec-WebSocket-Protocol: %s\r\nX-For: %s\r\n\r\nhello",
		base64.StdEncoding.EncodeToString(sum[:]), r.Header.Get("Sec-Websocket-Protocol"), r.Header.Get("X-Forwarded-For"))
	_, _ = io.Copy(c, rw)
	_, _ = io.WriteString(c, "bye")
}

// TestWebSocketOverHTTP2: an extended CONNECT is the upgrade of HTTP/1.1 for the workload, whatever its port says: bytes both
// ways, and each way ends by itself.
func TestWebSocketOverHTTP2(t *testing.T) {
	for _, port := range []string{"http", "http2"} {
		t.Run(port, func(t *testing.T) {
			b := serving(t, "cart", cartAddr, 1, chat)
			b.port = port
			w := newWorld(t, []*backend{b})
			w.routes = routed(toBackend("cart"))
			w.routes[0].Rules[0].RequestTimeout = 300 * time.Millisecond // it bounds the answer, not the tunnel
			w.set()
			s := w.open2(t, webSocket("sec-websocket-key", "of another version", "x-forwarded-for", "6.6.6.6")...)
			_ = s.f.WriteData(1, false, []byte("early")) // before it was granted
			s.until(func() bool { return len(s.data) >= len("helloearly") })
			if s.settings[xhttp2.SettingEnableConnectProtocol] != 1 || s.head[":status"] != "200" || s.head["sec-websocket-protocol"] != "chat" || s.head["x-for"] != "10.1.2.3" {
				t.Errorf("settings %v, head %v", s.settings, s.head)
			}
			for _, gone := range []string{"sec-websocket-accept", "upgrade", "connection"} {
				if _, is := s.head[gone]; is {
					t.Errorf("the answer has %s", gone)
				}
			}
			time.Sleep(400 * time.Millisecond)
			payload := strings.Repeat("ping", 4000)
			_ = s.f.WriteData(1, false, []byte(payload))
			s.until(func() bool { return len(s.data) >= len("helloearly")+len(payload) })
			_ = s.f.WriteData(1, true, nil)
			s.until(func() bool { return s.ended })
			if string(s.data) != "helloearly"+payload+"bye" || s.reset != nil {
				t.Errorf("%d bytes came back, %v", len(s.data), s.reset)
			}
			eventually(t, "the request is counted", func() bool { return w.value("heddle_waypoint_requests_total", "code", "2xx") == 1 })
		})
	}
}

// TestWebSocketRefused: what is no success of an upgrade is none of the CONNECT either, and policy is asked.
func TestWebSocketRefused(t *testing.T) {
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, func(out http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/403" {
			out.WriteHeader(403)
			return
		}
		_, _ = io.WriteString(out, "a page")
	})})
	for name, c := range map[string]struct {
		fields         []string
		status, reason string
	}{
		"refused":          {[]string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":path", "/403", ":authority", "h"}, "403", ""},
		"not understood":   {webSocket(), "502", "UpgradeRefused"},
		"another protocol": {[]string{":method", "CONNECT", ":protocol", "connect-udp", ":scheme", "http", ":path", "/", ":authority", "h"}, "400", "bad_upgrade"},
		"no path":          {[]string{":method", "CONNECT", ":protocol", "websocket", ":authority", "h"}, "400", "bad_pseudo_field"},
		"no authority":     {[]string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":path", "/", "host", "h"}, "400", "bad_pseudo_field"},
		"another method":   {[]string{":method", "GET", ":protocol", "websocket", ":scheme", "http", ":path", "/", ":authority", "h"}, "400", "bad_pseudo_field"},
		"a length":         {webSocket("content-length", "5"), "400", "body_not_allowed"},
	} {
		s := w.open2(t, c.fields...)
		s.until(s.answered)
		if s.head[":status"] != c.status || s.head["x-heddle-reason"] != c.reason {
			t.Errorf("%s: %v, want %s %s", name, s.head, c.status, c.reason)
		}
	}
	w.policies = []mesh.Policy{{Key: mesh.Key{Namespace: "shop", Name: "none"}, Action: mesh.ActionDeny, Selector: map[string]string{"app": "cart"}, Rules: []mesh.Rule{{}}}}
	w.set()
	s := w.open2(t, webSocket()...)
	s.until(s.answered)
	if s.head[":status"] != "403" || s.head["x-heddle-reason"] != "PolicyDeny" {
		t.Errorf("denied: %v", s.head)
	}
}
