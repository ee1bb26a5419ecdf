// Command heddle-agent is the agent of one node of a Heddle mesh: it enrolls the
// node's pods, carries their connections in mutual TLS and enforces policy. It
// only turns flags and environment into an agent.Config; package agent does the
// work.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/heddle-mesh/heddle/agent"
	"github.com/heddle-mesh/heddle/agent/ready"
	"github.com/heddle-mesh/heddle/cmd/internal/startup"
	"github.com/heddle-mesh/heddle/internal/cniwire"
	"github.com/heddle-mesh/heddle/internal/fips"
)

var version = "dev" // set by the linker

// The main thread's namespaces are what others see as the process's, and it
// cannot be thrown away: nothing that changes them may run on it. In main it would be
// too late, as the goroutine may have moved to another thread by then.
func init() { runtime.LockOSThread() }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once, for whoever does not want to
	// wait for connections to drain.
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:], os.LookupEnv, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "heddle-agent:", err)
		os.Exit(1)
	}
}

type options struct {
	cfg                 agent.Config
	tokenFile           string
	check               bool
	uninstallCNI        bool
	logLevel, logFormat string
	fips140             bool
}

// run is main without a process of its own.
func run(ctx context.Context, args []string, env func(string) (string, bool), stdout, stderr io.Writer) error {
	o := options{cfg: agent.Defaults()}
	cmd := &cobra.Command{
		Use:   "heddle-agent --node NAME",
		Short: "Carry and guard the connections of one node's pods",
		Long: `Carry and guard the connections of one node's pods.

The agent enrolls the pods that the operator's configuration names for this
node, opens its listeners inside them, and puts a gate of BPF programs around
each, so that no plaintext leaves or enters that policy does not allow. The gate
is pinned: it holds while the agent is down, and the next agent takes it over.

It needs root, Linux 6.1 or newer, cgroup2, and the network namespace in which
the pods' veths end. A node joins once, by a token that the operator makes.

When another agent runs on the node, the new one takes its work over: it tests
itself first, then gets the listeners and the live connections, and the other one
ends. If it is not fit, or dies on the way, the other one goes on.

Signals: SIGTERM and SIGINT stop taking connections, let the live ones end until
--drain, and leave the gates closed; a second one ends the agent at once.

Every flag can be given in the environment as well, as HEDDLE_ and its name:
--state-dir is HEDDLE_STATE_DIR. Flags win.`,
		Example: `  # Join a mesh and run.
  heddle-agent --node n1 --join-token-file /etc/heddle/join-token

  # Is this configuration in order? Nothing is changed.
  heddle-agent --node n1 --check

  # The agent of a Kubernetes node: new pods wait until they are protected.
  heddle-agent --node n1 --cni-socket /run/heddle/cni.sock --cri-socket /run/containerd/containerd.sock \
    --cni-conf-dir /etc/cni/net.d --cni-bin-dir /opt/cni/bin

  # Is the agent of this container ready?
  heddle-agent ready --node n1

  # Take this node's pods out of the mesh when the agent is stopped.
  heddle-agent --node n1 --unenroll-on-exit`,
		Args:          cobra.NoArgs,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		PreRunE:       func(cmd *cobra.Command, _ []string) error { return startup.FromEnvironment(cmd.Flags(), env) },
		RunE:          func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), stdout, stderr) },
	}
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	o.register(cmd.Flags())
	cmd.AddCommand(newReady(env), startup.AdminPipe(o.cfg.AdminSocket, env, os.Stdin, stdout))
	cmd.SetArgs(args)
	return cmd.ExecuteContext(ctx)
}

