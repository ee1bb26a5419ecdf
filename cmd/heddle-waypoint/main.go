// Command heddle-waypoint is the L7 proxy of a namespace of a Heddle mesh. It only turns flags
// and environment into a waypoint.Config; package waypoint does the work.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/heddle-mesh/heddle/cmd/internal/startup"
	"github.com/heddle-mesh/heddle/internal/fips"
	"github.com/heddle-mesh/heddle/waypoint"
	"github.com/heddle-mesh/heddle/waypoint/accesslog"
)

var version = "dev" // set by the linker

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:], os.LookupEnv, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "heddle-waypoint:", err)
		os.Exit(1)
	}
}

// adminSocket is where the pipe goes to that says nothing else: where the operator has waypoints listen.
const adminSocket = "/run/heddle/waypoint.sock"

type options struct {
	cfg                 waypoint.Config
	check               bool
	fips140             bool
	memory              int64
	logLevel, logFormat string
}

// run is main without a process of its own.
func run(ctx context.Context, args []string, env func(string) (string, bool), stdout, stderr io.Writer) error {
	o := options{cfg: waypoint.Defaults()}
	cmd := &cobra.Command{
		Use:   "heddle-waypoint --waypoint NAMESPACE/NAME (--operator HOST:PORT | --config DIR)",
		Short: "Route the requests of a namespace's services",
		Long: `Route the requests of a namespace's services.

A waypoint takes the connections that agents carry to it, and routes their
requests by HTTPRoutes and GRPCRoutes, and what is no HTTP, as it is, by
TLSRoutes and TCPRoutes. Who may reach which workload is decided by the identity of the
client, which its agent says at the beginning of each connection.

It follows an operator, which believes it by its pod's token (--token-file), or,
outside Kubernetes, by a join token. What it was told last is in --state-dir: it
goes on, and starts again, while the operator is away. Or else it goes by a
folder of YAML (--config), the same that heddle-operator reads. When that
changes, the next request goes by what it says then; what has an error is
refused, and what was good before goes on.

Signals: SIGTERM and SIGINT stop taking connections, and let what is under way
end until --drain; a second one ends the waypoint at once.

Every flag can be given in the environment as well, as HEDDLE_ and its name:
--access-log is HEDDLE_ACCESS_LOG. Flags win.

Exit status: 0 when it was told to stop, 1 when it could not serve.`,
		Example: `  # Serve in the pod of a waypoint.
  heddle-waypoint --waypoint shop/waypoint --operator heddle-operator.heddle-system.svc:15012 \
    --token-file /var/run/secrets/heddle/token --roots-file /var/run/heddle/roots/roots.pem

  # Serve outside Kubernetes: heddle join-token create waypoint/shop/waypoint made the token.
  heddle-waypoint --waypoint shop/waypoint --join-token-file /run/heddle/waypoint-token

  # Serve what a folder says.
  heddle-waypoint --waypoint shop/waypoint --config /etc/heddle/mesh

  # Is this folder in order? Nothing is served.
  heddle-waypoint --waypoint shop/waypoint --config mesh --check

  # Try routes without a mesh: whoever connects has dialled 10.96.0.10:80.
  heddle-waypoint --waypoint shop/waypoint --config mesh --listen 127.0.0.1:8080 --direct 10.96.0.10:80`,
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
	cmd.AddCommand(startup.AdminPipe(adminSocket, env, os.Stdin, stdout))
	cmd.SetArgs(args)
	return cmd.ExecuteContext(ctx)
}

func (o *options) register(flags *pflag.FlagSet) {
	c := &o.cfg
	limits, timeouts := &c.Serve.Limits, &c.Serve.Timeouts
	flags.StringVar(&c.Waypoint, "waypoint", "", "the waypoint's own Service, NAMESPACE/NAME (needed)")
	flags.StringVarP(&c.Folder, "config", "f", "", "folder of YAML objects to go by, in place of an operator")
	flags.StringVar(&c.Follow.Operator, "operator", "", "host:port of the operator to follow; empty takes it from the join token")
	flags.StringVar(&c.Follow.TokenFile, "token-file", "", "file with this pod's own token, projected for the operator")
	flags.StringVar(&c.Follow.RootsFile, "roots-file", "", "the mesh's roots in PEM, by which the operator is known to who comes by --token-file")
	flags.StringVar(&c.Follow.JoinTokenFile, "join-token-file", "", "outside Kubernetes, in place of both: file with a join token for this waypoint")
	flags.StringVar(&c.Follow.StateDir, "state-dir", c.Follow.StateDir, "directory for the last good configuration and what verifies it")
	flags.StringVar(&c.Listen, "listen", c.Listen, "host:port that agents connect to")
	flags.StringVar(&c.Direct, "direct", "", "address and port of a service that whoever connects is taken to have dialled, without saying who it is: for trying routes without a mesh")
	flags.StringToStringVar(&c.Reach, "reach", nil, "where an address and port of a workload is connected to, for the same purpose: 10.1.0.7:8080=127.0.0.1:8080")
	flags.StringVar(&c.Metrics, "metrics", c.Metrics, "host:port of /metrics, /readyz and /healthz; empty for none")
	flags.DurationVar(&c.Relist, "relist", c.Relist, "how often to read the folder without a sign of a change")
	flags.IntVar(&c.Serve.Loops, "loops", c.Serve.Loops, "event loops, each on a core of its own")
	flags.StringVar(&c.Serve.HTTP.Via, "via", "", "name that requests get in their Via field; empty for none, as some servers compress nothing for a proxy")
	flags.StringVar(&c.AccessPath, "access-log", "", "file that a line of JSON is appended to for each request, - for standard output; empty for none")
	flags.Float64Var(&c.Access.Sample, "access-log-sample", c.Access.Sample, "share of requests that are logged, from 0 to 1; those answered with 5xx always are")
	flags.StringSliceVar(&c.Access.Mask, "access-log-mask", c.Access.Mask, "fields whose values are not logged, of "+strings.Join(accesslog.Fields(), ", "))
	flags.StringVar(&c.Flows.AdminSocket, "admin-socket", c.Flows.AdminSocket, "unix socket where heddle flows asks for requests, for root and the waypoint's own user only; empty keeps none")
	flags.IntVar(&c.Flows.Records, "flow-records", c.Flows.Records, "how many requests are kept for it, half of them such as failed, were refused or sent more than once")
	flags.StringSliceVar(&c.Flows.Sample, "flow-sample", c.Flows.Sample, "shares of the other requests that are, by rules: the first that fits counts, such as /healthz=0,shop/cart=1,shop/*=0.1")
	flags.StringVar(&c.Traces.Endpoint, "trace-endpoint", "", "collector that spans of requests are sent to by OTLP over gRPC, http://HOST:PORT or https://HOST:PORT; empty makes none")
	flags.StringSliceVar(&c.Traces.Sample, "trace-sample", c.Traces.Sample, "shares of requests that are sampled where the client says nothing of it, by rules as for --flow-sample")
	flags.StringVar(&c.Replica, "replica", "", "what this replica calls itself in flows and traces; empty is the host's name")
	flags.IntVar(&limits.Connections, "max-connections", limits.Connections, "connections of clients at once")
	flags.IntVar(&limits.Requests, "max-requests", limits.Requests, "requests under way; more are answered with 503")
	flags.Int64Var(&limits.Bytes, "max-buffered-bytes", limits.Bytes, "bytes held for requests under way; while there are more, new ones are answered with 503")
	flags.Int64Var(&o.memory, "memory", 0, "bytes of memory that the process may have, of which two fifths at most are those held for requests; 0 is what its cgroup says")
	flags.IntVar(&limits.ReplayBytes, "max-replay-bytes", limits.ReplayBytes, "bytes of one request that are kept for a retry, or a mirror")
	flags.Int64Var(&c.Serve.HTTP.BodyBytes, "max-body", 0, "bytes of a request's body; one with more is answered with 413; 0 is no bound")
	flags.DurationVar(&timeouts.Header, "header-timeout", timeouts.Header, "bound of the time that a request's head takes to come")
	flags.DurationVar(&timeouts.Hold, "hold", timeouts.Hold, "how long a client waits that dialled a service which is not known to have this waypoint")
	flags.DurationVar(&timeouts.Idle, "idle-timeout", timeouts.Idle, "how long a client's connection may wait for the next request")
	flags.DurationVar(&timeouts.Stall, "stall-timeout", timeouts.Stall, "how long a client may owe a part of a body, or take nothing")
	flags.DurationVar(&timeouts.Connect, "connect-timeout", timeouts.Connect, "bound of each try to reach a workload")
	flags.DurationVar(&timeouts.Drain, "drain", timeouts.Drain, "how long requests go on when the waypoint is told to stop")
	flags.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&o.logFormat, "log-format", "text", "text or json")
	flags.BoolVar(&o.fips140, "fips140", false, "refuse to run outside FIPS 140-3 mode, which GODEBUG=fips140=on in the environment makes")
	flags.BoolVar(&o.check, "check", false, "read the folder, say what is wrong with it, and exit: 0 when it would be served")
}

