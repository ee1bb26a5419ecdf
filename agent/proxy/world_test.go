package proxy_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/engine"
	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/internal/eventloop"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/netpolicy"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// TestMain runs the tests in a network namespace of their own, in which every
// address of the documentation and benchmark ranges is local (AnyIP). The pods
// of these tests are such addresses, and redirection is a listener bound to the
// address that an application dials: an accepted connection's local address is
// then the original destination, as it is in a pod. Dials are bound to the
// pod's own address.
func TestMain(m *testing.M) {
	const inside = "HEDDLE_TEST_IN_NAMESPACE"
	if os.Getenv(inside) != "" {
		if err := localAddresses(); err != nil {
			fmt.Fprintln(os.Stderr, "prepare the network namespace:", err)
			os.Exit(1)
		}
		testenv.Main(m)
	}
	again := exec.Command("/proc/self/exe", os.Args[1:]...)
	again.Env = append(os.Environ(), inside+"=1")
	again.Stdin, again.Stdout, again.Stderr = os.Stdin, os.Stdout, os.Stderr
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		again.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		again.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		again.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	if err := again.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "tests in a network namespace:", err)
		os.Exit(1)
	}
}

func localAddresses() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for _, block := range []string{"198.18.0.0/15", "203.0.113.0/24", "2001:db8::/32"} {
		_, dst, err := net.ParseCIDR(block)
		if err != nil {
			return err
		}
		route := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: unix.RT_SCOPE_HOST}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("route %s: %w", block, err)
		}
	}
	// IPv6 has no AnyIP for bind: an address must be on a link, or this set.
	return os.WriteFile("/proc/sys/net/ipv6/ip_nonlocal_bind", []byte("1"), 0o644)
}

var trustDomain = spiffeid.RequireTrustDomainFromString("example.test")

// authority is a CA and everything that Identities gives.
type authority struct {
	mu      sync.Mutex
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
	serial  int64
	leaves  map[spiffeid.ID]*tls.Certificate
	missing map[spiffeid.ID]bool
	changed chan struct{}
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		URIs: []*url.URL{trustDomain.ID().URL()},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert: cert, key: key, serial: 1, leaves: map[spiffeid.ID]*tls.Certificate{},
		missing: map[spiffeid.ID]bool{}, changed: make(chan struct{})}
}

func (a *authority) Certificate(id spiffeid.ID) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.missing[id] {
		return nil, errors.New("no SVID yet")
	}
	if leaf, ok := a.leaves[id]; ok {
		return leaf, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a.serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.serial), URIs: []*url.URL{id.URL()},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	made := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	a.leaves[id] = made
	return made, nil
}

func (a *authority) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return x509bundle.FromX509Authorities(td, []*x509.Certificate{a.cert}), nil
}

func (a *authority) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

// rotate makes every next certificate a new one.
func (a *authority) rotate() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.leaves)
	close(a.changed)
	a.changed = make(chan struct{})
}

// withhold makes the authority have no SVID for an identity.
func (a *authority) withhold(id spiffeid.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.missing[id] = true
}

// sink keeps flow records.
type sink struct {
	mu      sync.Mutex
	records []flow.Record
}

func (s *sink) Add(r flow.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records = append(s.records, r)
}

func (s *sink) all() []flow.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]flow.Record(nil), s.records...)
}

// wait returns the records once there are n, and fails when there are more.
func (s *sink) wait(t testing.TB, n int) []flow.Record {
	t.Helper()
	testenv.Eventually(t, 10*time.Second, fmt.Sprintf("%d flow records", n), func() bool { return len(s.all()) >= n })
	time.Sleep(20 * time.Millisecond)
	all := s.all()
	if len(all) != n {
		t.Fatalf("%d flow records, want %d: %+v", len(all), n, all)
	}
	return all
}

// world is a mesh on loopback.
type world struct {
	t     testing.TB
	ca    *authority
	store *mesh.Store

	// engines are those of nodes that do not have the loops.
	engines map[string]string

	settings  mesh.Settings
	workloads []mesh.Workload
	services  []mesh.Service
	policies  []mesh.Policy
	network   []netpolicy.Policy
	revision  int
}

func newWorld(t testing.TB) *world {
	return &world{t: t, ca: newAuthority(t), store: mesh.NewStore(), settings: mesh.Settings{
		TrustDomain: trustDomain, ClusterRanges: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15")},
	}}
}

// workload adds a ready, enrolled, STRICT workload.
func (w *world) workload(name, node, addr string) *mesh.Workload {
	id, err := mesh.IdentityFor(trustDomain, "shop", name)
	if err != nil {
		w.t.Fatal(err)
	}
	w.workloads = append(w.workloads, mesh.Workload{
		Key: mesh.Key{Namespace: "shop", Name: name}, ServiceAccount: name, Node: node, Identity: id,
		Addresses: []netip.Addr{netip.MustParseAddr(addr)}, Enrolled: true, Ready: true,
	})
	return &w.workloads[len(w.workloads)-1]
}

