package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"time"
)

// Layout is the version of the pinned maps' layout; it names a subfolder of
// Config.PinDir. It changes when a map changes in a way that an older agent
// could not live with.
const Layout = "v1"

// DefaultGrandfatherFor bounds how long connections live on that were open
// before their pod was enrolled.
const DefaultGrandfatherFor = time.Hour

// Config configures a Node. The zero value of a field means its default.
type Config struct {
	// PinDir is this node's folder in a BPF file system, which is mounted at
	// /sys/fs/bpf when it is not. Default /sys/fs/bpf/heddle.
	PinDir string
	// CgroupPath is the agent's own cgroup2 folder: every inet socket created
	// there is stamped. Required.
	CgroupPath string
	// KubeletCgroup is the cgroup2 id whose sockets are kubelet's; 0: no probe
	// passes on a STRICT port.
	KubeletCgroup uint64
	// Mark and MarkMask are the routing mark of the agent's sockets, given to
	// grandfathered ones too. Default 0x04d00000/0xfff00000.
	Mark, MarkMask uint32
	// FlowsPerPod bounds the live connections of a pod. Default 65536.
	FlowsPerPod uint32
	// TunnelPort is the HBONE port. Default 15008.
	TunnelPort uint16
	// WaypointPort is the port of pods to which nobody but the agent may connect:
	// connections to it are not grandfathered. Default 15009.
	WaypointPort uint16
	// GrandfatherFor bounds grandfathered connections. Default
	// DefaultGrandfatherFor.
	GrandfatherFor time.Duration
	// Shared says that another agent may write what this one adopts, until it ends.
	Shared bool
}

func (c Config) withDefaults() Config {
	if c.PinDir == "" {
		c.PinDir = bpffsPath + "/heddle"
	}
	if c.Mark == 0 {
		c.Mark, c.MarkMask = 0x04d00000, 0xfff00000
	}
	if c.FlowsPerPod == 0 {
		c.FlowsPerPod = 65536
	}
	if c.TunnelPort == 0 {
		c.TunnelPort = 15008
	}
	if c.WaypointPort == 0 {
		c.WaypointPort = 15009
	}
	if c.GrandfatherFor == 0 {
		c.GrandfatherFor = DefaultGrandfatherFor
	}
	return c
}

func (c Config) validate() error {
	if c.CgroupPath == "" {
		return errors.New("the agent's cgroup path is empty: without it no socket is stamped")
	}
	if c.Mark&^c.MarkMask != 0 {
		return fmt.Errorf("mark %#x has bits outside its mask %#x", c.Mark, c.MarkMask)
	}
	return nil
}

// PodConfig says how one pod is enrolled.
type PodConfig struct {
	// Name is the pod's folder among the pins: [a-z0-9._-], unique on the node.
	Name string
	// ID marks the pod's drop records; unique on the node.
	ID uint32
	// NetNS is an open descriptor of the pod's network namespace. It stays the
	// caller's, and must stay open until the Pod is closed or removed.
	NetNS int
	// HostIfindex is the host side of the pod's veth, in the caller's network
	// namespace; 0 when the network has none that packets pass: then the gate
	// on the pod's own interface stands alone.
	HostIfindex int
	// PodIfindex is eth0 in the pod's network namespace; 0: no twin there.
	PodIfindex int
	// Addresses are the pod's, at most 8. Packets from others are dropped.
	Addresses []netip.Addr
	// Mode is for ports that PortModes does not name.
	Mode Mode
	// PortModes are exceptions per port of the pod, at most 1024 with ProbePorts.
	PortModes map[uint16]Mode
	// ProbePorts are the ports that the pod's probes declare.
	ProbePorts []uint16
	// AllowUDP passes all UDP; DenyDNS drops even UDP to port 53.
	AllowUDP, DenyDNS bool
	// CaptureDNS steers what the pod sends to port 53 to the DNS slots, and lets
	// only UDP sockets out to port 53 that are stamped ClassPlaintext.
	CaptureDNS bool
	// AllowEcho passes ICMP echo.
	AllowEcho bool
	// Revoked says that the pod's identity is: no connection of its own goes on that
	// was open before it was enrolled. See TakeEnded.
	Revoked bool
}

