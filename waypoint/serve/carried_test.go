package serve_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// serving12 is serving, of workloads that speak both versions, and say which one they were asked in.
func serving12(t testing.TB, name string, address netip.Addr, handle http.HandlerFunc) *backend {
	t.Helper()
	return listening(t, name, address, 1, func(l net.Listener, _ int) func() {
		p := new(http.Protocols)
		p.SetUnencryptedHTTP2(true)
		p.SetHTTP1(true)
		s := &http.Server{Protocols: p, Handler: http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
			out.Header().Set("X-Proto", r.Proto)
			handle(out, r)
		})}
		go func() { _ = s.Serve(l) }()
		return func() { _ = s.Close() }
	})
}

// TestProtocolOfPort: what the service says of its port decides in which version workloads are asked, whatever the client
// speaks; where it says nothing, calls of gRPC that came in HTTP/2 go on so, and all else in HTTP/1.1.
func TestProtocolOfPort(t *testing.T) {
	b := serving12(t, "cart", cartAddr, echo)
	w := newWorld(t, []*backend{b})
	old, two := w.client(), w.client2()
	for _, c := range []struct {
		port, app           string
		old, request, calls int
	}{
		{"http", "", 1, 1, 2}, {"web", "", 1, 1, 2}, {"grpc-web", "", 1, 1, 2}, {"http2", "", 2, 2, 2}, {"grpc", "", 2, 2, 2}, {"grpc-api", "", 2, 2, 2}, {"h2c", "", 2, 2, 2},
		{"web", "kubernetes.io/h2c", 2, 2, 2}, {"tcp", "kubernetes.io/h2c", 2, 2, 2}, {"grpc", "kubernetes.io/ws", 1, 1, 1}, {"grpc", "http", 1, 1, 2}, {"", "grpc", 2, 2, 2}, {"", "example.com/own", 1, 1, 2},
	} {
		b.port, b.app = c.port, c.app
		w.set() // on connections that are there
		for _, asked := range []struct {
			client *http.Client
			kind   string
			want   int
		}{{old, "text/plain", c.old}, {two, "text/plain", c.request}, {two, "application/grpc-web+proto", c.request}, {two, "application/grpc+proto", c.calls}, {two, "application/grpc", c.calls}} {
			resp, body := w.do(asked.client, request(t, "POST", "/x", strings.NewReader("hello"), "Content-Type", asked.kind))
			if got := fmt.Sprintf("%d %s %s", resp.StatusCode, body, resp.Header.Get("X-Proto")); got != fmt.Sprintf("200 POST 5 HTTP/%d.%d", asked.want, 2-asked.want) {
				t.Errorf("name %q, appProtocol %q, %s: %s, want HTTP/%d", c.port, c.app, asked.kind, got, asked.want)
			}
		}
	}
	b.port, b.app = "http", "kubernetes.io/wss" // TLS of the application's own: bytes as they are
	w.set()
	c := w.dial()
	defer c.Close()
	_, _ = io.WriteString(c, "GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
	if resp, _ := readResponse(t, bufio.NewReader(c), "GET"); resp.Header.Get("Got-X-Forwarded-For") != "" {
		t.Errorf("wss was read as HTTP: %v", resp.Header)
	}
}

// TestOldClients: requests of every size, many at once, by HTTP/1.1 to workloads that speak nothing but HTTP/2.
func TestOldClients(t *testing.T) {
	var conns atomic.Int32
	w := newWorld(t, []*backend{serving2(t, "cart", cartAddr, 2, &conns, func(out http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		out.Header().Set("X-For", r.Header.Get("X-Forwarded-For"))
		out.Header().Set("X-Length", fmt.Sprint(r.ContentLength))
		out.Header().Set("X-Sum", r.Trailer.Get("X-Sum"))
		out.Header().Set("X-Connection", r.Header.Get("Connection")+r.Header.Get("Keep-Alive"))
		if r.URL.Path == "/chunks" {
			out.Header().Set("Trailer", "X-End")
			_ = http.NewResponseController(out).Flush()
		}
		_, _ = out.Write(body)
		out.Header().Set("X-End", "end")
	})})
	c := w.client()
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			for i := range 12 {
				body := make([]byte, []int{0, 1, 100, 16 << 10, 70_000, 300_000}[(n+i)%6])
				_, _ = rand.Read(body)
				req := request(t, "POST", []string{"/whole", "/chunks"}[i%2], io.NopCloser(bytes.NewReader(body)), "Keep-Alive", "x")
				want := "-1"
				if n%2 == 0 {
					req.ContentLength, want = int64(len(body)), fmt.Sprint(len(body))
					req.Header.Set("X-Forwarded-For", "6.6.6.6")
				} else {
					req.Trailer = http.Header{"X-Sum": {"sum"}}
				}
				resp, err := c.Do(req)
				if err != nil {
					t.Errorf("post %d bytes: %v", len(body), err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				if err != nil || !bytes.Equal(got, body) {
					t.Errorf("%d bytes came back as %d, %v", len(body), len(got), err)
				}
				h := resp.Header
				if resp.ProtoMajor != 1 || h.Get("X-Proto") != "HTTP/2.0" || h.Get("X-For") != "10.1.2.3" || h.Get("X-Connection") != "" || n%2 == 0 && len(body) > 0 && h.Get("X-Length") != want || n%2 == 1 && h.Get("X-Sum") != "sum" {
					t.Errorf("the answer is %s %v", resp.Proto, h)
				}
				if i%2 == 1 && resp.Trailer.Get("X-End") != "end" {
					t.Errorf("the trailers are %v", resp.Trailer)
				}
			}
		})
	}
	all.Wait()
	eventually(t, "96 requests are counted", func() bool { return w.value("heddle_waypoint_requests_total", "", "") == 96 })
	eventually(t, "the access log has the workloads", func() bool { return strings.Contains(w.log.String(), `"workload":"shop/cart-`) })
	if n := conns.Load(); n < 1 || n > 4 {
		t.Errorf("%d connections to two workloads, of two loops", n)
	}
}

