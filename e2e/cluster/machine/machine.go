// Package machine runs machines that are processes: pid 1 of namespaces of its
// own (mount, pid, network, cgroup, host name, IPC), with programs that it keeps
// running. A machine has its own /etc, /opt, /var, /run, /tmp, bpffs, cgroups and
// network; the rest of the file system is the host's, read-only. It can be
// stopped as by a power cut and started again, and then is what a real machine
// is after a boot: /run and bpffs empty, /etc and /var as they were.
//
// It knows nothing of Kubernetes, and joins machines by no network. It needs
// root, overlayfs and nsenter(1). A Machine may be used from any goroutine, but
// Start, Stop and Remove of the same one must not run at the same time.
package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/netnsdir"
)

// Spec is all that a machine is made of. It is written to Dir, and read by the
// machine's pid 1.
type Spec struct {
	// Name is the host name.
	Name string `json:"name"`
	// Dir is the folder of the machine's state: absolute, on a file system that
	// overlayfs accepts as upper layer, and not under /etc, /opt, /var or /run.
	Dir string `json:"dir"`
	// Cgroup is the path of the machine's cgroup below each hierarchy's root.
	Cgroup string `json:"cgroup"`
	// Netns is the name under /run/netns of the machine's network namespace.
	Netns string `json:"netns"`
	// Files are written at the first boot: path in the machine → content.
	Files map[string]string `json:"files"`
	// BootFiles are written at every boot, over what programs made of them, before any
	// program starts: path in the machine → content.
	BootFiles map[string]string `json:"bootFiles"`
	// Folders are made at every boot.
	Folders []string `json:"folders"`
	// Disks are folders of Dir that appear at a path in the machine and survive
	// its stop, for programs that mount overlays themselves: path → folder.
	Disks map[string]string `json:"disks"`
	// Shares are folders of the host that appear at a path in the machine,
	// read-only: path → folder.
	Shares map[string]string `json:"shares"`
	// Copies are files that the first boot copies: path → file, as the machine
	// sees it.
	Copies map[string]string `json:"copies"`
	// Masks are files of /proc/sys that programs may write to without an effect
	// on the host: path below /proc/sys → content.
	Masks map[string]string `json:"masks"`
	// Sysctls are set in the machine's network namespace: path below /proc/sys →
	// value. One that this kernel does not have is passed over.
	Sysctls map[string]string `json:"sysctls"`
	// Programs are kept running, and started in this order.
	Programs []Program `json:"programs"`
	// Forwards are the host's ports that lead into the machine.
	Forwards []Forward `json:"forwards"`
}

// Program is a program that the machine keeps running.
type Program struct {
	// Name is unique in the machine; the log is Dir/log/NAME.log.
	Name string   `json:"name"`
	Args []string `json:"args"`
	// After is a path in the machine that must exist before this one starts; ""
	// for none.
	After string `json:"after"`
}

// Forward is a TCP port on the host's loopback that leads to an address in the
// machine's network.
type Forward struct {
	HostPort int    `json:"hostPort"`
	Target   string `json:"target"`
}

// Machine is a machine on record, running or not.
type Machine struct {
	Spec Spec
	// Binary is the program that is pid 1: a build of e2e/cluster/machined.
	Binary string
}

// process is pid 1 on record. The pid alone would not do: pids are given again.
type process struct {
	PID int `json:"pid"`
	// Started is in clock ticks since boot: proc(5), field 22 of stat.
	Started uint64 `json:"started"`
}

const (
	specFile    = "spec.json"
	processFile = "process.json"
	bootIDFile  = "boot-id"
	logDir      = "log"
	// bootLog is what pid 1 itself says.
	bootLog = "machine"
)

// Start boots the machine, and returns when its programs are being started. The
// error says what the boot failed at; nothing runs then.
func (m *Machine) Start(ctx context.Context) error {
	if err := m.check(); err != nil {
		return err
	}
	if m.Running() {
		return fmt.Errorf("machine %s: it runs already", m.Spec.Name)
	}
	if err := m.Stop(ctx); err != nil { // what an unclean end left
		return err
	}
	if err := m.boot(ctx); err != nil {
		return errors.Join(fmt.Errorf("start machine %s: %w", m.Spec.Name, err), m.Stop(context.WithoutCancel(ctx)))
	}
	return nil
}

func (m *Machine) check() error {
	dir := m.Spec.Dir
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("machine %s: Dir %q is not absolute", m.Spec.Name, dir)
	}
	for _, covered := range append(overlaid(), "/run", "/sys", "/proc", "/dev") {
		if strings.HasPrefix(dir+"/", covered+"/") {
			return fmt.Errorf("machine %s: the state folder %s is under %s, which machines have their own of: choose another", m.Spec.Name, dir, covered)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, logDir), 0o755); err != nil {
		return fmt.Errorf("machine %s: %w", m.Spec.Name, err)
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return fmt.Errorf("machine %s: statfs %s: %w", m.Spec.Name, dir, err)
	}
	if stat.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return fmt.Errorf("machine %s: the state folder %s is on overlayfs, which cannot carry overlays: choose one on a disk or a tmpfs", m.Spec.Name, dir)
	}
	return nil
}

