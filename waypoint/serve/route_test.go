package serve_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/serve"
)

func shop(name string) mesh.Key { return mesh.Key{Namespace: "shop", Name: name} }

// TestFilters: what rules change arrives changed, at the backend and at the client.
func TestFilters(t *testing.T) {
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, func(out http.ResponseWriter, r *http.Request) {
		out.Header().Set("X-Secret", "1")
		out.Header().Set("Access-Control-Allow-Origin", "https://theirs.example")
		echo(out, r)
	})})
	rule := func(prefix string, filters ...route.Filter) route.Rule {
		r := toBackend("cart", filters...)
		r.Name, r.Matches = "rule"+prefix, []route.Match{{Path: route.PathMatch{Value: prefix}}}
		return r
	}
	w.routes = routed(
		rule("/headers", route.Filter{RequestHeaders: &route.Headers{Set: []route.Header{{Name: "x-set", Value: "new"}}, Add: []route.Header{{Name: "x-add", Value: "2"}}, Remove: []string{"x-gone"}}},
			route.Filter{ResponseHeaders: &route.Headers{Remove: []string{"x-secret"}, Set: []route.Header{{Name: "x-new", Value: "3"}}}}),
		rule("/old", route.Filter{Rewrite: &route.Rewrite{Hostname: "other.example", Path: &route.PathChange{Prefix: true, Value: "/new"}}}),
		rule("/moved", route.Filter{Redirect: &route.Redirect{Scheme: "https", Hostname: "shop.example.com", Path: &route.PathChange{Value: "/here"}, Status: 308}}),
		rule("/cors", route.Filter{CORS: &route.CORS{Origins: []string{"https://ours.example"}, Methods: []string{"PUT"}, MaxAge: 60}}),
		rule("/broken", route.Filter{Broken: "no such filter"}),
		route.Rule{Name: "nobody", Matches: []route.Match{{Path: route.PathMatch{Value: "/nobody"}}}},
	)
	w.set()
	c := w.client()
	resp, _ := w.get(c, "/headers", "X-Set", "old", "X-Add", "1", "X-Gone", "1")
	if h := resp.Header; fmt.Sprint(h["Got-X-Set"], h["Got-X-Add"], h["Got-X-Gone"], h["X-Secret"], h["X-New"]) != "[new] [1 2] [] [] [3]" {
		t.Errorf("headers: %v", h)
	}
	resp, _ = w.get(c, "/old/a%2Fb?q=1")
	if resp.Header.Get("X-Path") != "/new/a%2Fb?q=1" || resp.Header.Get("X-Host") != "other.example" {
		t.Errorf("rewrite: %v", resp.Header)
	}
	resp, _ = w.get(c, "/old/./%61")
	if resp.Header.Get("X-Path") != "/new/a" {
		t.Errorf("what is matched is not what is forwarded: %v", resp.Header)
	}
	resp, _ = w.get(c, "/moved/x?q=1")
	if resp.StatusCode != 308 || resp.Header.Get("Location") != "https://shop.example.com/here?q=1" {
		t.Errorf("redirect: %d %v", resp.StatusCode, resp.Header)
	}
	resp, _ = w.do(c, request(t, "OPTIONS", "/cors", nil, "Origin", "https://ours.example", "Access-Control-Request-Method", "PUT"))
	if resp.StatusCode != 204 || resp.Header.Get("Access-Control-Allow-Origin") != "https://ours.example" || resp.Header.Get("Access-Control-Max-Age") != "60" || resp.Header.Get("X-Workload") != "" {
		t.Errorf("preflight: %d %v", resp.StatusCode, resp.Header)
	}
	resp, _ = w.get(c, "/cors", "Origin", "https://ours.example")
	if got := resp.Header["Access-Control-Allow-Origin"]; len(got) != 1 || got[0] != "https://ours.example" || resp.Header.Get("Vary") != "Origin" {
		t.Errorf("CORS: %v", resp.Header)
	}
	resp, _ = w.get(c, "/cors", "Origin", "https://others.example")
	if resp.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("CORS of another origin: %v", resp.Header)
	}
	for path, want := range map[string]string{"/broken": "500 FilterBroken", "/nobody": "500 BackendBroken", "/none": "404 NoRoute"} {
		if resp, _ := w.get(c, path); fmt.Sprintf("%d %s", resp.StatusCode, resp.Header.Get("X-Heddle-Reason")) != want {
			t.Errorf("%s: %d %v", path, resp.StatusCode, resp.Header)
		}
	}
}