// TestOldClientKinds: what is particular to a method, a status or a version, in its order on one connection.
func TestOldClientKinds(t *testing.T) {
	w := newWorld(t, []*backend{serving2(t, "cart", cartAddr, 1, nil, func(out http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/204":
			out.WriteHeader(204)
		case "/304":
			out.WriteHeader(304)
		case "/hints":
			out.Header().Set("Link", "</a>; rel=preload")
			out.WriteHeader(103)
			_, _ = io.WriteString(out, "late")
		case "/early":
			out.WriteHeader(413)
		default:
			body, _ := io.ReadAll(r.Body)
			out.Header().Set("Content-Length", fmt.Sprint(len(r.Method)+len(body)))
			_, _ = io.WriteString(out, r.Method+string(body))
		}
	})})
	c := w.dial()
	defer c.Close()
	in := bufio.NewReader(c)
	ask := func(text, method string, status int, want string) *http.Response {
		t.Helper()
		_, _ = io.WriteString(c, text)
		resp, body := readResponse(t, in, method)
		if resp.StatusCode != status || body != want {
			t.Errorf("%q: %d %q, want %d %q", text, resp.StatusCode, body, status, want)
		}
		return resp
	}
	ask("GET /a HTTP/1.1\r\nHost: h\r\n\r\n", "GET", 200, "GET")
	if resp := ask("HEAD /a HTTP/1.1\r\nHost: h\r\n\r\n", "HEAD", 200, ""); resp.ContentLength != 4 {
		t.Errorf("HEAD has a length of %d", resp.ContentLength)
	}
	ask("GET /204 HTTP/1.1\r\nHost: h\r\n\r\n", "GET", 204, "")
	ask("GET /304 HTTP/1.1\r\nHost: h\r\n\r\n", "GET", 304, "")
	ask("GET /hints HTTP/1.1\r\nHost: h\r\n\r\n", "GET", 103, "")
	ask("", "GET", 200, "late")
	ask("PUT /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "PUT", 200, "PUTabc")
	ask("PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\nHost: h\r\n\r\n", "PUT", 200, "PUTabc") // two in one
	ask("", "GET", 200, "GET")
	ask("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n", "POST", 100, "")
	ask("abc", "POST", 200, "POSTabc")
	for range 3 { // as one stream after the other
		ask("GET /a HTTP/1.1\r\nHost: h\r\n\r\n", "GET", 200, "GET")
	}
	ask("POST /early HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\nx", "POST", 413, "")
	if b, err := in.ReadByte(); err != io.EOF { // what is left of the request is not waited for, nor read as the next one
		t.Errorf("behind an early answer: %q, %v", b, err)
	}
	last := w.dial()
	defer last.Close()
	_, _ = io.WriteString(last, "GET /a HTTP/1.0\r\nHost: h\r\n\r\n")
	if got, err := io.ReadAll(last); err != nil || !bytes.HasSuffix(got, []byte("\r\n\r\nGET")) {
		t.Errorf("HTTP/1.0: %q, %v", got, err)
	}
}

