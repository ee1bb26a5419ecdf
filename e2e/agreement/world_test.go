package agreement

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/cgroup/cgrouptest"
	"github.com/heddle-mesh/heddle/agent/kernel"
	"github.com/heddle-mesh/heddle/agent/netns"
	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/bpf"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

const (
	nodeName = "n1"
	enough   = 30 * time.Second // for whatever is to happen
)

// outsiders are addresses of the namespace that is on no node.
var outsiders = []string{"10.66.9.2", "fd66:9::2", "10.1.2.3", "10.9.9.9", "192.0.2.1", "fd00::1", "2001:db8::1"}

// waypoints are the addresses of shop/waypoint's workload, which is where the outsiders are.
var waypoints = []string{"10.66.9.3", "fd66:9::3"}

// nodes are the node's own addresses, from where kubelet probes.
var nodes = []string{"10.66.1.1", "fd66:1::1"}

// world is a node with an agent's kernel and proxy parts, two pods, and a client that is
// on no node.
type world struct {
	node, server, client, outside *testenv.NetNS
	at, beside                    placed
	apps, kubelet                 *cgrouptest.Sockets

	store    *mesh.Store
	datapath *kernel.Datapath
	proxy    *proxy.Proxy
	engine   *engine
	flows    chan flow.Record
	gate     *ebpf.Program // host_inbound of shop/server
	leaves   *ebpf.Program // host_outbound of it
	kernel   func(func(*bpf.Pod) error) error
}

func newWorld(t *testing.T) *world {
	w := &world{
		node: testenv.NewNetNS(t, "node"), server: testenv.NewNetNS(t, "server"), client: testenv.NewNetNS(t, "client"), outside: testenv.NewNetNS(t, "outside"),
		apps: cgrouptest.NewSockets(cgrouptest.FirstFd, socketsAtOnce), kubelet: cgrouptest.NewSockets(cgrouptest.FirstFd+1, socketsAtOnce),
		store: mesh.NewStore(), flows: make(chan flow.Record, 1024),
	}
	t.Cleanup(func() {
		if err := errors.Join(w.apps.Close(), w.kubelet.Close()); err != nil {
			t.Error(err)
		}
	})
	w.at = w.pod(t, w.server, "vserver", "1")
	w.beside = w.pod(t, w.client, "vclient", "2")
	var far []string
	for _, a := range outsiders {
		far = append(far, netip.PrefixFrom(netip.MustParseAddr(a), bits(a)).String())
	}
	far[0], far[1] = "10.66.9.2/24", "fd66:9::2/64"
	far = append(far, waypoints[0]+"/24", waypoints[1]+"/64")
	testenv.Veth(t, w.node, "vout", []string{"10.66.9.1/24", "fd66:9::1/64"}, w.outside, "eth0", far)
	testenv.DefaultRoute(t, w.outside, "10.66.9.1")
	testenv.DefaultRoute(t, w.outside, "fd66:9::1")
	for _, a := range outsiders[2:] {
		run(t, "ip", "-n", w.node.Name, "route", "add", netip.PrefixFrom(netip.MustParseAddr(a), bits(a)).String(), "dev", "vout")
	}
	w.start(t)
	return w
}

func bits(a string) int { return netip.MustParseAddr(a).BitLen() }

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func (w *world) pod(t *testing.T, ns *testenv.NetNS, veth, n string) placed {
	a4, a6 := "10.66."+n+".2", "fd66:"+n+"::2"
	testenv.Veth(t, w.node, veth, []string{"10.66." + n + ".1/24", "fd66:" + n + "::1/64"}, ns, "eth0", []string{a4 + "/24", a6 + "/64"})
	testenv.DefaultRoute(t, ns, "10.66."+n+".1")
	testenv.DefaultRoute(t, ns, "fd66:"+n+"::1")
	return placed{netns: ns.Path, addresses: []netip.Addr{netip.MustParseAddr(a4), netip.MustParseAddr(a6)}}
}