// TestSplit: of 100,000 requests at 1 %, 1,000 go to the canary.
func TestSplit(t *testing.T) {
	total, loops, batch := 100_000, 8, 50
	if testing.Short() {
		total = 10_000
	}
	var stable, canary atomic.Int64
	count := func(n *atomic.Int64) func(net.Conn) {
		return func(c net.Conn) {
			in := bufio.NewReader(c)
			for {
				line, err := in.ReadSlice('\n')
				if err != nil {
					return
				}
				if len(line) == 2 {
					n.Add(1)
					if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"); err != nil {
						return
					}
				}
			}
		}
	}
	w := newWorld(t, []*backend{raw(t, "cart", cartAddr, count(&stable)), raw(t, "canary", cartAddr.Next(), count(&canary))})
	rule := toBackend("cart")
	rule.Backends[0].Weight = 99
	rule.Backends = append(rule.Backends, route.Backend{Service: shop("canary"), Port: servicePort, Weight: 1})
	w.routes = routed(rule)
	w.set()
	var clients sync.WaitGroup
	for range loops {
		clients.Go(func() {
			c := w.dial()
			defer c.Close()
			in := bufio.NewReader(c)
			for range total / loops / batch {
				_, _ = io.WriteString(c, strings.Repeat("GET / HTTP/1.1\r\nHost: h\r\n\r\n", batch))
				for range batch {
					if _, _, err := readHead(in); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	clients.Wait()
	if stable.Load() != int64(total/100*99) || canary.Load() != int64(total/100) {
		t.Errorf("%d and %d requests, want %d and %d", stable.Load(), canary.Load(), total/100*99, total/100)
	}
}

// TestBlueGreen: all requests go from one version of a service to another, and back, by a new configuration each time, while
// clients send each request once: none is lost or sent twice, and from then on none goes to the version before.
func TestBlueGreen(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]int{} // how often each request was
	note := func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		seen[string(body)]++
	}
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 2, note), serving(t, "green", cartAddr.Next(), 2, note)})
	weigh := func(blue, green int) {
		w.apply(fmt.Sprintf(`apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {namespace: shop, name: cart}
spec:
  parentRefs: [{group: "", kind: Service, name: cart}]
  rules: [{backendRefs: [{name: cart, port: 80, weight: %d}, {name: green, port: 80, weight: %d}]}]`, blue, green))
	}
	steps := []struct {
		blue, green int
		to          string
	}{{100, 0, "cart-"}, {0, 100, "green-"}, {100, 0, "cart-"}}
	weigh(steps[0].blue, steps[0].green)
	var step atomic.Int32 // twice the number of the one in force; odd while another takes its place
	var sure [3]atomic.Int32
	var sent atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	two := w.once(true, w.connect)
	for i := range 4 {
		c := two
		if i%2 == 0 {
			c = w.once(false, w.connect)
		}
		all.Go(func() {
			for ctx.Err() == nil {
				before := step.Load()
				resp, _, _, err := c.ask("POST", fmt.Sprint(sent.Add(1)))
				if err != nil || resp.StatusCode != 200 {
					t.Errorf("a request is lost: %v %v", resp, err)
					return
				}
				if before%2 == 1 || step.Load() != before {
					continue // it may have been asked before or after
				}
				sure[before/2].Add(1)
				if by := resp.Header.Get("X-Workload"); !strings.HasPrefix(by, steps[before/2].to) {
					t.Errorf("with the weights %d and %d %s answers", steps[before/2].blue, steps[before/2].green, by)
				}
			}
		})
	}
	for i, s := range steps {
		if i > 0 {
			step.Add(1)
			weigh(s.blue, s.green)
			step.Add(1)
		}
		eventually(t, "200 requests with these weights", func() bool { return sure[i].Load() >= 200 })
	}
	stop()
	all.Wait()
	if len(seen) != int(sent.Load()) {
		t.Errorf("%d requests were sent, %d arrived", sent.Load(), len(seen))
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("request %s arrived %d times", id, n)
		}
	}
}

// readHead reads a response without a body.
func readHead(in *bufio.Reader) (status, rest string, err error) {
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return "", "", err
		}
		if status == "" {
			status = strings.TrimSpace(line)
			continue
		}
		if line == "\r\n" {
			return status, rest, nil
		}
		rest += line
	}
}

