package local

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/vishvananda/netns"

	"github.com/heddle-mesh/heddle/internal/netnsdir"
)

// Exec replaces the calling process by a command in a pod's network namespace
// and in a cgroup of the pod's own, as a container runtime has it: the gate tells
// a pod's raw sockets from the kernel's by their cgroup. It returns only if that
// does not work. The command is looked up on PATH.
func (m *Mesh) Exec(workload string, argv, env []string) error {
	pod, err := m.Plan.pod(workload)
	if err != nil {
		return err
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	if err := m.joinCgroup(pod); err != nil {
		return err
	}
	// execve(2) keeps the namespaces of the thread that calls it.
	runtime.LockOSThread()
	if err := enter(pod.NetNS); err != nil {
		return err
	}
	return fmt.Errorf("run %s: %w", path, syscall.Exec(path, argv, env))
}

// joinCgroup puts the calling process into a pod's cgroup.
func (m *Mesh) joinCgroup(pod Pod) error {
	root, err := cgroupRoot()
	if err != nil {
		return err
	}
	group := filepath.Join(root, m.cgroup(), "pods", digest(pod.Workload))
	if err := os.MkdirAll(group, 0o755); err != nil {
		return fmt.Errorf("make cgroup of pod %s: %w", pod.Workload, err)
	}
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte("0"), 0o644); err != nil {
		return fmt.Errorf("enter cgroup of pod %s: %w", pod.Workload, err)
	}
	return nil
}

// InPod runs fn on a thread inside a pod's network namespace; sockets that fn
// makes belong to the pod. fn must not start goroutines that need the namespace.
func (m *Mesh) InPod(workload string, fn func() error) error {
	pod, err := m.Plan.pod(workload)
	if err != nil {
		return err
	}
	return inNetNS(pod.NetNS, fn)
}

// FabricPath is the path of the namespace whose bridge br0 carries everything
// between nodes.
func (m *Mesh) FabricPath() string { return filepath.Join(netnsdir.Path, m.Plan.FabricNetNS()) }

func enter(path string) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer ns.Close()
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return nil
}

// Status is what runs of a mesh.
type Status struct {
	Name     string        `json:"name"`
	Folder   string        `json:"folder"`
	Operator ProcessStatus `json:"operator"`
	Nodes    []NodeStatus  `json:"nodes"`
}

// ProcessStatus is one program of a mesh.
type ProcessStatus struct {
	PID     int    `json:"pid"`
	Running bool   `json:"running"`
	Log     string `json:"log"`
	// Admin is the path of its admin socket.
	Admin string `json:"admin"`
}

// NodeStatus is one node of a mesh.
type NodeStatus struct {
	Node
	Agent ProcessStatus `json:"agent"`
}

// Status looks at the mesh's processes.
func (m *Mesh) Status() Status {
	s := Status{Name: m.Plan.Name, Folder: m.Plan.Folder, Operator: processStatus(m.Operator, m.OperatorSocket())}
	for _, n := range m.Plan.Nodes {
		s.Nodes = append(s.Nodes, NodeStatus{n, processStatus(m.Agents[n.Name], m.AgentSocket(n.Name))})
	}
	return s
}

func processStatus(p Process, socket string) ProcessStatus {
	return ProcessStatus{PID: p.PID, Running: p.Running(), Log: p.Log, Admin: socket}
}

// Logs returns the path of a program's log: "operator", or a node's name for
// its agent.
func (m *Mesh) Logs(part string) (string, error) {
	if part == "operator" {
		return m.Operator.Log, nil
	}
	n, err := m.Plan.node(part)
	if err != nil {
		return "", err
	}
	path := m.agentLog(n.Name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("find log of node %s: %w", part, err)
	}
	return path, nil
}

// OperatorSocket is the path of the operator's admin socket.
func (m *Mesh) OperatorSocket() string { return filepath.Join(m.dir, "operator.sock") }

// AgentSocket is the path of the admin socket of a node's agent.
func (m *Mesh) AgentSocket(node string) string {
	return filepath.Join(m.dir, "nodes", node, "agent.sock")
}

func (m *Mesh) agentLog(node string) string {
	return filepath.Join(m.dir, "nodes", node, "agent.log")
}
