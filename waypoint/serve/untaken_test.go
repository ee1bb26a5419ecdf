package serve_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// holds watches what is held until it is over, and returns the most.
func (w *world) holds(over func() bool) (most float64) {
	w.t.Helper()
	eventually(w.t, "it ends", func() bool {
		most = max(most, w.gauge("heddle_waypoint_buffered_bytes"))
		return over()
	})
	return most
}

// TestNobodyTakes: of a client that asks and takes no answer little is held (docs/waypoint.md, Bounds), and it ends when it has taken
// nothing for as long as it may.
func TestNobodyTakes(t *testing.T) {
	// What waits and what was read at once, of HTTP/2 of the stream and of the connection, and heads.
	const clients, size, each = 8, 64 << 20, 5 * 64 << 10
	for _, c := range []struct {
		name string
		ask  func(w *world) net.Conn
	}{
		{"HTTP/1.1, one answer", func(w *world) net.Conn {
			conn := w.dial()
			_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
			return conn
		}},
		{"HTTP/1.1, one answer after the other", func(w *world) net.Conn {
			conn := w.dial()
			_, _ = conn.Write(bytes.Repeat([]byte("GET /page HTTP/1.1\r\nHost: h\r\n\r\n"), 1000)) // 64 MB of pages
			return conn
		}},
		{"HTTP/2", func(w *world) net.Conn {
			f := w.silent()
			f.ask(1, "GET")
			_ = f.send()
			return f.conn
		}},
	} {
		for version, b := range bothVersions(t, size) {
			t.Run(c.name+" to "+version, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, []*backend{b}, oneLoop, func(cfg *serve.Config) { cfg.Timeouts.Stall = 1500 * time.Millisecond })
				for range clients {
					conn := c.ask(w)
					t.Cleanup(func() { _ = conn.Close() })
				}
				held := w.holds(func() bool { return w.value("heddle_waypoint_refusals_total", "reason", "SlowClient") >= clients })
				if held == 0 || held > clients*each {
					t.Errorf("%v bytes are held for %d clients", held, clients)
				}
				eventually(t, "all have ended", func() bool { return w.server.Connections() == 0 })
				if resp, _ := w.get(w.client(), "/empty"); resp.StatusCode != 200 {
					t.Errorf("another client gets %d", resp.StatusCode)
				}
			})
		}
	}
}

// bothVersions are workloads that answer with so many bytes, or with a page, or with nothing.
func bothVersions(t *testing.T, size int64) map[string]*backend {
	handle := func(out http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/":
			_, _ = io.Copy(out, io.LimitReader(zeros{}, size))
		case "/page":
			out.Header().Set("Content-Length", fmt.Sprint(64<<10))
			_, _ = io.Copy(out, io.LimitReader(zeros{}, 64<<10))
		}
	}
	return map[string]*backend{"HTTP/1.1": serving(t, "cart", cartAddr, 1, handle), "HTTP/2": serving2(t, "cart", cartAddr, 1, nil, handle)}
}

// silent is a client whose windows are wide open, and that reads nothing.
func (w *world) silent() *flooder {
	f := w.unread()
	_ = f.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 1<<31 - 1})
	_ = f.WriteSettingsAck()
	_ = f.WriteWindowUpdate(0, 1<<31-1-1<<16)
	return f
}

// TestWindowThatStaysClosed: the client of a stream may say by its window that it takes nothing, and be alive: the stream ends, and
// the connection goes on, with those streams of which something is taken.
func TestWindowThatStaysClosed(t *testing.T) {
	const streams, stall = 20, 1500 * time.Millisecond
	for version, b := range bothVersions(t, 1<<20) {
		for name, window := range map[string]uint32{"of streams": 0, "of the connection": 1 << 20} {
			t.Run(name+", to "+version, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, []*backend{b}, oneLoop, func(cfg *serve.Config) { cfg.Timeouts.Stall = stall })
				f := w.flooding(window)
				for n := range uint32(streams) {
					f.ask(2*n+1, "GET")
				}
				if err := f.send(); err != nil {
					t.Fatal(err)
				}
				slow, end := sync.WaitGroup{}, make(chan struct{})
				if window == 0 {
					slow.Go(func() { // the first one takes a little
						for {
							select {
							case <-end:
								return
							case <-time.After(stall / 8):
								_ = f.WriteWindowUpdate(1, 100)
								_ = f.send()
							}
						}
					})
				}
				ended, want := 0, streams
				if window == 0 {
					want--
				}
				held := w.holds(func() bool {
					select {
					case code := <-f.resets:
						if ended++; code != xhttp2.ErrCodeEnhanceYourCalm {
							t.Errorf("a stream is reset with %v", code)
						}
					default:
					}
					return ended == want
				})
				if held == 0 || held > streams*2*64<<10 {
					t.Errorf("%v bytes are held for %d streams", held, streams)
				}
				time.Sleep(stall)
				close(end)
				slow.Wait()
				if n := w.value("heddle_waypoint_refusals_total", "reason", "SlowClient"); n != float64(want) || len(f.resets) > 0 || f.heard.Load() {
					t.Errorf("%v are counted, want %d; %d more are reset, GOAWAY %v", n, want, len(f.resets), f.heard.Load())
				}
				for range streams {
					if got := f.answered(t); got != "200" {
						t.Errorf("a stream was answered with %s", got)
					}
				}
				f.ask(2*streams+1, "HEAD")
				_ = f.send()
				if got := f.answered(t); got != "200" {
					t.Errorf("the next stream gets %s", got)
				}
			})
		}
	}
}