func (w *world) service(name, addr string, port, target uint16, endpoints ...string) {
	s := mesh.Service{
		Key: mesh.Key{Namespace: "shop", Name: name}, Addresses: []netip.Addr{netip.MustParseAddr(addr)},
		Ports: []mesh.ServicePort{{Name: "tcp", Port: port, TargetPort: target}},
	}
	for _, e := range endpoints {
		s.Endpoints = append(s.Endpoints, mesh.Key{Namespace: "shop", Name: e})
	}
	w.services = append(w.services, s)
}

// publish makes a View of what was added and puts it into the Store.
func (w *world) publish() {
	w.t.Helper()
	w.revision++
	clone := func(in []mesh.Workload) []mesh.Workload { return append([]mesh.Workload(nil), in...) }
	v, err := mesh.NewNetworkView(fmt.Sprint(w.revision), w.settings, clone(w.workloads), append([]mesh.Service(nil), w.services...),
		append([]mesh.Policy(nil), w.policies...), mesh.Network{Policies: append([]netpolicy.Policy(nil), w.network...)})
	if err != nil {
		w.t.Fatal(err)
	}
	w.store.Replace(v)
}

func (w *world) denies(name, client string) mesh.Policy {
	id, err := mesh.IdentityFor(trustDomain, "shop", client)
	if err != nil {
		w.t.Fatal(err)
	}
	return mesh.Policy{
		Key: mesh.Key{Namespace: "shop", Name: name}, Action: mesh.ActionDeny,
		Rules: []mesh.Rule{{From: []mesh.Source{{Identities: []mesh.IdentityPattern{mesh.IdentityPattern(id.String())}}}}},
	}
}

// eachPair runs a test with every pair of engines on nodes a and b.
func eachPair(t *testing.T, test func(t *testing.T, engines map[string]string)) {
	for _, a := range []string{engine.Loop, engine.Reference} {
		for _, b := range []string{engine.Loop, engine.Reference} {
			t.Run(a+" to "+b, func(t *testing.T) { test(t, map[string]string{"a": a, "b": b}) })
		}
	}
}

// node is one agent's proxy with its engine.
type node struct {
	w      *world
	proxy  *proxy.Proxy
	engine hbone.Engine
	flows  *sink
}

func (w *world) node(name string, change ...func(*proxy.Config)) *node {
	kind := engine.Loop
	if other, ok := w.engines[name]; ok {
		kind = other
	}
	n := &node{w: w, engine: engine.New(kind, engine.CryptoAuto, slog.New(slog.DiscardHandler)), flows: &sink{}}
	cfg := proxy.Config{
		Node: name, Store: w.store, Engine: n.engine, Identities: w.ca, Flows: n.flows,
		Log:      slog.New(slog.DiscardHandler),
		Timeouts: proxy.Timeouts{Hold: 200 * time.Millisecond, Connect: 3 * time.Second, Drain: 200 * time.Millisecond, Unenroll: 200 * time.Millisecond},
	}
	for _, c := range change {
		c(&cfg)
	}
	n.proxy = proxy.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- n.proxy.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		<-ran
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := n.engine.Close(ctx); err != nil {
			w.t.Errorf("close engine: %v", err)
		}
		n.proxy.Close()
	})
	return n
}

// pod is a served pod.
type pod struct {
	n    *node
	addr netip.Addr
	stop func(cause error) error

	name      string
	options   podOptions
	listeners proxy.Listeners
}

