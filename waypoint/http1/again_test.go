package http1_test

import (
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/waypoint/http1"
)

// TestAgain: what one backend has said of a response, or said wrong, is forgotten, and the answer of another one
// arrives whole; not once the answer has begun.
func TestAgain(t *testing.T) {
	for _, first := range []string{"", "HTTP/1.1 503 No\r\nContent-Length: 5\r\n\r\nhe", "HTTP/1.1 2", "what?\r\n\r\n", "HTTP/1.1 103 Hints\r\n\r\n"} {
		x := http1.NewExchange(http1.Defaults())
		if x.Again() {
			t.Error("again, and nothing was asked")
		}
		if _, _, at, err := x.Request(nil, []byte("GET / HTTP/1.1\r\nHost: h\r\n\r\n")); at != http1.HeadRead || err != nil {
			t.Fatal(at, err)
		}
		if _, err := x.Forward(nil, nil); err != nil {
			t.Fatal(err)
		}
		_, _, _, _ = x.Request(nil, nil)
		_, _, _, _ = x.Response(nil, []byte(first))
		if !x.Again() {
			t.Fatalf("%q: not again", first)
		}
		in := []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		out, n, at, err := x.Response(nil, in)
		if at != http1.HeadRead || err != nil {
			t.Fatalf("%q: %v %v", first, at, err)
		}
		if out, err = x.Answer(out, nil); err != nil || x.Again() {
			t.Fatalf("%q: again, and the answer has begun: %v", first, err)
		}
		out, _, at, err = x.Response(out, in[n:])
		if at != http1.End || err != nil || !strings.HasSuffix(string(out), "\r\n\r\nok") || !x.Done() || !x.Reusable() {
			t.Errorf("%q: %q, %v, %v", first, out, at, err)
		}
	}
}

// TestReplyReason: a reply says why, unless that is no token.
func TestReplyReason(t *testing.T) {
	x := http1.NewExchange(http1.Defaults())
	_, _, _, _ = x.Request(nil, []byte("GET / HTTP/1.1\r\nHost: h\r\n\r\n"))
	if _, err := x.Reply(nil, 403, "no\r\ntoken", nil, nil); err == nil {
		t.Error("a reason that is no token")
	}
	out, err := x.Reply(nil, 403, "PolicyDeny", nil, nil)
	if err != nil || !strings.Contains(string(out), "\r\nX-Heddle-Reason: PolicyDeny\r\n") {
		t.Errorf("%q, %v", out, err)
	}
}
