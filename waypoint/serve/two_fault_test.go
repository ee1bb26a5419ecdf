package serve_test

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// frames is a workload that is written by hand, of which each HEADERS is given to fn.
func frames(t *testing.T, fn func(f *xhttp2.Framer, id uint32, n int32) bool) *backend {
	var n atomic.Int32
	b := raw(t, "cart", cartAddr, func(c net.Conn) {
		talkFrames(c, func(f *xhttp2.Framer, id uint32) bool { return fn(f, id, n.Add(1)) })
	})
	b.port = "h2c"
	return b
}

// talkFrames is what such a workload does on a connection, until fn returns false.
func talkFrames(c net.Conn, fn func(f *xhttp2.Framer, id uint32) bool) {
	if _, err := io.ReadFull(c, make([]byte, len(http2.Preface))); err != nil {
		return
	}
	f := xhttp2.NewFramer(c, c)
	_ = f.WriteSettings()
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return
		}
		switch frame := frame.(type) {
		case *xhttp2.SettingsFrame:
			if !frame.IsAck() {
				_ = f.WriteSettingsAck()
			}
		case *xhttp2.HeadersFrame:
			if !fn(f, frame.StreamID) {
				return
			}
		}
	}
}

// ok answers a stream, with some fields.
func ok(f *xhttp2.Framer, id uint32, fields ...hpack.HeaderField) {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	_ = e.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
	for _, field := range fields {
		_ = e.WriteField(field)
	}
	_ = f.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: id, BlockFragment: b.Bytes(), EndHeaders: true, EndStream: true})
}

// TestHTTP2Unseen: what the workload says that it has not looked at is sent again, whatever the method.
func TestHTTP2Unseen(t *testing.T) {
	for name, refuse := range map[string]func(f *xhttp2.Framer, id uint32) bool{
		"REFUSED_STREAM": func(f *xhttp2.Framer, id uint32) bool {
			return f.WriteRSTStream(id, xhttp2.ErrCodeRefusedStream) == nil
		},
		"GOAWAY": func(f *xhttp2.Framer, id uint32) bool { return f.WriteGoAway(0, xhttp2.ErrCodeNo, nil) == nil },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, []*backend{frames(t, func(f *xhttp2.Framer, id uint32, n int32) bool {
				if n == 1 {
					return refuse(f, id)
				}
				ok(f, id)
				return true
			})})
			if resp, _ := w.do(w.client2(), request(t, "POST", "/", strings.NewReader("body"))); resp.StatusCode != 200 {
				t.Errorf("%d %v", resp.StatusCode, resp.Header)
			}
		})
	}
	t.Run("always", func(t *testing.T) {
		var asked atomic.Int32
		w := newWorld(t, []*backend{frames(t, func(f *xhttp2.Framer, id uint32, n int32) bool {
			asked.Store(n)
			return f.WriteRSTStream(id, xhttp2.ErrCodeRefusedStream) == nil
		})})
		if resp, _ := w.get(w.client2(), "/"); resp.StatusCode != 502 || asked.Load() > 4 {
			t.Errorf("%d after %d tries", resp.StatusCode, asked.Load())
		}
	})
	t.Run("seen", func(t *testing.T) {
		var asked atomic.Int32
		w := newWorld(t, []*backend{frames(t, func(f *xhttp2.Framer, id uint32, n int32) bool { asked.Store(n); return false })})
		resp, _ := w.do(w.client2(), request(t, "POST", "/", strings.NewReader("body")))
		if resp.StatusCode != 502 || resp.Header.Get("X-Heddle-Reason") != "BackendReset" || asked.Load() != 1 {
			t.Errorf("%d %v after %d tries", resp.StatusCode, resp.Header, asked.Load())
		}
	})
}