// listen opens a listener.
func listen(t testing.TB, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

type podOptions struct {
	// outbound and inbound are the destinations that are redirected.
	outbound, inbound []string
	wrapTunnel        func(net.Listener) net.Listener
	probe             func(local, remote netip.AddrPort) bool
	noTunnel          bool
	// apps moves the application's ports.
	apps map[uint16]uint16
	// listeners, when not nil, are there already.
	listeners *proxy.Listeners
	// sockets, when not nil, are others than sockets.
	sockets proxy.Sockets
}

func (o podOptions) listen(t testing.TB, addr string) (l proxy.Listeners) {
	if o.listeners != nil {
		return *o.listeners
	}
	for _, dst := range o.outbound {
		l.Outbound = append(l.Outbound, listen(t, dst))
	}
	for _, dst := range o.inbound {
		l.Inbound = append(l.Inbound, listen(t, dst))
	}
	if !o.noTunnel {
		tunnel := listen(t, addr+":15008")
		if o.wrapTunnel != nil {
			tunnel = o.wrapTunnel(tunnel)
		}
		l.Tunnel = append(l.Tunnel, tunnel)
	}
	return l
}

// serve serves the pod of a workload until the test ends or stop is called.
func (n *node) serve(name, addr string, o podOptions) *pod {
	t := n.w.t
	t.Helper()
	l := o.listen(t, addr)
	p := &pod{n: n, addr: netip.MustParseAddr(addr), name: name, options: o, listeners: l}
	ctx, cancel := context.WithCancelCause(context.Background())
	served := make(chan error, 1)
	if o.sockets == nil {
		o.sockets = sockets{p.addr, o.apps}
	}
	go func() {
		served <- n.proxy.Serve(ctx, proxy.Pod{
			Key: mesh.Key{Namespace: "shop", Name: name}, Addresses: []netip.Addr{p.addr}, Listeners: l, Sockets: o.sockets, Probe: o.probe,
		})
	}()
	testenv.Eventually(t, 5*time.Second, name+" is served", func() bool { return n.proxy.Serves(mesh.Key{Namespace: "shop", Name: name}) })
	var once sync.Once
	var result error
	p.stop = func(cause error) error {
		once.Do(func() { cancel(cause); result = <-served })
		return result
	}
	t.Cleanup(func() {
		if err := p.stop(nil); err != nil {
			t.Errorf("serve %s: %v", name, err)
		}
	})
	return p
}

// sockets dials from a pod's address.
type sockets struct {
	addr netip.Addr
	apps map[uint16]uint16
}

func dialFrom(ctx context.Context, from netip.AddrPort, to netip.AddrPort) (*net.TCPConn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(from)}
	d.SetMultipathTCP(false)
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (s sockets) DialTunnel(ctx context.Context, remote netip.AddrPort) (*net.TCPConn, error) {
	return dialFrom(ctx, netip.AddrPortFrom(s.addr, 0), remote)
}

func (s sockets) DialEgress(ctx context.Context, remote netip.AddrPort) (*net.TCPConn, error) {
	return dialFrom(ctx, netip.AddrPortFrom(s.addr, 0), remote)
}

// DialApp keeps the client's address; its port is taken by the client itself.
func (s sockets) DialApp(ctx context.Context, client, app netip.AddrPort) (*net.TCPConn, error) {
	if moved, ok := s.apps[app.Port()]; ok {
		app = netip.AddrPortFrom(app.Addr(), moved)
	}
	return dialFrom(ctx, netip.AddrPortFrom(client.Addr(), 0), app)
}

// StartApp is DialApp on the spot for even ports, and later for others.
func (s sockets) StartApp(client, app netip.AddrPort) (int, func(context.Context) error, error) {
	start := func(ctx context.Context) (int, error) {
		c, err := s.DialApp(ctx, client, app)
		if err != nil {
			return -1, err
		}
		return eventloop.TakeOver(c)
	}
	if client.Port()%2 == 0 {
		fd, err := start(context.Background())
		return fd, nil, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, nil, err
	}
	return fd, func(ctx context.Context) error {
		made, err := start(ctx)
		if err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		return errors.Join(unix.Dup3(made, fd, unix.O_CLOEXEC), unix.Close(made))
	}, nil
}

// application is a server at an address; serve runs for each connection.
func application(t testing.TB, addr string, serve func(*net.TCPConn)) {
	t.Helper()
	stoppable(t, addr, serve)
}

// echo answers with the client's address, then with what it receives.
func echo(c *net.TCPConn) {
	remote := c.RemoteAddr().(*net.TCPAddr)
	fmt.Fprintf(c, "hello %s\n", remote.IP)
	io.Copy(c, c)
	c.CloseWrite()
}

// client dials as a pod's application does.
func (p *pod) client(dst string) *net.TCPConn {
	t := p.n.w.t
	t.Helper()
	c, err := p.dial(dst)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (p *pod) dial(dst string) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := dialFrom(ctx, netip.AddrPortFrom(p.addr, 0), netip.MustParseAddrPort(dst))
	if err != nil {
		return nil, err
	}
	p.n.w.t.Cleanup(func() { c.Close() })
	return c, c.SetDeadline(time.Now().Add(15 * time.Second))
}

// refused dials and expects a reset, which may be there before connect returns.
func (p *pod) refused(dst string) {
	p.n.w.t.Helper()
	c, err := p.dial(dst)
	if err == nil {
		refused(p.n.w.t, c)
	} else if !errors.Is(err, unix.ECONNRESET) {
		p.n.w.t.Errorf("dial %s: %v, want a reset", dst, err)
	}
}

// greeting reads what echo says first.
func greeting(t testing.TB, c net.Conn) string {
	t.Helper()
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := c.Read(b); err != nil {
			t.Fatalf("read greeting: %v (got %q)", err, line)
		}
		if b[0] == '\n' {
			return string(line)
		}
		line = append(line, b[0])
	}
}

// refused reports how a connection that should be reset ended.
func refused(t testing.TB, c *net.TCPConn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) || n > 0 {
		t.Errorf("read %d bytes, %v; want a reset", n, err)
	}
}