func (o *options) run(ctx context.Context, stdout, stderr io.Writer) error {
	log, err := startup.NewLogger(o.logLevel, o.logFormat, stderr)
	if err != nil {
		return err
	}
	if err := fips.Require(o.fips140); err != nil {
		return err
	}
	if o.memory < 0 {
		return fmt.Errorf("--memory %d: want a number of bytes, or 0 for what the cgroup says", o.memory)
	}
	o.keep(log)
	o.cfg.Version, o.cfg.Log, o.cfg.Output = version, log, stdout
	w, err := waypoint.New(o.cfg)
	if err != nil {
		return err
	}
	if o.check {
		if err := w.Check(); err != nil {
			return err
		}
		fmt.Fprintf(stdout, "%s: in order\n", o.cfg.Folder)
		return nil
	}
	return w.Run(ctx)
}

// keep has the process stay within the memory that it may have, where that is known: what is held for requests is shed before
// the kernel ends it.
func (o *options) keep(log *slog.Logger) {
	may, heap := startup.KeepMemory(log, o.memory, "give --memory")
	if may == 0 {
		return
	}
	bytes := &o.cfg.Serve.Limits.Bytes
	*bytes = min(*bytes, may/5*2) // half of it with what requests under way may have beyond
	log.Info("memory is kept within", "limit", may, "heap", heap, "requests", *bytes)
}
