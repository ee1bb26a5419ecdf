package agent

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/agent/engine"
	"github.com/heddle-mesh/heddle/agent/handover"
	"github.com/heddle-mesh/heddle/agent/kubelet"
	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/flow/history"
)

// Config is everything that an agent can be told. Defaults fills what has a
// default; Node and Log have none.
type Config struct {
	// Node is this node's name, as the configuration and the certificate of the
	// node say it.
	Node string
	// JoinToken is the text of a join token; "" when the node joined earlier.
	JoinToken string
	// Account is how an agent of a Kubernetes cluster joins, in place of a join
	// token.
	Account AccountConfig
	// Operator overrides the operator's address, host:port, of the join token; with
	// Account it is needed.
	Operator string
	// StateDir is on disk and outlives a reboot: the node's credential, the last good
	// configuration and, in flows, the history. RunDir outlives the agent, but no reboot: what
	// was changed in which pod, and workloads' keys; "" is the admin socket's
	// folder.
	StateDir, RunDir string
	// KeyDir is a tmpfs for workloads' keys; "" is RunDir/keys, on which the
	// agent mounts one when RunDir is on a disk.
	KeyDir string
	// AdminSocket is the path of the admin socket.
	AdminSocket string
	// Metrics is the host:port of metrics and readiness; "" for none.
	Metrics string
	// TunnelConfig says what carries the tunnels.
	TunnelConfig
	// TakeOver says what to do when another agent runs on the node: "auto" takes
	// its work over, if there is one, and connections that cannot move are
	// drained; "drain" is the same, and an error when there is none; "require"
	// refuses, too, when connections could not move; "never" refuses whenever
	// there is one. "" is auto.
	TakeOver string
	// Kernel says how the agent uses the kernel, CNI how it meets a container
	// runtime.
	Kernel KernelConfig
	CNI    CNIConfig
	Budget proxy.Budget
	// Timeouts bound the steps of a connection's life.
	Timeouts proxy.Timeouts
	// Flows says what is kept of them.
	Flows FlowsConfig
	// End says what is left, and what goes on, when the agent has no more to do.
	End EndConfig
	// Version is shown in the status.
	Version string
	Log     *slog.Logger

	seam seam
}

// seam is where tests reach into a hand-over; the zero seam changes nothing.
type seam struct {
	// versions of the hand-over that are spoken; zero is this build's.
	versions handover.Versions
	// at is told of each point of the successor's way, and may stop it there.
	at func(point string)
}

func (s *seam) reached(point string) {
	if s.at != nil {
		s.at(point)
	}
}

// TunnelConfig is what carries an agent's tunnels.
type TunnelConfig struct {
	// Engine carries the tunnels: "loop", or "reference", which is slower; "" is
	// loop, and reference in FIPS 140-3 mode, where nothing else is allowed.
	Engine string
	// Crypto says where the AES-GCM of the loop engine comes from: "auto" is
	// Heddle's own where the processor has VAES for it, "standard" the standard
	// library's everywhere; "" is auto.
	Crypto string
}

// KernelConfig says how the agent uses the kernel. Zero numbers take the
// kernel part's defaults.
type KernelConfig struct {
	// PinDir is this node's folder on bpffs: absolute, one for each node.
	PinDir string
	// Cgroup is the agent's own cgroup2 folder; "" finds or makes one. Kubelet
	// is kubelet's, whose probes pass; "auto" finds it, "none" is for none, and ""
	// for auto where there is a container runtime, and none elsewhere.
	Cgroup, Kubelet string
	// Mark, under MarkMask, routes the agent's packets past redirection.
	Mark, MarkMask uint32
	// DNS says what becomes of the queries of pods whose configuration (Mesh,
	// spec.dns) does not say: "capture" has the agent answer them; "direct" lets
	// them out of the pods unread. "" is direct.
	DNS string
	// SystemCongestion has TCP go by the system's congestion control also where that paces to no use.
	SystemCongestion bool
	// FlowsPerPod bounds each pod's flow table.
	FlowsPerPod uint32
	// Grandfather is how long connections that were open before their pod was
	// enrolled may go on.
	Grandfather time.Duration
}

// AccountConfig is how an agent joins by the token of its own pod. The zero value
// is an agent that joins by a join token.
type AccountConfig struct {
	// TokenFile has the pod's projected token, for the operator's audience; it is
	// read anew for each try. RootsFile has the mesh's roots in PEM.
	TokenFile, RootsFile string
}

