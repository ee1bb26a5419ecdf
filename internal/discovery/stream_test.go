package discovery

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/internal/discovery/resources"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

var twoNodes = []string{"n1", "n2"}

func TestNodesReceiveTheirShareOfTheView(t *testing.T) {
	o := startOperator(t, nil)
	view := viewOf(t, shape{workloads: 20, services: 4, policies: 5, nodes: twoNodes})
	o.Publish(snapshotOf(t, view, 1))
	for _, node := range []string{"n1", "n2", "n3"} {
		a := startAgent(t, o, node, nil)
		a.awaitEpoch(t, 1)
		if diff := diffForNode(node, view, a.store.View()); diff != "" {
			t.Errorf("%s: %s", node, diff)
		}
		for _, w := range a.store.View().Workloads() {
			if (w.NetNS != "") != (w.Node == node) {
				t.Errorf("%s is told the network namespace %q of %v on %s", node, w.NetNS, w.Key, w.Node)
			}
		}
	}
	testenv.Eventually(t, time.Minute, "the server knows what is applied", func() bool {
		nodes := o.Nodes()
		return len(nodes) == 3 && !slices.ContainsFunc(nodes, func(n NodeStatus) bool {
			return n.Epoch != 1 || n.Revision != view.Revision() || n.Connected != 1 || n.LastError != ""
		})
	})
}

func TestReconnectWithNothingChangedSendsNoResource(t *testing.T) {
	o := startOperator(t, nil)
	view := viewOf(t, shape{workloads: 20, services: 4, policies: 5, nodes: twoNodes})
	o.Publish(snapshotOf(t, view, 7))
	dir := t.TempDir()
	a := startAgent(t, o, "n1", lastGoodIn(dir))
	a.awaitEpoch(t, 7)
	a.stop()

	// Another replica, which has compiled the same objects itself.
	o.stop()
	o2 := startOperator(t, nil)
	o2.Publish(snapshotOf(t, viewOf(t, shape{workloads: 20, services: 4, policies: 5, nodes: twoNodes}), 7))
	b := startAgent(t, o2, "n1", lastGoodIn(dir))
	b.awaitEpoch(t, 7)
	if resources, commits, empty := b.wire.counts(); resources != 0 || commits != 0 || empty != 1 {
		t.Errorf("resume received %d resources, %d commits and %d empty rounds, want 0, 0 and 1", resources, commits, empty)
	}
	if diff := diffForNode("n1", view, b.store.View()); diff != "" {
		t.Error(diff)
	}
}

func TestOnlyWhatChangedIsSent(t *testing.T) {
	o := startOperator(t, nil)
	before := shape{workloads: 20, nodes: twoNodes}
	o.Publish(snapshotOf(t, viewOf(t, before), 1))
	a := startAgent(t, o, "n1", nil)
	a.awaitEpoch(t, 1)
	first, _, _ := a.wire.counts()
	after := before
	after.workloads = 18 // two are removed
	o.Publish(snapshotOf(t, viewOf(t, after), 2))
	a.awaitEpoch(t, 2)
	if now, _, _ := a.wire.counts(); now-first != 2 {
		t.Errorf("%d resources were sent for two removals", now-first)
	}
	// Nothing changes for the node but the epoch.
	o.Publish(snapshotOf(t, viewOf(t, after), 3))
	a.awaitEpoch(t, 3)
	if now, commits, _ := a.wire.counts(); now-first != 2 || commits != 3 {
		t.Errorf("%d resources and %d commits were sent, want 2 and 3", now-first, commits)
	}
}

func TestChurnConverges(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		o := startOperator(t, nil)
		defer o.stop()
		a := startAgent(t, o, "n1", nil)
		defer a.stop()
		rounds := rapid.IntRange(1, 8).Draw(r, "rounds")
		var last *mesh.View
		for epoch := range rounds {
			last = viewOf(t, shape{workloads: rapid.IntRange(0, 30).Draw(r, "workloads"), services: rapid.IntRange(1, 5).Draw(r, "services"),
				policies: rapid.IntRange(0, 5).Draw(r, "policies"), generation: rapid.IntRange(0, 2).Draw(r, "generation"),
				nodes: rapid.SampledFrom([][]string{{"n1"}, {"n2"}, {"n1", "n2"}, {"n2", "n1", "n3"}}).Draw(r, "nodes")})
			o.Publish(snapshotOf(t, last, uint64(epoch+1)))
			if rapid.Bool().Draw(r, "settle") {
				a.awaitEpoch(t, uint64(epoch+1))
			}
		}
		a.awaitEpoch(t, uint64(rounds))
		if diff := diffForNode("n1", last, a.store.View()); diff != "" {
			r.Fatal(diff)
		}
		if s := a.Status(); s.Refused != 0 || s.Connects != 1 {
			r.Fatalf("%d refusals, %d connections", s.Refused, s.Connects)
		}
	})
}

