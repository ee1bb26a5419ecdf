package serve_test

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// TestPipelinedTurns: one client that pipelines does not hold up the others of its loop.
func TestPipelinedTurns(t *testing.T) {
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, echo)}, oneLoop)
	w.routes = routed(route.Rule{Name: "all", Filters: []route.Filter{{Redirect: &route.Redirect{Hostname: "x", Status: 302}}}})
	w.set()
	one := w.client()
	w.get(one, "/")
	a := w.dial()
	go func() { _, _ = io.Copy(io.Discard, a) }()
	go func() {
		block := bytes.Repeat([]byte("GET / HTTP/1.1\r\nHost: h\r\n\r\n"), 8192)
		for {
			if _, err := a.Write(block); err != nil {
				return
			}
		}
	}()
	time.Sleep(300 * time.Millisecond)
	best := time.Hour // of a few: the machine may have other work
	for range 10 {
		began := time.Now()
		w.get(one, "/")
		best = min(best, time.Since(began))
	}
	if best > 40*time.Millisecond {
		t.Errorf("another client waited for %v", best)
	}
	_ = a.Close()
}

// TestHeldHeads: heads that are not whole are bytes that are held.
func TestHeldHeads(t *testing.T) {
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, echo)})
	w.routes = routed(toBackend("cart"))
	w.set()
	for range 50 {
		a := w.dial()
		defer a.Close()
		_, _ = io.WriteString(a, "GET / HTTP/1.1\r\nHost: h\r\n"+strings.Repeat("x-a: "+strings.Repeat("y", 6000)+"\r\n", 10))
	}
	time.Sleep(1500 * time.Millisecond)
	if held := w.gauge("heddle_waypoint_buffered_bytes"); held < 50*60_000 {
		t.Errorf("50 heads of 60 KB: %v bytes are held", held)
	}
}

// TestFullOfHeads: beyond the bound of bytes, heads that are not whole end, and it can be asked again.
func TestFullOfHeads(t *testing.T) {
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, echo)}, oneLoop, func(cfg *serve.Config) { cfg.Limits.Bytes = 1 << 20 })
	w.routes = routed(toBackend("cart"))
	w.set()
	for range 50 {
		a := w.dial()
		defer a.Close()
		_, _ = io.WriteString(a, "GET / HTTP/1.1\r\nHost: h\r\n"+strings.Repeat("x-a: "+strings.Repeat("y", 6000)+"\r\n", 10))
	}
	eventually(t, "some are refused", func() bool { return w.value("heddle_waypoint_refusals_total", "reason", "Overloaded") > 10 })
	if n := w.server.Connections(); n > 40 {
		t.Errorf("%d connections with 60 KB each are there", n)
	}
}

// TestRefusalOfGRPCIsCounted: a refusal that gRPC has as a 200 is no success in metrics and log.
func TestRefusalOfGRPCIsCounted(t *testing.T) {
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, echo)})
	w.routes = routed(route.Rule{Name: "none", Matches: []route.Match{{Path: route.PathMatch{Value: "/x"}}}})
	w.set()
	if resp, _ := w.do(w.client(), request(t, "POST", "/other", strings.NewReader("x"), "content-type", "application/grpc")); resp.StatusCode != 200 || resp.Header.Get("Grpc-Status") != "12" {
		t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	eventually(t, "it is in the log", func() bool { return strings.Contains(w.log.String(), `"status":404`) })
}