// start starts the agent's parts; nothing is enrolled yet.
func (w *world) start(t *testing.T) {
	kubelet, err := kubeletCgroup()
	if err != nil {
		t.Fatal(err)
	}
	cfg := kernel.Config{
		Node: nodeName, PinDir: "/sys/fs/bpf/" + w.node.Name, StateDir: t.TempDir(), Kubelet: kubelet,
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	w.node.Must(t, func() error { w.datapath, err = kernel.Open(t.Context(), cfg); return err })
	t.Cleanup(func() {
		errs := []error{w.datapath.Prune(context.Background(), nil), w.datapath.Uninstall(), w.datapath.Close(), os.RemoveAll(cfg.PinDir)}
		if err := errors.Join(errs...); err != nil {
			t.Errorf("take the kernel's part back: %v", err)
		}
	})
	w.engine = &engine{servers: map[string]*hbone.Server{}}
	w.proxy = proxy.New(proxy.Config{
		Node: nodeName, Store: w.store, Engine: w.engine, Identities: selfSigned(t), Flows: w, Log: cfg.Log,
		// Who may become a waypoint waits for Hold before it is refused, and many do here.
		Timeouts: proxy.Timeouts{Hold: 10 * time.Millisecond, Connect: enough, Drain: time.Second, Unenroll: time.Second,
			Grace: time.Nanosecond}, // a former waypoint's is not what is documented here
	})
	t.Cleanup(w.proxy.Close)
	w.background(t, w.proxy.Run)
	w.background(t, w.datapath.Finish)
	w.background(t, func(ctx context.Context) error {
		return w.datapath.Pods().Watch(ctx, func(name string, why error) { t.Errorf("pod %s is lost: %v", name, why) })
	})
}

func (w *world) background(t *testing.T, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
}

// Add implements flow.Sink.
func (w *world) Add(r flow.Record) { w.flows <- r }

// record returns the next flow record.
func (w *world) record() (flow.Record, error) {
	select {
	case r := <-w.flows:
		return r, nil
	case <-time.After(enough):
		return flow.Record{}, errors.New("no flow record")
	}
}

// gateProgram returns one of shop/server's gate.
func gateProgram(t *testing.T, node, name string) *ebpf.Program {
	t.Helper()
	pinned, err := link.LoadPinnedLink(filepath.Join("/sys/fs/bpf", node, bpf.Layout, "pods", "shop_server", name), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer pinned.Close()
	info, err := pinned.Info()
	if err != nil {
		t.Fatal(err)
	}
	program, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return program
}

// enroll puts both pods of a View into the mesh, and serves them.
func (w *world) enroll(t *testing.T, view *mesh.View) {
	for _, name := range []string{"server", "client"} {
		pod, err := w.apply(t.Context(), view, name)
		if err != nil {
			t.Fatal(err)
		}
		w.background(t, func(ctx context.Context) error { return w.proxy.Serve(ctx, pod) })
	}
	testenv.Eventually(t, enough, "shop/server's tunnel is served", func() bool { return w.engine.server("shop/server") != nil })
	server := w.datapath.Pods().Pods()["shop_server"]
	testenv.Eventually(t, enough, "shop/server's gate is where it stays", func() bool { return !server.Unfinished() })
	w.gate, w.leaves = gateProgram(t, w.node.Name, "host_inbound"), gateProgram(t, w.node.Name, "host_outbound")
	w.kernel = server.Kernel
	for _, port := range applicationPorts {
		for _, addr := range w.at.addresses {
			w.application(t, netip.AddrPortFrom(addr, port))
		}
	}
}

// apply brings a pod's part of the kernel up to date, as the agent does for each View.
func (w *world) apply(ctx context.Context, view *mesh.View, name string) (proxy.Pod, error) {
	workload, ok := view.Workload(mesh.Key{Namespace: "shop", Name: name})
	if !ok {
		return proxy.Pod{}, fmt.Errorf("shop/%s is not in the View", name)
	}
	return w.datapath.Enroll(ctx, workload, view.Revoked(workload.Identity))
}

// application echoes at an address of shop/server.
func (w *world) application(t *testing.T, at netip.AddrPort) {
	fd, err := w.apps.Take(w.server.Path, at.Addr())
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	for _, err := range []error{unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, netns.Sockaddr(at)), unix.Listen(fd, 128)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { defer c.Close(); _, _ = io.Copy(c, c) }) // its client says how it went
		}
	})
	t.Cleanup(func() { l.Close(); serving.Wait() })
}

// engine stands for the tunnel: it accepts nobody, and remembers whom to ask about streams.
type engine struct {
	mu      sync.Mutex
	servers map[string]*hbone.Server
}

func (e *engine) server(name string) *hbone.Server {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.servers[name]
}

func (e *engine) Serve(l net.Listener, s *hbone.Server) error {
	e.mu.Lock()
	e.servers[s.Local] = s
	e.mu.Unlock()
	for {
		c, err := l.Accept()
		if err != nil {
			return nil
		}
		_ = c.Close()
	}
}

func (e *engine) Connect(local *net.TCPConn, req *hbone.ConnectRequest) {
	_ = local.Close()
	req.Done(hbone.Outcome{Err: hbone.ErrUnreachable})
}

func (e *engine) Drain(hbone.Match, bool) {}

func (e *engine) Close(context.Context) error { return nil }

// identity gives every workload the same certificate: nobody looks at it here.
type identity struct{ certificate *tls.Certificate }

func selfSigned(t *testing.T) identity {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return identity{&tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}}
}

func (i identity) Certificate(spiffeid.ID) (*tls.Certificate, error) { return i.certificate, nil }

func (i identity) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return x509bundle.New(td), nil
}

func (i identity) Changed() <-chan struct{} { return nil }
