// Package world sets up what is compared: for each subject two nodes and thirty
// pods, made alike by package local, with the same programs in the pods, and
// differing in what carries the pods' connections alone:
//
//	none       nothing: the pods' packets cross the nodes as they are
//	heddle     Heddle, as it comes
//	reference  Heddle with the reference engine
//	envoy      an Envoy on each node: tcp_proxy that tunnels over CONNECT with
//	           mutual TLS 1.3, and the other end of it
//
// All worlds can be up at once; one that is not measured only sleeps. A World is
// not safe for concurrent use, but for Command and Start.
package world

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/heddle-mesh/heddle/internal/local"
)

// Subjects are all that can be compared, in the order in which they are shown.
func Subjects() []string { return []string{"none", "heddle", "reference", "envoy"} }

// How many pods there are: clients on node n1, servers on node n2.
const (
	Clients = 20
	Servers = 10
	// WebServers serve HTTP: the first ones. Bulk has iperf3, Holder accepts and
	// holds; the rest only sit there.
	WebServers = 5
	Bulk       = WebServers
	Holder     = WebServers + 1
)

// Port is the one that every server serves, so that one listener in each
// client's pod is enough for Envoy.
const Port = 8080

// Client and Server name pods, from 0.
func Client(i int) string { return fmt.Sprintf("load/c%d", i) }
func Server(i int) string { return fmt.Sprintf("serve/s%d", i) }

// Address is where a server serves.
func Address(server int) string {
	return netip.AddrPortFrom(serverAddr(server), Port).String()
}

func clientAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 244, 1, byte(10 + i)}) }
func serverAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 244, 2, byte(10 + i)}) }

// Config says what to set up.
type Config struct {
	// Name is the mesh's; it tells worlds on one machine apart.
	Name    string
	Subject string
	// Root is the checkout; Binaries is the folder of its programs.
	Root, Binaries string
	// Scratch is a folder of the caller's for files of this world.
	Scratch string
	// Self is this program, for its own generators.
	Self string
	// Congestion is what TCP goes by in all of the world's namespaces, if it was allowed; empty for the machine's.
	Congestion string
}

// World is one subject with its pods.
type World struct {
	Subject string
	cfg     Config
	mesh    *local.Mesh
	spawner *spawner
	envoys  []*Process
}

// Up sets a world up and starts the servers in its pods. Down must be called
// also after an error, when the World is not nil.
func Up(ctx context.Context, cfg Config) (*World, error) {
	w := &World{Subject: cfg.Subject, cfg: cfg, spawner: newSpawner()}
	folder := filepath.Join(cfg.Scratch, "mesh")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return w, err
	}
	yaml := meshYAML(w.name(), w.isHeddle())
	if err := os.WriteFile(filepath.Join(folder, "mesh.yaml"), []byte(yaml), 0o644); err != nil {
		return w, err
	}
	// A run that was killed may have left its mesh behind.
	if old, err := local.Open("", w.name()); err == nil {
		if err := old.Down(ctx); err != nil {
			return w, fmt.Errorf("take down what an earlier run left: %w", err)
		}
	}
	if err := w.upMesh(ctx, folder); err != nil {
		return w, fmt.Errorf("set up %s: %w", cfg.Subject, err)
	}
	if err := w.eachNetNS(w.tune); err != nil {
		return w, err
	}
	if cfg.Subject == "envoy" {
		if err := w.prepareEnvoy(); err != nil {
			return w, err
		}
	}
	if err := w.startProxies(ctx); err != nil {
		return w, err
	}
	return w, w.startServers(ctx)
}

func (w *World) name() string   { return w.cfg.Name }
func (w *World) isHeddle() bool { return w.Subject == "heddle" || w.Subject == "reference" }

func (w *World) upMesh(ctx context.Context, folder string) error {
	if w.isHeddle() {
		if err := w.chooseEngine(); err != nil {
			return err
		}
	}
	var err error
	w.mesh, err = local.Up(ctx, local.Config{
		Name: w.name(), Folder: folder, CreatePods: true,
		OperatorBinary: w.binary("heddle-operator"), AgentBinary: w.binary("heddle-agent"),
	})
	if err != nil || w.isHeddle() {
		return err
	}
	// The others are to have the namespaces and links only.
	status := w.mesh.Status()
	pids := []int{status.Operator.PID}
	for _, n := range status.Nodes {
		pids = append(pids, n.Agent.PID)
	}
	return end(pids...)
}