// TestOldClientStreams: both directions flow at once: a part of the request, a part of the response.
func TestOldClientStreams(t *testing.T) {
	w := newWorld(t, []*backend{serving2(t, "cart", cartAddr, 1, nil, func(out http.ResponseWriter, r *http.Request) {
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			_, _ = out.Write(buf[:n])
			_ = http.NewResponseController(out).Flush()
			if err != nil {
				return
			}
		}
	})})
	c := w.dial()
	defer c.Close()
	_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
	in := bufio.NewReader(c)
	var resp *http.Response
	for i := range 20 {
		_, _ = io.WriteString(c, "4\r\nping\r\n")
		if i == 0 {
			var err error
			if resp, err = http.ReadResponse(in, nil); err != nil {
				t.Fatal(err)
			}
		}
		var four [4]byte
		if _, err := io.ReadFull(resp.Body, four[:]); err != nil || string(four[:]) != "ping" {
			t.Fatalf("%q, %v", four, err)
		}
	}
	_, _ = io.WriteString(c, "0\r\n\r\n")
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
}

// TestOldClientFaults: as TestHTTP2Faults, for clients that speak HTTP/1.1: what cannot be reached is passed over, what is late or
// breaks off is said, in the way of the client's version, and its connection goes on where it can.
func TestOldClientFaults(t *testing.T) {
	b := serving2(t, "cart", cartAddr, 1, nil, func(out http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/half":
			_, _ = out.Write(make([]byte, 100<<10))
			panic(http.ErrAbortHandler)
		case "/gone":
			panic(http.ErrAbortHandler)
		case "/late":
			select {
			case <-r.Context().Done():
			case <-time.After(5 * time.Second):
			}
		}
	})
	b.workloads = append(b.workloads, workloadAddress()) // nobody listens there
	w := newWorld(t, []*backend{b})
	rule := toBackend("cart")
	rule.BackendTimeout = 500 * time.Millisecond
	w.routes = routed(rule)
	w.set()
	c := w.client()
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
	if resp, _ := w.get(c, "/gone"); resp.StatusCode != 502 {
		t.Errorf("gone: %d %v", resp.StatusCode, resp.Header)
	}
	if resp, _ := w.get(c, "/late"); resp.StatusCode != 504 || resp.Header.Get("X-Heddle-Reason") != "Timeout" {
		t.Errorf("late: %d %v", resp.StatusCode, resp.Header)
	}
	rule.BackendTimeout, rule.RequestTimeout = 0, 300*time.Millisecond
	w.routes = routed(rule)
	w.set()
	if resp, _ := w.do(c, request(t, "POST", "/late", strings.NewReader("x"))); resp.StatusCode != 504 {
		t.Errorf("late as a whole: %d %v", resp.StatusCode, resp.Header)
	}
	w.policies = []mesh.Policy{{Key: mesh.Key{Namespace: "shop", Name: "none"}, Action: mesh.ActionDeny, Selector: map[string]string{"app": "cart"}, Rules: []mesh.Rule{{}}}}
	w.set()
	for range 2 { // on one connection
		if resp, _ := w.get(c, "/"); resp.StatusCode != 403 || resp.Header.Get("X-Heddle-Reason") != "PolicyDeny" || resp.Close {
			t.Errorf("denied: %d %v", resp.StatusCode, resp.Header)
		}
	}
}

// TestOldClientRetries: what a workload has not looked at, or answers with a status that the route names, is sent again.
func TestOldClientRetries(t *testing.T) {
	w := newWorld(t, []*backend{frames(t, func(f *xhttp2.Framer, id uint32, n int32) bool {
		if n == 1 {
			return f.WriteRSTStream(id, xhttp2.ErrCodeRefusedStream) == nil
		}
		ok(f, id)
		return true
	})})
	if resp, _ := w.do(w.client(), request(t, "POST", "/", strings.NewReader("body"))); resp.StatusCode != 200 {
		t.Errorf("refused once: %d %v", resp.StatusCode, resp.Header)
	}
	var tries atomic.Int32
	w = newWorld(t, []*backend{serving2(t, "cart", cartAddr, 1, nil, func(out http.ResponseWriter, r *http.Request) {
		if body, _ := io.ReadAll(r.Body); string(body) != "body" || tries.Add(1) < 3 {
			out.WriteHeader(503)
		}
	})})
	rule := toBackend("cart")
	rule.Retry = &route.Retry{Codes: []uint16{503}, Attempts: 3, Backoff: time.Millisecond}
	w.routes = routed(rule)
	w.set()
	if resp, _ := w.do(w.client(), request(t, "POST", "/", strings.NewReader("body"))); resp.StatusCode != 200 || tries.Load() != 3 {
		t.Errorf("%d after %d tries", resp.StatusCode, tries.Load())
	}
	eventually(t, "the access log has why it was tried again", func() bool { return strings.Contains(w.log.String(), `"first_error":"status 503"`) })
}