// TestHTTP2Storm: a workload that sheds load by refusing all streams, or by leaving, gets no more than the budget on top of it; who asked
// is told why.
func TestHTTP2Storm(t *testing.T) {
	for name, refuse := range map[string]func(f *xhttp2.Framer, id uint32) bool{
		"REFUSED_STREAM": func(f *xhttp2.Framer, id uint32) bool {
			return f.WriteRSTStream(id, xhttp2.ErrCodeRefusedStream) == nil
		},
		"GOAWAY": func(f *xhttp2.Framer, id uint32) bool {
			_ = f.WriteGoAway(0, xhttp2.ErrCodeNo, nil)
			return false
		},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32
			w := newWorld(t, []*backend{frames(t, func(f *xhttp2.Framer, id uint32, _ int32) bool {
				asked.Add(1)
				return refuse(f, id)
			})}, func(cfg *serve.Config) { cfg.Loops = 1 })
			began, requests := time.Now(), 500
			var all sync.WaitGroup
			for range 10 {
				c := w.client2()
				all.Go(func() {
					for range requests / 10 {
						resp, err := c.Do(request(t, "GET", "/", nil))
						if err != nil {
							t.Error(err)
							return
						}
						if reason := resp.Header.Get("X-Heddle-Reason"); resp.StatusCode != 502 || reason != "reset_by_peer" && reason != "peer_gone_away" {
							t.Errorf("%d %v", resp.StatusCode, resp.Header)
						}
						_ = resp.Body.Close()
					}
				})
			}
			all.Wait()
			most := float64(requests)*1.2 + 10 + 2*time.Since(began).Seconds() + 1
			if n := asked.Load(); float64(n) > most || name != "GOAWAY" && n < int32(requests) {
				t.Errorf("%d requests became %d, want at most %.0f", requests, n, most)
			}
			if w.value("heddle_waypoint_retries_total", "outcome", "budget_spent") == 0 {
				t.Error("nothing says that the budget was spent")
			}
		})
	}
}

// TestHTTP2Faults: workloads that are not there, are late, or break off, of either version.
func TestHTTP2Faults(t *testing.T) {
	handle := func(out http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/half":
			_, _ = out.Write(make([]byte, 100<<10))
			panic(http.ErrAbortHandler)
		case "/late":
			select {
			case <-r.Context().Done():
			case <-time.After(5 * time.Second):
			}
		}
	}
	for name, b := range map[string]*backend{"one": serving(t, "cart", cartAddr, 1, handle), "two": serving2(t, "cart", cartAddr, 1, nil, handle)} {
		t.Run(name, func(t *testing.T) {
			b.workloads = append(b.workloads, workloadAddress()) // nobody listens there
			w := newWorld(t, []*backend{b})
			rule := toBackend("cart")
			rule.BackendTimeout = 500 * time.Millisecond
			w.routes = routed(rule)
			w.set()
			c := w.client2()
			for range 10 {
				if resp, _ := w.get(c, "/"); resp.StatusCode != 200 {
					t.Errorf("%d %v", resp.StatusCode, resp.Header)
				}
			}
			resp, err := c.Do(request(t, "GET", "/half", nil))
			if err != nil {
				t.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, resp.Body); err == nil {
				t.Errorf("what breaks off looks whole: %d bytes", n)
			}
			if resp, _ := w.get(c, "/late"); resp.StatusCode != 504 || resp.Header.Get("X-Heddle-Reason") != "Timeout" {
				t.Errorf("late: %d %v", resp.StatusCode, resp.Header)
			}
			resp, _ = w.do(c, request(t, "POST", "/late", nil, "content-type", "application/grpc"))
			if name == "two" && resp.Header.Get("Grpc-Status") != "4" {
				t.Errorf("late call: %v", resp.Header)
			}
		})
	}
}

// TestHTTP2Room: no more streams than a workload takes on one connection; what is more goes on others.
func TestHTTP2Room(t *testing.T) {
	var now, most atomic.Int32
	b := listening(t, "cart", cartAddr, 1, func(l net.Listener, _ int) func() {
		p := new(http.Protocols)
		p.SetUnencryptedHTTP2(true)
		s := &http.Server{Protocols: p, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 2}, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			most.Store(max(most.Load(), now.Add(1)))
			time.Sleep(20 * time.Millisecond)
			now.Add(-1)
		})}
		go func() { _ = s.Serve(l) }()
		return func() { _ = s.Close() }
	})
	b.port = "h2c-x"
	w := newWorld(t, []*backend{b})
	c := w.client2()
	w.get(c, "/") // its settings are known
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			resp, err := c.Do(request(t, "POST", "/", strings.NewReader("x")))
			if err != nil || resp.StatusCode != 200 {
				t.Errorf("%v %v", resp, err)
				return
			}
			_ = resp.Body.Close()
		})
	}
	all.Wait()
	if most.Load() < 3 {
		t.Errorf("%d requests at a time, of 10", most.Load())
	}
}

