package http1_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/waypoint/http1"
)

// bend changes a few places of good requests into what parsers stumble over.
func bend(w *writer, raw []byte) []byte {
	for range 1 + w.IntN(3) {
		at := w.IntN(len(raw))
		if w.IntN(2) == 0 { // where it counts
			if i := slices.Index(raw[at:], '\n'); i >= 0 {
				at += i + w.IntN(2)
			}
		}
		piece := w.one("\r", "\n", "\r\n", " ", "\t", "\x00", ":", ";", ",", "0", "5", "\x0b", "\xa0", "_", "%", "\\", "#", "X-Y: z\r\n", " folded\r\n", "\r\n\r\n",
			"Content-Length: 5\r\n", "Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n", "Transfer-Encoding: x, chunked\r\n", "Connection: close, X-A\r\n", "Connection: x-b\r\n",
			"Host: other\r\n", "Upgrade: websocket\r\nConnection: upgrade\r\n", "Expect: 100-continue\r\n", "Trailer: X-A\r\n", "TE: trailers\r\n", "0\r\n\r\n", "5\r\nhello\r\n")
		end := min(len(raw), at+w.IntN(2)*w.IntN(4)) // in place of some bytes, or between two
		raw = slices.Concat(raw[:at], []byte(piece), raw[end:])
	}
	return raw
}

// TestBent: requests with something wrong in them are refused, or read as net/http
// reads them, before us and behind us, however they are cut.
func TestBent(t *testing.T) {
	refused, read := 0, 0
	for seed := range uint64(4000) {
		w := &writer{Rand: rand.New(rand.NewPCG(seed, 13))}
		for range 1 + w.IntN(2) {
			w.request()
		}
		raw := bend(w, w.Bytes())
		got := checkCuts(t, raw, nil, w.IntN(len(raw)))
		compare(t, raw, got)
		checkForwarded(t, raw, 1+w.IntN(len(raw)))
		if _, _, err := ours(raw, nil, func() int { return len(raw) }); err != nil {
			refused++
		}
		read += len(got)
	}
	if refused < 1000 || read < 1000 {
		t.Errorf("%d refused, %d messages read: too few to show anything", refused, read)
	}
}

// TestBentResponses is the same for responses: what a client reads behind us is what
// net/http reads of the backend.
func TestBentResponses(t *testing.T) {
	whole := 0
	for seed := range uint64(4000) {
		w := &writer{Rand: rand.New(rand.NewPCG(seed, 14))}
		method := w.one("GET", "HEAD")
		w.response(method)
		if checkResponse(t, bend(w, w.Bytes()), method) {
			whole++
		}
	}
	if whole < 300 {
		t.Errorf("%d responses were read to their end: too few to show anything", whole)
	}
}

// checkResponse compares what a client reads behind us with what net/http reads directly, if
// we have not refused it, which it reports.
func checkResponse(t *testing.T, raw []byte, method string) bool {
	t.Helper()
	p := proxy(t, http1.Defaults())
	p.answer = nil
	p.send([]byte(method + " / HTTP/1.1\r\nHost: h\r\n\r\n"))
	p.receive(raw)
	if p.err == nil && !p.x.Done() {
		p.receiveEOF()
	}
	if p.err != nil || !p.x.Done() {
		return false
	}
	got, err := theirResponses(p.client, []string{method}, true)
	if err != nil || len(got) == 0 {
		t.Fatalf("net/http cannot read what we wrote: %v\n%q", err, p.client)
	}
	final := func(m message) bool { return strings.Compare(m.Start, "200") >= 0 }
	want, err := theirResponses(raw, []string{method}, true)
	if spaced(raw, err) {
		return true
	}
	last, then := got[len(got)-1], slices.IndexFunc(want, final)
	if then < 0 || want[then].Body != last.Body || want[then].Start != last.Start || want[then].Trailers != last.Trailers || want[then].Fields != last.Fields {
		t.Fatalf("behind us %q, directly %q, %v\n%q", got, want, err, raw)
	}
	return true
}
