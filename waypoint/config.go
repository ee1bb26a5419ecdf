// Package waypoint is the L7 proxy of a namespace: it takes the connections that agents
// carry to it, routes their requests by HTTPRoutes and GRPCRoutes, other connections by TLSRoutes and TCPRoutes, and sends them on to
// workloads. New checks a Config and changes nothing, Run serves until its context ends.
//
// This package is wiring. Package serve has the sockets, plan the decisions, http1 the
// protocol, snapshot what all of it goes by.
package waypoint

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/internal/flow/sample"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/waypoint/accesslog"
	"github.com/heddle-mesh/heddle/waypoint/serve"
)

// Config is all that a waypoint is told.
type Config struct {
	// Waypoint is the Service whose replica this is, NAMESPACE/NAME.
	Waypoint string
	// Folder has the YAML objects that it goes by; "" where it follows an operator.
	Folder string
	Follow Follow
	// Listen is where clients' agents connect to, Metrics where /metrics, /readyz and /healthz
	// are; "" for none.
	Listen, Metrics string
	// Direct is the address and port of a service, for trying routes without a mesh: see
	// serve.Config.
	Direct string
	// Reach has addresses and ports of workloads that are connected to at other ones, likewise.
	Reach map[string]string
	// Access is what the access log has, and where it goes to: the path of a file, "-" for
	// standard output, "" for none.
	Access     accesslog.Config
	AccessPath string
	Flows      Flows
	Traces     Traces
	// Replica is what this one calls itself, in flows and traces; "" is the host's name.
	Replica string
	// Relist is how often the folder is read without a sign of a change.
	Relist time.Duration
	Serve  serve.Config
	Log    *slog.Logger
	// Output is standard output.
	Output  io.Writer
	Version string
}

// Flows says which requests heddle flows is shown.
type Flows struct {
	// AdminSocket is where it asks; "" for nowhere, and nothing is kept.
	AdminSocket string
	// Records is how many requests are kept, half of them those that failed, were refused or were sent more than
	// once. Sample has rules for which of the others are; see sample.Parse.
	Records int
	Sample  []string
}

// Traces says which spans a collector is told of.
type Traces struct {
	// Endpoint is its URL; "" for nobody. Sample has rules for requests of which the client does not say.
	Endpoint string
	Sample   []string
}

// Follow says how a waypoint follows an operator.
type Follow struct {
	// Operator is its host:port; "" takes it from the join token.
	Operator string
	// TokenFile has the token of this pod, projected for the operator, and RootsFile the mesh's
	// roots in PEM; JoinTokenFile, in place of both, has a join token for this waypoint.
	TokenFile, RootsFile, JoinTokenFile string
	// StateDir keeps the last good configuration and what verifies it.
	StateDir string
}

// asked reports whether anything is said of an operator.
func (f *Follow) asked() bool { return f.Operator+f.TokenFile+f.RootsFile+f.JoinTokenFile != "" }

// check says what is wrong, by the names of the flags.
func (f *Follow) check() error {
	switch {
	case f.TokenFile != "" && f.JoinTokenFile != "":
		return errors.New("--token-file and --join-token-file exclude each other: the first is for a pod, the second for a waypoint outside Kubernetes")
	case f.TokenFile == "" && f.JoinTokenFile == "":
		return errors.New("--token-file is not given: it is the file with this pod's token, by which the operator believes that this is the waypoint; outside Kubernetes, --join-token-file")
	case f.TokenFile != "" && (f.RootsFile == "" || f.Operator == ""):
		return errors.New("--token-file needs --operator and --roots-file: where the operator is, and the mesh's roots, by which it is believed")
	case f.JoinTokenFile != "" && f.RootsFile != "":
		return errors.New("--join-token-file and --roots-file exclude each other: the token says what to believe")
	case f.StateDir == "":
		return errors.New("--state-dir is empty: it is where the last good configuration is kept")
	}
	return nil
}

