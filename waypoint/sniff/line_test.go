package sniff_test

import (
	"bufio"
	"bytes"
	"net/http"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/waypoint/sniff"
)

// TestLine: what some server of HTTP may take for a request is found, also where the specification lets no
// client send it; what clients of other protocols say first is not taken for one.
func TestLine(t *testing.T) {
	for _, text := range []string{
		"GET / HTTP/1.1\r\n", "POST /a?b HTTP/1.0\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "get / http/1.1\r\n", "M-SEARCH * HTTP/1.1\r\n", "X1_y / HTTP/1.1\r\n",
		"\r\n\n \tGET / HTTP/1.1\r\n", "GET  /\t\x0bHTTP/1.1 \r\n", "GET\x1c/\x1cHTTP/1.1\r\n", "GET\xa0/\x85HTTP/1.1\r\n", "GET /a b c HTTP/1.1\r\n", "GET / HTTP/1.1\rX: y\r\r",
		"POST /\na HTTP/1.1\r\n", "GET / HTTP/11\r\n", "GET /x\r\n", "GET /x\n", "OPTIONS " + strings.Repeat("x", 100_000) + " HTTP/1.1\r\n", strings.Repeat("M", 100_000) + " / HTTP/1.1\r\n",
	} {
		var l sniff.Line
		if got := l.Read([]byte(text)); got != sniff.HTTP {
			t.Errorf("%.40q: %d, want HTTP", text, got)
		}
	}
	for _, text := range []string{
		"EHLO client.example.org\r\n", "HELO x\r\n", "USER anonymous\r\n", "A001 LOGIN a b\r\n", "a CAPABILITY\r\n", "NICK x\r\n", "SSH-2.0-OpenSSH_9.2\r\n", "get key another\r\n", "GET VAR ups battery.charge\r\n",
		"QUIT\r\n", "\x16\x03\x01\x02", "\x20\x00\x00\x01\x85\xa6", "\xb4\x00\x00\x01", `{"a":"GET / HTTP/1.1"}`, "<stream GET / HTTP/1.1\r\n", "requests,a=b value=\"x HTTP/1.1\"\n",
		`10.1.2.3 - - "GET / HTTP/1.1" 200 5` + "\r\n", strings.Repeat("x", 1<<20), "NOT / HTTP/\r\n", "NOT / HTTP/1.1x\r\n", "NOT HTTP/1.1\r\n",
	} {
		var l sniff.Line
		if got := l.Read([]byte(text)); got != sniff.Opaque {
			t.Errorf("%.40q: %d, want Opaque", text, got)
		}
	}
}

// TestBegun: what may be held is a part of a first line, and no more.
func TestBegun(t *testing.T) {
	for text, want := range map[string]bool{"": false, "\r\n": false, "G": true, "\r\nGET / HT": true, "hello": true, "metric 1 2\n": false, "metric 1 2\nmetr": false} {
		var l sniff.Line
		if is := l.Read([]byte(text)); is != sniff.Unsaid || l.Begun() != want {
			t.Errorf("%q: %d, %v", text, is, l.Begun())
		}
	}
}

// FuzzLine: what net/http reads as a request is found, and pieces are as the whole.
func FuzzLine(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: h\r\n\r\n"), 3)
	f.Add([]byte("POST\t/ HTTP/1.1\nHost: h\n\n"), 9)
	f.Add([]byte("\r\nGET / HTTP/1.1\r\n\r\n"), 1)
	f.Fuzz(func(t *testing.T, b []byte, at int) {
		var whole, pieces sniff.Line
		is := whole.Read(b)
		at = min(max(at, 0), len(b))
		first := pieces.Read(b[:at])
		if again := pieces.Read(b[at:]); again != is || first != sniff.Unsaid && first != is {
			t.Fatalf("%q: %d, but %d and %d in two pieces at %d", b, is, first, again, at)
		}
		if _, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b))); err == nil && is != sniff.HTTP {
			t.Fatalf("%q: %d, and it is a request", b, is)
		}
	})
}

// TestSettings: how a server of HTTP/2 begins is not how others do.
func TestSettings(t *testing.T) {
	for text, want := range map[string]bool{
		"\x00\x00\x00\x04\x00\x00\x00\x00\x00": true, "\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03": true, "\x00\x00\x07\x04\x00\x00\x00\x00\x00": false,
		"\x00\x00\x00\x04\x01\x00\x00\x00\x00": false, "\x4a\x00\x00\x00\x0a8.0.36": false, "220 mail\r\n": false, "\x00\x00\x00\x04": false,
	} {
		if got := sniff.Settings([]byte(text)); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}
