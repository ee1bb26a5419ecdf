package http2_test

import (
	"slices"
	"testing"

	xhttp2 "golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

// TestDrain: a server warns first, takes what is on its way, names the last request when its PING is answered, and is
// done when that one is.
func TestDrain(t *testing.T) {
	s := server(http2.Defaults()).whole(client().get(1))
	s.out = s.Drain(nil)
	if lines := said(t, s.out); !slices.Equal(lines, []string{"goaway 2147483647 NO_ERROR", "ping false"}) || s.Pinged() != 1 {
		t.Errorf("first %q", lines)
	}
	s.out = nil
	k := newTalk().get(3)
	must(k.WritePing(true, [8]byte{}))
	s.whole(k.get(5))
	if lines := said(t, s.out); !slices.Equal(lines, []string{"goaway 3 NO_ERROR", "5 reset REFUSED_STREAM"}) || !slices.Contains(s.steps, "3 end") || !slices.Contains(s.steps, "0 pong") || slices.Contains(s.steps, "5 end") {
		t.Errorf("then %q, %q", lines, s.steps)
	}
	for _, id := range []uint32{1, 3} {
		if s.Done() {
			t.Error("done before its requests")
		}
		out, err := s.Reply(s.out, id, 200, "", nil, []byte("bye"))
		if err != nil {
			t.Fatal(err)
		}
		s.out = out
	}
	if !s.Done() || s.err != nil {
		t.Errorf("not done: %v", s.err)
	}
	// A client that does not answer the PING is told by the second call.
	s = server(http2.Defaults()).whole(client().get(1))
	s.Drain(nil)
	if lines := said(t, s.Drain(nil)); !slices.Equal(lines, []string{"goaway 1 NO_ERROR"}) {
		t.Errorf("%q", lines)
	}
	if out := s.Drain(nil); len(out) > 0 {
		t.Errorf("a third GOAWAY")
	}
}

// TestDrainClient: a client opens no more, and is done when its last response is whole.
func TestDrainClient(t *testing.T) {
	s := asked(t, "GET")
	if lines := said(t, s.Drain(nil)); !slices.Equal(lines, []string{"goaway 0 NO_ERROR"}) || s.Room() != 0 || s.Done() {
		t.Errorf("%q, room for %d", lines, s.Room())
	}
	if s.whole(backend().head(1, true, ":status: 200")); !s.Done() || s.err != nil {
		t.Errorf("not done: %v", s.err)
	}
}

// TestSettingsTimeout: whoever waits for an acknowledgement in vain says so.
func TestSettingsTimeout(t *testing.T) {
	s := server(http2.Defaults()).whole(client())
	if s.Acknowledged() || s.Unfinished() {
		t.Error("nothing was acknowledged")
	}
	if lines := said(t, s.Fail(nil, reason.SettingsTimeout)); !slices.Equal(lines, []string{"goaway 0 SETTINGS_TIMEOUT"}) || !s.Done() {
		t.Errorf("%q", lines)
	}
	s = server(http2.Defaults())
	k := client()
	must(k.WriteSettingsAck())
	s.feed(k.Bytes()[:k.Len()-1], func() int { return 10 })
	if s.Acknowledged() || !s.Unfinished() {
		t.Error("half of an acknowledgement is none")
	}
	if s.feed(k.Bytes()[k.Len()-1:], func() int { return 1 }); !s.Acknowledged() || s.Unfinished() {
		t.Error("it was acknowledged")
	}
}

// TestPing: PINGs are answered with what they said, and ours are counted.
func TestPing(t *testing.T) {
	s := server(http2.Defaults())
	k := client()
	must(k.WritePing(false, [8]byte{1, 2, 3, 4, 5, 6, 7, 8}))
	s.out = nil
	if s.whole(k); string(s.out[len(s.out)-8:]) != "\x01\x02\x03\x04\x05\x06\x07\x08" || !slices.Equal(said(t, s.out), []string{"ping true"}) {
		t.Errorf("%q", s.out)
	}
	s.Ping(nil)
	k.Reset()
	must(k.WritePing(true, [8]byte{}))
	if s.whole(k); s.Pinged() != 0 || !slices.Equal(s.steps, []string{"0 pong"}) {
		t.Errorf("%q", s.steps)
	}
}

// TestEarlyEnd: a response that is whole before its request ends the request, too; what still comes of it is nobody's.
func TestEarlyEnd(t *testing.T) {
	s := server(http2.Defaults())
	k := client()
	must(k.WriteSettingsAck())
	s.whole(k.post(1))
	s.out, _ = s.Reply(nil, 1, 413, "", nil, nil)
	if lines := said(t, s.out); !slices.Equal(lines, []string{"1 head true :status=413|content-length=0", "1 reset NO_ERROR"}) {
		t.Errorf("%q", lines)
	}
	k.Reset()
	s.out, s.steps = nil, nil
	for range 2000 { // on their way
		k.data(1, false, "x")
	}
	if s.whole(k.head(1, true, "x-sum: 1").get(3)); s.err != nil || len(said(t, s.out)) > 0 || !slices.Contains(s.steps, "3 end") {
		t.Errorf("%q, %v", s.steps, s.err)
	}
}

// TestOrder: nothing is sent on a stream that has ended or has no head yet, whatever the owner does.
func TestOrder(t *testing.T) {
	s := server(http2.Defaults()).whole(client().get(1).get(3))
	if out, n := s.Data(nil, 1, []byte("x")); len(out) > 0 || n != 1 {
		t.Error("a body before its head")
	}
	if out := s.End(nil, 1, nil); len(out) > 0 {
		t.Error("an end before its head")
	}
	out, err := s.Answer(nil, 1, responseHead(t, 200), nil)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.Answer(out, 1, responseHead(t, 200), nil); err != http2.ErrGone || len(again) != len(out) {
		t.Error("two heads")
	}
	if again, err := s.Reply(out, 1, 500, "", nil, nil); err != http2.ErrGone || len(again) != len(out) {
		t.Error("two heads")
	}
	if again := s.Interim(out, 1, &http1.Head{Status: 103}); len(again) != len(out) {
		t.Error("an interim response behind the final one")
	}
	out = s.End(out, 1, nil)
	for name, more := range map[string][]byte{"End": s.End(out, 1, nil), "Reset": s.Conn.Reset(out, 1, http2.Cancel), "Refuse": s.Refuse(out, 1, nil), "Consumed": s.Consumed(out, 1, 5)} {
		if len(more) != len(out) {
			t.Errorf("%s says something on a stream that has ended", name)
		}
	}
	if _, err := s.Answer(nil, 3, &http1.Head{Status: 101}, nil); err != http1.ErrEdit {
		t.Error("101 in HTTP/2")
	}
	lines := said(t, s.Interim(s.Interim(nil, 3, responseHead(t, 100)), 3, responseHead(t, 103, "link: a", "x-a: b")))
	if !slices.Equal(lines, []string{"3 head false :status=103|link=a"}) {
		t.Errorf("interim %q", lines)
	}
}

// TestRefuse: a backend's fault is a 502 that names it, or a reset behind the response's head.
func TestRefuse(t *testing.T) {
	s := server(http2.Defaults()).whole(client().get(1).get(3).get(5).get(7))
	if lines := said(t, s.Refuse(nil, 7, &http2.Error{Reason: reason.PeerReset, Code: http2.Cancel, Response: true})); !slices.Equal(lines, []string{"7 reset CANCEL"}) {
		t.Errorf("%q", lines)
	}
	out := s.Refuse(nil, 1, &http2.Error{Reason: reason.WindowExceeded, Response: true})
	out = s.Refuse(out, 3, &http1.Error{Reason: reason.LengthAndCoding, Response: true})
	out, err := s.Answer(out, 5, responseHead(t, 200), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"1 head true :status=502|content-length=0|x-heddle-reason=window_exceeded", "3 head true :status=502|content-length=0|x-heddle-reason=length_and_coding",
		"5 head false :status=200", "5 reset INTERNAL_ERROR"}
	if lines := said(t, s.Refuse(out, 5, xhttp2.ErrFrameTooLarge)); !slices.Equal(lines, want) || s.Streams() != 0 {
		t.Errorf("%q", lines)
	}
}
