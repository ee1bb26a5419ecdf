package scale

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/delta"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator/publish"
)

// asOperator, in the environment, makes this program the operator: it names the
// socket, and the size follows as NODES:PODS.
const asOperator = "HEDDLE_SCALE_OPERATOR"

func TestMain(m *testing.M) {
	if socket := os.Getenv(asOperator); socket != "" {
		if err := operate(socket, os.Getenv("HEDDLE_SCALE")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	testenv.Main(m)
}

const nodeHeader = "scale-node"

func key() ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(slices.Repeat([]byte{7}, ed25519.SeedSize))
}

func nodeName(i int) string { return fmt.Sprintf("ip-10-0-%d-%d.region.internal", i>>8, i&255) }

// madeUp is a cluster that nobody runs; it implements publish.Source.
type madeUp struct {
	sync.Mutex
	objects *kube.Objects
	epoch   uint64
	changes []delta.Change // all, since the beginning
	changed chan struct{}
}

// Changed implements publish.Source.
func (m *madeUp) Changed() <-chan struct{} {
	m.Lock()
	defer m.Unlock()
	return m.changed
}

// Synced implements publish.Source.
func (m *madeUp) Synced() error { return nil }

// Objects implements publish.Source.
func (m *madeUp) Objects() (*kube.Objects, uint64) {
	m.Lock()
	defer m.Unlock()
	objs := *m.objects
	objs.Pods, objs.Mark = slices.Clone(objs.Pods), uint64(len(m.changes))
	return &objs, m.epoch
}

// Since implements publish.Source.
func (m *madeUp) Since(mark uint64) (changes []delta.Change, epoch, now uint64, ok bool) {
	m.Lock()
	defer m.Unlock()
	return m.changes[mark:], m.epoch, uint64(len(m.changes)), true
}

// change makes a pod ready that was not, or the other way round.
func (m *madeUp) change(pod int) {
	m.Lock()
	defer m.Unlock()
	next := *m.objects.Pods[pod]
	next.Ready = !next.Ready
	m.changes = append(m.changes, delta.Change{Was: m.objects.Pods[pod], Is: &next})
	m.objects.Pods[pod] = &next
	m.epoch++
	close(m.changed)
	m.changed = make(chan struct{})
}

// newMadeUp makes services of ten pods each, spread over the nodes, with a
// policy for each.
func newMadeUp(nodes, pods int) *madeUp {
	m := &madeUp{objects: &kube.Objects{Zones: map[string]string{}}, epoch: 1, changed: make(chan struct{})}
	o := m.objects
	o.Meshes = []kube.Sourced[v1alpha1.Mesh]{{Value: &v1alpha1.Mesh{ObjectMeta: metav1.ObjectMeta{Name: "default"},
		Spec: v1alpha1.MeshSpec{TrustDomain: "scale.example", ClusterRanges: []v1alpha1.AddressBlock{"10.0.0.0/8"}}}}}
	for i := range 50 {
		o.Namespaces = append(o.Namespaces, kube.Sourced[corev1.Namespace]{Value: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("team-%d", i),
			Labels: map[string]string{v1alpha1.LabelMesh: v1alpha1.MeshEnabled}}}})
	}
	for i := range nodes {
		o.Zones[nodeName(i)] = "region-" + string("abc"[i%3])
	}
	for i := range pods / 10 {
		ns, app := fmt.Sprintf("team-%d", i%50), fmt.Sprintf("service-%d", i)
		labels := map[string]string{"app": app, "pod-template-hash": fmt.Sprintf("%010x", i), "version": "v1"}
		o.Services = append(o.Services, kube.Sourced[corev1.Service]{Value: &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: app},
			Spec: corev1.ServiceSpec{Selector: map[string]string{"app": app}, ClusterIP: fmt.Sprintf("10.200.%d.%d", i/250, i%250+1), Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}})
		o.AuthorizationPolicies = append(o.AuthorizationPolicies, kube.Sourced[v1alpha1.AuthorizationPolicy]{Value: &v1alpha1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: app},
			Spec: v1alpha1.AuthorizationPolicySpec{Selector: &v1alpha1.Selector{MatchLabels: map[string]v1alpha1.LabelValue{"app": v1alpha1.LabelValue(app)}},
				Rules: []v1alpha1.Rule{{From: []v1alpha1.Source{{ServiceAccounts: []string{app}}}, To: []v1alpha1.Destination{{Ports: []v1alpha1.Port{8080}}}}}}}})
		for j := range 10 {
			n := i*10 + j
			o.Pods = append(o.Pods, &kube.Pod{Namespace: ns, Name: fmt.Sprintf("%s-%010x-%05x", app, i, n), UID: fmt.Sprintf("%08x-6b5a-4c3d-2e1f-%012x", n, n), Node: nodeName(n % nodes),
				ServiceAccount: app, Labels: labels, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1 + byte(n>>16), byte(n >> 8), byte(n)})}, Ready: true, Created: int64(n)})
		}
	}
	return m
}