func (o *options) register(flags *pflag.FlagSet) {
	c := &o.cfg
	flags.StringVar(&c.Node, "node", "", "this node's name, as the configuration has it (needed)")
	flags.StringVar(&o.tokenFile, "join-token-file", "", "file with the join token; not read again once the node has joined and the file is gone")
	flags.StringVar(&c.Account.TokenFile, "token-file", "", "on Kubernetes, in place of a join token: file with the pod's own token, projected for the operator")
	flags.StringVar(&c.Account.RootsFile, "roots-file", "", "the mesh's roots in PEM, by which the operator is known when the node joins by --token-file")
	flags.StringVar(&c.Operator, "operator", "", "host:port of the operator; empty takes it from the join token")
	flags.StringVar(&c.StateDir, "state-dir", c.StateDir, "directory for the node's credential and the last good configuration")
	flags.StringVar(&c.RunDir, "run-dir", "", "directory that a reboot empties, for what was changed in which pod; empty is the admin socket's folder")
	flags.StringVar(&c.KeyDir, "keys-dir", "", "tmpfs for workloads' keys, mounted when missing; empty is keys in --run-dir")
	flags.StringVar(&c.AdminSocket, "admin-socket", c.AdminSocket, "unix socket for status, flows and proof, for root only")
	flags.StringVar(&c.Metrics, "metrics", c.Metrics, "host:port of /metrics, /readyz and /healthz; empty for none")
	flags.StringVar(&c.Engine, "engine", "", "what carries tunnels: loop, or reference (slower; the only one in FIPS 140-3 mode); empty is loop where that is allowed")
	flags.StringVar(&c.Crypto, "crypto", "auto", "where the loop engine's AES-GCM comes from: auto is Heddle's own on processors with VAES, standard is Go's standard library everywhere")
	flags.StringVar(&c.Kernel.DNS, "dns", agent.DNSDirect, "what becomes of the pods' queries to port 53: capture has the agent answer them, from the mesh's services, its cache, or the server that was asked; direct lets them out unread")
	flags.StringVar(&c.TakeOver, "take-over", agent.TakeOverAuto, "when another agent runs on this node: auto takes its work over, drain and require do and want one, require refuses if connections cannot move, never refuses")
	flags.BoolVar(&c.Kernel.SystemCongestion, "system-congestion", false, "have TCP go by the system's congestion control everywhere; where that paces (bbr) another is taken within pods, and for tunnels over less than a millisecond")
	flags.StringVar(&c.Kernel.PinDir, "pin-dir", "", "folder on bpffs for pinned programs and maps; empty is /sys/fs/bpf/heddle/NODE")
	flags.StringVar(&c.Kernel.Cgroup, "cgroup", "", "the agent's own cgroup2 folder; empty finds or makes one")
	flags.StringVar(&c.Kernel.Kubelet, "kubelet-cgroup", "", "whose sockets are kubelet's probes: auto finds kubelet among the node's processes, none has no probes, else its cgroup2 folder; empty is auto with --cni-socket, and none without")
	flags.Uint32Var(&c.Kernel.Mark, "mark", 0, "routing mark of the agent's packets, within --mark-mask; 0 takes the default")
	flags.Uint32Var(&c.Kernel.MarkMask, "mark-mask", 0, "bits of the routing mark that are the agent's; 0 takes the default")
	flags.Uint32Var(&c.Kernel.FlowsPerPod, "flows-per-pod", 0, "bound of each pod's kernel flow table; 0 takes the default")
	flags.DurationVar(&c.Kernel.Grandfather, "grandfather", 0, "how long connections live on that were open before enrolment; 0 takes the default")
	flags.StringVar(&c.CNI.Socket, "cni-socket", "", "unix socket on which heddle-cni asks for new pods, such as "+cniwire.DefaultSocket+"; empty for a node without a container runtime")
	flags.StringVar(&c.CNI.Runtime, "cri-socket", "", "the container runtime's unix socket, such as /run/containerd/containerd.sock")
	flags.StringVar(&c.CNI.ConfDir, "cni-conf-dir", "", "the node's folder of CNI configurations, /etc/cni/net.d: a copy of its first, with heddle-cni, is kept before it; empty leaves it alone")
	flags.StringVar(&c.CNI.BinDir, "cni-bin-dir", "", "the node's folder of CNI programs, /opt/cni/bin")
	flags.StringVar(&c.CNI.Program, "cni-program", "", "the heddle-cni to install; empty is the one beside this program")
	flags.StringVar(&c.CNI.List, "cni-namespaces", "", "file, at the same path on the node, by which heddle-cni judges new pods while no agent runs; empty is cni/namespaces.json in --state-dir")
	flags.StringSliceVar(&c.CNI.Pass, "cni-pass-namespaces", []string{"heddle-system", "kube-system"}, "namespaces whose new pods never wait for the agent: what it, or the cluster, cannot start without")
	flags.BoolVar(&o.uninstallCNI, "cni-uninstall", false, "take heddle-cni out of --cni-conf-dir and --cni-bin-dir, and exit")
	flags.IntVar(&c.Budget.Connections, "max-connections", c.Budget.Connections, "connections of one pod at once")
	flags.IntVar(&c.Budget.PeerConnections, "max-peer-connections", c.Budget.PeerConnections, "tunnel connections of one peer's identity that one pod accepts at once")
	flags.IntVar(&c.Budget.Handshakes, "max-handshakes", c.Budget.Handshakes, "tunnel handshakes that one pod accepts per second")
	flags.IntVar(&c.Budget.OutboundHandshakes, "max-outbound-handshakes", c.Budget.OutboundHandshakes, "tunnel handshakes that are begun for one pod per second")
	flags.Int64Var(&c.Budget.BufferedBytes, "max-buffered-bytes", c.Budget.BufferedBytes, "bytes that tunnels hold for one pod's slow readers")
	flags.DurationVar(&c.Timeouts.Hold, "hold", c.Timeouts.Hold, "how long a connection to an unknown address of the cluster waits for discovery")
	flags.DurationVar(&c.Timeouts.Connect, "connect-timeout", c.Timeouts.Connect, "bound of each try to reach a destination")
	flags.DurationVar(&c.Timeouts.Drain, "drain", c.Timeouts.Drain, "how long live connections go on when the agent is told to stop")
	flags.IntVar(&c.Flows.Records, "flow-records", c.Flows.Records, "how many flow records are kept in memory")
	flags.Int64Var(&c.Flows.History.MaxBytes, "history-bytes", c.Flows.History.MaxBytes, "bytes of summaries of each hour's flows that are kept in --state-dir, for heddle history, simulate and suggest; 0 for none")
	flags.DurationVar(&c.Flows.History.Keep, "history-keep", c.Flows.History.Keep, "age at which these are dropped")
	flags.BoolVar(&c.End.Unenroll, "unenroll-on-exit", false, "take every pod out of the mesh when the agent is told to stop")
	flags.BoolVar(&c.End.Uninstall, "uninstall-on-exit", false, "the same, and remove all that agents have put on the node: pins, state, sockets, keys")
	flags.BoolVar(&c.End.StayAfterHandOver, "stay-after-hand-over", false, "do not end when another agent has taken over, but when told to, or when the node has no agent any more: for what restarts programs that end")
	flags.BoolVar(&o.fips140, "fips140", false, "refuse to run outside FIPS 140-3 mode, which GODEBUG=fips140=on in the environment makes")
	flags.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&o.logFormat, "log-format", "text", "text or json")
	flags.BoolVar(&o.check, "check", false, "say whether the flags are in order, and exit")
}

