package serve_test

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/internal/discovery/resources/routing"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/folderroutes"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/internal/proxyheader"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/accesslog"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/serve"
	"github.com/heddle-mesh/heddle/waypoint/snapshot"
	"github.com/heddle-mesh/heddle/waypoint/telemetry"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const (
	shopIdentity   = "spiffe://test.example/ns/shop/sa/web"
	servicePort    = 80
	waypointServed = "waypoint"
)

var (
	cartAddr = netip.MustParseAddr("10.96.0.10")
	domain   = spiffeid.RequireTrustDomainFromString("test.example")
)

// backend is the name of a service, and its workloads, each of which has an address of its own
// and the same port.
type backend struct {
	name      string
	namespace string // "" for shop
	address   netip.Addr
	port, app string // name of the service's port, and its appProtocol
	workloads []netip.Addr
	target    uint16
	mode      mesh.Mode
	waypoint  string // that it names; "" for none, as in a folder
	unready   map[int]bool
	sticky    bool
	ends      []func() // of each workload: it listens no more, and what is open ends
}

// world is a waypoint over loopback.
type world struct {
	t        testing.TB
	store    *snapshot.Store
	metrics  *prometheus.Registry
	log      *testenv.Log
	server   *serve.Server
	at       *net.TCPAddr
	stop     func()
	backends []*backend
	routes   []route.Route
	policies []mesh.Policy
	revision int
	header   proxyheader.Header
}

// option changes what the waypoint does.
type option func(*serve.Config)

// newWorld starts a waypoint of services; routes are set by set.
func newWorld(t testing.TB, backends []*backend, options ...option) *world {
	t.Helper()
	w := &world{t: t, backends: backends, log: &testenv.Log{}, store: snapshot.NewStore(mesh.Key{Namespace: "shop", Name: waypointServed}), metrics: prometheus.NewRegistry()}
	w.header = proxyheader.Header{Client: netip.MustParseAddrPort("10.1.2.3:4567"), Service: netip.AddrPortFrom(cartAddr, servicePort), Identity: shopIdentity}
	access, err := accesslog.New(w.log, accesslog.Config{Sample: 1})
	if err != nil {
		t.Fatal(err)
	}
	cfg := serve.Defaults()
	cfg.Store, cfg.Loops, cfg.Log, cfg.Sinks.Access = w.store, 2, slog.New(slog.DiscardHandler), access
	cfg.Metrics = telemetry.New(w.metrics, plan.Reasons(), func() float64 { return float64(access.Lost()) })
	cfg.Timeouts.DrainIdle, cfg.Reach = 50*time.Millisecond, overLoopback
	for _, o := range options {
		o(&cfg)
	}
	w.set()
	if w.server, err = serve.New(cfg); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	w.at = l.Addr().(*net.TCPAddr)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := w.server.Run(ctx, l); err != nil {
			t.Errorf("serve: %v", err)
		}

	})
	logging, endLog := context.WithCancel(context.Background())
	running.Go(func() { access.Run(logging) })
	stopped := false
	w.stop = func() {
		if !stopped {
			stopped = true
			cancel()
			for w.server.Connections() > 0 {
				time.Sleep(time.Millisecond)
			}
			endLog()
			running.Wait()
		}
	}
	t.Cleanup(func() {
		w.stop()
		if n := w.gauge("heddle_waypoint_active_requests"); n != 0 {
			t.Errorf("%v requests are under way when all has ended", n)
		}
		if n := w.gauge("heddle_waypoint_buffered_bytes"); n != 0 {
			t.Errorf("%v bytes are held when all has ended", n)
		}
	})
	return w
}