func TestOlderEpochIsRefused(t *testing.T) {
	o := startOperator(t, nil)
	newer := viewOf(t, shape{workloads: 3, nodes: twoNodes})
	o.Publish(snapshotOf(t, newer, 9))
	a := startAgent(t, o, "n1", nil)
	a.awaitEpoch(t, 9)
	o.Publish(snapshotOf(t, viewOf(t, shape{workloads: 1, nodes: twoNodes}), 8))
	testenv.Eventually(t, time.Minute, "refused, with a reason on both ends", func() bool {
		return strings.Contains(a.Status().LastError, "epoch 8 is older") && strings.Contains(o.Nodes()[0].LastError, "epoch 8 is older")
	})
	if diff := diffForNode("n1", newer, a.store.View()); diff != "" {
		t.Errorf("something was applied: %s", diff)
	}
	// The stream goes on, from what is held.
	o.Publish(snapshotOf(t, viewOf(t, shape{workloads: 2, nodes: twoNodes}), 10))
	a.awaitEpoch(t, 10)
	if s := a.Status(); s.Connects != 1 || s.Refused != 1 {
		t.Errorf("%d connections and %d refusals, want 1 and 1", s.Connects, s.Refused)
	}
}

// TestBehindSinceTheFirstThatIsMissing: however much is published meanwhile, a node is
// behind since the first that it has not applied; also over its streams' ends.
func TestBehindSinceTheFirstThatIsMissing(t *testing.T) {
	o := startOperator(t, func(cfg *ServerConfig) { cfg.AckTimeout = time.Second })
	publish := func(epoch uint64) (before, after time.Time) {
		before = time.Now()
		o.Publish(snapshotOf(t, viewOf(t, shape{workloads: int(epoch), nodes: twoNodes}), epoch))
		return before, time.Now()
	}
	publish(1)
	a := startAgent(t, o, "n1", nil)
	is := func(what string, from, to time.Time) {
		t.Helper()
		if since := o.Nodes()[0].BehindSince; since.Before(from) || since.After(to) {
			t.Errorf("%s: behind since %v, want from %v to %v", what, since, from, to)
		}
	}
	synced := func(epoch uint64) {
		t.Helper()
		testenv.Eventually(t, time.Minute, "in sync", func() bool { n := o.Nodes()[0]; return n.Epoch == epoch && n.BehindSince.IsZero() })
	}
	a.awaitEpoch(t, 1)
	synced(1)

	// Messages arrive, and nothing answers them.
	var held sync.WaitGroup
	held.Add(1)
	a.wire.Lock()
	a.wire.tamper = func(*discoveryv3.DeltaDiscoveryResponse) { held.Wait() }
	a.wire.Unlock()
	from, to := publish(2)
	for epoch := uint64(3); epoch < 8; epoch++ {
		time.Sleep(20 * time.Millisecond)
		publish(epoch)
		is("not answering", from, to)
	}
	testenv.Eventually(t, time.Minute, "its stream ends", func() bool { return o.Nodes()[0].Connected == 0 })
	is("gone", from, to)
	go held.Done()
	a.awaitEpoch(t, 7)
	synced(7)

	// One that refuses what is new is behind as long.
	from, to = publish(6)
	testenv.Eventually(t, time.Minute, "refused", func() bool { return o.Nodes()[0].LastError != "" })
	is("refusing", from, to)
	publish(8)
	a.awaitEpoch(t, 8)
	synced(8)
	if _, commits, _ := a.wire.counts(); commits < 4 {
		t.Errorf("%d commits", commits)
	}

	// What it was brought to by another replica is not this one's delay.
	a.stop()
	publish(9)
	from, _ = publish(10)
	b := startAgent(t, o, "n1", func(cfg *ClientConfig) { cfg.Keys = keysOf(2) }) // which applies nothing
	testenv.Eventually(t, time.Minute, "the new one refuses", func() bool { return o.Nodes()[0].Connected > 0 && b.Status().Refused > 0 })
	is("with less than was known of it", from, time.Now())
}

func TestForeignSignatureIsRefused(t *testing.T) {
	o := startOperator(t, nil)
	a := startAgent(t, o, "n1", func(cfg *ClientConfig) { cfg.Keys = keysOf(2) })
	o.Publish(snapshotOf(t, viewOf(t, shape{workloads: 3, nodes: twoNodes}), 1))
	testenv.Eventually(t, time.Minute, "refused", func() bool { return strings.Contains(a.Status().LastError, "signature") })
	if a.store.View().Synced() {
		t.Error("a View was applied")
	}
}