func (c PodConfig) validate() error {
	if !regexp.MustCompile(`^[a-z0-9][a-z0-9_-]*$`).MatchString(c.Name) || len(c.Name) > 128 {
		return fmt.Errorf("pod name %q: want 1 to 128 of [a-z0-9_-], the first a letter or digit", c.Name)
	}
	if c.HostIfindex == 0 && c.PodIfindex == 0 {
		return fmt.Errorf("pod %s has neither a host side nor an interface to put the gate on", c.Name)
	}
	if n := len(c.Addresses); n == 0 || n > len(gatePodConfig{}.Addresses) {
		return fmt.Errorf("pod %s has %d addresses: want 1 to %d", c.Name, n, len(gatePodConfig{}.Addresses))
	}
	for _, a := range c.Addresses {
		if !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.Zone() != "" {
			return fmt.Errorf("pod %s: %v cannot be a pod's address", c.Name, a)
		}
	}
	if n := len(c.portFlags()); n > maxPorts {
		return fmt.Errorf("pod %s names %d ports: at most %d", c.Name, n, maxPorts)
	}
	return nil
}

const maxPorts = 1024

// portFlags is the desired content of the ports map.
func (c PodConfig) portFlags() map[uint16]uint32 {
	flags := map[uint16]uint32{}
	for port, mode := range c.PortModes {
		if mode == ModePermissive {
			flags[port] |= uint32(gatePortFlagsPORT_PERMISSIVE)
		} else {
			flags[port] |= uint32(gatePortFlagsPORT_STRICT)
		}
	}
	for _, port := range c.ProbePorts {
		flags[port] |= uint32(gatePortFlagsPORT_PROBE)
	}
	return flags
}

// admits says whether a flow of this kind to this port of the pod may go on
// under the configuration.
func (c PodConfig) admits(kind FlowKind, port uint16) bool {
	flags := gatePortFlags(c.portFlags()[port])
	permissive := flags&gatePortFlagsPORT_STRICT == 0 && (c.Mode == ModePermissive || flags&gatePortFlagsPORT_PERMISSIVE != 0)
	switch kind {
	case FlowProbe: // what is no probe any more is plaintext like any other
		return permissive || flags&gatePortFlagsPORT_PROBE != 0
	case FlowPermissive:
		return permissive
	case FlowGrandfathered: // what policies say is EndGrandfathered's; but there is no going on with whom nobody may speak
		return !c.Revoked
	default:
		return true
	}
}

// kernel is the configuration as the programs read it.
func (c PodConfig) kernel(node Config, enrolment uint32) gatePodConfig {
	out := gatePodConfig{
		KubeletCgroup:  node.KubeletCgroup,
		GrandfatherFor: uint64(node.GrandfatherFor),
		Pod:            c.ID,
		AddressCount:   uint32(len(c.Addresses)),
		Enrolment:      enrolment,
		HostIfindex:    uint32(c.HostIfindex),
		TunnelPort:     node.TunnelPort,
	}
	for bit, set := range map[gatePodFlags]bool{
		gatePodFlagsPOD_PERMISSIVE:   c.Mode == ModePermissive,
		gatePodFlagsPOD_COUNT_IN_POD: c.HostIfindex == 0,
		gatePodFlagsPOD_ALLOW_UDP:    c.AllowUDP,
		gatePodFlagsPOD_ALLOW_ECHO:   c.AllowEcho,
		gatePodFlagsPOD_DENY_DNS:     c.DenyDNS,
		gatePodFlagsPOD_CAPTURE_DNS:  c.CaptureDNS,
	} {
		if set {
			out.Flags |= uint32(bit)
		}
	}
	for i, a := range c.Addresses {
		out.Addresses[i] = toAddress(a)
	}
	return out
}