func (c AccountConfig) validate(operator, joinToken string, bad func(field, wrong, remedy string)) {
	if c == (AccountConfig{}) {
		return
	}
	for _, p := range []struct{ field, path, flag string }{{"Account.TokenFile", c.TokenFile, "--token-file"}, {"Account.RootsFile", c.RootsFile, "--roots-file"}} {
		if !filepath.IsAbs(p.path) {
			bad(p.field, fmt.Sprintf("%q is not an absolute path", p.path), "set --token-file and --roots-file together, each to a path that begins with /")
		}
	}
	if operator == "" {
		bad("Operator", "the token of a pod names no operator", "set --operator to its host:port")
	}
	if joinToken != "" {
		bad("JoinToken", "a node joins either by a join token or by its pod's token", "set --join-token-file, or --token-file and --roots-file")
	}
}

// FlowsConfig says what is kept of flows.
type FlowsConfig struct {
	// Records is how many are kept in memory.
	Records int
	// History bounds the summaries of each hour that are kept in StateDir.
	History history.Bounds
}

// EndConfig says how an agent ends. The zero value leaves pods behind their gates,
// closed until the next agent, and ends when another one has taken over.
type EndConfig struct {
	// Unenroll takes every pod out of the mesh when the agent is told to stop.
	Unenroll bool
	// Uninstall does so, too, and removes everything else that agents have put on
	// the node: in the kernel, in StateDir and in RunDir.
	Uninstall bool
	// StayAfterHandOver keeps the process when another agent has taken over, until
	// ctx is done or the node has no agent any more: for whoever restarts processes
	// that end, which would take over again.
	StayAfterHandOver bool
}

// The values of KernelConfig.DNS.
const (
	DNSCapture = "capture"
	DNSDirect  = "direct"
)

// Defaults returns the configuration of a machine with one agent.
func Defaults() Config {
	return Config{
		StateDir: "/var/lib/heddle", AdminSocket: admin.DefaultSocket, Metrics: ":15020",
		Budget: proxy.DefaultBudget(), Timeouts: proxy.DefaultTimeouts(), Version: "unknown",
		Flows: FlowsConfig{Records: 65536, History: history.DefaultBounds()},
	}
}

// complete fills what follows from other fields.
func (c Config) complete() Config {
	if c.RunDir == "" {
		c.RunDir = filepath.Dir(c.AdminSocket)
	}
	c.Crypto = cmp.Or(c.Crypto, engine.CryptoAuto)
	c.Engine, c.TakeOver, c.Kernel.DNS = cmp.Or(c.Engine, engine.Default()), cmp.Or(c.TakeOver, TakeOverAuto), cmp.Or(c.Kernel.DNS, DNSDirect)
	if c.KeyDir == "" {
		c.KeyDir = filepath.Join(c.RunDir, "keys")
	}
	c.CNI = c.CNI.complete(c.StateDir)
	if c.Kernel.Kubelet == "" && c.CNI.Socket != "" {
		c.Kernel.Kubelet = kubelet.Auto
	}
	if c.Kernel.PinDir == "" {
		c.Kernel.PinDir = filepath.Join("/sys/fs/bpf/heddle", c.Node)
	}
	return c
}

// What a pod's tunnels may hold: one stream's window at least.
const minBuffered, maxBuffered = 1 << 20, 1 << 40

// maxSocketPath is what a unix socket's address holds (unix(7)).
const maxSocketPath = 107

