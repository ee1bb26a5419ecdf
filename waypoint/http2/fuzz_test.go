package http2_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/waypoint/http1"
	"github.com/heddle-mesh/heddle/waypoint/http2"
)

// seeds are connections with every rule in them.
func seeds(f *testing.F) {
	for i, v := range slices.Concat(connectionErrors(), streamErrors()) {
		if v.wire.Len() < 2000 {
			f.Add(v.wire.Bytes()[min(v.wire.Len(), len(http2.Preface)):], i)
		}
	}
	for seed := range uint64(4) {
		f.Add(bent(rand.New(rand.NewPCG(seed, 3)))[len(http2.Preface):], int(seed))
	}
}

// FuzzServer: whatever a client sends, a cut changes nothing, what we say is well-formed, a stream's events are in
// order, and x/net's Framer does not end what we go on with.
func FuzzServer(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, wire []byte, cut int) {
		wire = append([]byte(http2.Preface), wire...)
		cut = min(max(cut, 1), len(wire))
		checkBent(t, wire, func() int { return cut })
	})
}

// FuzzClient is the same of what a backend sends, to a client with open requests.
func FuzzClient(f *testing.F) {
	for i, k := range []*talk{
		backend().head(1, false, ":status: 200", "content-length: 2").data(1, true, "ab"), interims(3), backend().head(1, true, ":status: 200", "grpc-status: 12"),
		backend().head(5, false, ":status: 103", "link: a").head(5, false, ":status: 200").data(5, false, "a").head(5, true, "x: y"),
	} {
		f.Add(k.Bytes(), i)
	}
	seeds(f)
	f.Fuzz(func(t *testing.T, wire []byte, cut int) {
		read := func(piece int) *side {
			s := newSide(http2.NewClient(generous()))
			for _, method := range []string{"GET", "HEAD", "POST"} {
				var err error
				if s.out, _, err = s.Open(s.out, requestHead(t, ":method: "+method, ":scheme: http", ":authority: h", ":path: /"), nil); err != nil {
					t.Fatal(err)
				}
			}
			s.out = s.End(s.End(s.out, 1, nil), 3, nil)
			s = s.feed(wire, func() int { return piece })
			sortLost(s.steps)
			return s
		}
		whole, parts := read(len(wire)+1), read(min(max(cut, 1), len(wire)+1))
		if fmt.Sprint(whole.err) != fmt.Sprint(parts.err) || !slices.Equal(whole.steps, parts.steps) || !bytes.Equal(whole.out, parts.out) {
			t.Fatalf("%q %v\nin pieces %q %v", whole.steps, whole.err, parts.steps, parts.err)
		}
		said(t, whole.out)
		for _, line := range whole.steps { // 1xx heads come before the final one
			if strings.Contains(line, "refused ") && !strings.Contains(line, "reset") {
				t.Fatalf("a client refuses a request: %q", line)
			}
		}
	})
}

// sortLost orders the streams that a GOAWAY loses, which end one after the other in any order.
func sortLost(steps []string) {
	lost := func(step string) bool { return strings.HasSuffix(step, "reset peer_gone_away REFUSED_STREAM retry") }
	for len(steps) > 0 {
		end := max(1, slices.IndexFunc(append(steps[:len(steps):len(steps)], ""), func(step string) bool { return !lost(step) }))
		slices.Sort(steps[:end])
		steps = steps[end:]
	}
}

// FuzzDowngrade: whatever a client says in HTTP/2, net/http reads no more requests in HTTP/1.1 than there were streams.
func FuzzDowngrade(f *testing.F) {
	seeds(f)
	for i, c := range corpusCases(f) {
		f.Add(c.Send[len(http2.Preface):], i+1)
	}
	f.Fuzz(func(t *testing.T, wire []byte, cut int) {
		wire = append([]byte(http2.Preface), wire...)
		cut = min(max(cut, 1), len(wire))
		for _, d := range downgrade(t, server(generous()), wire, func() int { return cut }) {
			d.read(t)
		}
	})
}