// TestRetry: a route's statuses are tried again at another workload, and what the last one says is the
// answer; without a rule nothing is.
func TestRetry(t *testing.T) {
	var asked, fails atomic.Int64
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 2, func(out http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		body, _ := io.ReadAll(r.Body)
		if fails.Add(-1) >= 0 {
			out.WriteHeader(503)
			return
		}
		fmt.Fprintf(out, "%d", len(body))
	})})
	retried := toBackend("cart")
	retried.Retry = &route.Retry{Codes: []uint16{503}, Attempts: 2, Backoff: time.Millisecond}
	w.routes = routed(retried)
	w.set()
	c := w.client()
	for _, x := range []struct {
		fails, asked int64
		status       int
		size         int
	}{{1, 2, 200, 10}, {2, 3, 200, 10}, {3, 3, 503, 10}, {0, 1, 200, 10}, {1, 1, 503, 200_000}} {
		asked.Store(0)
		fails.Store(x.fails)
		resp, body := w.do(c, request(t, "POST", "/", strings.NewReader(strings.Repeat("x", x.size))))
		if resp.StatusCode != x.status || asked.Load() != x.asked || x.status == 200 && body != fmt.Sprint(x.size) {
			t.Errorf("%d failures: %d %q after %d tries, want %d after %d", x.fails, resp.StatusCode, body, asked.Load(), x.status, x.asked)
		}
	}
	w.routes = nil
	w.set()
	asked.Store(0)
	fails.Store(1)
	if resp, _ := w.get(c, "/"); resp.StatusCode != 503 || asked.Load() != 1 {
		t.Errorf("without a rule: %d after %d tries", resp.StatusCode, asked.Load())
	}
	w.stop()
	has(t, "the log", w.log.String(), `"tries":3,"first_error":"status 503"`)
}

// TestRetryBudget: when everything fails, retries do not multiply it.
func TestRetryBudget(t *testing.T) {
	var asked atomic.Int64
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, func(out http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		out.WriteHeader(503)
	})}, func(cfg *serve.Config) { cfg.Loops = 1 })
	rule := toBackend("cart")
	rule.Retry = &route.Retry{Codes: []uint16{503}, Attempts: 5, Backoff: time.Millisecond}
	w.routes = routed(rule)
	w.set()
	began, requests := time.Now(), 500
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			c := w.client()
			for range requests / 10 {
				if resp, err := c.Do(request(t, "GET", "/", nil)); err == nil {
					_ = resp.Body.Close()
				}
			}
		})
	}
	all.Wait()
	most := float64(requests)*1.2 + 10 + 2*time.Since(began).Seconds() + 1
	if n := asked.Load(); float64(n) > most || n < int64(requests)*11/10 {
		t.Errorf("%d requests became %d, want at most %.0f", requests, n, most)
	}
	if w.value("heddle_waypoint_retries_total", "outcome", "budget_spent") == 0 {
		t.Error("nothing says that the budget was spent")
	}
}

// TestUnreachable: a workload that does not accept is passed over, also for what must not be sent twice, and
// avoided afterwards.
func TestUnreachable(t *testing.T) {
	b := serving(t, "cart", cartAddr, 1, echo)
	b.workloads = append(b.workloads, workloadAddress()) // nobody listens there
	w := newWorld(t, []*backend{b}, func(cfg *serve.Config) { cfg.Loops = 1 })
	c := w.client()
	for range 20 {
		if resp, body := w.do(c, request(t, "POST", "/", strings.NewReader("hello"))); resp.StatusCode != 200 || body != "POST 5" {
			t.Fatalf("%d %q %v", resp.StatusCode, body, resp.Header)
		}
	}
	b.workloads = b.workloads[1:]
	w.set()
	if resp, _ := w.get(c, "/"); resp.StatusCode != 503 || resp.Header.Get("X-Heddle-Reason") != "AppUnreachable" {
		t.Errorf("nobody is there: %d %v", resp.StatusCode, resp.Header)
	}
	b.workloads = nil
	w.set()
	if resp, _ := w.get(c, "/"); resp.StatusCode != 503 || resp.Header.Get("X-Heddle-Reason") != "NoEndpoint" {
		t.Errorf("no endpoint: %d %v", resp.StatusCode, resp.Header)
	}
}

// TestRetryConnect: a route's retries are for connections that fail, too.
func TestRetryConnect(t *testing.T) {
	b := &backend{name: "cart", address: cartAddr, port: "http", workloads: []netip.Addr{workloadAddress()}, target: uint16(testenv.FreePort(t))}
	w := newWorld(t, []*backend{b})
	rule := toBackend("cart")
	rule.Retry = &route.Retry{Attempts: 9, Backoff: 40 * time.Millisecond}
	w.routes = routed(rule)
	w.set()
	listening := make(chan *http.Server, 1)
	go func() {
		time.Sleep(100 * time.Millisecond)
		s := &http.Server{Handler: http.HandlerFunc(echo)}
		listening <- s
		if l, err := net.Listen("tcp", overLoopback(netip.AddrPortFrom(b.workloads[0], b.target)).String()); err == nil {
			_ = s.Serve(l)
		}
	}()
	if resp, body := w.do(w.client(), request(t, "POST", "/", strings.NewReader("hello"))); resp.StatusCode != 200 || body != "POST 5" {
		t.Errorf("%d %q %v", resp.StatusCode, body, resp.Header)
	}
	_ = (<-listening).Close()
}