func (m *Machine) boot(ctx context.Context) error {
	data, err := json.MarshalIndent(m.Spec, "", "  ")
	if err != nil {
		return err
	}
	spec := filepath.Join(m.Spec.Dir, specFile)
	if err := os.WriteFile(spec, data, 0o600); err != nil {
		return err
	}
	log, err := os.OpenFile(m.Log(bootLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close() // the machine has its own descriptor
	listeners, err := listen(m.Spec.Forwards)
	defer closeAll(listeners)
	if err != nil {
		return err
	}
	var said strings.Builder
	enter := exec.CommandContext(ctx, m.Binary, "enter", spec)
	enter.ExtraFiles = append([]*os.File{log}, listeners...)
	enter.Stderr = &said
	enter.WaitDelay = time.Second
	if err := enter.Run(); err != nil {
		return fmt.Errorf("%w: %s (see %s)", err, strings.TrimSpace(said.String()), m.Log(bootLog))
	}
	return m.nameNetns()
}

// nameNetns gives the network namespace a name as ip-netns(8) does, so that
// other programs find it.
func (m *Machine) nameNetns() error {
	p, err := m.process()
	if err != nil {
		return err
	}
	if err := netnsdir.Share(netnsdir.Path); err != nil {
		return fmt.Errorf("name network namespace %s: %w", m.Spec.Netns, err)
	}
	if err := os.WriteFile(m.NetnsPath(), nil, 0o444); err != nil {
		return err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/%d/ns/net", p.PID), m.NetnsPath(), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("name network namespace %s: %w", m.Spec.Netns, err)
	}
	return nil
}

// Stop ends the machine as a power cut does: all of its processes, mounts and
// links go. It returns when they are gone; of a machine that does not run, it
// takes away what is left.
func (m *Machine) Stop(ctx context.Context) error {
	if p, err := m.process(); err == nil && p.running() {
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop machine %s: %w", m.Spec.Name, err)
		}
		if err := waitFor(ctx, stopPatience, func() bool { return !p.running() }); err != nil {
			return fmt.Errorf("stop machine %s: process %d does not end: %w", m.Spec.Name, p.PID, err)
		}
	}
	if err := os.Remove(filepath.Join(m.Spec.Dir, processFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("stop machine %s: %w", m.Spec.Name, err)
	}
	if err := m.unnameNetns(); err != nil {
		return fmt.Errorf("stop machine %s: %w", m.Spec.Name, err)
	}
	if err := removeCgroups(ctx, m.Spec.Cgroup); err != nil {
		return fmt.Errorf("stop machine %s: %w", m.Spec.Name, err)
	}
	return nil
}

func (m *Machine) unnameNetns() error {
	// EINVAL: it is a file, not a mount, or is not there.
	if err := unix.Unmount(m.NetnsPath(), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", m.NetnsPath(), err)
	}
	if err := os.Remove(m.NetnsPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Remove stops the machine and deletes its state.
func (m *Machine) Remove(ctx context.Context) error {
	if err := m.Stop(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(m.Spec.Dir); err != nil {
		return fmt.Errorf("remove machine %s: %w", m.Spec.Name, err)
	}
	return nil
}

// Running reports whether the machine runs.
func (m *Machine) Running() bool {
	p, err := m.process()
	return err == nil && p.running()
}

// PID is the process id of the machine's pid 1 on the host.
func (m *Machine) PID() (int, error) {
	p, err := m.process()
	if err != nil || !p.running() {
		return 0, fmt.Errorf("machine %s does not run", m.Spec.Name)
	}
	return p.PID, nil
}

// NetnsPath is the file that stands for the machine's network namespace.
func (m *Machine) NetnsPath() string { return filepath.Join(netnsdir.Path, m.Spec.Netns) }

// BootID is what /proc/sys/kernel/random/boot_id reads in the machine: another
// one after every boot.
func (m *Machine) BootID() (string, error) {
	data, err := os.ReadFile(filepath.Join(m.Spec.Dir, bootIDFile))
	if err != nil {
		return "", fmt.Errorf("machine %s: %w", m.Spec.Name, err)
	}
	return string(data), nil
}

// Log is the file that a program's output goes to; "machine" is pid 1's own.
func (m *Machine) Log(program string) string {
	return filepath.Join(m.Spec.Dir, logDir, program+".log")
}

func (m *Machine) process() (process, error) {
	var p process
	data, err := os.ReadFile(filepath.Join(m.Spec.Dir, processFile))
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(data, &p); err != nil {
		return p, fmt.Errorf("%s: %w", filepath.Join(m.Spec.Dir, processFile), err)
	}
	return p, nil
}

// running reports whether it is alive and the one on record. A zombie is gone:
// all that pid 1 held went before it became one.
func (p process) running() bool {
	started, state, err := procStat(p.PID)
	return p.PID > 1 && err == nil && started == p.Started && state != "Z" && state != "X"
}

func procStat(pid int) (started uint64, state string, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, "", err
	}
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 20 {
		return 0, "", fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	_, err = fmt.Sscan(fields[19], &started)
	return started, fields[0], err
}

// stopPatience is how long the kernel may take to end a machine: it waits for
// every process in it.
const stopPatience = 30 * time.Second

// waitFor polls until ok, for the patience at most.
func waitFor(ctx context.Context, patience time.Duration, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}
