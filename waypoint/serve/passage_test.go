package serve_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/waypoint/requests"
	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// passing is a route about connections to cart, of a namespace, with backends of shop and their weights.
func passing(kind route.Kind, namespace, name string, hosts []string, weights map[string]uint32) route.Route {
	cart := mesh.Key{Namespace: "shop", Name: "cart"}
	r := route.Route{ID: route.ID{Kind: kind, Key: mesh.Key{Namespace: namespace, Name: name}}, Created: time.Unix(1, 0), Hostnames: hosts,
		Parents: []route.Parent{{Service: cart, Port: servicePort}}, Rules: []route.Rule{{Name: "rules[0]"}}}
	for _, to := range []string{"cart", "canary", "absent"} {
		if n, ok := weights[to]; ok {
			b := route.Backend{Service: mesh.Key{Namespace: "shop", Name: to}, Port: servicePort, Weight: n}
			if to == "absent" {
				b.Broken = "there is no such service"
			}
			r.Rules[0].Backends = append(r.Rules[0].Backends, b)
		}
	}
	return r
}

// greeting is a server that says its name first, and then says again what it hears, until there is no more.
func greeting(t testing.TB, name string, address netip.Addr) *backend {
	t.Helper()
	b := raw(t, name, address, func(c net.Conn) {
		fmt.Fprintln(c, name)
		_, _ = io.Copy(c, c)
		_ = c.(*net.TCPConn).CloseWrite()
	})
	b.port = "db"
	return b
}

