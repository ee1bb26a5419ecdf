package serve_test

import (
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/mesh/workload"
	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// visit is a session as its client has it.
type visit struct {
	of    *route.Session
	token string // as the client sends it back; "" before the first answer
	at    string // the workload that answered first
}

// ask makes a request of a session: which workload answers, and whether it is given a token.
func (v *visit) ask(w *world, c *http.Client, path string) (by string, given bool) {
	w.t.Helper()
	req := request(w.t, "GET", path, nil, "Cookie", "a=1")
	switch {
	case v.token == "":
	case v.of.Header:
		req.Header.Set(v.of.Name, v.token)
	default:
		req.Header.Set("Cookie", "x"+v.of.Name+"=no; "+v.of.Name+"="+v.token+"; b=2")
	}
	resp, _ := w.do(c, req)
	if resp.StatusCode != 200 {
		w.t.Fatalf("a request of a session is answered with %d %v", resp.StatusCode, resp.Header)
	}
	token := resp.Header.Get(v.of.Name)
	if !v.of.Header {
		for _, c := range resp.Cookies() {
			if c.Name == v.of.Name {
				token = c.Value
			}
		}
	}
	if by, given = resp.Header.Get("X-Workload"), token != ""; given {
		v.token = token
	}
	return by, given
}

// begin makes the first request of a session.
func begin(w *world, c *http.Client, of *route.Session) *visit {
	w.t.Helper()
	v := &visit{of: of}
	by, given := v.ask(w, c, "/")
	if v.at = by; !given || by == "" {
		w.t.Fatalf("the first request of a session is answered by %q, with the token %q", by, v.token)
	}
	return v
}

// stays makes a request of a session that goes on.
func (v *visit) stays(w *world, c *http.Client) {
	w.t.Helper()
	if by, given := v.ask(w, c, "/"); by != v.at || given {
		w.t.Fatalf("a session with %s is answered by %s, which gives it another token: %v", v.at, by, given)
	}
}

// moves makes a request of a session whose workload is lost.
func (v *visit) moves(w *world, c *http.Client) {
	w.t.Helper()
	by, given := v.ask(w, c, "/")
	if by == v.at || !given {
		w.t.Fatalf("a session with %s, which is lost, is answered by %s, which gives it another token: %v", v.at, by, given)
	}
	v.at = by
}

// split are backends of a rule with sessions.
func split(of *route.Session, weights ...uint32) route.Rule {
	r := toBackend("cart")
	r.Session, r.Backends[0].Weight = of, weights[0]
	r.Backends = append(r.Backends, route.Backend{Service: shop("other"), Port: servicePort, Weight: weights[1]})
	return r
}

func sessions() []*route.Session {
	return []*route.Session{{Name: "sid", Permanent: true, AbsoluteTimeout: time.Hour}, {Name: "x-sid", Header: true}}
}

// eachWay runs a test for cookies and headers, and for clients and workloads of each version.
func eachWay(t *testing.T, test func(t *testing.T, of *route.Session, backends []*backend, client func(*world) *http.Client)) {
	for _, of := range sessions() {
		for _, to := range []int{1, 2} {
			for _, by := range []int{1, 2} {
				t.Run(fmt.Sprintf("%s from HTTP/%d to HTTP/%d", of.Name, by, to), func(t *testing.T) {
					backends := []*backend{serving(t, "cart", cartAddr, 3, echo), serving(t, "other", cartAddr.Next(), 4, echo)}
					if to == 2 {
						backends = []*backend{serving2(t, "cart", cartAddr, 3, nil, echo), serving2(t, "other", cartAddr.Next(), 4, nil, echo)}
					}
					client := (*world).client
					if by == 2 {
						client = (*world).client2
					}
					test(t, of, backends, client)
				})
			}
		}
	}
}

// TestSessions: sessions are shared out exactly among backends, and evenly among the workloads of each; each stays with its
// workload at every replica, at one that is started later, and when weights change, to 0 as well.
func TestSessions(t *testing.T) {
	eachWay(t, func(t *testing.T, of *route.Session, backends []*backend, client func(*world) *http.Client) {
		one, two := newWorld(t, backends), newWorld(t, backends)
		weigh := func(w *world, weights ...uint32) {
			w.routes = routed(split(of, weights...))
			w.set()
		}
		weigh(one, 30, 70)
		weigh(two, 30, 70)
		c1, c2 := client(one), client(two)
		counts := map[string]int{}
		var all []*visit
		for range 200 {
			v := begin(one, c1, of)
			counts[v.at]++
			counts[strings.Split(v.at, "-")[0]]++
			all = append(all, v)
		}
		if counts["cart"] != 60 || counts["other"] != 140 {
			t.Errorf("sessions begin at %v, want 60 and 140", counts)
		}
		for name, want := range map[string]int{"cart-0": 20, "cart-1": 20, "cart-2": 20, "other-0": 35, "other-1": 35, "other-2": 35, "other-3": 35} {
			if n := counts[name]; n < want/5 || n > 2*want { // by chance less than once in a million times
				t.Errorf("%d sessions of some %d are with %s", n, want, name)
			}
		}
		for _, v := range all {
			v.stays(one, c1)
			v.stays(two, c2)
		}
		one.stop()
		again := newWorld(t, backends)
		weigh(again, 1, 0)
		weigh(two, 0, 1)
		c1 = client(again)
		for _, v := range all {
			v.stays(again, c1)
			v.stays(two, c2)
		}
	})
}

// TestSessionsMove: a session whose workload is not ready any more, or cannot be reached, begins anew with another one; the
// other sessions stay, and so does it from then on, also when the first workload is back.
func TestSessionsMove(t *testing.T) {
	eachWay(t, func(t *testing.T, of *route.Session, backends []*backend, client func(*world) *http.Client) {
		w := newWorld(t, backends, func(cfg *serve.Config) { cfg.Loops = 1 })
		w.routes = routed(split(of, 0, 1))
		w.set()
		c := client(w)
		var all []*visit
		for len(all) < 24 {
			all = append(all, begin(w, c, of))
		}
		lost := func(name string) {
			for _, v := range all {
				if v.at == name {
					v.moves(w, c)
				}
			}
			for _, v := range all {
				v.stays(w, c)
			}
		}
		backends[1].unready = map[int]bool{0: true}
		w.set()
		lost("other-0")
		backends[1].unready = nil
		w.set()
		for _, v := range all {
			v.stays(w, c)
		}
		backends[1].ends[1]()
		lost("other-1")
	})
}

// TestSessionsForged: whatever a client makes up, it is answered by a workload of its rule, with a token that is one.
func TestSessionsForged(t *testing.T) {
	of := &route.Session{Name: "sid"}
	backends := []*backend{serving(t, "cart", cartAddr, 2, echo), serving(t, "other", cartAddr.Next(), 1, echo)}
	w := newWorld(t, backends)
	alone, elsewhere := toBackend("cart"), toBackend("other")
	alone.Session, elsewhere.Session = of, of
	alone.Matches = []route.Match{{Path: route.PathMatch{Value: "/cart"}}}
	elsewhere.Name, elsewhere.Matches = "elsewhere", []route.Match{{Path: route.PathMatch{Value: "/other"}}}
	w.routes = routed(alone, elsewhere)
	w.set()
	c := w.client()
	get := func(path, token string) (by, given string) {
		v := &visit{of: of, token: token}
		by, anew := v.ask(w, c, path)
		if anew {
			given = v.token
		}
		return by, given
	}
	_, cart := get("/cart", "")
	_, other := get("/other", "")
	if cart == "" || other == "" {
		t.Fatalf("the tokens are %q and %q", cart, other)
	}
	const backendEnds = 18 // the characters of the version, the time and the backend's name, but for two bits
	for _, token := range []string{other, cart[:backendEnds] + other[backendEnds:], cart[:len(cart)-1], cart + "A", strings.Repeat("A", len(cart)), strings.Repeat("A", 8<<10), `"` + cart + `"`, "cart-0", backends[1].workloads[0].String()} {
		by, given := get("/cart", token)
		if !strings.HasPrefix(by, "cart-") || len(given) != len(cart) {
			t.Errorf("with %.40q a request is answered by %s, with %q", token, by, given)
		}
		if again, anew := get("/cart", given); again != by || anew != "" {
			t.Errorf("the session after %.40q is with %s, then with %s, and gets %q", token, by, again, anew)
		}
	}
}

// TestSessionsRetried: a status that is tried again is asked for at the session's workload, and one that breaks off has three
// requests before the session is taken from it; nobody is given a token by a workload that has not answered.
func TestSessionsRetried(t *testing.T) {
	var mu sync.Mutex
	fails, breaks, asked := 0, "", map[string]int{}
	b := listening(t, "cart", cartAddr, 3, func(l net.Listener, i int) func() {
		name := fmt.Sprintf("cart-%d", i)
		s := &http.Server{Handler: http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			asked[name]++
			switch {
			case breaks == name:
				panic(http.ErrAbortHandler)
			case fails > 0:
				fails--
				out.WriteHeader(503)
				return
			}
			out.Header().Set("X-Workload", name)
		})}
		go func() { _ = s.Serve(l) }()
		return func() { _ = s.Close() }
	})
	w := newWorld(t, []*backend{b}, func(cfg *serve.Config) { cfg.Loops = 1 })
	rule := toBackend("cart")
	rule.Session = &route.Session{Name: "sid"}
	rule.Retry = &route.Retry{Codes: []uint16{503}, Attempts: 2, Backoff: time.Millisecond}
	w.routes = routed(rule)
	w.set()
	for _, c := range []*http.Client{w.client(), w.client2()} {
		v := begin(w, c, rule.Session)
		mu.Lock()
		fails = 2
		clear(asked)
		mu.Unlock()
		v.stays(w, c)
		mu.Lock()
		if !maps.Equal(asked, map[string]int{v.at: 3}) {
			t.Errorf("a request of a session with %s that fails twice is sent to %v", v.at, asked)
		}
		mu.Unlock()
	}
	rule.Retry = nil
	w.routes = routed(rule)
	w.set()
	c := w.client()
	v := begin(w, c, rule.Session)
	mu.Lock()
	breaks = v.at
	mu.Unlock()
	for range 3 {
		resp, _ := w.get(c, "/", "Cookie", "sid="+v.token)
		if resp.StatusCode != 502 || resp.Header.Get("Set-Cookie") != "" {
			t.Errorf("a workload that breaks off is answered for by %d, with the cookie %q", resp.StatusCode, resp.Header.Get("Set-Cookie"))
		}
	}
	v.moves(w, c)
	v.stays(w, c)
}