// TestMirror: copies go out with their bodies, and what is answered to them is nobody's.
func TestMirror(t *testing.T) {
	copies := make(chan string, 1000)
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, echo), serving(t, "shadow", cartAddr.Next(), 1, func(out http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		copies <- r.Method + r.URL.Path + string(body)
		out.WriteHeader(500)
	})})
	w.routes = routed(toBackend("cart", route.Filter{Mirror: &route.Mirror{Service: shop("shadow"), Port: servicePort, Numerator: 50, Denominator: 100}}))
	w.set()
	c := w.client()
	for i := range 100 {
		if resp, body := w.do(c, request(t, "POST", fmt.Sprintf("/%d", i), strings.NewReader("hello"))); resp.StatusCode != 200 || body != "POST 5" {
			t.Fatalf("%d %q", resp.StatusCode, body)
		}
	}
	eventually(t, "50 copies", func() bool { return w.value("heddle_waypoint_mirrored_total", "outcome", "sent") == 50 })
	for range 50 {
		if got := <-copies; !strings.HasPrefix(got, "POST/") || !strings.HasSuffix(got, "hello") {
			t.Errorf("a copy is %q", got)
		}
	}
	if len(copies) > 0 {
		t.Errorf("%d copies too many", len(copies))
	}
}

// TestTimeouts: each bound ends what is too slow, with a reason.
func TestTimeouts(t *testing.T) {
	release := make(chan struct{})
	w := newWorld(t, []*backend{serving(t, "cart", cartAddr, 1, func(out http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/begun":
			_, _ = io.WriteString(out, "begun")
			out.(http.Flusher).Flush()
			fallthrough
		case "/slow":
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
	})}, func(cfg *serve.Config) {
		cfg.Timeouts.Header, cfg.Timeouts.Stall = 200*time.Millisecond, 200*time.Millisecond
	})
	defer close(release)
	rule := toBackend("cart")
	rule.RequestTimeout = 100 * time.Millisecond
	each := toBackend("cart")
	each.Name, each.Matches, each.BackendTimeout = "each", []route.Match{{Headers: []route.ValueMatch{{Name: "x-each", Value: "1"}}}}, 50*time.Millisecond
	w.routes = routed(rule, each)
	w.set()
	c := w.client()
	for _, headers := range [][]string{nil, {"X-Each", "1"}} {
		if resp, _ := w.get(c, "/slow", headers...); resp.StatusCode != 504 || resp.Header.Get("X-Heddle-Reason") != "Timeout" {
			t.Errorf("%v: %d %v", headers, resp.StatusCode, resp.Header)
		}
	}
	resp, err := c.Do(request(t, "GET", "/begun", nil))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); err == nil || string(b) != "begun" {
		t.Errorf("an answer that does not end: %q, %v", b, err)
	}
	// A head, and a body, that do not come.
	for _, send := range []string{"GET / HTTP/1.1\r\nHost: h\r\nX-", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab"} {
		conn := w.dial()
		_, _ = io.WriteString(conn, send)
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadAll(conn); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("%q goes on", send)
		}
		_ = conn.Close()
	}
	if w.value("heddle_waypoint_refusals_total", "reason", "SlowClient") == 0 {
		t.Error("nobody was too slow")
	}
}

// TestServiceComesLater: a client whose agent knows sooner than the waypoint that a service
// has it waits, and is served; one of a service that never comes waits for no longer than Hold.
func TestServiceComesLater(t *testing.T) {
	cart := serving(t, "cart", cartAddr, 1, echo)
	const hold = 2 * time.Second
	w := newWorld(t, nil, func(c *serve.Config) { c.Timeouts.Hold = hold })
	ask := func(out chan<- int) {
		resp, err := w.client().Get("http://cart.shop/")
		if err != nil {
			t.Error(err)
			out <- 0
			return
		}
		defer resp.Body.Close()
		out <- resp.StatusCode
	}
	began := time.Now()
	never := make(chan int, 1)
	ask(never)
	if status, took := <-never, time.Since(began); status != 404 || took < hold {
		t.Errorf("of a service that never comes: %d after %v, want 404 after %v", status, took, hold)
	}
	answers := make(chan int, 1)
	var asking sync.WaitGroup
	defer asking.Wait()
	asking.Go(func() { ask(answers) })
	testenv.Eventually(t, 10*time.Second, "the client has connected", func() bool { return w.server.Connections() > 0 })
	select {
	case status := <-answers:
		t.Fatalf("before the service is known: %d", status)
	case <-time.After(200 * time.Millisecond):
	}
	w.backends = []*backend{cart}
	w.set()
	if status := <-answers; status != 200 {
		t.Errorf("when the service is known: %d, want 200", status)
	}
}
