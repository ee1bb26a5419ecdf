package discovery

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/internal/discovery/resources"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func testKey(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(slices.Repeat([]byte{seed}, ed25519.SeedSize))
}

func publicOf(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }

func keysOf(seeds ...byte) func() []ed25519.PublicKey {
	var keys []ed25519.PublicKey
	for _, seed := range seeds {
		keys = append(keys, publicOf(testKey(seed)))
	}
	return func() []ed25519.PublicKey { return keys }
}

// testCaller reads the node's name from the metadata that dialAs adds.
func testCaller(ctx context.Context) (Caller, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if got := md.Get("test-node"); len(got) == 1 {
		return Caller{Node: got[0]}, nil
	}
	return Caller{}, errors.New("no name given")
}

// operatorEnd is a server in this process that can be stopped and replaced.
type operatorEnd struct {
	*Server
	listener *bufconn.Listener
	grpc     *grpc.Server
	served   chan error
	stop     func()
}

func startOperator(t testing.TB, change func(*ServerConfig), options ...grpc.ServerOption) *operatorEnd {
	t.Helper()
	cfg := ServerConfig{Authenticate: testCaller, Coalesce: time.Millisecond, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	s, err := NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	o := &operatorEnd{Server: s, listener: bufconn.Listen(64 << 10), grpc: grpc.NewServer(append(ServerOptions(), options...)...), served: make(chan error, 1)}
	s.Register(o.grpc)
	go func() { o.served <- o.grpc.Serve(o.listener) }()
	o.stop = sync.OnceFunc(func() {
		o.Drain()
		o.grpc.Stop()
		if err := <-o.served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(o.stop)
	return o
}

// wire counts what a client receives, and lets a test change it.
type wire struct {
	sync.Mutex
	node      string
	resources int // without commits
	commits   int
	empty     int // commit responses without a resource
	largest   int // bytes of the largest message
	tamper    func(*discoveryv3.DeltaDiscoveryResponse)
	dial      func(context.Context) (net.Conn, error)
}

type countedStream struct {
	grpc.ClientStream
	wire *wire
}

func (s countedStream) RecvMsg(m any) error {
	if err := s.ClientStream.RecvMsg(m); err != nil {
		return err
	}
	msg := m.(*discoveryv3.DeltaDiscoveryResponse)
	s.wire.Lock()
	defer s.wire.Unlock()
	s.wire.largest = max(s.wire.largest, proto.Size(msg))
	switch {
	case msg.TypeUrl != resources.KindCommit.TypeURL():
		s.wire.resources += len(msg.Resources) + len(msg.RemovedResources)
	case len(msg.Resources) == 0:
		s.wire.empty++
	default:
		s.wire.commits++
	}
	if s.wire.tamper != nil {
		s.wire.tamper(msg)
	}
	return nil
}

func (w *wire) counts() (resources, commits, empty int) {
	w.Lock()
	defer w.Unlock()
	return w.resources, w.commits, w.empty
}

func (w *wire) options() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			w.Lock()
			dial := w.dial
			w.Unlock()
			return dial(ctx)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			s, err := streamer(metadata.AppendToOutgoingContext(ctx, "test-node", w.node), desc, cc, method, opts...)
			return countedStream{s, w}, err
		}),
	}
}

// agentEnd is a client in this process.
type agentEnd struct {
	*Client
	store *mesh.Store
	wire  *wire
	stop  func()
}

func startAgent(t testing.TB, o *operatorEnd, node string, change func(*ClientConfig)) *agentEnd {
	t.Helper()
	a := &agentEnd{store: mesh.NewStore(), wire: &wire{node: node}}
	a.wire.dial = func(ctx context.Context) (net.Conn, error) {
		if o == nil {
			return nil, errors.New("no operator")
		}
		return o.listener.DialContext(ctx)
	}
	cfg := ClientConfig{Node: node, Target: "passthrough:///operator", Credentials: insecure.NewCredentials(), DialOptions: a.wire.options(),
		Store: a.store, Keys: keysOf(1), BackoffMin: 5 * time.Millisecond, BackoffMax: 20 * time.Millisecond,
		SaveInterval: 5 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	c, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	a.Client = c
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	a.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("client: %v", err)
		}
	})
	t.Cleanup(a.stop)
	return a
}