// TestSessionsUnseen: a workload that ends its connections, or says that it has not looked at a request, is asked once more on
// another connection; who refuses for good loses the session.
func TestSessionsUnseen(t *testing.T) {
	for name, refuse := range map[string]func(f *xhttp2.Framer, id uint32) bool{
		"REFUSED_STREAM": func(f *xhttp2.Framer, id uint32) bool {
			return f.WriteRSTStream(id, xhttp2.ErrCodeRefusedStream) == nil
		},
		"GOAWAY": func(f *xhttp2.Framer, _ uint32) bool { return f.WriteGoAway(0, xhttp2.ErrCodeNo, nil) == nil },
		"end":    func(*xhttp2.Framer, uint32) bool { return false },
	} {
		t.Run(name, func(t *testing.T) {
			var refuses [3]atomic.Int32 // how many requests each does
			b := raws(t, "cart", cartAddr, len(refuses), func(c net.Conn, i int) {
				talkFrames(c, func(f *xhttp2.Framer, id uint32) bool {
					if refuses[i].Add(-1) >= 0 {
						return refuse(f, id)
					}
					ok(f, id, hpack.HeaderField{Name: "x-workload", Value: fmt.Sprintf("cart-%d", i)})
					return true
				})
			})
			b.port = "h2c"
			w := newWorld(t, []*backend{b}, func(cfg *serve.Config) { cfg.Loops = 1 })
			rule := toBackend("cart")
			rule.Session = &route.Session{Name: "sid"}
			w.routes = routed(rule)
			w.set()
			for _, c := range []*http.Client{w.client(), w.client2()} {
				v := begin(w, c, rule.Session)
				var i int
				_, _ = fmt.Sscanf(v.at, "cart-%d", &i)
				for range 2 { // as much as the budget has room for
					refuses[i].Store(1)
					v.stays(w, c)
				}
				if name == "REFUSED_STREAM" {
					refuses[i].Store(1000)
					v.moves(w, c)
					refuses[i].Store(0)
					v.stays(w, c)
				}
			}
		})
	}
}

