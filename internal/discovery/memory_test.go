package discovery

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/discovery/resources"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// largeView is a cluster of pods named as a Deployment's are: ten of each
// service, thirty on each node.
func largeView(t testing.TB, pods int) *mesh.View {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString("cluster.example")
	random := rand.New(rand.NewPCG(1, 2))
	suffix := func(n int) string { return fmt.Sprintf("%04x%x", n&0xffff, random.IntN(16)) }
	var workloads []mesh.Workload
	var services []mesh.Service
	for i := range pods / 10 {
		ns, app := fmt.Sprintf("team-%d", i%50), fmt.Sprintf("service-%d", i)
		id, err := mesh.IdentityFor(td, ns, app)
		if err != nil {
			t.Fatal(err)
		}
		service := mesh.Service{Key: mesh.Key{Namespace: ns, Name: app}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)})},
			Ports: []mesh.ServicePort{{Name: "http", Port: 80, TargetPort: 8080}}}
		hash := suffix(i) + suffix(i)
		for j := range 10 {
			n := i*10 + j
			w := mesh.Workload{Key: mesh.Key{Namespace: ns, Name: app + "-" + hash + "-" + suffix(n)}, ServiceAccount: app, Node: fmt.Sprintf("ip-10-0-%d-%d.region.internal", n/30>>8, n/30&255),
				Identity: id, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1 + byte(n>>16), byte(n >> 8), byte(n)})}, Enrolled: true, Ready: true, Zone: "region-" + string("abc"[n%3]),
				UID: fmt.Sprintf("%08x-6b5a-4c3d-2e1f-%012x", n, n), Labels: map[string]string{"app": app, "pod-template-hash": hash, "version": "v1"}, ProbePorts: []uint16{8080}}
			workloads = append(workloads, w)
			service.Endpoints = append(service.Endpoints, w.Key)
		}
		services = append(services, service)
	}
	view, err := mesh.NewView("", mesh.Settings{TrustDomain: td, ClusterRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, workloads, services, nil)
	if err != nil {
		t.Fatal(err)
	}
	return view
}

func heapAfterCollection() uint64 {
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestAgentMemoryPerWorkload holds an agent to what it may keep of a workload of
// another node, with its services, its indexes and the stream.
func TestAgentMemoryPerWorkload(t *testing.T) {
	const most, attempts = 600, 3 // bytes; what else the process does comes and goes
	// The first makes what a process has once: tables of protobuf's and gRPC's.
	for _, pods := range []int{100, 10_000, 50_000} {
		least := agentMemory(t, pods)
		for n := 1; n < attempts && pods > 100 && least > most; n++ {
			least = min(least, agentMemory(t, pods))
		}
		if pods > 100 && least > most {
			t.Errorf("%d workloads: %d bytes each, more than %d", pods, least, most)
		}
	}
}

// agentMemory is what an agent keeps of each of so many workloads.
func agentMemory(t *testing.T, pods int) (per int64) {
	t.Helper()
	view := largeView(t, pods)
	node := "apart"
	o := startOperator(t, nil)
	snapshot := snapshotOf(t, view, 1)
	snapshot.forNode(told{node: node, newer: true}, nil)
	for k := range resources.KindCount { // the operator's
		for _, err := range snapshot.shared.Encoded(k) {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	o.Publish(snapshot)
	before := heapAfterCollection()
	a := startAgent(t, o, node, nil)
	a.awaitEpoch(t, 1)
	first := heapAfterCollection()
	if got := a.store.View(); len(got.Workloads()) != pods || len(got.Services()) != pods/10 {
		t.Fatalf("%d workloads, %d services", len(got.Workloads()), len(got.Services()))
	}
	took := a.Status().ApplyTook
	a.stop()
	a = nil
	after := heapAfterCollection()
	runtime.KeepAlive(snapshot)
	// What came with the agent, and what went with it.
	per = (int64(first) - min(int64(before), int64(after))) / int64(pods)
	t.Logf("%d workloads: %d bytes each, applied in %v", pods, per, took)
	o.stop()
	return per
}
