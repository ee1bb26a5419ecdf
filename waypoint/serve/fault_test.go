package serve_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// TestBackendFaults: what a workload does wrong ends in an answer with a reason, or, when an answer has begun, in
// a reset: never in one that looks whole.
func TestBackendFaults(t *testing.T) {
	w := newWorld(t, []*backend{raw(t, "cart", cartAddr, func(c net.Conn) {
		in := bufio.NewReader(c)
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		switch req.URL.Path {
		case "/silent":
		case "/reset":
			_ = c.(*net.TCPConn).SetLinger(0)
		case "/garbage":
			_, _ = io.WriteString(c, "what?\r\n\r\n")
		case "/half":
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
		case "/chunks":
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
		case "/twice":
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
			time.Sleep(50 * time.Millisecond)
		}
	})})
	c := w.client()
	for path, want := range map[string]string{"/silent": "BackendReset", "/reset": "BackendReset", "/garbage": "bad_status_line"} {
		if resp, _ := w.do(c, request(t, "POST", path, strings.NewReader("x"))); resp.StatusCode != 502 || resp.Header.Get("X-Heddle-Reason") != want {
			t.Errorf("%s: %d %v", path, resp.StatusCode, resp.Header)
		}
	}
	for _, path := range []string{"/half", "/chunks"} {
		resp, err := c.Do(request(t, "GET", path, nil))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if b, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%s looks whole: %q", path, b)
		}
	}
	for range 5 { // what a backend says unasked is nobody's answer
		if _, body := w.get(c, "/twice"); body != "hello" {
			t.Fatalf("an answer is %q", body)
		}
	}
}

// TestStale: a connection that the backend ends between two requests costs none.
func TestStale(t *testing.T) {
	var connections atomic.Int64
	w := newWorld(t, []*backend{raw(t, "cart", cartAddr, func(c net.Conn) {
		connections.Add(1)
		in := bufio.NewReader(c)
		if _, err := http.ReadRequest(in); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") // and ends, without a word
	})})
	c := w.client()
	for i := range 200 {
		if resp, body := w.get(c, "/"); resp.StatusCode != 200 || body != "ok" {
			t.Fatalf("request %d: %d %v", i, resp.StatusCode, resp.Header)
		}
	}
	if n := connections.Load(); n < 200 {
		t.Errorf("%d connections for 200 requests", n)
	}
}

// TestSlowReader: what a client does not take is not read from the backend: memory is bounded, other clients go on,
// and all of it arrives at last.
func TestSlowReader(t *testing.T) {
	const size = 64 << 20
	var sent atomic.Int64
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, func(out http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/large" {
			return
		}
		out.Header().Set("Content-Length", fmt.Sprint(size))
		block := make([]byte, 64<<10)
		for range size / len(block) {
			n, err := out.Write(block)
			if sent.Add(int64(n)); err != nil {
				return
			}
		}
	})}, func(cfg *serve.Config) { cfg.Loops = 1 })
	c := w.dial()
	defer c.Close()
	_, _ = io.WriteString(c, "GET /large HTTP/1.1\r\nHost: h\r\n\r\n")
	last := int64(-1)
	eventually(t, "the backend stops", func() bool {
		time.Sleep(200 * time.Millisecond)
		before := last
		last = sent.Load()
		return last > 0 && last == before
	})
	if last > size/2 {
		t.Errorf("the backend could send %d bytes that nobody reads", last)
	}
	if resp, _ := w.get(w.client(), "/"); resp.StatusCode != 200 {
		t.Errorf("others wait: %d", resp.StatusCode)
	}
	eventually(t, "few bytes are held", func() bool { n := w.gauge("heddle_waypoint_buffered_bytes"); return n > 0 && n < 256<<10 })
	if _, body := readResponse(t, bufio.NewReader(c), "GET"); len(body) != size {
		t.Errorf("%d bytes arrive, want %d", len(body), size)
	}
}

// TestSlowBackend: what a backend does not take is not read from the client.
func TestSlowBackend(t *testing.T) {
	const size = 64 << 20
	release := make(chan struct{})
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, func(out http.ResponseWriter, r *http.Request) {
		<-release
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(out, n)
	})})
	var taken atomic.Int64
	var all sync.WaitGroup
	c := w.dial()
	defer c.Close()
	all.Go(func() {
		fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", size)
		block := make([]byte, 64<<10)
		for range size / len(block) {
			n, err := c.Write(block)
			if taken.Add(int64(n)); err != nil {
				return
			}
		}
	})
	last := int64(-1)
	eventually(t, "the client stops", func() bool {
		time.Sleep(200 * time.Millisecond)
		before := last
		last = taken.Load()
		return last > 0 && last == before
	})
	if last > size/2 {
		t.Errorf("%d bytes were taken that nobody reads", last)
	}
	close(release)
	all.Wait()
	if _, body := readResponse(t, bufio.NewReader(c), "POST"); body != fmt.Sprint(size) {
		t.Errorf("the backend got %s bytes", body)
	}
}

// TestOverload: beyond the bounds requests are answered at once, and connections refused; below, all goes on.
func TestOverload(t *testing.T) {
	release := make(chan struct{})
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, func(http.ResponseWriter, *http.Request) { <-release })},
		func(cfg *serve.Config) { cfg.Loops, cfg.Limits.Requests, cfg.Limits.Connections = 1, 5, 8 })
	statuses := make(chan int, 20)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			c := w.dial()
			defer c.Close()
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				statuses <- 0
				return
			}
			statuses <- resp.StatusCode
			<-release
		})
	}
	for range 3 {
		if s := <-statuses; s != 503 {
			t.Errorf("beyond the bound: %d", s)
		}
	}
	c, err := w.connect()
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("a ninth connection is served: %v", err)
		}
		_ = c.Close()
	}
	close(release)
	all.Wait()
	for range 5 {
		if s := <-statuses; s != 200 {
			t.Errorf("within the bound: %d", s)
		}
	}
}