// TestClientsStay: a service that keeps each client with one workload does so behind a waypoint too: at every replica, in
// either version, with a route or without one, for bytes as they are, and with the workload that the client's own agent would
// begin with.
func TestClientsStay(t *testing.T) {
	b := serving(t, "cart", cartAddr, 5, echo)
	b.sticky = true
	one, two := newWorld(t, []*backend{b}), newWorld(t, []*backend{b})
	two.routes = routed(toBackend("cart"))
	two.set()
	b.port = "tcp"
	bytes := newWorld(t, []*backend{b})
	seen := map[string]bool{}
	for i := range 20 {
		addr := netip.AddrFrom4([4]byte{10, 1, 200, byte(i)})
		var all []*workload.Workload
		for i, at := range b.workloads {
			all = append(all, &workload.Workload{Key: mesh.Key{Namespace: "shop", Name: fmt.Sprintf("cart-%d", i)}, Addresses: []netip.Addr{at}})
		}
		want := workload.ForClient(addr, all).Name
		seen[want] = true
		for _, w := range []*world{one, two, bytes} {
			w.header.Client = netip.AddrPortFrom(addr, 4567)
			clients := []*http.Client{w.client(), w.client2()}
			if w == bytes {
				clients = clients[:1]
			}
			for _, c := range clients {
				for range 3 {
					if resp, _ := w.get(c, "/"); resp.Header.Get("X-Workload") != want {
						t.Errorf("%s is answered by %s, not by %s", addr, resp.Header.Get("X-Workload"), want)
					}
				}
			}
		}
	}
	if len(seen) < 3 {
		t.Errorf("20 clients are with %v", seen)
	}
}
