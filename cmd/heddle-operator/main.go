// Command heddle-operator is the control plane of a Heddle mesh: it reads the
// mesh's objects from a folder of YAML, streams configuration to the agents and
// signs their certificates. It only turns flags and environment into an
// operator.Config; package operator does the work.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/heddle-mesh/heddle/cmd/internal/startup"
	"github.com/heddle-mesh/heddle/internal/fips"
	"github.com/heddle-mesh/heddle/operator"
	"github.com/heddle-mesh/heddle/operator/jwtauthority"
	"github.com/heddle-mesh/heddle/operator/publish"
)

var version = "dev" // set by the linker

const defaultAdminSocket = "/run/heddle/operator.sock"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.LookupEnv, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "heddle-operator:", err)
		os.Exit(1)
	}
}

// errRefused says that a check found problems, which are printed already.
var errRefused = errors.New("the configuration is refused")

type options struct {
	cfg                 operator.Config
	kubernetes          bool
	cluster             operator.Kubernetes
	spire               operator.SPIRE
	bundle              operator.BundleEndpoint
	check               bool
	logLevel, logFormat string
	fips140             bool
	// experimentalUDP is the name of cfg.UDPByIdentity in the version before.
	experimentalUDP bool
}

// run is main without a process of its own.
func run(ctx context.Context, args []string, env func(string) (string, bool), stdout, stderr io.Writer) error {
	cmd := newCommand(env, stdout, stderr)
	cmd.SetArgs(args)
	return cmd.ExecuteContext(ctx)
}

func newCommand(env func(string) (string, bool), stdout, stderr io.Writer) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "heddle-operator",
		Short: "Serve configuration and certificates to the agents of a Heddle mesh",
		Long: `Serve configuration and certificates to the agents of a Heddle mesh.

The mesh's objects (Namespace, Service, Mesh, Workload, PeerAuthentication,
AuthorizationPolicy) are read from a folder of YAML files, which is watched. A
folder with a problem in it is refused as a whole, with file and field, and the
last good configuration goes on.

With --kubernetes they come from the API server instead, and pods with them. An
object with a problem in it is then refused by itself: its status, and an event,
say why. Keys are in a Secret; several replicas stream and sign, and one of them
writes statuses.

Every flag can be given in the environment as well, as HEDDLE_ and its name:
--state-dir is HEDDLE_STATE_DIR. Flags win.`,
		Example: `  # What would be refused, and why?
  heddle-operator --folder mesh/ --check

  # Serve; then create a join token for a node on the admin socket.
  heddle-operator --folder mesh/ --state-dir /var/lib/heddle/operator --advertise 192.0.2.10:15012`,
		Args:          cobra.NoArgs,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		PreRunE:       func(cmd *cobra.Command, _ []string) error { return startup.FromEnvironment(cmd.Flags(), env) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.experimentalUDP {
				fmt.Fprintln(stderr, "--experimental-udp is deprecated: use --udp-by-identity, the next version does not know the other")
				o.cfg.UDPByIdentity = true
			}
			if o.check && o.kubernetes {
				return errors.New("--check is about a --folder: on Kubernetes, objects have a status")
			}
			if o.check {
				return check(o.cfg.Folder, o.cfg.UDPByIdentity, stdout)
			}
			return serve(cmd.Context(), o, stderr)
		},
	}
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	o.register(cmd.Flags())
	cmd.AddCommand(startup.AdminPipe(defaultAdminSocket, env, os.Stdin, stdout))
	return cmd
}

