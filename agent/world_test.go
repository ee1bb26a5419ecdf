package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/heddle-mesh/heddle/agent"
	"github.com/heddle-mesh/heddle/agent/handover"
	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/flow/history"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator"
)

// childConfig, in the environment, makes the test binary an agent: agents are
// processes of their own, each in a cgroup of its own, as they are in life.
const childConfig = "HEDDLE_TEST_AGENT"

func TestMain(m *testing.M) {
	runtime.LockOSThread() // as cmd/heddle-agent does
	text, child := os.LookupEnv(childConfig)
	if !child {
		testenv.Main(m)
	}
	cfg := agent.Defaults()
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var versions handover.Versions
	fmt.Sscanf(os.Getenv(childVersions), "%d-%d", &versions.Oldest, &versions.Newest) // none: this build's
	cfg.SetSeam(versions, stopAt)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	a, err := agent.New(cfg)
	if err == nil {
		err = a.Run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// world is two nodes joined by a wire, an operator on the first, and pods.
type world struct {
	t      *testing.T
	dir    string
	n1, n2 *node
	pods   map[string]*podNS
	// engine is the agents'; "" is the default one.
	engine string
	// stopOperator ends the operator, once.
	stopOperator func()
}

type node struct {
	w     *world
	name  string
	ns    *testenv.NetNS
	token string
	cmd   *exec.Cmd
	log   string
	env   []string // of the next agent
}

type podNS struct {
	w      *world
	ns     *testenv.NetNS
	v4, v6 string
}

const (
	wire1, wire2   = "10.99.0.1", "10.99.0.2"
	wire16, wire26 = "fd99::1", "fd99::2"
)

// newWorld makes web and api on n1, db on n2, and six, an IPv6-only pod, on n2.
func newWorld(t *testing.T) *world {
	t.Helper()
	// Socket paths are short, and t.TempDir's are not.
	dir, err := os.MkdirTemp("/run", "heddle-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &world{t: t, dir: dir, pods: map[string]*podNS{}}
	w.n1 = &node{w: w, name: "n1", ns: testenv.NewNetNS(t, "n1")}
	w.n2 = &node{w: w, name: "n2", ns: testenv.NewNetNS(t, "n2")}
	testenv.Veth(t, w.n1.ns, "wire", []string{wire1 + "/24", wire16 + "/64"}, w.n2.ns, "wire", []string{wire2 + "/24", wire26 + "/64"})
	w.route(w.n1, "10.2.0.0/16", wire2)
	w.route(w.n1, "fd02::/32", wire26)
	w.route(w.n2, "10.1.0.0/16", wire1)
	w.route(w.n2, "fd01::/32", wire16)
	w.pod(w.n1, "web", "10.1.1", "fd01:0:1")
	w.pod(w.n1, "api", "10.1.2", "fd01:0:2")
	w.pod(w.n2, "db", "10.2.1", "fd02:0:1")
	w.pod(w.n2, "six", "", "fd02:0:2")
	w.configure()
	w.operate()
	return w
}

func (w *world) route(n *node, dst, via string) {
	w.t.Helper()
	_, block, err := net.ParseCIDR(dst)
	if err != nil {
		w.t.Fatal(err)
	}
	n.ns.Must(w.t, func() error { return netlink.RouteAdd(&netlink.Route{Dst: block, Gw: net.ParseIP(via)}) })
}

func (w *world) pod(n *node, name, v4, v6 string) {
	p := &podNS{w: w, ns: testenv.NewNetNS(w.t, name), v6: v6 + "::2"}
	outside, inside := []string{v6 + "::1/64"}, []string{v6 + "::2/64"}
	if v4 != "" {
		p.v4 = v4 + ".2"
		outside, inside = append(outside, v4+".1/24"), append(inside, v4+".2/24")
	}
	testenv.Veth(w.t, n.ns, "p-"+name, outside, p.ns, "eth0", inside)
	testenv.DefaultRoute(w.t, p.ns, v6+"::1")
	if v4 != "" {
		testenv.DefaultRoute(w.t, p.ns, v4+".1")
	}
	w.pods[name] = p
}

// write puts objects into the operator's folder.
func (w *world) write(name, text string) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Join(w.dir, "mesh"), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "mesh", name), []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) configure() {
	w.settings("")
	w.write("services.yaml", `apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: db}
spec:
  selector: {app: db}
  clusterIPs: ["10.96.0.1", "fd96::1"]
  ports: [{port: 70, targetPort: 7001}]
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: api}
spec:
  selector: {app: api}
  clusterIPs: ["10.96.0.2", "fd96::2"]
  ports: [{port: 70, targetPort: 7001}]
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: six}
spec:
  selector: {app: six}
  clusterIPs: ["fd96::3"]
  ports: [{port: 70, targetPort: 7001}]
`)
	for name, node := range map[string]string{"web": "n1", "api": "n1", "db": "n2", "six": "n2"} {
		w.workload(name, node, "enabled")
	}
}

// settings writes the Mesh, with more fields of its spec.
func (w *world) settings(more string) {
	w.write("mesh.yaml", `apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec:
  trustDomain: test.heddle.dev
  clusterRanges: ["10.1.0.0/16", "10.2.0.0/16", "10.96.0.0/16", "fd01::/32", "fd02::/32", "fd96::/32"]
`+more)
}

// workload writes a pod's Workload, in the mesh ("enabled") or out of it.
func (w *world) workload(name, node, mesh string) {
	p := w.pods[name]
	addresses := []string{p.v6}
	if p.v4 != "" {
		addresses = append(addresses, p.v4)
	}
	w.write(name+".yaml", fmt.Sprintf(`apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: %s, labels: {app: %s, heddle.dev/mesh: %s}}
spec:
  node: %s
  serviceAccount: %s
  addresses: ["%s"]
  networkNamespace: %s
`, name, name, mesh, node, name, strings.Join(addresses, `", "`), p.ns.Path))
}

// operate runs the operator, whose listener is in n1.
func (w *world) operate() {
	w.t.Helper()
	var listener net.Listener
	w.n1.ns.Must(w.t, func() (err error) {
		listener, err = net.Listen("tcp", wire1+":15012")
		return err
	})
	socket := filepath.Join(w.dir, "operator.sock")
	o, err := operator.New(operator.Config{
		Folder: filepath.Join(w.dir, "mesh"), StateDir: filepath.Join(w.dir, "operator"), Listener: listener,
		Advertise: wire1 + ":15012", AdminSocket: socket, Logger: slog.New(slog.NewTextHandler(w.t.Output(), nil)),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- o.Run(ctx) }()
	w.stopOperator = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("operator: %v", err)
		}
	})
	w.t.Cleanup(w.stopOperator)
	testenv.Eventually(w.t, 10*time.Second, "the operator answers", func() bool { _, err := os.Stat(socket); return err == nil })
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	for _, n := range []*node{w.n1, w.n2} {
		made, err := meshpb.NewOperatorAdminClient(conn).CreateJoinToken(w.t.Context(), &meshpb.CreateJoinTokenRequest{Node: n.name, LifetimeSeconds: 600})
		if err != nil {
			w.t.Fatal(err)
		}
		n.token = made.GetToken()
	}
}

