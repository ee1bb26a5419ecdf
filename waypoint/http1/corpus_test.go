package http1_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/waypoint/corpus"
	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

func cases(t testing.TB) (requests, responses []corpus.Case) {
	t.Helper()
	requests, err := corpus.Requests()
	if err != nil {
		t.Fatal(err)
	}
	if responses, err = corpus.Responses(); err != nil {
		t.Fatal(err)
	}
	if len(requests) < 150 || len(responses) < 45 {
		t.Fatalf("%d cases of requests, %d of responses", len(requests), len(responses))
	}
	return requests, responses
}

// TestCorpus: each case is read as it says, however its bytes are cut; nothing
// of a head that is refused reaches the other side.
func TestCorpus(t *testing.T) {
	requests, responses := cases(t)
	for _, side := range []struct {
		cases []corpus.Case
		read  func(testing.TB, corpus.Case, int) ([]string, *proxied)
	}{{requests, readRequests}, {responses, readResponses}} {
		names := map[string]bool{}
		for _, c := range side.cases {
			if names[c.Name] || c.Source == "" || len(c.Want) == 0 {
				t.Errorf("%s: twice, without a source, or without a reading", c.Name)
			}
			names[c.Name] = true
			for piece := 1; piece <= max(1, len(c.Send)); piece++ {
				got, p := side.read(t, c, piece)
				if !slices.Equal(got, c.Want) {
					t.Errorf("%s, in pieces of %d: read %q, want %q\nto the backend %q\nto the client %q", c.Name, piece, got, c.Want, p.backend, p.client)
					break
				}
			}
		}
	}
}

// TestCorpusHasEveryReason: there is a case for each reason that bytes alone can
// bring about; the others are bounds, which TestBounds tries.
func TestCorpusHasEveryReason(t *testing.T) {
	requests, responses := cases(t)
	met := map[string]bool{
		reason.Unsolicited.String():    true, // TestUnsolicited
		reason.TooManyInterim.String(): true, // TestInterimBound
	}
	for _, c := range slices.Concat(requests, responses) {
		for _, want := range c.Want {
			met[strings.TrimPrefix(want, "refused ")] = true
		}
	}
	for _, b := range bounds() {
		met[b.reason.String()] = true
	}
	for _, r := range reason.HTTP1() {
		if !met[r.String()] {
			t.Errorf("no case for %s", r)
		}
		delete(met, r.String())
		if s := r.Status(); s < 400 || s > 599 || strings.HasPrefix(r.String(), "reason_") {
			t.Errorf("%s: status %d", r, s)
		}
	}
}

// TestLeftOver: a connection on which a backend has said more than it was asked is
// not used again, and one on which it has not, is.
func TestLeftOver(t *testing.T) {
	_, responses := cases(t)
	left := 0
	for _, c := range responses {
		_, p := readResponses(t, c, len(c.Send)+1)
		over := c.Name == "head-with-body" || c.Name == "more-than-asked"
		if over {
			left++
		}
		reusable := p.x.Reusable()
		ended := p.err == nil && p.x.Done() && !c.EOF
		if reusable != (ended && !over) {
			t.Errorf("%s: reusable %v", c.Name, reusable)
		}
	}
	if left != 2 {
		t.Errorf("%d cases say more than they were asked", left)
	}
}

// TestUnsolicited: what a backend says before it is asked is refused.
func TestUnsolicited(t *testing.T) {
	p := http1.NewResponses(http1.Defaults())
	if e, _, n, err := p.Next(nil); e != http1.More || n != 0 || err != nil {
		t.Errorf("%v, %d, %v of nothing", e, n, err)
	}
	_, _, n, err := p.Next([]byte(okAnswer))
	if wrong, ok := err.(*http1.Error); !ok || wrong.Reason != reason.Unsolicited || wrong.Status() != 502 || n != 0 {
		t.Errorf("%d bytes used, %v", n, err)
	}
}

// bound is an input that is too large, or that comes without an end.
type bound struct {
	name   string
	reason http1.Reason
	head   string
	repeat string
	most   int // bytes used before it was refused
}

func bounds() []bound {
	const chunked = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
	return []bound{
		{"a target", reason.TargetTooLong, "GET /", "a", 9 << 10},
		{"a line that is none", reason.TargetTooLong, "", "\x16", 9 << 10},
		{"a field", reason.HeadTooLarge, "GET / HTTP/1.1\r\nHost: h\r\nX: ", "a", 65 << 10},
		{"long fields", reason.HeadTooLarge, "GET / HTTP/1.1\r\nHost: h\r\n", "X: " + strings.Repeat("a", 1000) + "\r\n", 66 << 10},
		{"fields", reason.TooManyFields, "GET / HTTP/1.1\r\nHost: h\r\n", "X: a\r\n", 1000},
		{"an extension", reason.ExtensionsTooLarge, chunked + "1;a=", "b", 5 << 10},
		{"extensions", reason.ExtensionsTooLarge, chunked, "1;aaaa=bbbbbbbbbbbbbbbbbb\r\nx\r\n", 8 << 10},
		{"a chunk's size", reason.BadChunkSize, chunked, "0", 5 << 10},
		{"a body", reason.BodyTooLarge, chunked, "100\r\n" + strings.Repeat("x", 256) + "\r\n", 110 << 10},
		{"a trailer", reason.TrailersTooLarge, chunked + "0\r\nX: ", "a", 9 << 10},
		{"trailers", reason.TooManyFields, chunked + "0\r\n", "X: a\r\n", 1000},
		{"options", reason.BadConnection, "GET / HTTP/1.1\r\nHost: h\r\nConnection: a,b,c,d,e,f,g,h,i\r\n\r\n", "", 100},
	}
}

// TestBounds: what has no end is refused within its bound, whatever the pieces, and
// holds no more memory than the bound and what append adds.
func TestBounds(t *testing.T) {
	for _, b := range bounds() {
		for _, piece := range []int{1, 1000, 1 << 20} {
			config := http1.Defaults()
			config.BodyBytes = 100 << 10
			p := http1.NewRequests(config)
			used, held := 0, 0
			err := feed(&p, func() []byte {
				if used == 0 && b.head != "" {
					used = len(b.head)
					return []byte(b.head)
				}
				part := bytes.Repeat([]byte(b.repeat), max(1, piece/max(1, len(b.repeat))))
				used += len(part)
				return part
			}, func() { held = max(held, p.Held()) })
			wrong, ok := err.(*http1.Error)
			if !ok || wrong.Reason != b.reason || used > b.most+piece+len(b.repeat) {
				t.Errorf("%s in pieces of %d: %v after %d bytes", b.name, piece, err, used)
			}
			if held > 2*(65<<10)+2*piece {
				t.Errorf("%s in pieces of %d: %d bytes are held", b.name, piece, held)
			}
		}
	}
}

// feed gives a parser pieces until it refuses, or there are none.
func feed(p *http1.Parser, next func() []byte, look func()) error {
	for range 1 << 20 {
		in := next()
		if len(in) == 0 {
			return nil
		}
		for {
			e, _, n, err := p.Next(in)
			look()
			if err != nil {
				return err
			}
			if in = in[n:]; e == http1.More {
				break
			}
		}
	}
	return nil
}
