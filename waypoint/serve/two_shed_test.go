package serve_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// TestHeadsInVain: while there is no room, a client that goes on with large heads is told to stop, later when it has requests under way,
// and one with small heads gets its answers.
func TestHeadsInVain(t *testing.T) {
	large := strings.Repeat("x-field: "+strings.Repeat("x", 3500)+"\n", 16) // of which four are within the bound
	for name, of := range map[string]struct {
		more            string
		own             bool // the request that takes all the room is the client's own
		asked, answered int
	}{
		"small":                   {"", false, 90, 90},
		"large":                   {large, false, 50, 5},
		"large, with one of ours": {large, true, 50, 10},
	} {
		t.Run(name, func(t *testing.T) {
			release := make(chan struct{})
			w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, func(http.ResponseWriter, *http.Request) { <-release })},
				oneLoop, func(cfg *serve.Config) { cfg.Limits.Requests = 1 })
			defer close(release)
			c := newAsking(t, w)
			holder := c
			if !of.own {
				holder = newAsking(t, w)
			}
			holder.ask(1, "")
			eventually(t, "one is under way", func() bool { return w.gauge("heddle_waypoint_active_requests") == 1 })
			c.ask(of.asked, of.more)
			answered, code := c.answers(of.asked)
			calmed := code == xhttp2.ErrCodeEnhanceYourCalm
			if answered != of.answered || calmed != (answered < of.asked) {
				t.Errorf("%d are answered, want %d, and then %v", answered, of.answered, code)
			}
			floods := 0.0
			if calmed {
				floods = 1
			}
			eventually(t, "all are counted, and the flood", func() bool { // after they are written
				return w.value("heddle_waypoint_refusals_total", "reason", "Overloaded") == float64(answered) &&
					w.value("heddle_waypoint_refusals_total", "reason", "refused_stream_flood") == floods
			})
		})
	}
}

// TestRefusedHeadsAreTold: a request that is refused at its head has its line in the access log, with the reason, in either version, and
// one only.
func TestRefusedHeadsAreTold(t *testing.T) {
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, echo)})
	want := map[string]float64{"space_before_colon": 400, "head_too_large": 431, "upper_case_name": 400, "connection_field": 400}
	if got := w.exchanged([]byte("GET / HTTP/1.1\r\nHost: h\r\nx-a : b\r\n\r\n")); !bytes.HasPrefix(got, []byte("HTTP/1.1 400 ")) {
		t.Errorf("%q", got)
	}
	c := newAsking(t, w)
	for _, more := range []string{strings.Repeat("x-field: "+strings.Repeat("x", 3500)+"\n", 20), "X-Field: x\n", "connection: close\n"} {
		c.ask(1, more)
		if n, code := c.answers(1); n != 1 {
			t.Errorf("%d answers, %v", n, code)
		}
	}
	eventually(t, "all are counted", func() bool { return w.value("heddle_waypoint_requests_total", "", "") == 4 })
	w.stop()
	for text := range strings.Lines(w.log.String()) {
		var line struct {
			Client, Peer, Reason string
			Status               float64
		}
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if want[line.Reason] == 0 || want[line.Reason] != line.Status || line.Client != "10.1.2.3:4567" || line.Peer != shopIdentity {
			t.Errorf("a line of %q: %s", line.Reason, text)
		}
		delete(want, line.Reason)
	}
	if len(want) > 0 {
		t.Errorf("%v have no line in %q", want, w.log.String())
	}
}

// asking is a client of HTTP/2 that reads no answer before it has asked for all.
type asking struct {
	t   *testing.T
	out bytes.Buffer
	f   *xhttp2.Framer
	e   *hpack.Encoder
	id  uint32
}

func newAsking(t *testing.T, w *world) *asking {
	t.Helper()
	c := w.dial()
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	a := &asking{t: t, f: xhttp2.NewFramer(c, c), id: 1}
	a.e = hpack.NewEncoder(&a.out)
	if _, err := c.Write([]byte(http2.Preface)); err != nil {
		t.Fatal(err)
	}
	if err := a.f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return a
}

// ask asks n times, with more fields, of which each is a line.
func (a *asking) ask(n int, more string) {
	a.t.Helper()
	for range n {
		a.out.Reset()
		for _, f := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":path", "/"}, {":authority", "cart"}} {
			_ = a.e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}) // into memory
		}
		for line := range strings.Lines(more) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			_ = a.e.WriteField(hpack.HeaderField{Name: name, Value: value})
		}
		if err := a.f.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: a.id, BlockFragment: a.out.Bytes(), EndHeaders: true, EndStream: true}); err != nil {
			a.t.Fatal(err)
		}
		a.id += 2
	}
}

// answers reads so many, or up to a GOAWAY, of which it returns the code.
func (a *asking) answers(most int) (n int, code xhttp2.ErrCode) {
	a.t.Helper()
	for n < most {
		frame, err := a.f.ReadFrame()
		if err != nil {
			a.t.Fatalf("after %d answers: %v", n, err)
		}
		switch frame := frame.(type) {
		case *xhttp2.HeadersFrame:
			n++
		case *xhttp2.GoAwayFrame:
			return n, frame.ErrCode
		}
	}
	return n, xhttp2.ErrCodeNo
}