func (o *options) register(flags *pflag.FlagSet) {
	flags.StringVarP(&o.cfg.Folder, "folder", "f", "", "folder of YAML objects (this or --kubernetes is needed)")
	flags.BoolVar(&o.kubernetes, "kubernetes", false, "read objects from a Kubernetes API server, in place of a folder")
	flags.StringVar(&o.cluster.Kubeconfig, "kubeconfig", "", "kubeconfig file; empty for the service account of the operator's own pod")
	flags.StringVar(&o.cluster.Namespace, "namespace", operator.DefaultNamespace, "namespace of the operator's own Secret, ConfigMap, Lease and of the agents")
	flags.StringVar(&o.cluster.Replica, "replica", "", "name of this replica, its pod's; empty for the host's name")
	flags.StringVar(&o.cluster.AgentAccount, "agent-service-account", operator.DefaultAgentAccount, "service account of the agents, in --namespace")
	flags.StringVar(&o.cluster.Audience, "token-audience", operator.DefaultAudience, "audience that agents' projected tokens must have")
	flags.BoolVar(&o.cluster.StartupTaint, "startup-taint", false, "take the taint heddle.dev/agent-not-ready away from nodes whose agents are ready; needs the right to patch nodes")
	flags.StringVar(&o.cluster.Waypoints.Image, "waypoint-image", "", "image that waypoints are run from, on Kubernetes; empty runs none")
	flags.StringVar(&o.cluster.Waypoints.Canary, "waypoint-canary-image", "", "image that Gateways with the annotation heddle.dev/canary have tried beside that; empty tries none")
	flags.StringVar((*string)(&o.cluster.Waypoints.PullPolicy), "waypoint-pull-policy", "IfNotPresent", "when that image is fetched: IfNotPresent, Always or Never")
	flags.StringSliceVar(&o.cluster.Waypoints.PullSecrets, "waypoint-pull-secrets", nil, "names of Secrets for that, which have to be in the namespaces of waypoints")
	flags.StringVar(&o.cluster.Waypoints.TraceEndpoint, "waypoint-trace-endpoint", "", "collector that waypoints send spans to by OTLP over gRPC, http://HOST:PORT or https://HOST:PORT, where a Gateway does not name another")
	flags.StringSliceVar(&o.cluster.Waypoints.TraceSample, "waypoint-trace-sample", nil, "shares of requests that are sampled where the client says nothing of it, such as /healthz=0,shop/cart=1,*=0.01")
	flags.StringVar(&o.cluster.Waypoints.AccessLog, "waypoint-access-log", "", "share of requests that waypoints log on their standard output, from 0 to 1, where a Gateway does not say another; empty is none")
	flags.StringSliceVar(&o.cluster.Waypoints.AccessLogMask, "waypoint-access-log-mask", nil, "fields whose values are not logged then, of those of heddle-waypoint --access-log-mask; empty is query")
	flags.StringSliceVar(&o.cluster.Waypoints.Bounds, "waypoint-bounds", nil, "bounds and times of waypoints, by the names of heddle-waypoint's flags, such as max-requests=20000,stall-timeout=2m; a Gateway may say others")
	flags.StringVar(&o.cfg.StateDir, "state-dir", "/var/lib/heddle/operator", "directory for CA, keys, join tokens and the last good configuration (0700)")
	flags.StringVar(&o.cfg.Listen, "listen", ":15012", "host:port that agents connect to")
	flags.StringVar(&o.cfg.Advertise, "advertise", "", "host:port that join tokens name; empty leaves it to the node that joins")
	flags.StringVar(&o.cfg.AdminSocket, "admin-socket", defaultAdminSocket, "unix socket for status and join tokens, for root only; empty for none")
	flags.StringVar(&o.cfg.Metrics, "metrics", "", "host:port of the Prometheus endpoint; empty for none")
	flags.StringVar(&o.cfg.Health, "health", "", "host:port of GET /livez and /readyz; empty for none")
	flags.DurationVar(&o.cfg.TTL, "certificate-ttl", 24*time.Hour, "validity of workloads' certificates")
	flags.DurationVar(&o.cfg.JWT.TTL, "jwt-ttl", jwtauthority.DefaultTTL, "validity of JWT-SVIDs, 1m to 1h")
	flags.StringVar(&o.spire.Server, "spire-server", "", "host:port of the SPIRE server below which the operator is a CA; empty for a CA of its own")
	flags.StringVar(&o.spire.WorkloadAPI, "spire-workload-api", "", "address of the SPIRE agent beside the operator: unix:///PATH of its socket")
	flags.StringVar(&o.bundle.Listen, "bundle-endpoint", "", "host:port where the mesh's own SPIFFE bundle is served to other trust domains; empty for nowhere")
	flags.StringVar(&o.bundle.Certificate, "bundle-endpoint-certificate", "", "PEM file of the bundle endpoint's web certificate (profile https_web); empty for the operator's SVID (https_spiffe)")
	flags.StringVar(&o.bundle.Key, "bundle-endpoint-key", "", "PEM file of its key")
	flags.DurationVar(&o.cfg.Relist, "relist", 30*time.Second, "how often to read the folder without a sign of a change")
	flags.BoolVar(&o.cfg.UDPByIdentity, "udp-by-identity", false, "let AuthorizationPolicies say who may exchange datagrams (protocol: UDP), who is known by the address that their gates hold them to: docs/configuration.md says what that proves")
	flags.BoolVar(&o.experimentalUDP, "experimental-udp", false, "the name of --udp-by-identity in the version before")
	if err := flags.MarkHidden("experimental-udp"); err != nil {
		panic(err) // there is no such flag
	}
	flags.BoolVar(&o.fips140, "fips140", false, "refuse to run outside FIPS 140-3 mode, which GODEBUG=fips140=on in the environment makes")
	flags.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&o.logFormat, "log-format", "text", "text or json")
	flags.BoolVar(&o.check, "check", false, "read the folder, print what is wrong with it, and exit: 0 when it would be served")
}

