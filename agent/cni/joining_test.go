package cni_test

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/agent/cgroup"
	"github.com/heddle-mesh/heddle/agent/cni"
	"github.com/heddle-mesh/heddle/agent/enroll"
	"github.com/heddle-mesh/heddle/agent/kernel"
	"github.com/heddle-mesh/heddle/agent/netns"
	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/internal/cniwire"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// carrier is what a Reconciler needs besides the kernel: it serves nothing, and
// has a certificate for everybody.
type carrier struct{}

func (carrier) Serve(ctx context.Context, _ proxy.Pod) error { <-ctx.Done(); return nil }

func (carrier) Want([]spiffeid.ID) error { return nil }

func (carrier) Certificate(spiffeid.ID) (*tls.Certificate, error) { return &tls.Certificate{}, nil }

func (carrier) Changed() <-chan struct{} { return nil }

// joining is a node with the kernel's part of an agent, a pod, and the way by
// which pods come into the mesh.
type joining struct {
	t      *testing.T
	node   *testenv.NetNS
	pod    *testenv.NetNS
	store  *mesh.Store
	kernel *kernel.Datapath
	pods   *enroll.Reconciler
	server *cni.Server
	socket string
	runs   atomic.Pointer[cni.Place] // what the runtime shows; nil for nothing
}

// Running implements cni.Runtime.
func (j *joining) Running(context.Context) ([]cni.Place, error) {
	if place := j.runs.Load(); place != nil {
		return []cni.Place{*place}, nil
	}
	return nil, nil
}

func newJoining(t *testing.T) *joining {
	t.Helper()
	node := testenv.NewNetNS(t, "node")
	j := &joining{t: t, node: node, pod: testenv.NewNetNS(t, "pod"), store: mesh.NewStore(), socket: filepath.Join(t.TempDir(), "cni.sock")}
	testenv.Veth(t, node, "vpod", []string{"10.67.1.1/24"}, j.pod, "eth0", []string{"10.67.1.2/24"})
	testenv.DefaultRoute(t, j.pod, "10.67.1.1")
	own, err := cgroup.Enter("cni-test", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := own.Leave(); err != nil {
			t.Error(err)
		}
	})
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	places := cni.NewPlaces()
	node.Must(t, func() (err error) {
		j.kernel, err = kernel.Open(t.Context(), kernel.Config{Node: "n1", PinDir: "/sys/fs/bpf/" + node.Name, StateDir: t.TempDir(), Cgroup: own.Path, Log: log})
		if err != nil {
			return err
		}
		j.pods = enroll.New(enroll.Config{
			Node: "n1", Store: j.store, Places: places, Datapath: j.kernel, Server: carrier{}, Identities: carrier{}, Log: log, UnenrollOnExit: true,
		})
		j.server, err = cni.New(cni.Config{
			Runtime: j, ScanEvery: time.Hour, FirstLooks: time.Nanosecond, Node: "n1", Socket: j.socket, List: filepath.Join(filepath.Dir(j.socket), "namespaces.json"), Store: j.store, Places: places, Enroller: j.pods, Log: log,
		})
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	parts.Go(func() { j.server.Follow(ctx) })
	for _, run := range []func(context.Context) error{j.pods.Run, j.kernel.Pods().KeepSpare, j.kernel.Finish, func(ctx context.Context) error { return j.server.Run(ctx, false) }} {
		parts.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		parts.Wait()
		if err := errors.Join(j.kernel.Pods().Uninstall(), j.kernel.Close()); err != nil {
			t.Error(err)
		}
	})
	testenv.Eventually(t, 5*time.Second, "the socket is served", func() bool { _, err := os.Stat(j.socket); return err == nil })
	return j
}

// configure makes shop/web what the operator says of it.
func (j *joining) configure(enrolled bool) {
	j.t.Helper()
	j.tell(enrolled, j.web())
}

// tell makes pods what the operator says of them.
func (j *joining) tell(enrolled bool, pods ...newcomer) {
	j.t.Helper()
	td := spiffeid.RequireTrustDomainFromString("example.test")
	id, err := mesh.IdentityFor(td, "shop", "web")
	if err != nil {
		j.t.Fatal(err)
	}
	var workloads []mesh.Workload
	for _, p := range pods {
		workloads = append(workloads, mesh.Workload{
			Key: mesh.Key{Namespace: "shop", Name: p.name}, ServiceAccount: "web", Node: "n1", UID: p.uid, Identity: id, Enrolled: enrolled,
		})
	}
	view, err := mesh.NewView("1", mesh.Settings{TrustDomain: td}, workloads, nil, nil)
	if err != nil {
		j.t.Fatal(err)
	}
	j.store.Replace(view)
}