// set makes a configuration of what the world has current.
func (w *world) set() {
	w.t.Helper()
	w.revision++
	var workloads []mesh.Workload
	var services []mesh.Service
	waypoint := mesh.Workload{Key: mesh.Key{Namespace: "shop", Name: "waypoint-1"}, ServiceAccount: "waypoint", Node: "n", Enrolled: true, Ready: true,
		Addresses: []netip.Addr{netip.MustParseAddr("10.1.9.9")}, Identity: spiffeid.RequireFromString("spiffe://test.example/ns/shop/sa/waypoint")}
	workloads = append(workloads, waypoint)
	services = append(services, mesh.Service{Key: mesh.Key{Namespace: "shop", Name: waypointServed}, Endpoints: []mesh.Key{waypoint.Key}})
	for _, b := range w.backends {
		namespace := cmp.Or(b.namespace, "shop")
		s := mesh.Service{Key: mesh.Key{Namespace: namespace, Name: b.name}, Sticky: b.sticky, Ports: []mesh.ServicePort{{Name: b.port, AppProtocol: b.app, Port: servicePort, TargetPort: b.target}}}
		if b.waypoint != "" {
			s.Waypoint = mesh.Key{Namespace: "shop", Name: b.waypoint}
		}
		if b.address.IsValid() {
			s.Addresses = []netip.Addr{b.address}
		}
		for i, addr := range b.workloads {
			key := mesh.Key{Namespace: namespace, Name: fmt.Sprintf("%s-%d", b.name, i)}
			s.Endpoints = append(s.Endpoints, key)
			workloads = append(workloads, mesh.Workload{Key: key, ServiceAccount: b.name, Node: "n", Ready: !b.unready[i], Mode: b.mode, Addresses: []netip.Addr{addr},
				Identity: spiffeid.RequireFromString("spiffe://test.example/ns/" + namespace + "/sa/" + b.name), Labels: map[string]string{"app": b.name}})
		}
		services = append(services, s)
	}
	view, err := mesh.NewView(fmt.Sprint(w.revision), mesh.Settings{TrustDomain: domain, ClusterRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, workloads, services, w.policies)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.store.Set(fmt.Sprint(w.revision), view, append([]route.Route(nil), w.routes...)); err != nil {
		w.t.Fatal(err)
	}
}

// apply makes routes current that are objects of the Gateway API: they are compiled with the world's services, as the operator
// does it, and are told as it tells waypoints of them.
func (w *world) apply(objects string) {
	w.t.Helper()
	for _, b := range w.backends {
		objects += fmt.Sprintf("\n---\napiVersion: v1\nkind: Service\nmetadata: {namespace: %s, name: %s}\nspec: {ports: [{name: %s, port: %d}]}", cmp.Or(b.namespace, "shop"), b.name, b.port, servicePort)
	}
	loaded, err := kube.LoadFolder(fstest.MapFS{"routes.yaml": {Data: []byte(objects)}})
	if err != nil {
		w.t.Fatal(err)
	}
	compiled, _, err := folderroutes.Compile(loaded)
	if err != nil {
		w.t.Fatal(err)
	}
	w.routes = nil
	for i := range compiled.Routes {
		told, err := proto.Marshal(routing.Encode(&compiled.Routes[i]))
		if err != nil {
			w.t.Fatal(err)
		}
		r, err := routing.Decode(told)
		if err != nil {
			w.t.Fatal(err)
		}
		w.routes = append(w.routes, *r)
	}
	w.set()
}

// gauge is the value of a metric without labels.
func (w *world) gauge(name string) float64 {
	return w.value(name, "", "")
}

// value is the sum of a metric's series that have a label of a value.
func (w *world) value(name, label, value string) (sum float64) {
	w.t.Helper()
	families, err := w.metrics.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			match := label == ""
			for _, l := range m.GetLabel() {
				match = match || l.GetName() == label && l.GetValue() == value
			}
			if match {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// dial connects as an agent does for a client.
func (w *world) dial() net.Conn {
	w.t.Helper()
	c, err := w.connect()
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) connect() (net.Conn, error) {
	c, err := net.DialTCP("tcp", nil, w.at)
	if err != nil {
		return nil, err
	}
	if _, err := c.Write(proxyheader.Append(nil, w.header)); err != nil {
		return nil, err
	}
	return c, nil
}

// client is net/http's, on connections to the waypoint; it follows no redirects.
func (w *world) client() *http.Client {
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return w.connect() }, MaxIdleConnsPerHost: 64, DisableCompression: true}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// do makes a request, and returns the response with its body.
func (w *world) do(c *http.Client, req *http.Request) (*http.Response, string) {
	w.t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatalf("read body: %v", err)
	}
	_ = resp.Body.Close()
	return resp, string(body)
}

func (w *world) get(c *http.Client, path string, headers ...string) (*http.Response, string) {
	w.t.Helper()
	return w.do(c, request(w.t, "GET", path, nil, headers...))
}

func request(t testing.TB, method, path string, body io.Reader, headers ...string) *http.Request {
	t.Helper()
	req, err := http.NewRequest(method, "http://cart.shop"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	return req
}

// serving runs net/http servers for a service: n workloads.
func serving(t testing.TB, name string, address netip.Addr, n int, handle http.HandlerFunc) *backend {
	t.Helper()
	return listening(t, name, address, n, func(l net.Listener, i int) func() {
		s := &http.Server{Handler: http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
			out.Header().Set("X-Workload", fmt.Sprintf("%s-%d", name, i))
			handle(out, r)
		})}
		go func() { _ = s.Serve(l) }()
		return func() { _ = s.Close() }
	})
}