func (n *node) socket() string { return filepath.Join(n.w.dir, n.name, "agent.sock") }

// start starts the node's agent in its network namespace and cgroup.
func (n *node) start(change ...func(*agent.Config)) {
	t := n.w.t
	t.Helper()
	cfg := agent.Config{
		Node: n.name, JoinToken: n.token, StateDir: filepath.Join(n.w.dir, n.name, "state"), AdminSocket: n.socket(),
		Metrics: ":15020", Flows: agent.FlowsConfig{Records: 4096, History: history.DefaultBounds()}, TunnelConfig: agent.TunnelConfig{Engine: n.w.engine},
	}
	d := agent.Defaults()
	cfg.Budget, cfg.Timeouts = d.Budget, d.Timeouts
	cfg.Timeouts.Drain = 500 * time.Millisecond
	cfg.Kernel.PinDir = "/sys/fs/bpf/" + n.ns.Name
	for _, c := range change {
		c(&cfg)
	}
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	group := cgroupFolder(t, n.ns.Name)
	fd, err := os.Open(group)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	n.log = filepath.Join(n.w.dir, n.name+".log")
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	n.cmd = exec.Command("/proc/self/exe")
	n.cmd.Env = append(append(os.Environ(), childConfig+"="+string(text)), n.env...)
	n.env = nil
	n.cmd.Stdout, n.cmd.Stderr = log, log
	n.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(fd.Fd())}
	n.ns.Must(t, n.cmd.Start)
}

// cgroupFolder makes a cgroup that is gone when the test ends.
func cgroupFolder(t *testing.T, name string) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); strings.Contains(line, " - cgroup2 ") {
			dir := filepath.Join(fields[4], name)
			if err := os.Mkdir(dir, 0o755); err == nil {
				t.Cleanup(func() {
					testenv.Eventually(t, 5*time.Second, "cgroup "+dir+" is removed", func() bool { return os.Remove(dir) == nil })
				})
			} else if !errors.Is(err, os.ErrExist) {
				t.Fatal(err)
			}
			return dir
		}
	}
	t.Fatal("no cgroup2 mount")
	return ""
}