// TestOldClientGone: a client that breaks off takes its request along, in the middle of a body too; a bad body is answered.
func TestOldClientGone(t *testing.T) {
	come, gone := make(chan struct{}, 8), make(chan error, 8)
	w := newWorld(t, []*backend{serving2(t, "cart", cartAddr, 1, nil, func(out http.ResponseWriter, r *http.Request) {
		come <- struct{}{}
		_, err := io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/wait" {
			<-r.Context().Done()
			err = r.Context().Err()
		}
		gone <- err
	})}, func(cfg *serve.Config) { cfg.Timeouts.Stall = 500 * time.Millisecond })
	for _, text := range []string{"POST /body HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc", "GET /wait HTTP/1.1\r\nHost: h\r\n\r\n"} {
		c := w.dial().(*net.TCPConn)
		_, _ = io.WriteString(c, text)
		<-come
		_ = c.SetLinger(0)
		_ = c.Close()
		if err := <-gone; err == nil {
			t.Errorf("%q: the workload takes it for whole", text)
		}
	}
	for _, bad := range []struct {
		text, reason string
		status       int
	}{
		{"POST /body HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nx\r\n", "bad_chunk_size", 400},
		{"POST /body HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc", "SlowClient", 408},
	} {
		c := w.dial()
		_, _ = io.WriteString(c, bad.text)
		if resp, _ := readResponse(t, bufio.NewReader(c), "POST"); resp.StatusCode != bad.status || resp.Header.Get("X-Heddle-Reason") != bad.reason {
			t.Errorf("%q: %d %v", bad.text, resp.StatusCode, resp.Header)
		}
		_ = c.Close()
		if err := <-gone; err == nil {
			t.Errorf("%q: the workload takes it for whole", bad.text)
		}
	}
	eventually(t, "nothing is under way", func() bool { return w.gauge("heddle_waypoint_active_requests") == 0 })
}

// TestOldClientBackPressure: what one end does not take is not read from the other.
func TestOldClientBackPressure(t *testing.T) {
	const size = 8 << 20 // more than the sockets between have room for
	open := make(chan struct{})
	w := newWorld(t, []*backend{serving2(t, "cart", cartAddr, 1, nil, func(out http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			_, _ = io.Copy(out, io.LimitReader(zeros{}, size))
			return
		}
		<-open
		if n, _ := io.Copy(io.Discard, r.Body); n != size {
			out.WriteHeader(400)
		}
	})})
	c := w.client()
	var all sync.WaitGroup
	all.Go(func() {
		if resp, err := c.Do(request(t, "POST", "/", io.LimitReader(zeros{}, size))); err != nil || resp.StatusCode != 200 {
			t.Errorf("up: %v %v", resp, err)
		} else {
			_ = resp.Body.Close()
		}
	})
	all.Go(func() {
		resp, err := c.Do(request(t, "GET", "/", nil))
		if err != nil {
			t.Error(err)
			return
		}
		<-open
		if n, err := io.Copy(io.Discard, resp.Body); n != size || err != nil {
			t.Errorf("down: %d, %v", n, err)
		}
	})
	time.Sleep(1500 * time.Millisecond)
	if n := w.gauge("heddle_waypoint_buffered_bytes"); n > 1<<20 {
		t.Errorf("%v bytes are held for two requests that are stalled", n)
	}
	close(open)
	all.Wait()
}