func (a *agentEnd) awaitEpoch(t testing.TB, epoch uint64) {
	t.Helper()
	testenv.Eventually(t, time.Minute, fmt.Sprintf("epoch %d is applied and current", epoch), func() bool {
		s := a.Status()
		return s.Epoch == epoch && s.Current
	})
}

// lastGoodIn sets a last good file in dir.
func lastGoodIn(dir string) func(*ClientConfig) {
	return func(cfg *ClientConfig) { cfg.LastGood = filepath.Join(dir, "last-good") }
}

func snapshotOf(t testing.TB, view *mesh.View, epoch uint64) *Snapshot {
	t.Helper()
	s, err := NewSnapshot(view, epoch, testKey(1))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// shape describes a View of a test: n workloads on the nodes in turn.
type shape struct {
	workloads, services, policies int
	nodes                         []string
	generation                    int // changes every workload's label
}

func viewOf(t testing.TB, s shape) *mesh.View {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString("test.example")
	settings := mesh.Settings{TrustDomain: td, ClusterRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	var workloads []mesh.Workload
	for i := range s.workloads {
		ns := fmt.Sprintf("ns%d", i%7)
		id, err := mesh.IdentityFor(td, ns, "web")
		if err != nil {
			t.Fatal(err)
		}
		workloads = append(workloads, mesh.Workload{Key: mesh.Key{Namespace: ns, Name: fmt.Sprintf("web-%d", i)}, ServiceAccount: "web",
			Node: s.nodes[i%len(s.nodes)], Identity: id, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})},
			Labels:   map[string]string{"app": fmt.Sprintf("app%d", i%max(1, s.services)), "generation": fmt.Sprint(s.generation)},
			Enrolled: true, Ready: true, NetNS: fmt.Sprintf("/run/netns/web-%d", i), PortModes: map[uint16]mesh.Mode{9090: mesh.ModePermissive}})
	}
	var services []mesh.Service
	for i := range s.services {
		service := mesh.Service{Key: mesh.Key{Namespace: "ns0", Name: fmt.Sprintf("app%d", i)}, Ports: []mesh.ServicePort{{Name: "http", Port: 80, TargetPort: 8080}},
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)})}}
		for j := i; j < len(workloads); j += s.services {
			service.Endpoints = append(service.Endpoints, workloads[j].Key)
		}
		services = append(services, service)
	}
	var policies []mesh.Policy
	for i := range s.policies {
		policies = append(policies, mesh.Policy{Key: mesh.Key{Namespace: fmt.Sprintf("ns%d", i%7), Name: fmt.Sprintf("p%d", i)}, Action: mesh.ActionAllow,
			Selector: map[string]string{"app": fmt.Sprintf("app%d", i)}, Rules: []mesh.Rule{{To: []mesh.Destination{{Ports: []uint16{8080}}}}}})
	}
	view, err := mesh.NewView(fmt.Sprintf("revision-%+v", s.generation), settings, workloads, services, policies)
	if err != nil {
		t.Fatal(err)
	}
	return view
}

func equalModel() cmp.Options {
	return cmp.Options{
		cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b }),
		cmp.Comparer(func(a, b spiffeid.TrustDomain) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		cmpopts.EquateEmpty(),
	}
}

// diffForNode compares what a node has with what it ought to be told of a View.
func diffForNode(node string, full, got *mesh.View) string {
	var workloads []mesh.Workload
	for _, w := range full.Workloads() {
		told := *w
		if w.Node != node {
			told.NetNS, told.Labels, told.PortModes = "", nil, nil
		}
		workloads = append(workloads, told)
	}
	var policies []mesh.Policy
	for _, p := range full.Policies() {
		if slices.ContainsFunc(full.OnNode(node), func(w *mesh.Workload) bool { return p.Selects(w.Namespace, w.Labels) }) {
			policies = append(policies, *p)
		}
	}
	var gotWorkloads []mesh.Workload
	for _, w := range got.Workloads() {
		gotWorkloads = append(gotWorkloads, *w)
	}
	var gotPolicies []mesh.Policy
	for _, p := range got.Policies() {
		gotPolicies = append(gotPolicies, *p)
	}
	opts := equalModel()
	return cmp.Diff(full.Revision(), got.Revision()) + cmp.Diff(full.Settings(), got.Settings(), opts) + cmp.Diff(full.Services(), got.Services(), opts) +
		cmp.Diff(workloads, gotWorkloads, opts) + cmp.Diff(policies, gotPolicies, opts)
}
