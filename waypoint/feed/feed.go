// Package feed keeps a waypoint's configuration as the operator says it is: it follows the
// operator, verifies and decodes what comes, and makes it the current snapshot. What was
// verified last is kept on disk, with the keys that verify it: a waypoint that is restarted
// while the operator is away begins with that.
//
// It decides nothing about requests. It holds no key of its own that says who it is: the
// operator believes it by a token, and it believes the operator by the mesh's roots.
//
// A Feed is safe for concurrent use. Run blocks.
package feed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/waypoint/snapshot"
)

// Config says whose configuration it is, where it comes from and where it goes to.
type Config struct {
	// Waypoint is the Service whose workloads are this waypoint's replicas.
	Waypoint mesh.Key
	// Operator is host:port; "" takes the one in a join token.
	Operator string
	// TokenFile has the token that proves who this is, and is read anew for each connection:
	// the projected token of this pod, which the kubelet renews, or a join token.
	TokenFile string
	// RootsFile has the mesh's roots in PEM, and is read anew as well; "" when TokenFile has a
	// join token, which says what to believe at first.
	RootsFile string
	// StateDir keeps the last good configuration and what verifies it. It is made, mode 0700,
	// when it is not there.
	StateDir string
	// Store receives each configuration. The Feed is its only writer.
	Store  *snapshot.Store
	Logger *slog.Logger
}

// Feed is the waypoint's end of the operator's configuration.
type Feed struct {
	cfg    Config
	client *discovery.Client
	// given and routes are the routes as they came last, and as the Store has them; they belong
	// to the goroutine that applies.
	given  []*route.Route
	routes []route.Route
}

// New checks the configuration and reads the files that it names. It connects to nobody.
func New(cfg Config) (*Feed, error) {
	switch {
	case cfg.Waypoint.Namespace == "" || cfg.Waypoint.Name == "":
		return nil, errors.New("new feed: the waypoint is not named")
	case cfg.TokenFile == "" || cfg.StateDir == "":
		return nil, errors.New("new feed: TokenFile and StateDir are needed")
	case cfg.Store == nil || cfg.Logger == nil:
		return nil, errors.New("new feed: Store and Logger are needed")
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	known, err := openKnown(filepath.Join(cfg.StateDir, "operator.json"), cfg.Logger)
	if err != nil {
		return nil, err
	}
	at, err := operatorOf(cfg, known)
	if err != nil {
		return nil, err
	}
	f := &Feed{cfg: cfg}
	f.client, err = discovery.NewClient(discovery.ClientConfig{
		Node: discovery.WaypointName(cfg.Waypoint), Target: at.address, Credentials: at.credentials,
		DialOptions: []grpc.DialOption{grpc.WithPerRPCCredentials(at.proof)},
		Waypoint:    &discovery.Waypoint{Apply: f.apply, Learn: known.learn},
		LastGood:    filepath.Join(cfg.StateDir, "last-good"), Keys: known.configurationKeys, Logger: cfg.Logger,
	})
	return f, err
}

// Run begins with the last good configuration, when there is one that holds, and follows the
// operator until ctx ends. It returns nil; every failure is in Status and in the log.
func (f *Feed) Run(ctx context.Context) error { return f.client.Run(ctx) }

// Status is what is known of the connection, and of what is applied.
func (f *Feed) Status() discovery.Status { return f.client.Status() }

// Synced is nil once there is a configuration, from the operator or from disk; else it says
// what is missing. It stays nil while the operator is away.
func (f *Feed) Synced() error {
	if f.cfg.Store.Load().Synced() {
		return nil
	}
	if s := f.client.Status(); s.LastError != "" {
		return fmt.Errorf("no configuration yet: %s", s.LastError)
	}
	return errors.New("no configuration yet: the operator has sent none")
}

// apply makes a configuration the current snapshot. Routes that are as they were are not
// compiled anew.
func (f *Feed) apply(view *mesh.View, given []*route.Route) error {
	routes := f.routes
	if !sameList(given, f.given) {
		routes = make([]route.Route, len(given))
		for i, r := range given {
			routes[i] = *r
		}
	}
	if err := f.cfg.Store.Set(view.Revision(), view, routes); err != nil {
		return err
	}
	f.given, f.routes = given, routes
	return nil
}

func sameList(a, b []*route.Route) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

var _ prometheus.Collector = (*Feed)(nil)

// Describe and Collect make a Feed a prometheus.Collector.
func (f *Feed) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(f, ch) }

// Collect sends what Status says, at the moment of the scrape.
func (f *Feed) Collect(ch chan<- prometheus.Metric) {
	f.client.Collect(ch)
	connected := 0.0
	if f.client.Status().Connected {
		connected = 1
	}
	ch <- prometheus.MustNewConstMetric(prometheus.NewDesc("heddle_operator_connected", "Whether the operator streams the configuration.", nil, nil),
		prometheus.GaugeValue, connected)
}