func TestLossOnTheWayIsFoundAndMended(t *testing.T) {
	for name, tamper := range map[string]func(*discoveryv3.DeltaDiscoveryResponse){
		"lost":    func(m *discoveryv3.DeltaDiscoveryResponse) { m.Resources = m.Resources[1:] },
		"changed": func(m *discoveryv3.DeltaDiscoveryResponse) { m.Resources[0].Resource.Value[5] ^= 1 },
		"renamed": func(m *discoveryv3.DeltaDiscoveryResponse) { m.Resources[0].Name = "ns0/other" },
		"version": func(m *discoveryv3.DeltaDiscoveryResponse) { m.Resources[0].Version = "1" },
		"removed": func(m *discoveryv3.DeltaDiscoveryResponse) { m.RemovedResources = []string{"ns0/web-0"} },
		"typed": func(m *discoveryv3.DeltaDiscoveryResponse) {
			m.Resources[0].Resource.TypeUrl = resources.KindPolicy.TypeURL()
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := startOperator(t, nil)
			view := viewOf(t, shape{workloads: 5, nodes: twoNodes})
			a := startAgent(t, o, "n1", nil)
			messages := 0
			a.wire.Lock()
			a.wire.tamper = func(m *discoveryv3.DeltaDiscoveryResponse) {
				if m.TypeUrl != resources.KindWorkload.TypeURL() {
					return
				}
				if messages++; messages == 2 { // its own, which take the place of what all are told
					tamper(m)
				}
			}
			a.wire.Unlock()
			o.Publish(snapshotOf(t, view, 1))
			a.awaitEpoch(t, 1)
			if diff := diffForNode("n1", view, a.store.View()); diff != "" {
				t.Error(diff)
			}
			if s := a.Status(); s.Refused != 1 || s.Connects != 2 || s.LastError != "" {
				t.Errorf("status %+v, want 1 refusal, 2 connections and no error", s)
			}
		})
	}
}

func TestDrainMovesAgentsToAnotherReplica(t *testing.T) {
	first, second := startOperator(t, nil), startOperator(t, nil)
	view := viewOf(t, shape{workloads: 5, nodes: twoNodes})
	first.Publish(snapshotOf(t, view, 1))
	second.Publish(snapshotOf(t, view, 1))
	a := startAgent(t, first, "n1", nil)
	a.awaitEpoch(t, 1)
	a.wire.Lock()
	a.wire.resources = 0
	a.wire.dial = second.listener.DialContext
	a.wire.Unlock()
	first.stop()
	testenv.Eventually(t, time.Minute, "connected to the second", func() bool { return a.Status().Connects == 2 && a.Status().Current })
	if n, _, _ := a.wire.counts(); n != 0 {
		t.Errorf("%d resources were sent by a replica that has the same", n)
	}
}

func TestExpiredCallerIsEnded(t *testing.T) {
	o := startOperator(t, func(cfg *ServerConfig) {
		cfg.Authenticate = func(ctx context.Context) (Caller, error) {
			c, err := testCaller(ctx)
			c.Until = time.Now().Add(50 * time.Millisecond)
			return c, err
		}
	})
	a := startAgent(t, o, "n1", nil)
	testenv.Eventually(t, time.Minute, "connected again", func() bool { return a.Status().Connects > 1 })
}