// stats are what an operator's process has used.
type stats struct {
	HeapMB, ResidentMB float64
	CPU                time.Duration // user and system, since the start
	Behind             int
}

// operate is the operator's process: it serves until stdin ends, and answers
// "change POD", "stats" and "collect" on it.
func operate(socket, size string) error {
	var nodes, pods int
	if _, err := fmt.Sscanf(size, "%d:%d", &nodes, &pods); err != nil {
		return fmt.Errorf("size %q: %w", size, err)
	}
	quiet := slog.New(slog.DiscardHandler)
	server, err := discovery.NewServer(discovery.ServerConfig{Logger: quiet, AckTimeout: 10 * time.Minute, Authenticate: func(ctx context.Context) (discovery.Caller, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		if names := md.Get(nodeHeader); len(names) == 1 {
			return discovery.Caller{Node: names[0]}, nil
		}
		return discovery.Caller{}, errors.New("no name")
	}})
	if err != nil {
		return err
	}
	source := newMadeUp(nodes, pods)
	compiler := publish.NewCluster(publish.ClusterConfig{Source: source, TrustDomain: spiffeid.RequireTrustDomainFromString("scale.example"), Key: key(),
		Store: mesh.NewStore(), Server: server, Logger: quiet})
	ctx, cancel := context.WithCancel(context.Background())
	followed := make(chan error, 1)
	go func() { followed <- compiler.Follow(ctx) }()
	listener, err := net.Listen("unix", socket)
	if err != nil {
		cancel()
		return errors.Join(err, <-followed)
	}
	g := grpc.NewServer(discovery.ServerOptions()...)
	server.Register(g)
	served := make(chan error, 1)
	go func() { served <- g.Serve(listener) }()
	for {
		if now, changed := compiler.Outcome(); now.Snapshot == nil {
			<-changed
			continue
		}
		break
	}
	fmt.Println("ready")
	err = answer(source, compiler)
	g.Stop()
	cancel()
	return errors.Join(err, <-served, <-followed)
}

func answer(source *madeUp, compiler *publish.Cluster) error {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		command, argument, _ := strings.Cut(in.Text(), " ")
		var said any = "done"
		switch command {
		case "change":
			var pod int
			if _, err := fmt.Sscan(argument, &pod); err != nil {
				return err
			}
			source.change(pod)
		case "collect":
			runtime.GC()
			runtime.GC()
		case "stats":
			said = measure(compiler)
		}
		text, err := json.Marshal(said)
		if err != nil {
			return err
		}
		fmt.Println(string(text))
	}
	return in.Err()
}

func measure(compiler *publish.Cluster) stats {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	var used syscall.Rusage
	s := stats{HeapMB: float64(m.HeapAlloc) / (1 << 20), Behind: len(compiler.Behind())}
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err == nil {
		s.CPU = time.Duration(used.Utime.Nano() + used.Stime.Nano())
	}
	if text, err := os.ReadFile("/proc/self/status"); err == nil {
		for line := range strings.Lines(string(text)) {
			var kb int
			if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kb); n == 1 {
				s.ResidentMB = float64(kb) / 1024
			}
		}
	}
	return s
}
