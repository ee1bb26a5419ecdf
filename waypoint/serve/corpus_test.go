package serve_test

import (
	"bytes"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/waypoint/corpus"
	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// exchanged sends what a client sends, and returns what it gets until the end, or until silence.
func (w *world) exchanged(send ...[]byte) []byte {
	w.t.Helper()
	c := w.dial()
	defer c.Close()
	var got bytes.Buffer
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.Copy(&got, c) })
	for i, b := range send {
		if i > 0 && len(b) > 0 {
			time.Sleep(20 * time.Millisecond)
		}
		_, _ = c.Write(b)
	}
	time.Sleep(20 * time.Millisecond)
	_ = c.(*net.TCPConn).CloseWrite()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	reading.Wait()
	return got.Bytes()
}

// TestCorpusOfResponses: over sockets, what a backend says is read as docs/http.md has it.
func TestCorpusOfResponses(t *testing.T) {
	cases, err := corpus.Responses()
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Pointer[corpus.Case]
	w := newWorld(t, []*backend{raw(t, "cart", cartAddr, func(c net.Conn) {
		buf := make([]byte, 4<<10)
		if _, err := c.Read(buf); err != nil {
			return
		}
		now := asked.Load()
		_, _ = c.Write(now.Send)
		if !now.EOF {
			time.Sleep(100 * time.Millisecond)
		}
	})})
	for _, now := range cases {
		if bytes.HasPrefix(now.Request(), []byte("CONNECT ")) {
			continue // which no workload is asked, see TestConnectIsRefused; waypoint/http1 runs it
		}
		asked.Store(&now)
		// Whoever is answered with a reset may not get what came before it (RFC 9293 section 3.10.7.4).
		got, want := corpus.ReadResponses(w.exchanged(now.Request()), now.Asked), now.Want
		if strings.HasSuffix(want[len(want)-1], "reset") {
			continue
		}
		if want[0] == "refused truncated" {
			want = []string{"refused BackendReset"} // which of the two it was nobody can tell
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", now.Name, got, want)
		}
	}
}

// TestCorpusOfRequests: over sockets, of what a client sends the backend gets what docs/http.md says, in whatever
// pieces it comes, and what is refused is so with its reason.
func TestCorpusOfRequests(t *testing.T) {
	cases, err := corpus.Requests()
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var backendGot []byte
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	w := newWorld(t, []*backend{raw(t, "cart", cartAddr, func(c net.Conn) {
		buf := make([]byte, 64<<10)
		seen := []byte(nil)
		answered := 0
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			seen = append(seen, buf[:n]...)
			mu.Lock()
			backendGot = append(backendGot, buf[:n]...)
			mu.Unlock()
			lines, _, _ := corpus.ReadRequests(seen)
			for ; answered < len(lines); answered++ {
				_, _ = c.Write(answer)
			}
		}
	})}, func(cfg *serve.Config) { cfg.Loops = 1 })
	for _, c := range cases {
		switch {
		case len(c.Answer) > 0 || len(c.Send) > 32<<10:
			continue // what answers before it is asked, and bounds, are run by waypoint/http1
		case c.Name == "version-2-0":
			continue // HTTP/2 is found out before
		case c.Name == "target-dots":
			c.Want = []string{`GET /b h ""`} // paths have one form
		case len(c.Want) > 0 && strings.HasPrefix(c.Want[0], "CONNECT "):
			c.Want = []string{"refused ConnectRefused"} // TestConnectIsRefused
		}
		mu.Lock()
		backendGot = nil
		mu.Unlock()
		client := w.exchanged(c.Send, c.Then)
		mu.Lock()
		got := backendGot
		mu.Unlock()
		lines, _, err := corpus.ReadRequests(got)
		if err != nil {
			t.Errorf("%s: net/http refuses what was forwarded: %v\n%q", c.Name, err, got)
		}
		var want []string
		for _, line := range c.Want {
			switch reason, refused := strings.CutPrefix(line, "refused "); {
			case refused:
				if !strings.Contains(string(client), "X-Heddle-Reason: "+reason) && len(client) > 0 {
					t.Errorf("%s: the client gets %q, want %s", c.Name, client, reason)
				}
			case line != "waits" && !strings.HasSuffix(line, "cut off"):
				want = append(want, line)
			}
		}
		if !slices.Equal(lines, want) {
			t.Errorf("%s: the backend gets %q, want %q", c.Name, lines, want)
		}
	}
}