// raw opens a stream without a Client, to say what no Client says.
func raw(t *testing.T, o *operatorEnd, node string) discoveryStream {
	t.Helper()
	w := &wire{node: node}
	w.dial = o.listener.DialContext
	conn, err := grpc.NewClient("passthrough:///operator", append(w.options(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(func() { cancel(); conn.Close() })
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func ask(node string, k resources.Kind, names ...string) *discoveryv3.DeltaDiscoveryRequest {
	return &discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: node}, TypeUrl: k.TypeURL(), ResourceNamesSubscribe: names}
}

func subscribeAll(node string) []*discoveryv3.DeltaDiscoveryRequest {
	var all []*discoveryv3.DeltaDiscoveryRequest
	for _, k := range []resources.Kind{resources.KindSettings, resources.KindService, resources.KindWorkload, resources.KindPolicy, resources.KindCommit} {
		all = append(all, ask(node, k, "*"))
	}
	return all
}

func TestServerRefusesWhatIsNotAsked(t *testing.T) {
	unknown := ask("n1", resources.KindCommit, "*")
	unknown.TypeUrl = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	wrongNonce := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resources.KindSettings.TypeURL(), ResponseNonce: "77"}
	tooMany := ask("n1", resources.KindSettings, "*")
	tooMany.InitialResourceVersions = map[string]string{strings.Repeat("x", resources.MaxName+1): "v"}
	for name, c := range map[string]struct {
		requests []*discoveryv3.DeltaDiscoveryRequest
		code     codes.Code
		says     string
	}{
		"another node":       {subscribeAll("n2"), codes.PermissionDenied, `node "n1" may not ask for the configuration of node "n2"`},
		"no node":            {[]*discoveryv3.DeltaDiscoveryRequest{{TypeUrl: resources.KindCommit.TypeURL()}}, codes.PermissionDenied, "may not ask"},
		"another node later": {append(subscribeAll("n1")[:1], ask("n2", resources.KindService, "*")), codes.PermissionDenied, "may not ask"},
		"unknown type":       {[]*discoveryv3.DeltaDiscoveryRequest{unknown}, codes.InvalidArgument, "unknown resource type"},
		"by name":            {[]*discoveryv3.DeltaDiscoveryRequest{ask("n1", resources.KindWorkload, "ns0/web-1")}, codes.InvalidArgument, `only "*"`},
		"commit first":       {[]*discoveryv3.DeltaDiscoveryRequest{ask("n1", resources.KindCommit, "*")}, codes.InvalidArgument, "before Commit"},
		"long name":          {[]*discoveryv3.DeltaDiscoveryRequest{tooMany}, codes.ResourceExhausted, "bounds"},
		"wrong nonce":        {append(subscribeAll("n1"), wrongNonce), codes.InvalidArgument, "in order"},
		"silent":             {subscribeAll("n1"), codes.DeadlineExceeded, "does not answer"},
		"says nothing":       {nil, codes.DeadlineExceeded, "does not answer"},
	} {
		t.Run(name, func(t *testing.T) {
			o := startOperator(t, func(cfg *ServerConfig) { cfg.AckTimeout = 200 * time.Millisecond })
			o.Publish(snapshotOf(t, viewOf(t, shape{workloads: 3, nodes: twoNodes}), 1))
			stream := raw(t, o, "n1")
			for _, req := range c.requests {
				if err := stream.Send(req); err != nil {
					break // the server has ended the stream already: Recv says why
				}
			}
			var err error
			for err == nil {
				_, err = stream.Recv()
			}
			if status.Code(err) != c.code || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v with %q", err, c.code, c.says)
			}
		})
	}
}

func TestUnauthenticatedCallerIsRefused(t *testing.T) {
	for name, answer := range map[string]func(context.Context) (Caller, error){
		"error":      func(context.Context) (Caller, error) { return Caller{}, errors.New("no certificate") },
		"empty name": func(context.Context) (Caller, error) { return Caller{}, nil },
	} {
		o := startOperator(t, func(cfg *ServerConfig) { cfg.Authenticate = answer })
		if _, err := raw(t, o, "n1").Recv(); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: got %v", name, err)
		}
		a := startAgent(t, o, "n1", nil)
		testenv.Eventually(t, time.Minute, "the agent says why", func() bool { return strings.Contains(a.Status().LastError, "authenticate node") })
		if s := a.Status(); s.Connected || s.Connects != 0 {
			t.Errorf("%s: status %+v", name, s)
		}
	}
}

func TestLargeSetsStayBelowTheMessageBound(t *testing.T) {
	view := viewOf(t, shape{workloads: 10_000, services: 1_000, policies: 100, nodes: []string{"n1", "n2", "n3"}})
	o := startOperator(t, nil)
	began := time.Now()
	snapshot := snapshotOf(t, view, 1)
	encoded := time.Since(began)
	began = time.Now()
	snapshot.forNode(told{node: "n1", newer: true}, nil)
	derived := time.Since(began)
	o.Publish(snapshot)
	dir := t.TempDir()
	began = time.Now()
	a := startAgent(t, o, "n1", lastGoodIn(dir))
	a.awaitEpoch(t, 1)
	streamed := time.Since(began)
	if diff := diffForNode("n1", view, a.store.View()); diff != "" {
		t.Error(diff)
	}
	a.wire.Lock()
	largest := a.wire.largest
	a.wire.Unlock()
	if largest > resources.MaxMessage {
		t.Errorf("a message of %d bytes", largest)
	}
	apply := a.Status().ApplyTook
	a.stop() // saves
	began = time.Now()
	b := startAgent(t, nil, "n1", lastGoodIn(dir))
	testenv.Eventually(t, time.Minute, "booted", func() bool { return b.store.View().Synced() })
	t.Logf("10,000 workloads, 1,000 services: encode %v, derive one node's set %v, stream and apply %v (apply alone %v), cold boot %v, largest message %d bytes",
		encoded, derived, streamed, apply, time.Since(began), largest)
}

func TestTooLargeAnObjectIsRefusedByName(t *testing.T) {
	view := viewOf(t, shape{workloads: 60_000, services: 1, nodes: twoNodes})
	_, err := NewSnapshot(view, 1, testKey(1))
	if err == nil || !strings.Contains(err.Error(), "Service ns0/app0") {
		t.Errorf("got %v, want a refusal that names the service", err)
	}
}
