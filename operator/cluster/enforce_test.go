package cluster

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator/clustertest"
	"github.com/heddle-mesh/heddle/operator/publish"
)

const metadataNode = "test-node"

// byMetadata believes what a client says it is.
func byMetadata(ctx context.Context) (discovery.Caller, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if names := md.Get(metadataNode); len(names) == 1 {
		return discovery.Caller{Node: names[0]}, nil
	}
	return discovery.Caller{}, errors.New("no name")
}

// plane is a control plane in this process: a mirror that the test fills, its
// compiler and its server, as an operator wires them.
type plane struct {
	source   *Source
	compiler *publish.Cluster
	server   *discovery.Server
	listener *bufconn.Listener
}

func startPlane(t testing.TB) *plane {
	t.Helper()
	p := &plane{source: NewSource((&clustertest.Server{}).Config(), false, slog.New(slog.DiscardHandler)), listener: bufconn.Listen(64 << 10)}
	fill(t, p.source)
	var err error
	p.server, err = discovery.NewServer(discovery.ServerConfig{Authenticate: byMetadata, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	p.compiler = publish.NewCluster(publish.ClusterConfig{Source: p.source, TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Key: testKey(),
		Store: mesh.NewStore(), Server: p.server, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(following(t, p.compiler))
	g := grpc.NewServer(discovery.ServerOptions()...)
	p.server.Register(g)
	served := make(chan error, 1)
	go func() { served <- g.Serve(p.listener) }()
	t.Cleanup(func() {
		p.server.Drain()
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return p
}

// join runs the real client of a node until the test ends, and returns what its
// agent decides by.
func (p *plane) join(t testing.TB, node string) *mesh.Store {
	t.Helper()
	store := mesh.NewStore()
	c, err := discovery.NewClient(discovery.ClientConfig{Node: node, Target: "passthrough:///operator", Credentials: insecure.NewCredentials(), Store: store,
		Keys: func() []ed25519.PublicKey { return []ed25519.PublicKey{testKey().Public().(ed25519.PublicKey)} }, Logger: slog.New(slog.DiscardHandler),
		DialOptions: []grpc.DialOption{
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return p.listener.DialContext(ctx) }),
			grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
				return open(metadata.AppendToOutgoingContext(ctx, metadataNode, node), desc, cc, method, opts...)
			})}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return store
}

// enforced waits until what every node decides by satisfies holds.
func enforced(t testing.TB, what string, stores map[string]*mesh.Store, holds func(node string, v *mesh.View) bool) {
	t.Helper()
	deadline := time.NewTimer(5 * time.Minute)
	defer deadline.Stop()
	for node, store := range stores {
		for {
			view, changed := store.Snapshot()
			if holds(node, view) {
				break
			}
			select {
			case <-changed:
			case <-deadline.C:
				t.Fatalf("%s: not in force on %s within five minutes", what, node)
			}
		}
	}
}

// TestChangeToEnforcement changes policies and endpoints of a cluster of 1,000
// services, as many policies and 10,000 workloads, and measures until every node that is
// concerned decides by it: the destination's for a policy, all for an endpoint. That may
// take a second at p99: `make enforcement` holds it to that, over a thousand changes.
// Among other tests, with which the operator and all nodes share two cores, it is the
// median that is held to it.
func TestChangeToEnforcement(t *testing.T) {
	const (
		nodes = 20
		most  = time.Second
	)
	changes, percentile := 15, 50 // changes of each kind
	if text := os.Getenv("HEDDLE_CHANGES"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 100 || n > manyServices {
			t.Fatalf("HEDDLE_CHANGES=%q: want a number from 100 to %d", text, manyServices)
		}
		changes, percentile = n, 99
	}
	p := startPlane(t)
	stores := map[string]*mesh.Store{}
	for i := range nodes {
		node := fmt.Sprintf("node-%d", i)
		stores[node] = p.join(t, node)
	}
	enforced(t, "the first configuration", stores, func(_ string, v *mesh.View) bool { return len(v.Workloads()) == manyPods })
	client := mustIdentity(t)
	took := map[string][]time.Duration{}
	for i := range changes {
		// The app of this number runs on ten nodes from that number on.
		app, port := i%(nodes-10), uint16(2000+i)
		began := time.Now()
		if err := p.source.table("authorizationpolicies").Update(policy(app, int(port))); err != nil {
			t.Fatal(err)
		}
		judged := 0
		enforced(t, "a policy", stores, func(node string, v *mesh.View) bool {
			for _, w := range v.OnNode(node) {
				if w.ServiceAccount != fmt.Sprintf("app-%d", app) {
					continue
				}
				_, decision := v.Authorize(mesh.Connection{Peer: client(app), Destination: w, Port: port, Source: netip.MustParseAddr("10.9.9.9")})
				if decision.Verdict != mesh.VerdictAllow || decision.Policy.Name != w.ServiceAccount {
					return false
				}
				judged++
			}
			return true
		})
		if took["policy"] = append(took["policy"], time.Since(began)); judged != 10 {
			t.Fatalf("%d workloads decide by the policy, want all 10", judged)
		}

		gone := pod(i) // of a service each
		gone.ResourceVersion = fmt.Sprint(1_000_000 + i)
		gone.Status.Conditions[0].Status = corev1.ConditionFalse
		key := mesh.Key{Namespace: gone.Namespace, Name: gone.Name}
		address := netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("10.200.%d.%d", i/250, i%250+1)), 80)
		began = time.Now()
		if err := p.source.table("pods").Update(gone); err != nil {
			t.Fatal(err)
		}
		enforced(t, "an endpoint", stores, func(node string, v *mesh.View) bool {
			route := v.Route(nil, address)
			return route.Kind == mesh.RouteWorkload && len(route.Candidates) == 9 &&
				!slices.ContainsFunc(route.Candidates, func(w *mesh.Workload) bool { return w.Key == key })
		})
		took["endpoint"] = append(took["endpoint"], time.Since(began))
	}
	for kind, all := range took {
		slices.Sort(all)
		at := func(percent int) time.Duration { return all[len(all)*percent/100] }
		t.Logf("%s: to enforcement on %d nodes: p50 %v, p99 %v, longest %v, of %d changes", kind, nodes, at(50), at(99), all[len(all)-1], len(all))
		if took := at(percentile); took > most {
			t.Errorf("%s: p%d is %v, more than %v", kind, percentile, took, most)
		}
	}
	testenv.Eventually(t, 10*time.Second, "no node is behind", func() bool { return len(p.compiler.Behind()) == 0 })
}

// mustIdentity returns the identities of the apps.
func mustIdentity(t testing.TB) func(app int) spiffeid.ID {
	return func(app int) spiffeid.ID {
		id, err := mesh.IdentityFor(spiffeid.RequireTrustDomainFromString("example.org"), fmt.Sprintf("team-%d", app%manySpaces), fmt.Sprintf("app-%d", app))
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
}