// chooseEngine sets the engine of agents that are started from now on.
func (w *World) chooseEngine() error {
	out, err := exec.Command(w.binary("heddle-agent"), "--help").CombinedOutput()
	if err != nil {
		return fmt.Errorf("ask the agent for its flags: %w: %s", err, out)
	}
	if !bytes.Contains(out, []byte("--engine ")) {
		return errors.New("the agent has no --engine, so there is nothing to tell heddle and reference apart: build it anew")
	}
	engine := "loop"
	if w.Subject == "reference" {
		engine = "reference"
	}
	return os.Setenv("HEDDLE_ENGINE", engine)
}

func (w *World) binary(name string) string { return filepath.Join(w.cfg.Binaries, name) }

// eachNetNS calls fn with the name of each namespace of the world.
func (w *World) eachNetNS(fn func(name string) error) error {
	for _, n := range w.mesh.Plan.Nodes {
		names := []string{n.NetNS}
		for _, p := range n.Pods {
			names = append(names, filepath.Base(p.NetNS))
		}
		for _, name := range names {
			if err := fn(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// tune lets many connections come and go in a namespace: the ports of those
// that ended are given out again after a second, and none is a listener's.
func (w *World) tune(name string) error {
	if w.cfg.Congestion != "" {
		if err := w.chooseCongestion(name); err != nil {
			return err
		}
	}
	return inNetNS(name, "sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1", "net.ipv4.ip_local_port_range=20000 65000")
}

func inNetNS(name string, args ...string) error {
	out, err := exec.Command("ip", append([]string{"netns", "exec", name}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s in %s: %w: %s", strings.Join(args, " "), name, err, bytes.TrimSpace(out))
	}
	return nil
}

func (w *World) startProxies(ctx context.Context) error {
	switch {
	case w.isHeddle() && w.cfg.Congestion != "":
		// The agents began when their namespaces went by the machine's.
		if err := w.waitHealthy(ctx); err != nil {
			return err
		}
		return w.RestartProxies(ctx)
	case w.isHeddle():
		return w.waitHealthy(ctx)
	case w.Subject == "envoy":
		return w.startEnvoys(ctx)
	}
	return nil
}

// RestartProxies puts fresh ones in the place of those that run. Connections
// through them end.
func (w *World) RestartProxies(ctx context.Context) error {
	if w.Subject == "envoy" {
		w.stopEnvoys()
		return w.startEnvoys(ctx)
	}
	if !w.isHeddle() {
		return nil
	}
	pids := []int{}
	for _, p := range w.Proxies() {
		pids = append(pids, p.PID)
	}
	// They are told to stop by a second signal too, and do not wait for
	// connections.
	if err := end(pids...); err != nil {
		return err
	}
	if err := w.chooseEngine(); err != nil {
		return err
	}
	for _, n := range w.mesh.Plan.Nodes {
		if err := w.mesh.StartAgent(n.Name); err != nil {
			return err
		}
	}
	return w.waitHealthy(ctx)
}

func (w *World) waitHealthy(ctx context.Context) error {
	return eventually(ctx, 60*time.Second, "the mesh is healthy", func() error {
		out, err := exec.CommandContext(ctx, w.binary("heddle"), "check", "--name", w.name()).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s%s", err, out, w.lastWords())
		}
		return nil
	})
}

// lastWords is the end of the log of each agent that has ended.
func (w *World) lastWords() string {
	var said strings.Builder
	for _, n := range w.mesh.Status().Nodes {
		if data, err := os.ReadFile(n.Agent.Log); err == nil && !n.Agent.Running {
			fmt.Fprintf(&said, "the agent of %s has ended; its log ends with: %s\n", n.Name, data[max(0, len(data)-600):])
		}
	}
	return said.String()
}

// Proxy is one process whose CPU time and memory count.
type Proxy struct {
	Node string
	PID  int
}

// Proxies are the processes that carry connections, in the order of the nodes.
func (w *World) Proxies() []Proxy {
	var proxies []Proxy
	if w.isHeddle() {
		for _, n := range w.mesh.Status().Nodes {
			proxies = append(proxies, Proxy{n.Name, n.Agent.PID})
		}
	}
	for i, p := range w.envoys {
		proxies = append(proxies, Proxy{w.mesh.Plan.Nodes[i].Name, p.cmd.Process.Pid})
	}
	return proxies
}

// AdminSocket is the path of the admin socket of a node's agent.
func (w *World) AdminSocket(node string) string { return w.mesh.AgentSocket(node) }

// Command is a program to run in a pod; it is killed when ctx is done. As every
// process of a world it has a session of its own: where the kernel shares the CPU
// out by sessions first (sched(7), autogroup), all subjects get theirs alike.
func (w *World) Command(ctx context.Context, pod string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, w.binary("heddle"), append([]string{"exec", "--name", w.name(), pod, "--"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Load is one of this program's own generators, to run in a pod.
func (w *World) Load(ctx context.Context, pod string, args ...string) *exec.Cmd {
	return w.Command(ctx, pod, append([]string{w.cfg.Self, "load"}, args...)...)
}

const nginxConfig = `worker_processes 1; daemon off; master_process off; pid %[1]s.pid; error_log %[1]s.err;
worker_rlimit_nofile 15000;
events { worker_connections 10000; multi_accept on; }
http { access_log off; keepalive_requests 100000000; keepalive_timeout 3600;
 client_body_temp_path %[1]s.body; proxy_temp_path %[1]s.proxy; fastcgi_temp_path %[1]s.fastcgi; uwsgi_temp_path %[1]s.uwsgi; scgi_temp_path %[1]s.scgi;
 server { listen %[2]d backlog=4096; location / { default_type text/plain; return 200 "hello world, this is the answer of the test server, 64 bytes ok\n"; } } }
`

func (w *World) startServers(ctx context.Context) error {
	for i := range WebServers {
		base := filepath.Join(w.cfg.Scratch, fmt.Sprintf("nginx%d", i))
		if err := os.WriteFile(base+".conf", fmt.Appendf(nil, nginxConfig, base, Port), 0o644); err != nil {
			return err
		}
		if err := w.serve(Server(i), "nginx", "-c", base+".conf"); err != nil {
			return err
		}
	}
	if err := w.serve(Server(Bulk), "iperf3", "-s", "-p", fmt.Sprint(Port)); err != nil {
		return err
	}
	if err := w.serve(Server(Holder), w.cfg.Self, "load", "accept", "-address", fmt.Sprintf("0.0.0.0:%d", Port)); err != nil {
		return err
	}
	for i := range Holder + 1 {
		err := eventually(ctx, 10*time.Second, Server(i)+" listens", func() error { return w.mesh.InPod(Server(i), listens) })
		if err != nil {
			return err
		}
	}
	return nil
}

// listens says whether something listens on Port in this thread's network
// namespace (proc_net_tcp.rst: the local address in hex, and 0A for LISTEN). A
// connection made to find out would count.
func listens() error {
	for _, table := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile("/proc/thread-self/net/" + table)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", Port)) && f[3] == "0A" {
				return nil
			}
		}
	}
	return errors.New("nobody does")
}

// File writes a file that a load needs, which goes with the world, and returns its path.
func (w *World) File(name, text string) (path string, err error) {
	path = filepath.Join(w.cfg.Scratch, name)
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// serve runs a server in a pod until Down.
func (w *World) serve(pod string, args ...string) error {
	cmd := w.Command(context.Background(), pod, args...)
	_, err := w.spawner.start(cmd, filepath.Join(w.cfg.Scratch, strings.ReplaceAll(pod, "/", "-")+".log"))
	return err
}

// Down ends and removes everything. It goes on after an error.
func (w *World) Down() error {
	w.stopEnvoys()
	w.spawner.close()
	if w.mesh == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if w.isHeddle() {
		pids := []int{}
		for _, p := range w.Proxies() {
			pids = append(pids, p.PID)
		}
		if err := end(pids...); err != nil {
			return errors.Join(err, w.mesh.Down(ctx))
		}
	}
	return w.mesh.Down(ctx)
}

// end ends child processes that package local started: twice politely, which
// skips an agent's waiting for its connections, then without mercy.
func end(pids ...int) error {
	for _, step := range []struct {
		signal syscall.Signal
		wait   time.Duration
	}{{syscall.SIGTERM, time.Second}, {syscall.SIGTERM, 3 * time.Second}, {syscall.SIGKILL, 3 * time.Second}} {
		for _, pid := range pids {
			_ = syscall.Kill(pid, step.signal) // it may have ended
		}
		for deadline := time.Now().Add(step.wait); len(pids) > 0 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			pids = slices.DeleteFunc(pids, func(pid int) bool {
				got, err := syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
				return got == pid || errors.Is(err, syscall.ECHILD)
			})
		}
	}
	if len(pids) > 0 {
		return fmt.Errorf("processes %v do not end", pids)
	}
	return nil
}

// eventually asks until ask succeeds or the limit has passed.
func eventually(ctx context.Context, limit time.Duration, what string, ask func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := ask()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %v: %w", what, limit, err)
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
