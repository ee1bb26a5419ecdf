package http1_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/waypoint/http1"
)

// checkCuts: a cut changes neither what is read nor the error.
func checkCuts(t *testing.T, raw []byte, asked []http1.Asked, cut int) []message {
	t.Helper()
	whole, _, err := ours(raw, asked, func() int { return len(raw) })
	cut = min(max(cut, 1), max(1, len(raw)))
	parts, _, err2 := ours(raw, asked, func() int { n := cut; cut = max(1, len(raw)-cut); return n })
	if fmt.Sprint(err) != fmt.Sprint(err2) || !slices.Equal(whole, parts) {
		t.Fatalf("whole %q %v\nin two %q %v", whole, err, parts, err2)
	}
	if wrong, ok := errors.AsType[*http1.Error](err); err != nil && (!ok || wrong.Status() < 400 || strings.HasPrefix(wrong.Reason.String(), "reason_")) {
		t.Fatalf("an error of no class: %v", err)
	}
	return whole
}

// spaced says that net/http has refused bad whitespace before a chunk extension, which is to be
// read (RFC 9112 section 7.1.1).
func spaced(raw []byte, err error) bool {
	return err != nil && strings.Contains(err.Error(), "invalid byte in chunk length") && (bytes.Contains(raw, []byte(" ;")) || bytes.Contains(raw, []byte("\t;")))
}

// compare compares what we have read with what net/http reads: the same messages up to where
// one of us refuses what comes, which only we may do.
func compare(t *testing.T, raw []byte, got []message) {
	t.Helper()
	want, err := theirs(raw)
	_, _, refused := ours(raw, nil, func() int { return len(raw) })
	n := min(len(got), len(want))
	if !slices.Equal(got[:n], want[:n]) || n < len(got) && !spaced(raw, err) || n < len(want) && refused == nil {
		t.Fatalf("we read\n%q\nand then %v, net/http\n%q\nand then %v\n%q", got, refused, want, err, raw)
	}
}

// FuzzRequests: whatever comes, a cut changes nothing, and what we read to its
// end net/http reads as we do. It reads many things that we refuse.
func FuzzRequests(f *testing.F) {
	requests, _ := cases(f)
	for i, c := range requests {
		f.Add(c.Send, i)
	}
	f.Fuzz(func(t *testing.T, raw []byte, cut int) {
		compare(t, raw, checkCuts(t, raw, nil, cut))
	})
}

// FuzzForward: what net/http reads of what we forward is what we have read; and so do
// we, a second time.
func FuzzForward(f *testing.F) {
	requests, _ := cases(f)
	for i, c := range requests {
		f.Add(c.Send, i)
	}
	f.Fuzz(func(t *testing.T, raw []byte, piece int) { checkForwarded(t, raw, min(max(piece, 1), len(raw)+1)) })
}

// FuzzResponses: a cut changes nothing, and what a client reads behind us is what net/http
// reads directly, as far as we have not refused it.
func FuzzResponses(f *testing.F) {
	_, responses := cases(f)
	for i, c := range responses {
		f.Add(c.Send, i, c.Asked == "HEAD")
	}
	f.Fuzz(func(t *testing.T, raw []byte, cut int, head bool) {
		checkCuts(t, raw, []http1.Asked{{Head: head}}, cut)
		method := "GET"
		if head {
			method = "HEAD"
		}
		checkResponse(t, raw, method)
	})
}

// FuzzChunked is FuzzRequests inside of a chunked body.
func FuzzChunked(f *testing.F) {
	const head = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
	requests, _ := cases(f)
	for i, c := range requests {
		if body, ok := strings.CutPrefix(string(c.Send), head); ok {
			f.Add([]byte(body), i)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte, cut int) {
		raw := append([]byte(head), body...)
		compare(t, raw, checkCuts(t, raw, nil, len(head)+min(max(cut, 0), len(body))))
		checkForwarded(t, raw, 1+max(cut, 0)%len(raw))
	})
}