// TestMirrorVersions: requests of either version are copied to workloads of either version, with their bodies, as the
// rule has changed them; a copy's answer is nobody's.
func TestMirrorVersions(t *testing.T) {
	type key struct{ client, cart, shadow int }
	for _, k := range []key{{1, 1, 2}, {1, 2, 1}, {1, 2, 2}, {2, 1, 1}, {2, 1, 2}, {2, 2, 1}, {2, 2, 2}} {
		t.Run(fmt.Sprintf("%d to %d and %d", k.client, k.cart, k.shadow), func(t *testing.T) {
			copies := make(chan string, 1000)
			cart, shadow := serving12(t, "cart", cartAddr, echo), serving12(t, "shadow", cartAddr.Next(), func(out http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				copies <- fmt.Sprintf("%d %s %s %d %s %s", r.ProtoMajor, r.Method, r.URL.Path, len(body), r.Header.Get("X-By"), r.Header.Get("X-Forwarded-For"))
				out.WriteHeader(500)
			})
			names := [...]string{1: "http", 2: "http2"}
			cart.port, shadow.port = names[k.cart], names[k.shadow]
			w := newWorld(t, []*backend{cart, shadow})
			w.routes = routed(toBackend("cart", route.Filter{RequestHeaders: &route.Headers{Set: []route.Header{{Name: "x-by", Value: "rule"}}}},
				route.Filter{Mirror: &route.Mirror{Service: mesh.Key{Namespace: "shop", Name: "shadow"}, Port: servicePort, Numerator: 50, Denominator: 100}}))
			w.set()
			c := w.client()
			if k.client == 2 {
				c = w.client2()
			}
			want := map[string]int{}
			for i := range 20 {
				size := []int{0, 5, 40_000}[i%3]
				if resp, body := w.do(c, request(t, "POST", fmt.Sprintf("/%d", i), bytes.NewReader(make([]byte, size)))); resp.StatusCode != 200 || body != fmt.Sprintf("POST %d", size) || resp.Header.Get("Got-X-By") != "rule" {
					t.Fatalf("%d %q %v", resp.StatusCode, body, resp.Header)
				}
				want[fmt.Sprintf("%d POST /%d %d rule 10.1.2.3", k.shadow, i, size)]++
			}
			eventually(t, "10 copies", func() bool { return w.value("heddle_waypoint_mirrored_total", "outcome", "sent") == 10 })
			for range 10 {
				if got := <-copies; want[got] != 1 {
					t.Errorf("a copy is %q", got)
				}
			}
			// What is too large to be kept is not copied, and who may not reach the copy's workload sends none.
			for range 2 {
				w.do(c, request(t, "POST", "/large", bytes.NewReader(make([]byte, 1<<20))))
			}
			eventually(t, "a copy is dropped", func() bool { return w.value("heddle_waypoint_mirrored_total", "outcome", "dropped") == 1 })
			w.policies = []mesh.Policy{{Key: mesh.Key{Namespace: "shop", Name: "none"}, Action: mesh.ActionDeny, Selector: map[string]string{"app": "shadow"}, Rules: []mesh.Rule{{}}}}
			w.set()
			for range 2 {
				w.get(c, "/denied")
			}
			eventually(t, "a copy is refused", func() bool { return w.value("heddle_waypoint_mirrored_total", "outcome", "failed") == 1 })
			if len(copies) > 0 {
				t.Errorf("one copy too many: %s", <-copies)
			}
			// A request is counted once its answer has been read; its copies are not.
			eventually(t, "24 requests are counted", func() bool { return w.value("heddle_waypoint_requests_total", "", "") >= 24 })
			if n := w.value("heddle_waypoint_requests_total", "", ""); n != 24 {
				t.Errorf("%v requests are counted, of 24 and their copies", n)
			}
		})
	}
}

// TestCopiesEndWithTheWaypoint: nobody waits for a copy, a stop neither.
func TestCopiesEndWithTheWaypoint(t *testing.T) {
	come, release := make(chan struct{}), make(chan struct{})
	shadow := serving2(t, "shadow", cartAddr.Next(), 1, nil, func(http.ResponseWriter, *http.Request) { come <- struct{}{}; <-release })
	defer close(release)
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, echo), shadow})
	w.routes = mirrored()
	w.set()
	if resp, _ := w.get(w.client(), "/"); resp.StatusCode != 200 {
		t.Errorf("%d", resp.StatusCode)
	}
	<-come
	began := time.Now()
	w.stop()
	if took := time.Since(began); took > 5*time.Second || w.value("heddle_waypoint_mirrored_total", "outcome", "failed") != 1 {
		t.Errorf("a stop of %v; %v copies have failed", took, w.value("heddle_waypoint_mirrored_total", "outcome", "failed"))
	}
}

// TestWaitingCostsNothing: while a workload has a request, of either version from either side, nothing runs here.
func TestWaitingCostsNothing(t *testing.T) {
	wait := func(http.ResponseWriter, *http.Request) { time.Sleep(time.Second) }
	for name, b := range map[string]*backend{"one": serving(t, "cart", cartAddr, 1, wait), "two": serving2(t, "cart", cartAddr, 1, nil, wait)} {
		w := newWorld(t, []*backend{b})
		for version, c := range map[string]*http.Client{"one": w.client(), "two": w.client2()} {
			before := processorTime(t)
			w.get(c, "/")
			if used := processorTime(t) - before; used > 400*time.Millisecond {
				t.Errorf("%s to %s: a second of waiting took %v of a processor", version, name, used)
			}
		}
	}
}

func processorTime(t *testing.T) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