// greeted connects, and returns what the server says first, or why it says nothing.
func (w *world) greeted() (string, error) {
	w.t.Helper()
	c := w.dial()
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

// TestTCPRoute: each connection goes to the backend whose turn it is, and what cannot be had has its share of refusals.
func TestTCPRoute(t *testing.T) {
	var keep *requests.Log
	w := newWorld(t, []*backend{greeting(t, "cart", cartAddr), greeting(t, "canary", netip.Addr{})}, flows(500), func(cfg *serve.Config) { keep = cfg.Sinks.Flows })
	w.routes = []route.Route{passing(route.TCP, "shop", "split", nil, map[string]uint32{"cart": 85, "canary": 10, "absent": 5})}
	w.set()
	got := map[string]int{}
	for range 200 {
		name, err := w.greeted()
		if err != nil {
			name = "refused"
		}
		got[name]++
	}
	if got["cart"] != 170 || got["canary"] != 20 || got["refused"] != 10 {
		t.Errorf("of 200 connections: %v", got)
	}
	eventually(t, "they are counted", func() bool {
		return w.value("heddle_waypoint_passages_total", "backend", "shop/canary:80") == 20 && w.value("heddle_waypoint_passages_total", "outcome", "refused") == 10 &&
			w.value("heddle_waypoint_refusals_total", "reason", "BackendBroken") == 10
	})
	var carried, refused *meshpb.Flow
	for _, f := range w.told(100, keep) {
		if f.GetVerdict() == "deny" {
			refused = f
		} else if f.GetRequest().GetBackend() == "shop/canary:80" {
			carried = f
		}
	}
	r := carried.GetRequest()
	if r.GetMethod() != "TCP" || r.GetRoute() != "TCPRoute shop/split rules[0]" || r.GetTries() != 1 || carried.GetService() != "shop/cart" || carried.GetBytesReceived() != 7 ||
		carried.GetDestination().GetWorkload() != "shop/canary-0" || carried.GetVerdict() != "allow" || carried.GetSource().GetIdentity() != shopIdentity {
		t.Errorf("carried: %v", carried)
	}
	if refused.GetReason() != "BackendBroken" || refused.GetRequest().GetRoute() != "TCPRoute shop/split rules[0]" {
		t.Errorf("refused: %v", refused)
	}
	w.stop()
	for _, want := range []string{`"service":"shop/cart:80","route":"TCPRoute shop/split rules[0]","backend":"shop/canary:80","workload":"shop/canary-0","method":"TCP"`, `"reason":"BackendBroken"`} {
		has(t, "the access log", w.log.String(), want)
	}
}

// TestTCPRouteHalfClose: each direction ends by itself, and many bytes arrive as they were.
func TestTCPRouteHalfClose(t *testing.T) {
	w := newWorld(t, []*backend{greeting(t, "cart", cartAddr), greeting(t, "canary", netip.Addr{})})
	w.routes = []route.Route{passing(route.TCP, "shop", "all", nil, map[string]uint32{"canary": 1})}
	w.set()
	c := w.dial()
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	text := strings.Repeat("GET / HTTP/1.1\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n", 50_000) // the route's author says that it is no HTTP
	go func() {
		_, _ = io.WriteString(c, text)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "canary\n"+text {
		t.Errorf("%d bytes of %d, %v", len(got), len(text)+7, err)
	}
}

// TestPassagePolicy: policy is asked for the workload of the backend whose turn it is, and again when it changes.
func TestPassagePolicy(t *testing.T) {
	w := newWorld(t, []*backend{greeting(t, "cart", cartAddr), greeting(t, "canary", netip.Addr{})})
	w.routes = []route.Route{passing(route.TCP, "shop", "half", nil, map[string]uint32{"cart": 1, "canary": 1})}
	deny := func(app string) []mesh.Policy {
		return []mesh.Policy{{Key: mesh.Key{Namespace: "shop", Name: "deny"}, Action: mesh.ActionDeny, Selector: map[string]string{"app": app}, Rules: []mesh.Rule{{}}}}
	}
	w.policies = deny("canary")
	w.set()
	got := map[string]int{}
	for range 10 {
		name, _ := w.greeted()
		got[name]++
	}
	if got["cart"] != 5 || got[""] != 5 {
		t.Errorf("while policy denies canary: %v", got)
	}
	eventually(t, "it is counted", func() bool { return w.value("heddle_waypoint_refusals_total", "reason", "PolicyDeny") == 5 })
	w.routes = []route.Route{passing(route.TCP, "shop", "half", nil, map[string]uint32{"cart": 1})}
	w.set()
	c := w.dial()
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	in := bufio.NewReader(c)
	if line, err := in.ReadString('\n'); line != "cart\n" {
		t.Fatalf("%q, %v", line, err)
	}
	w.routes = []route.Route{passing(route.TCP, "shop", "half", nil, map[string]uint32{"canary": 1})}
	w.set() // what goes on stays where it is
	fmt.Fprintln(c, "still there")
	if line, err := in.ReadString('\n'); line != "still there\n" {
		t.Fatalf("after a change of the route: %q, %v", line, err)
	}
	w.policies = deny("cart")
	w.set()
	if line, err := in.ReadString('\n'); err == nil {
		t.Errorf("after a change of policy: %q", line)
	}
	eventually(t, "it is counted", func() bool { return w.value("heddle_waypoint_refusals_total", "reason", "PolicyChanged") == 1 })
}

// TestConsumersTCPRoute: clients of another namespace go by their own route; as whoever wrote that may not say what shop's
// workloads read, they get no HTTP that is not the waypoint's.
func TestConsumersTCPRoute(t *testing.T) {
	g := &gossip{}
	canary := raw(t, "canary", netip.Addr{}, g.serve)
	canary.port = "web"
	w := newWorld(t, []*backend{greeting(t, "cart", cartAddr), canary}, impatient)
	w.routes = []route.Route{passing(route.TCP, "bank", "theirs", nil, map[string]uint32{"canary": 1})}
	w.set()
	if name, err := w.greeted(); name != "cart" {
		t.Errorf("a client of shop gets %q, %v", name, err)
	}
	w.header.Identity = "spiffe://test.example/ns/bank/sa/teller"
	say := func(text string) (string, error) {
		c := w.dial()
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(c, text)
		return bufio.NewReader(c).ReadString('\n')
	}
	if answer, err := say("GET / HTTP/1.1\r\nHost: h\r\n" + forged + "\r\n"); err == nil {
		t.Errorf("HTTP is answered with %q", answer)
	}
	eventually(t, "it is counted", func() bool { return w.value("heddle_waypoint_refusals_total", "reason", "UnexpectedHTTP") == 1 })
	if got := g.text(); got != "" {
		t.Errorf("the workload got %q", got)
	}
	if answer, err := say("\x01\x02\r\n\r\n"); answer != "HTTP/1.1 200 OK\r\n" {
		t.Errorf("what is no HTTP: %q, %v", answer, err)
	}
	canary.port = "tcp-canary" // shop says so itself
	w.set()
	if answer, err := say("GET / HTTP/1.1\r\nHost: h\r\n\r\n"); answer != "HTTP/1.1 200 OK\r\n" {
		t.Errorf("at a port that says tcp: %q, %v", answer, err)
	}
}

// TestRequestsEndWhereConnectionsAreRouted: a client of HTTP that was there before a TCPRoute has its answer, and connects anew.
func TestRequestsEndWhereConnectionsAreRouted(t *testing.T) {
	held := make(chan struct{})
	cart := serving(t, "cart", cartAddr, 1, func(out http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			<-held
		}
		echo(out, r)
	})
	w := newWorld(t, []*backend{cart, greeting(t, "canary", netip.Addr{})}, oneLoop) // which has seen to both when one of them ends
	idle, busy := w.dial(), w.dial()
	defer idle.Close()
	defer busy.Close()
	_ = idle.SetDeadline(time.Now().Add(20 * time.Second))
	_ = busy.SetDeadline(time.Now().Add(20 * time.Second))
	in := bufio.NewReader(idle)
	_, _ = io.WriteString(idle, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	readResponse(t, in, "GET")
	_, _ = io.WriteString(busy, "GET /slow HTTP/1.1\r\nHost: h\r\n\r\n")
	eventually(t, "it is under way", func() bool { return w.gauge("heddle_waypoint_active_requests") == 1 })
	w.routes = []route.Route{passing(route.TCP, "shop", "all", nil, map[string]uint32{"canary": 1})}
	w.set()
	if _, err := in.ReadByte(); err != io.EOF {
		t.Errorf("an idle connection: %v", err)
	}
	close(held)
	if resp, _ := readResponse(t, bufio.NewReader(busy), "GET"); resp.StatusCode != 200 || !resp.Close {
		t.Errorf("a busy one: %d, closes: %v", resp.StatusCode, resp.Close)
	}
	if name, err := w.greeted(); name != "canary" {
		t.Errorf("a new one: %q, %v", name, err)
	}
}

// certificate is one for any name, of its own.
func certificate(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// secured is a server of TLS that says its name and the one it was asked for, and then what it hears.
func secured(t testing.TB, name string, address netip.Addr) *backend {
	t.Helper()
	cfg := &tls.Config{Certificates: []tls.Certificate{certificate(t, name)}}
	b := raw(t, name, address, func(c net.Conn) {
		s := tls.Server(c, cfg)
		if s.Handshake() != nil {
			return
		}
		fmt.Fprintln(s, name, s.ConnectionState().ServerName)
		_, _ = io.Copy(s, s)
	})
	b.port = "https"
	return b
}

// pieces writes in pieces of so many bytes, each in a segment of its own.
type pieces struct {
	net.Conn
	size int
}

func (p pieces) Write(b []byte) (int, error) {
	for at := 0; at < len(b); at += p.size {
		if _, err := p.Conn.Write(b[at:min(len(b), at+p.size)]); err != nil {
			return at, err
		}
	}
	return len(b), nil
}

// asked makes a handshake, and returns what the server says, or why there is none.
func (w *world) asked(cfg *tls.Config, size int) (string, error) {
	w.t.Helper()
	c := w.dial()
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if size > 0 {
		c = pieces{c, size}
	}
	cfg.InsecureSkipVerify = true
	s := tls.Client(c, cfg)
	line, err := bufio.NewReader(s).ReadString('\n')
	return strings.TrimSpace(line), err
}

// tlsRoutes are by name: one for cart, all else of example.com for canary.
func tlsRoutes() []route.Route {
	return []route.Route{passing(route.TLS, "shop", "one", []string{"cart.example.com"}, map[string]uint32{"cart": 1}),
		passing(route.TLS, "shop", "others", []string{"*.example.com"}, map[string]uint32{"canary": 1}),
		passing(route.TLS, "shop", "broken", []string{"broken.example.com"}, map[string]uint32{"absent": 1})}
}

// TestTLSRoute: clients of TLS get to the server that they ask for, whose handshake it is, in whatever pieces they ask.
func TestTLSRoute(t *testing.T) {
	var keep *requests.Log
	w := newWorld(t, []*backend{secured(t, "cart", cartAddr), secured(t, "canary", netip.Addr{})}, flows(100), func(cfg *serve.Config) { keep = cfg.Sinks.Flows })
	w.routes = tlsRoutes()
	w.set()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for name, want := range map[string]string{"cart.example.com": "cart", "a.example.com": "canary", "a.cart.example.com": "canary", "CART.example.com": "cart"} {
			for _, size := range []int{0, 1, 100} {
				got, err := w.asked(&tls.Config{ServerName: name, MaxVersion: version}, size)
				if got != want+" "+name {
					t.Errorf("%s by %s, %d bytes at once: %q, %v", name, tls.VersionName(version), size, got, err)
				}
			}
		}
	}
	f := w.told(24, keep)[0]
	if r := f.GetRequest(); r.GetMethod() != "TLS" || !strings.HasPrefix(r.GetRoute(), "TLSRoute shop/") || r.GetPath() != "" || f.GetVerdict() != "allow" || f.GetBytesReceived() < 100 {
		t.Errorf("told: %v", f)
	}
	w.stop()
	has(t, "the access log", w.log.String(), `"route":"TLSRoute shop/others rules[0]","backend":"shop/canary:80","workload":"shop/canary-0","method":"TLS","host":"a.cart.example.com"`)
}

// TestPassagesAreAudited: the flow of a connection by either route names the AUDIT policies of the workload that it goes to,
// and of one that policy refuses, too.
func TestPassagesAreAudited(t *testing.T) {
	about := func(name string, action mesh.Action) mesh.Policy {
		return mesh.Policy{Key: mesh.Key{Namespace: "shop", Name: name}, Action: action, Selector: map[string]string{"app": "cart"}, Rules: []mesh.Rule{{}}}
	}
	for kind, cart := range map[route.Kind]func(testing.TB, string, netip.Addr) *backend{route.TCP: greeting, route.TLS: secured} {
		var keep *requests.Log
		w := newWorld(t, []*backend{cart(t, "cart", cartAddr)}, flows(8), func(cfg *serve.Config) { keep = cfg.Sinks.Flows })
		w.routes = []route.Route{passing(kind, "shop", "all", nil, map[string]uint32{"cart": 1})}
		ask := func() error {
			w.set()
			if kind == route.TCP {
				_, err := w.greeted()
				return err
			}
			_, err := w.asked(&tls.Config{ServerName: "cart.example.com"}, 0)
			return err
		}
		if err := ask(); err != nil {
			t.Errorf("%v: %v", kind, err)
		}
		w.policies = []mesh.Policy{about("watch", mesh.ActionAudit), about("also", mesh.ActionAudit)}
		if err := ask(); err != nil {
			t.Errorf("%v while policies audit: %v", kind, err)
		}
		w.policies = append(w.policies, about("nobody", mesh.ActionDeny))
		if err := ask(); err == nil {
			t.Errorf("%v: let in, though policy denies it", kind)
		}
		got := map[string]int{}
		for _, f := range w.told(3, keep) {
			got[fmt.Sprint(f.GetVerdict(), "/", f.GetReason(), " ", f.GetPolicy(), f.GetAudited())]++
		}
		want := map[string]int{"allow/NoPolicy []": 1, "audit/NoPolicy [shop/also shop/watch]": 1, "deny/PolicyDeny shop/nobody[shop/also shop/watch]": 1}
		if !maps.Equal(got, want) {
			t.Errorf("%v: told of %v, want %v", kind, got, want)
		}
	}
}

// TestTLSRouteRefuses: who asks for nobody, or for one of whom no route knows, is told by an alert, and it is said why.
func TestTLSRouteRefuses(t *testing.T) {
	w := newWorld(t, []*backend{secured(t, "cart", cartAddr), secured(t, "canary", netip.Addr{})}, func(cfg *serve.Config) { cfg.Timeouts.Header = 300 * time.Millisecond })
	w.routes = tlsRoutes()
	w.set()
	for _, c := range []struct{ name, reason, says string }{
		{"", "NoServerName", "missing extension"}, {"example.com", "NoRoute", "unrecognized name"}, {"a.example.org", "NoRoute", "unrecognized name"}, {"broken.example.com", "BackendBroken", ""},
	} {
		before := w.value("heddle_waypoint_refusals_total", "reason", c.reason)
		if got, err := w.asked(&tls.Config{ServerName: c.name}, 0); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q: %q, %v", c.name, got, err)
		}
		eventually(t, c.reason+" is counted", func() bool { return w.value("heddle_waypoint_refusals_total", "reason", c.reason) == before+1 })
	}
	for text, reason := range map[string]string{"GET / HTTP/1.1\r\nHost: cart.example.com\r\n\r\n": "NotTLS", "\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00": "BadHello", "\x16\x03\x01\x01\x00\x01": "SlowClient"} {
		c := w.dial()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(c, text)
		got, err := io.ReadAll(c)
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Errorf("%q: it goes on", text)
		}
		if want := map[string]string{"BadHello": "\x15\x03\x01\x00\x02\x02\x32"}[reason]; want != string(got) {
			t.Errorf("%q is answered with %q, want %q", text, got, want)
		}
		_ = c.Close()
		eventually(t, reason+" is counted", func() bool { return w.value("heddle_waypoint_refusals_total", "reason", reason) == 1 })
	}
	silent := w.dial()
	defer silent.Close()
	_ = silent.SetDeadline(time.Now().Add(20 * time.Second))
	if n, err := silent.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Errorf("who says nothing gets %d bytes, %v", n, err)
	}
	w.stop()
	has(t, "the access log", w.log.String(), `"service":"shop/cart:80","method":"TLS"`)
	has(t, "the access log", w.log.String(), `"method":"TLS","host":"a.example.org"`)
}

