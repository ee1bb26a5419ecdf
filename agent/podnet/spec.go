package podnet

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// maxAddresses is how many addresses of a pod the gate knows.
const maxAddresses = 8

// Config is what a Node works with.
type Config struct {
	// PinDir is the folder on bpffs for this node's pins, such as
	// /sys/fs/bpf/heddle/NODE; StateDir the folder for what was changed in
	// which pod, such as /run/heddle/NODE/pods. Both must outlive the agent,
	// and neither a reboot.
	PinDir, StateDir string
	// Cgroup is the agent's own cgroup folder, from EnterCgroup.
	Cgroup string
	// NetNS is the path of the network namespace that holds the host sides of
	// the pods' veths; "" is the process's own.
	NetNS string
	// KubeletCgroup is the id of the cgroup whose sockets are kubelet's; 0
	// means that there are no probes.
	KubeletCgroup uint64
	// Mark, under MarkMask, leads the agent's packets past redirection. Zero
	// takes DefaultMark and DefaultMarkMask.
	Mark, MarkMask uint32
	// Table is the routing table in each pod that leads to loopback; zero takes
	// DefaultTable.
	Table int
	// FlowsPerPod bounds each pod's flow table; zero takes bpf's default.
	FlowsPerPod uint32
	// Grandfather is how long connections that were open before enrolment may
	// go on; zero takes bpf's default.
	Grandfather      time.Duration
	SystemCongestion bool // see netns.Congestion
	// WatchInterval is how often Watch looks; zero takes one second.
	WatchInterval time.Duration
	// Inherited are the listeners of the agent that this one succeeds, by pod:
	// Enroll adopts them instead of opening its own.
	Inherited map[string][]Inherited
	// Shared says that there is such an agent, which may write until it ends.
	Shared bool
	Log    *slog.Logger
}

// Defaults of Config. The mark stays clear of Istio's 0x539 and of the bits
// that Kubernetes (0xc000) and Cilium (0xf00) use.
const (
	DefaultMark     = 0x4d00000
	DefaultMarkMask = 0xfff00000
	DefaultTable    = 100
)

func (c *Config) complete() error {
	if c.PinDir == "" || c.StateDir == "" || c.Cgroup == "" {
		return errors.New("open node: PinDir, StateDir and Cgroup must be set")
	}
	if c.Mark == 0 && c.MarkMask == 0 {
		c.Mark, c.MarkMask = DefaultMark, DefaultMarkMask
	}
	if c.Mark == 0 || c.Mark&^c.MarkMask != 0 {
		return fmt.Errorf("open node: mark %#x is zero or not within its mask %#x", c.Mark, c.MarkMask)
	}
	if c.Table == 0 {
		c.Table = DefaultTable
	}
	if c.WatchInterval <= 0 {
		c.WatchInterval = time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Spec says how one pod is enrolled.
type Spec struct {
	// Name is unique on the node and names pins and state: 1 to 128 of
	// [a-z0-9_-]. Name(key) makes one.
	Name string
	// NetNSPath is the pod's network namespace.
	NetNSPath string
	// Addresses are the pod's own, all of them on one veth.
	Addresses []netip.Addr
	// Mode, PortModes and ProbePorts say what plaintext from the wire may
	// enter, as in mesh.Workload.
	Mode       mesh.Mode
	PortModes  map[uint16]mesh.Mode
	ProbePorts []uint16
	// CaptureDNS takes what the pod sends to port 53: see Pod.Names. Without it
	// datagrams to there leave the pod unread. It may change while the pod is
	// enrolled.
	CaptureDNS bool
	// Revoked says that the pod's identity is: nothing goes on that was open before
	// the pod was enrolled. It may change while the pod is enrolled.
	Revoked bool
	// Prompt has Enroll return as soon as a pod that is new and has no connection is
	// behind its gate and that is proven: Pod.Finish is to be called then, for as long as
	// the pod is Unfinished. An agent that dies before leaves it closed, for the next to finish.
	Prompt bool
}

// maxName is the longest name of a pin folder.
const maxName = 128

// Name returns the name under which a workload is enrolled. Two workloads never
// share one: object names have no underscore and namespaces no dot, and what is
// too long is cut and carries a hash.
func Name(key mesh.Key) string {
	// bpffs keeps dots for itself (bpf_lookup in kernel/bpf/inode.c).
	name := key.Namespace + "_" + strings.ReplaceAll(key.Name, ".", "_")
	if len(name) <= maxName {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return name[:maxName-33] + "-" + hex.EncodeToString(sum[:16])
}

// KeyOf is the inverse of Name; false for a name that was cut, and for one that
// is no workload's.
func KeyOf(name string) (mesh.Key, bool) {
	namespace, rest, ok := strings.Cut(name, "_")
	if !ok || len(name) >= maxName {
		return mesh.Key{}, false
	}
	return mesh.Key{Namespace: namespace, Name: strings.ReplaceAll(rest, "_", ".")}, true
}

// SpecOf returns the Spec of a workload that is enrolled by path; captureDNS holds
// when its configuration does not say. Of one whose identity is revoked queries are
// captured whatever that says: whom it asks would hear from it.
func SpecOf(w *mesh.Workload, captureDNS, revoked bool) Spec {
	if w.DNS != mesh.DNSDefault {
		captureDNS = w.DNS == mesh.DNSCapture
	}
	return Spec{
		Name: Name(w.Key), NetNSPath: w.NetNS, Addresses: slices.Clone(w.Addresses),
		Mode: w.Mode, PortModes: maps.Clone(w.PortModes), ProbePorts: slices.Clone(w.ProbePorts),
		CaptureDNS: captureDNS || revoked, Revoked: revoked,
	}
}

// validate checks the Spec and brings its addresses into one form.
func (s *Spec) validate() error {
	if !regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,127}$`).MatchString(s.Name) {
		return fmt.Errorf("enroll pod %q: the name must be 1 to 128 of [a-z0-9_-]", s.Name)
	}
	if s.NetNSPath == "" {
		return fmt.Errorf("enroll pod %s: no network namespace: set the workload's networkNamespace", s.Name)
	}
	if len(s.Addresses) == 0 || len(s.Addresses) > maxAddresses {
		return fmt.Errorf("enroll pod %s: %d addresses: give 1 to %d", s.Name, len(s.Addresses), maxAddresses)
	}
	addrs := make([]netip.Addr, len(s.Addresses))
	for i, a := range s.Addresses {
		a = a.Unmap()
		if !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.Zone() != "" {
			return fmt.Errorf("enroll pod %s: %s cannot be a pod's address: correct the workload's addresses", s.Name, a)
		}
		addrs[i] = a
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	s.Addresses = slices.Compact(addrs)
	return nil
}