// FuzzHead is FuzzDowngrade for the fields of one request, where the fuzzer need not learn HPACK.
func FuzzHead(f *testing.F) {
	f.Add("GET", "/", "h", "x-a", "b", "body", true)
	f.Add("POST", "/a?b", "h:80", "content-length", "4", "body", true)
	f.Add("POST", "/ HTTP/1.1\r\nHost: evil", "h", "transfer-encoding", "chunked", "0\r\n\r\nGET / HTTP/1.1\r\n\r\n", false)
	f.Add("CONNECT", "", "h:80", "te", "trailers", "", true)
	f.Fuzz(func(t *testing.T, method, path, host, name, value, body string, trailing bool) {
		k := client()
		fields := []string{":method: " + method, ":scheme: http", ":path: " + path, ":authority: " + host, "host: " + host}
		if name != "" && name[0] != ':' && !strings.Contains(name, ": ") {
			fields = append(fields, name+": "+value)
		}
		k.head(1, false, fields...)
		k.data(1, !trailing, body[:min(len(body), 1<<14)])
		if trailing {
			k.head(1, true, fields[len(fields)-1])
		}
		s := server(http2.Defaults())
		all := downgrade(t, s, k.Bytes(), func() int { return k.Len() })
		for _, d := range all {
			d.read(t)
		}
		if len(all) > 1 {
			t.Fatalf("%d requests", len(all))
		}
	})
}

// checkSaid: on each stream we say 1xx heads, a head, a body, an end or a reset, in this order, and nothing behind that.
func checkSaid(t testing.TB, lines []string) {
	t.Helper()
	state := map[uint32]string{}
	for _, line := range lines {
		var id uint32
		var what, ended string
		if n, _ := fmt.Sscan(line, &id, &what, &ended); n < 2 || id == 0 {
			continue
		}
		ok := state[id] != "ended"
		switch {
		case what == "head" && strings.Contains(line, ":status=1"):
			ok = ok && state[id] == "" && ended == "false"
		case what == "head" && strings.Contains(line, ":status="):
			ok = ok && state[id] == ""
			state[id] = "answered"
		case what == "head" || what == "data":
			ok = ok && state[id] == "answered"
		case what == "reset":
			ok = true // a stream that was ended, too, when the client has not
			state[id] = "ended"
		}
		if ended == "true" {
			state[id] = "ended"
		}
		if !ok {
			t.Fatalf("%q in %q", line, lines)
		}
	}
}

// FuzzInterleaved: a client's bytes in any order with an owner's answers, bodies, ends, resets, drains. What is said is
// a response for each request at most, and never more than the client's windows let out.
func FuzzInterleaved(f *testing.F) {
	for seed := range uint64(6) {
		random := rand.New(rand.NewPCG(seed, 5))
		script := make([]byte, 200)
		for i := range script {
			script[i] = byte(random.Uint32())
		}
		f.Add(conversation(random, 6).Bytes()[len(http2.Preface):], script)
	}
	f.Fuzz(func(t *testing.T, wire, script []byte) {
		s := server(generous())
		s.hold = true
		var ids []uint32
		s.on = func(step http2.Step) {
			if step.Event == http2.HeadRead {
				ids = append(ids, step.Stream)
			}
		}
		wire = append([]byte(http2.Preface), wire...)
		all := wire
		answer := responseHead(t, 200, "x-a: b")
		for len(script) > 1 && len(wire) > 0 && s.err == nil {
			op, n := script[0], int(script[1])
			script = script[2:]
			if op < 100 || len(ids) == 0 {
				n = min(1+4*n, len(wire))
				s.feed(wire[:n], func() int { return n })
				wire = wire[n:]
				continue
			}
			id := ids[n%len(ids)]
			switch op % 10 {
			case 0, 1:
				s.out, _ = s.Answer(s.out, id, answer, nil)
			case 2, 3, 4:
				s.out, _ = s.Data(s.out, id, bytes.Repeat([]byte("x"), 500*n))
			case 5:
				s.out = s.End(s.out, id, nil)
			case 6:
				s.out = s.End(s.out, id, []http1.Field{http1.NewField("X-Sum", "1")})
			case 7:
				s.out = s.Consumed(s.out, id, 100*n)
			case 8:
				s.out, _ = s.Reply(s.out, id, 200+n, "", nil, []byte("hello"))
			default:
				switch {
				case n > 250:
					s.out = s.Drain(s.out)
				case n > 200:
					s.out = s.Conn.Reset(s.out, id, http2.Cancel)
				default:
					s.out = s.Interim(s.out, id, responseHead(t, 103))
				}
			}
		}
		if s.Unread() < 0 || s.Unread() > int64(s.Streams())*65536 {
			t.Fatalf("%d unread of %d streams", s.Unread(), s.Streams())
		}
		checkOrder(t, s.steps)
		lines := said(t, s.out)
		checkSaid(t, lines)
		sent := 0
		for _, line := range lines {
			var id uint32
			var ended bool
			var data string
			if n, _ := fmt.Sscanf(line, "%d data %t %s", &id, &ended, &data); n == 3 {
				sent += len(data)
			}
		}
		if got := 65535 + updates(t, all[:len(all)-len(wire)])[0]; s.err == nil && sent > got {
			t.Fatalf("%d bytes for a window of %d", sent, got)
		}
	})
}