// TestHTTP2BackPressure: what one end does not take is not read from the other, and stalls no other stream.
func TestHTTP2BackPressure(t *testing.T) {
	const size = 16 << 20
	for name, make := range map[string]func(http.HandlerFunc) *backend{
		"one": func(h http.HandlerFunc) *backend { return serving(t, "cart", cartAddr, 1, h) },
		"two": func(h http.HandlerFunc) *backend { return serving2(t, "cart", cartAddr, 1, nil, h) },
	} {
		t.Run(name, func(t *testing.T) {
			open := map[string]chan struct{}{"/up": make2(), "/down": make2()}
			w := newWorld(t, []*backend{make(func(out http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/up":
					<-open["/up"]
					n, _ := io.Copy(io.Discard, r.Body)
					if n != size {
						out.WriteHeader(400)
					}
				case "/down":
					_, _ = io.Copy(out, io.LimitReader(zeros{}, size))
				}
			})})
			c := w.client2()
			var all sync.WaitGroup
			all.Go(func() {
				resp, err := c.Do(request(t, "POST", "/up", io.LimitReader(zeros{}, size)))
				if err != nil || resp.StatusCode != 200 {
					t.Errorf("up: %v %v", resp, err)
					return
				}
				_ = resp.Body.Close()
			})
			all.Go(func() {
				resp, err := c.Do(request(t, "GET", "/down", nil))
				if err != nil {
					t.Error(err)
					return
				}
				<-open["/down"]
				if n, err := io.Copy(io.Discard, resp.Body); n != size || err != nil {
					t.Errorf("down: %d, %v", n, err)
				}
			})
			time.Sleep(1500 * time.Millisecond)
			if n := w.gauge("heddle_waypoint_buffered_bytes"); n > 1<<20 {
				t.Errorf("%v bytes are held for two streams that are stalled", n)
			}
			if resp, _ := w.get(c, "/"); resp.StatusCode != 200 {
				t.Errorf("a third stream: %d", resp.StatusCode)
			}
			close(open["/up"])
			close(open["/down"])
			all.Wait()
		})
	}
}

func make2() chan struct{} { return make(chan struct{}) }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestHTTP2Drain: a stop loses no request, of those that come while it is under way either. The clients send each once, and
// go on until nobody accepts a connection of theirs: they hear of the stop by the GOAWAY alone.
func TestHTTP2Drain(t *testing.T) {
	w := newWorld(t, []*backend{serving2(t, "cart", cartAddr, 1, nil, func(out http.ResponseWriter, r *http.Request) {
		time.Sleep(30 * time.Millisecond)
		echo(out, r)
	})}, func(cfg *serve.Config) { cfg.Timeouts.DrainIdle = 10 * time.Second }) // the clients' PINGs are waited for
	var all sync.WaitGroup
	var begun atomic.Bool
	var served, late atomic.Int32
	for i := range 8 {
		c := w.once(true, w.connect)
		for range 4 {
			all.Go(func() {
				for time.Sleep(time.Duration(i) * time.Millisecond); ; {
					asked := begun.Load()
					resp, got, fresh, err := c.ask("POST", "x")
					if err != nil {
						if !begun.Load() || !fresh { // else by the listener, which is closed
							testenv.ForGood(t, "a request is lost: %v", err)
						}
						return
					}
					if resp.StatusCode != 200 || got != "POST 1" {
						testenv.ForGood(t, "a request is lost: %d %q", resp.StatusCode, got)
						return
					}
					served.Add(1)
					if asked {
						late.Add(1)
					}
				}
			})
		}
	}
	time.Sleep(300 * time.Millisecond)
	began := time.Now()
	begun.Store(true)
	w.stop()
	all.Wait()
	if served.Load() < 32 || time.Since(began) > 10*time.Second {
		t.Errorf("%d requests, and a stop of %v", served.Load(), time.Since(began))
	}
	t.Logf("%d requests were answered, %d that were begun after the stop was", served.Load(), late.Load())
}

// TestHTTP2Times: a client that does not acknowledge SETTINGS, or idles, is ended in good order.
func TestHTTP2Times(t *testing.T) {
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, echo)}, func(cfg *serve.Config) {
		cfg.Timeouts.Header, cfg.Timeouts.Idle, cfg.Timeouts.DrainIdle = 300*time.Millisecond, 500*time.Millisecond, 200*time.Millisecond
	})
	silent := w.dial()
	defer silent.Close()
	_, _ = io.WriteString(silent, http2.Preface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	if got, err := io.ReadAll(silent); err != nil || !bytes.Contains(got, []byte("\x07\x00\x00\x00\x00\x00")) {
		t.Errorf("without an acknowledgement: %q, %v; want a GOAWAY", got, err)
	}
	c := w.client2()
	w.get(c, "/")
	eventually(t, "a connection that idles ends", func() bool { return w.server.Connections() == 0 })
	if resp, _ := w.get(c, "/"); resp.StatusCode != 200 {
		t.Error(resp.StatusCode)
	}
}
