package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/netnsdir"
)

// DefaultStateDir is where meshes are on record. Whether it outlives the machine
// depends on what /run is; the namespaces do not. The workloads' keys are on a
// tmpfs that each agent mounts on its keys folder in it; the operator's CA key and
// the nodes' own are files in it, 0600.
const DefaultStateDir = "/run/heddle/local"

// pinFolder is where agents of local meshes pin their maps and links.
const pinFolder = "/sys/fs/bpf/heddle"

// Config says which mesh to run, and with what.
type Config struct {
	// Name tells meshes on one machine apart.
	Name string
	// Folder has the configuration; the operator goes on watching it.
	Folder string
	// CreatePods makes the workloads' network namespaces that are missing, with
	// links, addresses and routes. Without it they must be there already, and
	// must be connected to their nodes' namespaces.
	CreatePods bool
	// StateDir is DefaultStateDir when empty.
	StateDir string
	// OperatorBinary and AgentBinary are paths of the programs.
	OperatorBinary, AgentBinary string
	// UDPByIdentity starts the operator with --udp-by-identity.
	UDPByIdentity bool
	// Progress, when not nil, is told each step before it is taken.
	Progress func(step string)
}

// Mesh is a mesh that runs on this machine.
type Mesh struct {
	record
	dir string
}

// record is what is kept on file about a mesh.
type record struct {
	Plan     *Plan              `json:"plan"`
	Operator Process            `json:"operator"`
	Agents   map[string]Process `json:"agents"`
	// NetNS names the namespaces that were made for it.
	NetNS []string `json:"netns"`
	// OperatorBinary and AgentBinary start its programs again.
	OperatorBinary string `json:"operatorBinary"`
	AgentBinary    string `json:"agentBinary"`
	// UDPByIdentity is how the operator runs. Its name on record is that of the version before.
	UDPByIdentity bool `json:"experimentalUDP,omitempty"`
}

// ErrNoMesh is returned for a mesh that is not on record.
var ErrNoMesh = errors.New("no such mesh")

// Up makes and starts a mesh, or what is missing of one: agents that died are
// started again. It returns when operator and agents run; whether they are
// healthy is theirs to say. After an error, Down takes away what was made.
func Up(ctx context.Context, cfg Config) (*Mesh, error) {
	plan, err := NewPlan(cfg.Name, cfg.Folder, cfg.UDPByIdentity)
	if err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("root is needed to make network namespaces and load BPF: run it with sudo")
	}
	dir := filepath.Join(stateDir(cfg.StateDir), cfg.Name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state folder: %w", err)
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	m, err := openRecord(dir)
	switch {
	case errors.Is(err, ErrNoMesh):
		m = &Mesh{dir: dir, record: record{Agents: map[string]Process{}}}
	case err != nil:
		return nil, err
	case m.Plan.Folder != plan.Folder:
		return nil, fmt.Errorf("mesh %q runs with folder %s: take it down first, or give the new one another name", cfg.Name, m.Plan.Folder)
	}
	if m.Operator.Running() && m.UDPByIdentity != cfg.UDPByIdentity {
		return nil, fmt.Errorf("mesh %q runs with --udp-by-identity=%v: take it down first, or say the same", cfg.Name, m.UDPByIdentity)
	}
	m.OperatorBinary, m.AgentBinary, m.UDPByIdentity = cfg.OperatorBinary, cfg.AgentBinary, cfg.UDPByIdentity
	progress := cfg.Progress
	if progress == nil {
		progress = func(string) {}
	}
	if err := m.build(plan, cfg.CreatePods, progress); err != nil {
		return m, err
	}
	return m, m.startAll(ctx, progress)
}

// Open finds a mesh that is on record. The error matches ErrNoMesh if there is
// none.
func Open(dir, name string) (*Mesh, error) { return openRecord(filepath.Join(stateDir(dir), name)) }

// List names the meshes on record, sorted.
func List(dir string) ([]string, error) {
	entries, err := os.ReadDir(stateDir(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, err
}

func stateDir(dir string) string {
	if dir == "" {
		return DefaultStateDir
	}
	return dir
}

func openRecord(dir string) (*Mesh, error) {
	data, err := os.ReadFile(filepath.Join(dir, "mesh.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %q is not running: start it with `heddle local up`", ErrNoMesh, filepath.Base(dir))
	}
	if err != nil {
		return nil, fmt.Errorf("read mesh's record: %w", err)
	}
	m := &Mesh{dir: dir}
	if err := json.Unmarshal(data, &m.record); err != nil || m.Plan == nil {
		return nil, fmt.Errorf("read mesh's record %s: %w: remove it, and the namespaces named heddle-%s-*", filepath.Join(dir, "mesh.json"), err, filepath.Base(dir))
	}
	return m, nil
}

// save puts the mesh on record; whoever reads sees the old one or the new one.
func (m *Mesh) save() error {
	data, err := json.MarshalIndent(m.record, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(m.dir, "mesh.json")
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return fmt.Errorf("write mesh's record: %w", err)
	}
	return os.Rename(path+".new", path)
}

func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock mesh: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock mesh: another command is changing it: %w", err)
	}
	return func() { f.Close() }, nil
}