func (j *joining) ask(op cniwire.Op, sandbox, addr string) cniwire.Response {
	j.t.Helper()
	conn, err := net.Dial("unix", j.socket)
	if err != nil {
		j.t.Fatal(err)
	}
	defer conn.Close()
	var response cniwire.Response
	err = errors.Join(cniwire.Write(conn, cniwire.Request{
		Version: cniwire.Version, Op: op, ContainerID: sandbox, NetNS: j.pod.Path, IfName: "eth0", Namespace: "shop", Name: "web", UID: "u1",
		Addresses: []netip.Addr{netip.MustParseAddr(addr)}, Timeout: 10 * time.Second,
	}), cniwire.Read(conn, &response))
	if err != nil {
		j.t.Fatal(err)
	}
	return response
}

// protected reports whether the pod is behind its gate and steered, and fails
// when it is half.
func (j *joining) protected() bool {
	j.t.Helper()
	rules, err := exec.Command("ip", "-n", j.pod.Name, "rule").Output()
	if err != nil {
		j.t.Fatal(err)
	}
	_, enrolled := j.kernel.Pods().Pods()["shop_web"]
	return enrolled && strings.Contains(string(rules), "lookup 100")
}

// protectedSince returns how long it took until the pod was protected.
func (j *joining) protectedSince(began time.Time) time.Duration {
	j.t.Helper()
	testenv.Eventually(j.t, 30*time.Second, "the pod is protected", j.protected)
	took := time.Since(began)
	j.t.Logf("protected after %v", took.Round(time.Millisecond))
	return took
}

func (j *joining) untouched(when string) {
	j.t.Helper()
	testenv.Eventually(j.t, 10*time.Second, "nothing is left "+when, func() bool {
		rules, err := exec.Command("ip", "-n", j.pod.Name, "rule").Output()
		return err == nil && !strings.Contains(string(rules), "lookup 100") && len(j.kernel.Pods().Pods()) == 0
	})
}

// TestNewPodIsBehindItsGate: when heddle-cni has its answer, the gate is there.
func TestNewPodIsBehindItsGate(t *testing.T) {
	j := newJoining(t)
	j.configure(true)
	// Its CNI says an address that it does not have.
	if r := j.ask(cniwire.OpAdd, "s1", "10.67.1.99"); r.Verdict != cniwire.Wait || !strings.Contains(r.Reason, "10.67.1.99") {
		t.Errorf("a pod with another address: %+v", r)
	}
	j.untouched("of a pod that could not be enrolled")
	for range 2 {
		if r := j.ask(cniwire.OpAdd, "s2", "10.67.1.2"); r.Verdict != cniwire.Protected || !j.protected() {
			t.Fatalf("%+v, protected: %v", r, j.protected())
		}
	}
	j.whole("shop_web")
	j.ask(cniwire.OpDel, "s1", "10.67.1.2") // of the sandbox before
	time.Sleep(100 * time.Millisecond)
	if !j.protected() {
		t.Error("deleting the sandbox before opened this one")
	}
	j.ask(cniwire.OpDel, "s2", "10.67.1.2")
	j.untouched("of a pod that was deleted")
}

// TestRunningPodJoinsAndLeaves by a label, without a restart.
func TestRunningPodJoinsAndLeaves(t *testing.T) {
	j := newJoining(t)
	j.configure(false)
	if r := j.ask(cniwire.OpAdd, "s1", "10.67.1.2"); r.Verdict != cniwire.Outside {
		t.Fatalf("%+v", r)
	}
	j.untouched("of a pod outside the mesh")
	began := time.Now()
	j.configure(true)
	if took := j.protectedSince(began); took > 2*time.Second && !testenv.Overloaded(t) {
		t.Errorf("joined in %v", took)
	}
	j.configure(false)
	j.untouched("of a pod that has left")
}

// TestPodOfTheWindowIsGated: a pod that has started while heddle-cni was out of the chain,
// and that only the runtime shows, is behind its gate as soon as the plugin is put back.
func TestPodOfTheWindowIsGated(t *testing.T) {
	j := newJoining(t)
	j.configure(true)
	time.Sleep(500 * time.Millisecond)
	j.untouched("of a pod that does not run yet")
	ns, err := netns.Open(j.pod.Path)
	if err != nil {
		t.Fatal(err)
	}
	id := ns.ID()
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	j.runs.Store(&cni.Place{
		Key: mesh.Key{Namespace: "shop", Name: "web"}, UID: "u1", Sandbox: "s1", NetNS: j.pod.Path, Namespace: id,
		Addresses: []netip.Addr{netip.MustParseAddr("10.67.1.2")}, Created: time.Now(),
	})
	began := time.Now()
	j.server.Look()
	if took := j.protectedSince(began); took > time.Second && !testenv.Overloaded(t) {
		t.Errorf("it was open for %v", took)
	}
}