// nextAddress gives each test's workloads other addresses of loopback.
var nextAddress = struct {
	sync.Mutex
	n int
}{}

func workloadAddress() netip.Addr {
	nextAddress.Lock()
	defer nextAddress.Unlock()
	nextAddress.n++
	return netip.AddrFrom4([4]byte{10, 1, byte(nextAddress.n >> 8), byte(nextAddress.n)})
}

// overLoopback is where a workload listens.
func overLoopback(at netip.AddrPort) netip.AddrPort {
	four := at.Addr().As4()
	four[0] = 127
	return netip.AddrPortFrom(netip.AddrFrom4(four), at.Port())
}

// listening opens a listener for each workload.
func listening(t testing.TB, name string, address netip.Addr, n int, run func(net.Listener, int) func()) *backend {
	t.Helper()
	b := &backend{name: name, address: address, port: "http"}
	for i := range n {
		addr := workloadAddress()
		l, err := net.Listen("tcp", overLoopback(netip.AddrPortFrom(addr, b.target)).String())
		if err != nil {
			t.Fatal(err)
		}
		b.target = uint16(l.Addr().(*net.TCPAddr).Port)
		b.workloads = append(b.workloads, addr)
		end := run(l, i)
		b.ends = append(b.ends, func() { end(); _ = l.Close() })
		t.Cleanup(b.ends[i])
	}
	return b
}

// raw is a backend that is written by hand: each connection is given to fn.
func raw(t testing.TB, name string, address netip.Addr, fn func(net.Conn)) *backend {
	t.Helper()
	return raws(t, name, address, 1, func(c net.Conn, _ int) { fn(c) })
}

// raws is raw with n workloads.
func raws(t testing.TB, name string, address netip.Addr, n int, fn func(net.Conn, int)) *backend {
	t.Helper()
	return listening(t, name, address, n, func(l net.Listener, i int) func() {
		var all sync.WaitGroup
		var mu sync.Mutex
		var open []net.Conn
		all.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				mu.Lock()
				open = append(open, c)
				mu.Unlock()
				all.Go(func() { defer c.Close(); fn(c, i) })
			}
		})
		return func() {
			_ = l.Close()
			mu.Lock()
			for _, c := range open {
				_ = c.Close()
			}
			mu.Unlock()
			all.Wait()
		}
	})
}

// echo says what it was asked.
func echo(out http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	out.Header().Set("X-Path", r.URL.RequestURI())
	out.Header().Set("X-Host", r.Host)
	for name, values := range r.Header {
		out.Header()["Got-"+name] = values
	}
	fmt.Fprintf(out, "%s %d", r.Method, len(body))
}

// toBackend is a rule that sends all requests to one backend.
func toBackend(name string, filters ...route.Filter) route.Rule {
	return route.Rule{Name: "all", Backends: []route.Backend{{Service: mesh.Key{Namespace: "shop", Name: name}, Port: servicePort, Weight: 1}}, Filters: filters}
}

// routed are rules for cart.
func routed(rules ...route.Rule) []route.Route {
	cart := mesh.Key{Namespace: "shop", Name: "cart"}
	return []route.Route{{ID: route.ID{Key: cart}, Parents: []route.Parent{{Service: cart, Port: servicePort}}, Rules: rules}}
}

// readResponse reads one response as net/http does.
func readResponse(t testing.TB, in *bufio.Reader, method string) (*http.Response, string) {
	t.Helper()
	req, _ := http.NewRequest(method, "http://h/", nil)
	resp, err := http.ReadResponse(in, req)
	if err != nil {
		t.Fatalf("read response to a %s: %v", method, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("read body: %v", err)
	}
	return resp, string(body)
}

// eventually waits for what is to become true.
func eventually(t testing.TB, what string, fn func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !fn(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 10 s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func has(t testing.TB, what, text, want string) {
	t.Helper()
	if !strings.Contains(text, want) {
		t.Errorf("%s is %q, want %q in it", what, text, want)
	}
}
