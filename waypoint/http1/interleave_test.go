package http1_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/waypoint/http1"
)

// interleaving leads an exchange through what a client and a backend send in any order, and holds
// it to what must be true in every one.
type interleaving struct {
	t       *testing.T
	x       *http1.Exchange
	client  []byte // sent and not used yet
	got     []byte // by the client
	methods []string
	expects bool   // the request that was forwarded last has an Expect
	said    []byte // by the backend, since then
	late    bool   // it has said something more when the response had ended
	ended   bool
}

// request uses what the client has sent.
func (i *interleaving) request(b []byte) {
	i.client = append(i.client, b...)
	for !i.ended {
		out, n, at, err := i.x.Request(nil, i.client)
		i.client = i.client[n:]
		if len(out) > 0 && (len(i.methods) == 0 || i.x.Answered() && i.x.Closing() && i.x.Done()) {
			i.t.Fatalf("%q is forwarded of no request", out)
		}
		if err != nil {
			i.refuse(err)
			return
		}
		if at != http1.HeadRead {
			return
		}
		h := i.x.RequestHead()
		i.methods = append(i.methods, string(h.Method))
		i.expects, i.said, i.late = h.Continue, nil, false
		if _, err := i.x.Forward(nil, nil); err != nil {
			i.t.Fatalf("a good request is not forwarded: %v", err)
		}
	}
}

// respond uses what the backend has sent, which is nothing before it was asked.
func (i *interleaving) respond(b []byte) {
	if len(i.methods) == 0 {
		return
	}
	done := i.x.Answered() && i.x.Done()
	if i.said = append(i.said, b...); done && len(b) > 0 && !i.x.Tunnel() {
		i.late = true
	}
	for !i.ended {
		out, n, at, err := i.x.Response(nil, b)
		i.got, b = append(i.got, out...), b[n:]
		if done && !i.x.Tunnel() && (len(out) > 0 || n > 0) {
			i.t.Fatalf("%q of what came after the response reaches the client", out)
		}
		if err != nil {
			i.refuse(err)
			return
		}
		if at != http1.HeadRead {
			return
		}
		if out, err = i.x.Answer(nil, nil); err != nil {
			i.t.Fatal(err)
		}
		i.got = append(i.got, out...)
	}
}

func (i *interleaving) refuse(err error) {
	out, ok := i.x.Refuse(nil, err)
	i.got = append(i.got, out...)
	i.ended = !ok
}

// reply is what an owner does that has waited for too long.
func (i *interleaving) reply(status int) {
	out, err := i.x.Reply(nil, status, "", nil, []byte("late"))
	if err == nil {
		i.got = append(i.got, out...)
	} else if len(out) > 0 || !i.x.Answered() {
		i.t.Fatalf("%q, %v", out, err)
	}
}

// check is what must be true after each step.
func (i *interleaving) check() {
	if i.x.Reusable() {
		granted := bytes.Contains(i.said, []byte(" 100")) // it may be that of a body: then nothing is claimed
		if !i.x.Done() || i.late || i.x.Tunnel() || i.expects && !granted {
			i.t.Fatalf("reusable: done %v, late %v, expects %v after %q", i.x.Done(), i.late, i.expects, i.said)
		}
	}
	if i.x.Tunnel() {
		i.ended = true
		return
	}
	// Each request has one final response; one that did not come to its head may have one of ours.
	all, err := theirResponses(i.got, i.methods, true)
	finals := 0
	for _, m := range all {
		if strings.Compare(m.Start, "200") >= 0 {
			finals++
		}
	}
	spare := 0
	if i.x.Closing() {
		spare = 1
	}
	switch {
	case finals > len(i.methods)+spare:
		i.t.Fatalf("%d final responses to %d requests: %q", finals, len(i.methods), i.got)
	case i.x.Done() && !i.ended && (err != nil || finals < len(i.methods)):
		i.t.Fatalf("%d final responses to %d requests that are done: %v\n%q", finals, len(i.methods), err, i.got)
	case err != nil && !strings.Contains(err.Error(), "EOF"):
		i.t.Fatalf("net/http cannot read what the client gets: %v\n%q", err, i.got)
	}
}

// FuzzInterleaved cuts what a client and a backend send into pieces, and mixes them: early answers, 101,
// Expect, our own replies in between. Of each step the low two bits say who speaks.
func FuzzInterleaved(f *testing.F) {
	const length = "Content-Length: 4\r\n\r\n"
	for _, pair := range [][2]string{
		{expectRequest + "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.1 403 No\r\n" + length + "body"},
		{expectRequest + strings.Repeat("x", 32) + getRequest, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n" + length + "body" + okAnswer},
		{upgradeRequest + "tunnelled", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nfirst"},
		{upgradeRequest + getRequest, okAnswer + okAnswer},
		{"CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n" + getRequest, "HTTP/1.1 200 OK\r\n\r\nbytes"},
		{"CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n" + getRequest, "HTTP/1.1 407 No\r\n" + length + "body"},
		{getRequest + getRequest, okAnswer + okAnswer + "HTTP/1.1 103 Hints\r\n\r\n"},
		{"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n" + chunkedUpload, "HTTP/1.1 200 OK\r\n" + length + "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"},
		{chunkedUpload + "GET / HTTP/1.0\r\nHost: h\r\n\r\n", "HTTP/1.1 413 Large\r\n" + length + "body"},
	} {
		for _, steps := range []string{"\xfc\xfd", "\xfc\xfc\xfd\xfd", "\xfc\x61\xfc\xfd\xfc\xfd", "\x20\x21\x20\x21\x20\x21\x20\x21\x20\x21\xfc\xfd\xfd", "\xfc\x21\x02\xfd\xfc\xfd", "\x20\x02\xfc\xfd", "\xfc\x02\xfd\xfc\xfd"} {
			f.Add([]byte(pair[0]), []byte(pair[1]), []byte(steps))
		}
	}
	f.Fuzz(func(t *testing.T, client, backend, steps []byte) {
		i := &interleaving{t: t, x: http1.NewExchange(http1.Defaults())}
		for _, step := range steps[:min(len(steps), 64)] {
			if i.ended {
				return
			}
			size := int(step>>2) * 4 // up to 252 bytes
			switch step & 3 {
			case 0:
				n := min(size, len(client))
				i.request(client[:n:n])
				client = client[n:]
			case 1:
				n := min(size, len(backend))
				i.respond(backend[:n:n])
				backend = backend[n:]
			case 2:
				i.reply(504)
			case 3: // the owner looks whether more is to be done
				i.request(nil)
			}
			i.check()
		}
	})
}