// Validate says everything that is wrong with the configuration. It looks at
// nothing but the configuration, and changes nothing.
func (c Config) Validate() error {
	c = c.complete()
	var errs []error
	bad := func(field, wrong, remedy string) {
		errs = append(errs, fmt.Errorf("%s: %s; remedy: %s", field, wrong, remedy))
	}
	if !regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`).MatchString(c.Node) {
		bad("Node", fmt.Sprintf("%q is not a node name", c.Node), "set --node to 1 to 63 of a-z, 0-9, '-' and '.'")
	}
	for _, p := range []struct{ field, path, flag string }{
		{"StateDir", c.StateDir, "--state-dir"}, {"RunDir", c.RunDir, "--run-dir"}, {"KeyDir", c.KeyDir, "--keys-dir"},
		{"AdminSocket", c.AdminSocket, "--admin-socket"}, {"Kernel.PinDir", c.Kernel.PinDir, "--pin-dir"},
	} {
		if !filepath.IsAbs(p.path) {
			bad(p.field, fmt.Sprintf("%q is not an absolute path", p.path), "give "+p.flag+" a path that begins with /")
		}
	}
	if len(c.AdminSocket) > maxSocketPath {
		bad("AdminSocket", fmt.Sprintf("%d bytes are more than a socket's address holds", len(c.AdminSocket)), fmt.Sprintf("give --admin-socket a path of at most %d bytes", maxSocketPath))
	}
	if strings.HasPrefix(c.KeyDir, c.StateDir+"/") {
		bad("KeyDir", "workloads' keys must not be on disk", "put --keys-dir under --run-dir, which is on a tmpfs")
	}
	for _, a := range []struct{ field, addr, flag string }{{"Operator", c.Operator, "--operator"}, {"Metrics", c.Metrics, "--metrics"}} {
		if _, _, err := net.SplitHostPort(a.addr); a.addr != "" && err != nil {
			bad(a.field, fmt.Sprintf("%q is not HOST:PORT", a.addr), "give "+a.flag+" an address such as 10.0.0.1:15010")
		}
	}
	if wrong, remedy := engine.Check(c.Engine); wrong != "" {
		bad("Engine", wrong, remedy)
	}
	if wrong, remedy := engine.CheckCrypto(c.Crypto); wrong != "" {
		bad("Crypto", wrong, remedy)
	}
	if !slices.Contains([]string{TakeOverAuto, TakeOverRequire, TakeOverDrain, TakeOverNever}, c.TakeOver) {
		bad("TakeOver", fmt.Sprintf("%q is none of the choices", c.TakeOver), "set --take-over to auto, require, drain or never")
	}
	if k := c.Kernel.Kubelet; k != "" && k != kubelet.Auto && k != kubelet.None && !filepath.IsAbs(k) {
		bad("Kernel.Kubelet", fmt.Sprintf("%q is not an absolute path", k), "set --kubelet-cgroup to auto, none, or a path that begins with /")
	}
	c.Account.validate(c.Operator, c.JoinToken, bad)
	if dns := c.Kernel.DNS; dns != DNSCapture && dns != DNSDirect {
		bad("Kernel.DNS", fmt.Sprintf("%q is none of the choices", dns), "set --dns to capture or direct")
	}
	c.CNI.validate(bad)
	c.Flows.History.Validate(func(field, wrong, remedy string) { bad("Flows.History."+field, wrong, remedy) })
	c.validateNumbers(bad)
	if c.Log == nil {
		bad("Log", "is nil", "set a logger")
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("agent configuration: %w", err)
	}
	return nil
}

func (c Config) validateNumbers(bad func(field, wrong, remedy string)) {
	if c.Kernel.Mark&^c.Kernel.MarkMask != 0 {
		bad("Kernel.Mark", fmt.Sprintf("%#x has bits outside the mask %#x", c.Kernel.Mark, c.Kernel.MarkMask), "choose --mark within --mark-mask")
	}
	if (c.Kernel.Mark == 0) != (c.Kernel.MarkMask == 0) {
		bad("Kernel.Mark", "mark and mask go together", "set both --mark and --mark-mask, or neither")
	}
	for _, n := range []struct {
		field, flag string
		value, max  int
	}{
		{"Flows.Records", "--flow-records", c.Flows.Records, 1 << 22},
		{"Budget.Connections", "--max-connections", c.Budget.Connections, 1 << 20},
		{"Budget.PeerConnections", "--max-peer-connections", c.Budget.PeerConnections, 1 << 20},
		{"Budget.Handshakes", "--max-handshakes", c.Budget.Handshakes, 1 << 20},
		{"Budget.OutboundHandshakes", "--max-outbound-handshakes", c.Budget.OutboundHandshakes, 1 << 20},
	} {
		if n.value < 1 || n.value > n.max {
			bad(n.field, fmt.Sprintf("%d is out of range", n.value), fmt.Sprintf("give %s 1 to %d", n.flag, n.max))
		}
	}
	if n := c.Budget.BufferedBytes; n < minBuffered || n > maxBuffered {
		bad("Budget.BufferedBytes", fmt.Sprintf("%d is out of range", n), fmt.Sprintf("give --max-buffered-bytes %d to %d", minBuffered, maxBuffered))
	}
	for _, d := range []struct {
		field, flag string
		value       time.Duration
	}{
		{"Timeouts.Hold", "--hold", c.Timeouts.Hold}, {"Timeouts.Connect", "--connect-timeout", c.Timeouts.Connect},
		{"Timeouts.Drain", "--drain", c.Timeouts.Drain}, {"Kernel.Grandfather", "--grandfather", c.Kernel.Grandfather},
	} {
		if d.value < 0 || d.value > 24*time.Hour {
			bad(d.field, fmt.Sprintf("%v is out of range", d.value), "give "+d.flag+" a duration from 0 to 24h")
		}
	}
}