func (o *options) run(ctx context.Context, stdout, stderr io.Writer) error {
	log, err := startup.NewLogger(o.logLevel, o.logFormat, stderr)
	if err != nil {
		return err
	}
	if err := fips.Require(o.fips140); err != nil {
		return err
	}
	o.cfg.Version, o.cfg.Log = version, log
	if err := o.readToken(); err != nil {
		return err
	}
	a, err := agent.New(o.cfg)
	if err != nil {
		return err
	}
	// So far nothing on the system has been changed.
	if o.check {
		fmt.Fprintln(stdout, "configuration: in order")
		return nil
	}
	if o.uninstallCNI {
		return o.uninstall(stdout)
	}
	return a.Run(ctx)
}

// readyWithin bounds how long `heddle-agent ready` waits for an answer.
const readyWithin = 3 * time.Second

// newReady is the command of a container's probe.
func newReady(env func(string) (string, bool)) *cobra.Command {
	node := ""
	cmd := &cobra.Command{
		Use:   "ready --node NAME",
		Short: "Say whether the agent in this container is ready, for a probe",
		Long: `Say whether the agent in this container is ready, for a probe.

While one agent takes over from another, both are on the node and share its port
of metrics and its folders. This asks the one that runs in the container, or, on a
machine without containers, in the mount namespace, where it is asked. An agent is
ready when it has its configuration and every pod that was there is enrolled, and
no longer when another agent has taken over.

Exit status: 0 ready; 1 not ready, with the reason, or no agent.`,
		Args:    cobra.NoArgs,
		PreRunE: func(cmd *cobra.Command, _ []string) error { return startup.FromEnvironment(cmd.Flags(), env) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			if node == "" {
				return errors.New("--node is not given: it is the name that the agent was started with (or HEDDLE_NODE)")
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), readyWithin)
			defer cancel()
			if err := ready.Ask(ctx, node); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "ready")
			return nil
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "the node's name, as the agent has it (needed)")
	return cmd
}

// uninstall leaves the cluster's CNI as it was before Heddle.
func (o *options) uninstall(stdout io.Writer) error {
	if o.cfg.CNI.ConfDir == "" {
		return errors.New("--cni-uninstall: set --cni-conf-dir and --cni-bin-dir as for the agent")
	}
	chain, err := o.cfg.CNI.Chain(o.cfg)
	if err != nil {
		return err
	}
	if err := chain.Uninstall(); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s: without %s\n", o.cfg.CNI.ConfDir, cniwire.PluginType)
	return nil
}

// maxTokenBytes bounds the token's file.
const maxTokenBytes = 16 << 10

// readToken reads the join token. A file that is gone is no error: a node that
// has joined does not need it.
func (o *options) readToken() error {
	if o.tokenFile == "" {
		return nil
	}
	f, err := os.Open(o.tokenFile)
	if errors.Is(err, os.ErrNotExist) {
		o.cfg.Log.Warn("no join token file: going on with the credential of an earlier join, if there is one", "path", o.tokenFile)
		return nil
	}
	if err != nil {
		return fmt.Errorf("read join token: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxTokenBytes))
	if err != nil {
		return fmt.Errorf("read join token: %w", err)
	}
	o.cfg.JoinToken = strings.TrimSpace(string(text))
	return nil
}