// build makes the namespaces and links of the plan that are missing. Each is on
// record before the next is made.
func (m *Mesh) build(plan *Plan, createPods bool, progress func(string)) error {
	m.Plan = plan
	fabric := plan.FabricNetNS()
	made, err := m.make(fabric)
	if err != nil {
		return err
	}
	if made {
		progress("making the fabric")
		if err := makeFabric(fabric); err != nil {
			return err
		}
	}
	for _, n := range plan.Nodes {
		made, err := m.make(n.NetNS)
		if err != nil {
			return err
		}
		if made {
			progress("making node " + n.Name)
			if err := joinNode(fabric, n); err != nil {
				return err
			}
		}
		if err := m.buildPods(n, createPods); err != nil {
			return err
		}
	}
	for _, n := range plan.Nodes {
		if err := routeNodes(n, plan.Nodes); err != nil {
			return err
		}
	}
	return nil
}

func (m *Mesh) buildPods(n Node, create bool) error {
	for _, p := range n.Pods {
		if _, err := os.Stat(p.NetNS); err != nil {
			if !create {
				return fmt.Errorf("workload %s: its network namespace %s is not there: make it, or use --create-pods", p.Workload, p.NetNS)
			}
			if _, err := m.make(filepath.Base(p.NetNS)); err != nil {
				return err
			}
			if err := joinPod(n, p); err != nil {
				return fmt.Errorf("make pod %s: %w", p.Workload, err)
			}
		}
	}
	return nil
}

func (m *Mesh) make(netns string) (bool, error) {
	if !slices.Contains(m.NetNS, netns) {
		if _, err := os.Stat(filepath.Join(netnsdir.Path, netns)); err == nil {
			return false, fmt.Errorf("network namespace %s is there already and is not this mesh's: remove it with `ip netns delete %s`", netns, netns)
		}
		m.NetNS = append(m.NetNS, netns)
		if err := m.save(); err != nil {
			return false, err
		}
	}
	return makeNetNS(netns)
}

// Down stops the mesh's programs and removes everything that Up made. It goes
// on after an error and returns all of them; calling it again tries the rest.
func (m *Mesh) Down(ctx context.Context) error {
	unlock, err := lock(m.dir)
	if err != nil {
		return err
	}
	defer unlock()
	var errs []error
	// Another command may have replaced agents since this Mesh was opened.
	if now, err := openRecord(m.dir); err == nil {
		m.record = now.record
	} else if !errors.Is(err, ErrNoMesh) {
		errs = append(errs, err)
	}
	for _, process := range m.Agents {
		errs = append(errs, process.stop(ctx, 10*time.Second))
	}
	errs = append(errs, m.Operator.stop(ctx, 5*time.Second))
	for _, n := range m.Plan.Nodes {
		if err := os.RemoveAll(m.pinDir(n.Name)); err != nil {
			errs = append(errs, fmt.Errorf("remove pins of node %s: %w", n.Name, err))
		}
	}
	for _, name := range m.NetNS {
		errs = append(errs, removeNetNS(name))
	}
	if root, err := cgroupRoot(); err == nil {
		errs = append(errs, removeCgroups(filepath.Join(root, m.cgroup())))
	}
	if err := errors.Join(append(errs, unmountBelow(m.dir))...); err != nil {
		return err
	}
	return os.RemoveAll(m.dir)
}

// unmountBelow takes away the file systems that agents mounted in the mesh's
// folder: the tmpfs that keeps keys off the disk.
func unmountBelow(dir string) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	var errs []error
	for line := range strings.Lines(string(data)) {
		// proc(5): the fifth field is the mount point.
		fields := strings.Fields(line)
		if len(fields) < 5 || !strings.HasPrefix(fields[4], dir+"/") {
			continue
		}
		if err := unix.Unmount(fields[4], unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", fields[4], err))
		}
	}
	return errors.Join(errs...)
}

func (m *Mesh) cgroup() string { return "heddle-" + m.Plan.Name }

func (m *Mesh) pinDir(node string) string { return filepath.Join(pinFolder, m.Plan.Name+"-"+node) }