// traffic makes requests all the time, until end, by clients of both versions that send each once, and tells of those
// that fail.
func traffic(t *testing.T, w *world, method string, clients int) (end func() (made int64)) {
	t.Helper()
	var all sync.WaitGroup
	var made atomic.Int64
	stop := make(chan struct{})
	for i := range clients {
		c := w.once(i%2 == 1, w.connect)
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				body := map[string]string{"POST": "body"}[method]
				resp, got, _, err := c.ask(method, body)
				if err != nil || resp.StatusCode != 200 || got != fmt.Sprint(method, " ", len(body)) {
					testenv.ForGood(t, "a request failed: %v, %q, %v", resp, got, err)
					return
				}
				made.Add(1)
			}
		})
	}
	return func() int64 { close(stop); all.Wait(); return made.Load() }
}

// TestReload: configurations that change under traffic take effect with the next request, and cost none.
func TestReload(t *testing.T) {
	a, b := serving(t, "cart", cartAddr, 2, echo), serving(t, "other", cartAddr.Next(), 2, echo)
	w := newWorld(t, []*backend{a, b})
	end := traffic(t, w, "POST", 8)
	c := w.client()
	for i := range 100 {
		name := []string{"cart", "other"}[i%2]
		w.routes = routed(toBackend(name))
		if i%10 == 0 { // workloads come and go, too
			w.backends = []*backend{a, b, {name: fmt.Sprint("gone-", i), address: cartAddr.Next().Next(), target: 80}}
		}
		w.set()
		if resp, _ := w.get(c, "/"); !strings.HasPrefix(resp.Header.Get("X-Workload"), name) {
			t.Fatalf("the next request goes to %s, want %s", resp.Header.Get("X-Workload"), name)
		}
	}
	if n := end(); n < 100 {
		t.Errorf("only %d requests were made", n)
	}
}

// TestDrain: what is under way when the waypoint is told to stop is answered, and clients are told.
func TestDrain(t *testing.T) {
	began, release := make(chan struct{}, 100), make(chan struct{})
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 2, func(out http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		<-release
		echo(out, r)
	})})
	idle := w.dial()
	defer idle.Close()
	answers := make(chan string, 20)
	for range 20 {
		c := w.dial()
		defer c.Close()
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
		go func() {
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				answers <- err.Error()
				return
			}
			_, err = io.ReadAll(resp.Body)
			answers <- fmt.Sprint(resp.StatusCode, resp.Close, err)
		}()
	}
	for range 20 {
		<-began
	}
	stopped := make(chan struct{})
	go func() { w.stop(); close(stopped) }()
	eventually(t, "no more is accepted", func() bool {
		c, err := net.DialTCP("tcp", nil, w.at)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	time.Sleep(50 * time.Millisecond) // all loops have been told
	close(release)
	for range 20 {
		if got := <-answers; got != "200 true <nil>" {
			t.Errorf("an answer while draining is %s", got)
		}
	}
	select {
	case <-stopped:
	case <-time.After(10 * time.Second):
		t.Error("an idle connection keeps the waypoint")
	}
}

// TestWorkloadDies: a workload that dies under traffic costs idempotent requests nothing.
func TestWorkloadDies(t *testing.T) {
	doomed := serving(t, "doomed", cartAddr.Next(), 1, echo)
	var listeners []net.Listener
	b := listening(t, "cart", cartAddr, 2, func(l net.Listener, i int) func() {
		listeners = append(listeners, l)
		s := &http.Server{Handler: http.HandlerFunc(echo)}
		go func() { _ = s.Serve(l) }()
		if i == 0 {
			return func() { _ = s.Close() }
		}
		time.AfterFunc(300*time.Millisecond, func() { _ = s.Close() })
		return func() {}
	})
	w := newWorld(t, []*backend{b, doomed})
	rule := toBackend("cart")
	rule.Retry = &route.Retry{Attempts: 3, Backoff: time.Millisecond}
	w.routes = routed(rule)
	w.set()
	end := traffic(t, w, "GET", 4)
	time.Sleep(time.Second)
	if n := end(); n < 30 {
		t.Errorf("only %d requests were made", n)
	}
}

// TestClientGone: a client that goes away takes its request along.
func TestClientGone(t *testing.T) {
	gone := make(chan struct{}, 1)
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, func(out http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/silent" {
			<-r.Context().Done()
		}
		for r.Context().Err() == nil {
			_, _ = io.WriteString(out, strings.Repeat("x", 1000))
			out.(http.Flusher).Flush()
			time.Sleep(time.Millisecond)
		}
		gone <- struct{}{}
	})})
	for _, path := range []string{"/", "/silent"} {
		c := w.dial().(*net.TCPConn)
		_, _ = io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: h\r\n\r\n")
		if path == "/" {
			_, _ = io.ReadFull(c, make([]byte, 10_000))
		} else {
			eventually(t, "the request is there", func() bool { return w.gauge("heddle_waypoint_active_requests") == 1 })
		}
		_ = c.SetLinger(0)
		_ = c.Close()
		select {
		case <-gone:
		case <-time.After(10 * time.Second):
			t.Errorf("%s: the backend still works for a client that is gone", path)
		}
	}
}
