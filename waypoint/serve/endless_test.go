package serve_test

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// hasty has the waypoint wait for clients for half of a second.
func hasty(cfg *serve.Config) {
	cfg.Timeouts.Header, cfg.Timeouts.Stall = 500*time.Millisecond, 500*time.Millisecond
}

// TestEndless: what of HTTP/1.1 never comes to its end is refused at its bound, or when it has taken too long, answered if there is
// something to answer, and counted with its reason.
func TestEndless(t *testing.T) {
	const post = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
	for _, c := range []struct {
		name, begin, again string
		every              time.Duration // between two of again; 0 for as fast as it goes
		status, reason     string
	}{
		{"slow loris", "GET / HTTP/1.1\r\nHost: h\r\n", "X-a: b\r\n", 50 * time.Millisecond, "", "SlowClient"},
		{"a head that stops", "GET / HTTP/1.1\r\nHost: h\r\nX-", "", 0, "", "SlowClient"},
		{"a body that stops", post + "5\r\nab", "", 0, "408", "SlowClient"},
		{"an endless head", "GET / HTTP/1.1\r\nHost: h\r\n", "X-a: " + strings.Repeat("b", 2000) + "\r\n", 0, "431", "head_too_large"},
		{"endless fields", "GET / HTTP/1.1\r\nHost: h\r\n", "X-a: b\r\n", 0, "431", "too_many_fields"},
		{"an endless field", "GET / HTTP/1.1\r\nHost: h\r\nX-a: ", strings.Repeat("b", 1000), 0, "431", "head_too_large"},
		{"an endless target", "GET /", strings.Repeat("a", 1000), 0, "414", "target_too_long"},
		{"endless empty lines", "", "\r\n", 0, "400", "empty_lines"},
		{"endless chunk extensions", post + "1", ";a=" + strings.Repeat("b", 100), 0, "413", "extensions_too_large"},
		{"chunks with an extension each", post, "1;a=bcdefgh\r\nx\r\n", 0, "413", "extensions_too_large"},
		{"a chunk's size that is endless", post, "0", 0, "400", "bad_chunk_size"},
		{"a chunk that is none", post + "z\r\n", "", 0, "400", "bad_chunk_size"},
		{"a chunk that is longer than it says", post + "1\r\nxx", "", 0, "400", "bad_chunk_end"},
		{"endless trailers", post + "0\r\n", "X-a: " + strings.Repeat("b", 500) + "\r\n", 0, "431", "trailers_too_large"},
		{"bytes that are no UTF-8 in a name", "GET / HTTP/1.1\r\nHost: h\r\nX-\xff: b\r\n\r\n", "", 0, "400", "bad_field_name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			options := []option{oneLoop}
			if c.reason == "SlowClient" {
				options = append(options, hasty)
			}
			w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, echo)}, options...)
			conn := w.dial()
			defer conn.Close()
			var got []byte
			ended := make(chan struct{})
			go func() { got, _ = io.ReadAll(conn); close(ended) }()
			_, _ = io.WriteString(conn, c.begin)
			for sent, over := 0, false; c.again != "" && !over && sent < 1<<20; {
				n, err := io.WriteString(conn, c.again)
				sent += n
				select {
				case <-ended:
					over = true
				case <-time.After(c.every):
					over = err != nil
				}
			}
			select {
			case <-ended:
			case <-time.After(10 * time.Second):
				t.Fatal("it goes on")
			}
			if c.status == "" && len(got) > 0 || c.status != "" && !strings.HasPrefix(string(got), "HTTP/1.1 "+c.status+" ") {
				t.Errorf("the answer is %q, want %q", got, c.status)
			}
			if c.status != "" && !strings.Contains(strings.ToLower(string(got)), "x-heddle-reason: "+strings.ToLower(c.reason)+"\r\n") {
				t.Errorf("the answer is %q, want the reason %s", got, c.reason)
			}
			if n := w.value("heddle_waypoint_refusals_total", "reason", c.reason); n != 1 {
				t.Errorf("%s is counted %v times", c.reason, n)
			}
		})
	}
}