// end stops the agent with a signal and waits for it.
func (n *node) end(s syscall.Signal) error {
	if n.cmd == nil {
		return nil
	}
	cmd := n.cmd
	n.cmd = nil
	if err := cmd.Process.Signal(s); err != nil {
		return err
	}
	late := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	defer late.Stop()
	return cmd.Wait()
}

// leave takes the node's pods out of the mesh and shows the log of a failed test.
func (n *node) leave() {
	t := n.w.t
	t.Helper()
	if n.cmd == nil {
		n.start(func(c *agent.Config) { c.End.Unenroll = true })
		n.await("enrolled")
	}
	if err := n.end(syscall.SIGTERM); err != nil {
		t.Errorf("agent of %s: %v", n.name, err)
	}
	if t.Failed() {
		if log, err := os.ReadFile(n.log); err == nil {
			t.Logf("log of %s:\n%s", n.name, log)
		}
	}
	if err := os.RemoveAll("/sys/fs/bpf/" + n.ns.Name); err != nil {
		t.Error(err)
	}
	_ = syscall.Unmount(filepath.Join(n.w.dir, n.name, "keys"), 0) // not mounted when it did not start
}

// ask calls the agent's admin socket; the error of one that is not there yet is
// returned.
func (n *node) ask(fn func(ctx context.Context, c *admin.Client) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := admin.Dial(ctx, n.socket())
	if err != nil {
		return err
	}
	defer c.Close()
	return fn(ctx, c)
}

// await waits until all pods of the node are in a state.
func (n *node) await(state string) {
	n.w.t.Helper()
	var last string
	limit := time.Now().Add(30 * time.Second)
	for time.Now().Before(limit) {
		err := n.ask(func(ctx context.Context, c *admin.Client) error {
			s, err := c.Admin.Status(ctx, &meshpb.StatusRequest{})
			if err != nil {
				return err
			}
			good := 0
			for _, p := range s.GetPods() {
				if p.GetState() == state {
					good++
				}
			}
			last = s.String()
			if good == 0 || good < len(s.GetPods()) {
				return errors.New("not yet")
			}
			return nil
		})
		if err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	log, _ := os.ReadFile(n.log) // the failure below is what matters
	n.w.t.Fatalf("pods of %s are not %s: %s\n%s", n.name, state, last, log)
}

// flows returns the newest records that match.
func (n *node) flows(match func(*flow.Record) bool) []flow.Record {
	n.w.t.Helper()
	var found []flow.Record
	err := n.ask(func(ctx context.Context, c *admin.Client) error {
		stream, err := c.Flows.Watch(ctx, &meshpb.WatchFlowsRequest{Last: 1 << 20})
		if err != nil {
			return err
		}
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			r, err := flow.FromProto(m.GetFlow())
			if err != nil {
				return err
			}
			if match(&r) {
				found = append(found, r)
			}
		}
	})
	if err != nil {
		n.w.t.Fatalf("flows of %s: %v", n.name, err)
	}
	return found
}

// expectFlow waits for a record that matches.
func (n *node) expectFlow(what string, match func(*flow.Record) bool) flow.Record {
	n.w.t.Helper()
	var found []flow.Record
	testenv.Eventually(n.w.t, 10*time.Second, n.name+": flow "+what, func() bool {
		found = n.flows(match)
		return len(found) > 0
	})
	return found[len(found)-1]
}

// serve runs an application in a pod until the test ends.
func (p *podNS) serve(port int, app func(*net.TCPConn)) { p.w.t.Helper(); p.serveOn("tcp", port, app) }

func (p *podNS) serveOn(network string, port int, app func(*net.TCPConn)) {
	p.w.t.Helper()
	var l net.Listener
	p.ns.Must(p.w.t, func() (err error) {
		l, err = net.Listen(network, fmt.Sprintf(":%d", port))
		return err
	})
	// A client whose gate has cut it off does not get its end here for minutes.
	ended, end := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			stop := context.AfterFunc(ended, func() { c.Close() })
			wg.Go(func() { defer stop(); defer c.Close(); app(c.(*net.TCPConn)) })
		}
	})
	p.w.t.Cleanup(func() { l.Close(); end(); wg.Wait() })
}

// dial connects from inside the pod.
func (p *podNS) dial(to string) (*net.TCPConn, error) {
	var c net.Conn
	err := p.ns.Do(func() (err error) {
		c, err = (&net.Dialer{Timeout: 5 * time.Second}).Dial("tcp", to)
		return err
	})
	if err != nil {
		return nil, err
	}
	p.w.t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn), c.SetDeadline(time.Now().Add(20 * time.Second))
}