func check(folder string, udpByIdentity bool, stdout io.Writer) error {
	if folder == "" {
		return errors.New("--folder is needed")
	}
	warnings, err := publish.Check(folder, udpByIdentity)
	for _, w := range warnings {
		fmt.Fprintln(stdout, "warning:", w)
	}
	if err != nil {
		fmt.Fprintln(stdout, err)
		return fmt.Errorf("check %s: %w", folder, errRefused)
	}
	fmt.Fprintf(stdout, "%s: in order\n", folder)
	return nil
}

func serve(ctx context.Context, o options, stderr io.Writer) error {
	log, err := startup.NewLogger(o.logLevel, o.logFormat, stderr)
	if err != nil {
		return err
	}
	cfg := o.cfg
	if err := fips.Require(o.fips140); err != nil {
		return err
	}
	cfg.Version, cfg.Logger = version, log
	if o.spire != (operator.SPIRE{}) {
		cfg.SPIRE = &o.spire
	}
	if o.bundle.Certificate != "" || o.bundle.Key != "" || o.bundle.Listen != "" {
		cfg.BundleEndpoint = &o.bundle
	}
	if o.kubernetes {
		if cfg.Kubernetes, err = o.kubernetesConfig(); err != nil {
			return err
		}
	} else if cfg.Folder == "" {
		return errors.New("--folder or --kubernetes is needed")
	}
	if may, heap := startup.KeepMemory(log, 0, "set GOMEMLIMIT"); may > 0 { // when all nodes join at once
		log.Info("memory is kept within", "limit", may, "heap", heap)
	}
	op, err := operator.New(cfg)
	if err != nil {
		return err
	}
	return op.Run(ctx)
}

// kubernetesConfig is what the flags say about the cluster. In a pod, the host's
// name is the pod's.
func (o *options) kubernetesConfig() (*operator.Kubernetes, error) {
	cfg := o.cluster
	if cfg.Replica == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("find this replica's name: %w; remedy: give --replica", err)
		}
		cfg.Replica = host
	}
	cfg.Waypoints.FIPS140 = o.fips140
	return &cfg, nil
}