// Defaults are what a waypoint does that is told nothing else.
func Defaults() Config {
	cfg := Config{Listen: fmt.Sprintf(":%d", mesh.WaypointPort), Metrics: ":15020", Relist: 30 * time.Second, Follow: Follow{StateDir: DefaultStateDir}, Serve: serve.Defaults(), Access: accesslog.Config{Sample: 1, Mask: []string{"query"}},
		Flows: Flows{Records: 4096, Sample: []string{"1"}}, Traces: Traces{Sample: []string{"0.01"}},
		Log: slog.New(slog.DiscardHandler), Output: os.Stdout}
	cfg.Serve.Loops = runtime.GOMAXPROCS(0)
	return cfg
}

// DefaultStateDir is where a waypoint that follows an operator keeps what it needs to start
// without one.
const DefaultStateDir = "/var/lib/heddle/waypoint"

// debounce is how long a folder must be quiet before it is read.
const debounce = 100 * time.Millisecond

// key is the name of the waypoint's Service.
func (c *Config) key() (mesh.Key, error) {
	namespace, name, ok := strings.Cut(c.Waypoint, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return mesh.Key{}, fmt.Errorf("--waypoint %q: want the waypoint's Service, as NAMESPACE/NAME", c.Waypoint)
	}
	return mesh.Key{Namespace: namespace, Name: name}, nil
}

// check says what is wrong with a Config, by the names of the flags.
func (c *Config) check() (mesh.Key, error) {
	key, err := c.key()
	errs := []error{err}
	switch {
	case c.Folder != "" && c.Follow.asked():
		errs = append(errs, errors.New("--config and an operator exclude each other: a waypoint goes by a folder, or by what an operator says"))
	case c.Folder == "" && !c.Follow.asked():
		errs = append(errs, errors.New("--config is not given: it is the folder of YAML objects to go by; to follow an operator in its place, give --token-file, --roots-file and --operator"))
	case c.Folder == "":
		errs = append(errs, c.Follow.check())
	}
	if c.Listen == "" {
		errs = append(errs, errors.New("--listen is empty: it is host:port to be connected to"))
	}
	if c.Direct != "" {
		if c.Serve.Direct, err = netip.ParseAddrPort(c.Direct); err != nil {
			errs = append(errs, fmt.Errorf("--direct %q: want an address and port of a service, such as 10.96.0.10:80", c.Direct))
		}
	}
	if len(c.Reach) > 0 {
		c.Serve.Reach, err = reach(c.Reach)
		errs = append(errs, err)
	}
	_, err = sample.Parse(c.Flows.Sample)
	errs = append(errs, named("--flow-sample", err))
	_, err = sample.Parse(c.Traces.Sample)
	errs = append(errs, named("--trace-sample", err))
	if c.Traces.Endpoint != "" {
		errs = append(errs, named("--trace-endpoint", sample.CheckEndpoint(c.Traces.Endpoint)))
	}
	if c.Flows.Records < 0 || c.Flows.Records > maxFlows {
		errs = append(errs, fmt.Errorf("--flow-records %d: want a number from 0 to %d", c.Flows.Records, maxFlows))
	}
	return key, errors.Join(errs...)
}

// maxFlows bounds what is kept: each takes some 500 bytes.
const maxFlows = 1 << 20

// named says which flag an error is about.
func named(flag string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", flag, err)
}

func reach(texts map[string]string) (func(netip.AddrPort) netip.AddrPort, error) {
	places := map[netip.AddrPort]netip.AddrPort{}
	var errs []error
	for from, to := range texts {
		a, err := netip.ParseAddrPort(from)
		b, err2 := netip.ParseAddrPort(to)
		if errs = append(errs, err, err2); err != nil || err2 != nil {
			errs = append(errs, fmt.Errorf("--reach %s=%s: want an address and port of a workload, and where it is, such as 10.1.0.7:8080=127.0.0.1:8080", from, to))
		}
		places[a] = b
	}
	return func(at netip.AddrPort) netip.AddrPort {
		if to, ok := places[at]; ok {
			return to
		}
		return at
	}, errors.Join(errs...)
}