// TestTLSRouteWhileClientIsSilent: of a client that was there before the route it is asked whom it wants as of any other.
func TestTLSRouteWhileClientIsSilent(t *testing.T) {
	cart := secured(t, "cart", cartAddr)
	cart.port = "" // which says nothing of what is spoken there
	w := newWorld(t, []*backend{cart, secured(t, "canary", netip.Addr{})}, func(cfg *serve.Config) { cfg.Loops, cfg.Timeouts.Sniff = 1, time.Minute })
	early := func() net.Conn {
		c := w.dial()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		return c
	}
	asks, ends := early(), early()
	defer asks.Close()
	defer ends.Close()
	served := func(want string) { // and whoever came before is looked at, by what is current now
		t.Helper()
		if got, err := w.asked(&tls.Config{ServerName: "a.example.com"}, 0); got != want+" a.example.com" {
			t.Fatalf("%q, %v", got, err)
		}
	}
	served("cart")
	w.routes = tlsRoutes()
	w.set()
	served("canary")
	line, err := bufio.NewReader(tls.Client(asks, &tls.Config{ServerName: "a.example.com", InsecureSkipVerify: true})).ReadString('\n')
	if line != "canary a.example.com\n" {
		t.Errorf("who asks afterwards hears %q, %v", line, err)
	}
	_, _ = io.WriteString(ends, "G") // it may become a request
	_ = ends.(*net.TCPConn).CloseWrite()
	_, _ = io.ReadAll(ends)
	eventually(t, "it is counted as no TLS", func() bool { return w.value("heddle_waypoint_refusals_total", "reason", "NotTLS") == 1 })
}

// TestTLSRouteAfterSilence: who has been silent for as long as it is waited for is not refused for a name that it did not say yet.
func TestTLSRouteAfterSilence(t *testing.T) {
	cart := secured(t, "cart", cartAddr)
	cart.port = ""
	w := newWorld(t, []*backend{cart, secured(t, "canary", netip.Addr{})}, func(cfg *serve.Config) {
		cfg.Loops, cfg.Timeouts.Sniff, cfg.Timeouts.Header = 1, 3*time.Second, time.Minute
	})
	c := w.dial()
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	w.routes = tlsRoutes()
	time.Sleep(500 * time.Millisecond) // it was looked at before the route came
	w.set()
	time.Sleep(3 * time.Second)
	line, err := bufio.NewReader(tls.Client(c, &tls.Config{ServerName: "a.example.com", InsecureSkipVerify: true})).ReadString('\n')
	if line != "canary a.example.com\n" {
		t.Errorf("it hears %q, %v", line, err)
	}
}
