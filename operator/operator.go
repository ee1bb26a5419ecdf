package operator

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/fips"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/jointoken"
	"github.com/heddle-mesh/heddle/internal/identity/nodeauth"
	"github.com/heddle-mesh/heddle/internal/identity/trustfeed"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/operator/callers"
	"github.com/heddle-mesh/heddle/operator/federation"
	"github.com/heddle-mesh/heddle/operator/gated"
	"github.com/heddle-mesh/heddle/operator/issuing"
	"github.com/heddle-mesh/heddle/operator/jwtauthority"
	"github.com/heddle-mesh/heddle/operator/publish"
	"github.com/heddle-mesh/heddle/operator/report"
	"github.com/heddle-mesh/heddle/operator/rotation"
	"github.com/heddle-mesh/heddle/operator/spire"
	"github.com/heddle-mesh/heddle/operator/subscriber"
)

// Config says what an Operator serves, and from where.
type Config struct {
	// Folder has the YAML objects; see internal/kube. Kubernetes, when set, is
	// what takes the folder's and the state directory's place.
	Folder     string
	Kubernetes *Kubernetes
	// StateDir is the operator's own; it is made when it does not exist.
	StateDir string
	// Listen is the host:port that agents connect to. Listener, when set, is
	// used in its place; serving closes it.
	Listen   string
	Listener net.Listener
	// Advertise is the host:port that join tokens name; "" leaves it to the
	// node that joins.
	Advertise string
	// AdminSocket is the path of the admin socket; "" for none.
	AdminSocket string
	// Metrics is the host:port of the Prometheus endpoint, Health that of GET
	// /livez and /readyz; "" for none.
	Metrics, Health string
	// SPIRE, when set, is who makes the CA that signs.
	SPIRE *SPIRE
	// BundleEndpoint, when set, is where the mesh's own bundle is served. FederationOften
	// is the least time between two questions to another trust domain's; 5 s when zero.
	BundleEndpoint  *BundleEndpoint
	FederationOften time.Duration
	// TTL is the validity of workloads' SVIDs; 24 h when zero. JWT is that of JWT-SVIDs, and
	// of their keys.
	TTL time.Duration
	JWT jwtauthority.Times
	// Settle is how long a rotation waits after the last report before the old root
	// goes; see rotation.RotatorConfig.
	Settle time.Duration
	// Debounce is how long the folder must be quiet before it is read; 100 ms
	// when zero. Relist is how often it is read without a sign of a change;
	// 30 s when zero.
	Debounce, Relist time.Duration
	// UDPByIdentity lets AuthorizationPolicies name UDP; without it, one that does is
	// refused. See docs/decisions/0090.
	UDPByIdentity bool
	// Version is shown in the status.
	Version string
	Logger  *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	if c.Kubernetes != nil {
		k, err := c.Kubernetes.withDefaults()
		if err != nil {
			return c, err
		}
		c.Kubernetes = k
	}
	if c.SPIRE != nil {
		if err := spire.Check(c.SPIRE.Server, c.SPIRE.WorkloadAPI); err != nil {
			return c, fmt.Errorf("new operator: %w", err)
		}
	}
	if c.BundleEndpoint != nil {
		if err := c.BundleEndpoint.check(); err != nil {
			return c, fmt.Errorf("new operator: %w", err)
		}
	}
	if err := c.JWT.Check(); err != nil {
		return c, fmt.Errorf("new operator: %w", err)
	}
	switch {
	case c.Kubernetes != nil && c.Folder != "":
		return c, errors.New("new operator: a folder and Kubernetes exclude each other")
	case c.Kubernetes == nil && c.Folder == "":
		return c, errors.New("new operator: the configuration folder is not named")
	case c.Kubernetes == nil && c.StateDir == "":
		return c, errors.New("new operator: the state directory is not named")
	case c.Listen == "" && c.Listener == nil:
		return c, errors.New("new operator: the address to listen on is not given")
	case c.Logger == nil:
		return c, errors.New("new operator: Logger is needed")
	case c.TTL < 0 || c.Settle < 0 || c.Debounce < 0 || c.Relist < 0:
		return c, errors.New("new operator: a duration is negative")
	}
	c.Debounce = cmp.Or(c.Debounce, 100*time.Millisecond)
	c.Relist = cmp.Or(c.Relist, 30*time.Second)
	return c, nil
}

// Operator is one replica of the control plane.
type Operator struct{ cfg Config }

// New checks the configuration. It opens nothing and starts nothing.
func New(cfg Config) (*Operator, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Operator{cfg: cfg}, nil
}

// parts is a running operator.
type parts struct {
	cfg       Config
	started   time.Time
	state     *publish.State
	authority *rotation.Live
	rotator   *rotation.Rotator
	spire     *spire.Follower // nil of an authority of its own
	// trust is told what agents hold; gates, nil without UDP, is what it hears of gates, and
	// callers is who is believed, here and by discovery.
	trust struct {
		*trustfeed.Server
		gates   *gated.Ledger
		callers *callers.Callers
	}
	federation *federation.Follower
	key        ed25519.PrivateKey
	tokens     *jointoken.Store
	registry   *prometheus.Registry
	discovery  *discovery.Server
	// issuing answers who wants SVIDs; jwts signs those that are tokens.
	issuing struct {
		*issuing.Server
		jwts *jwtauthority.Authority
	}
	address string // what agents connect to
	// configuration says what is served.
	configuration func() *meshpb.OperatorConfiguration
	// policies says what became of each, as far as this replica knows.
	policies func() []*meshpb.OperatorPolicy
	// apiServer says how the API server does; nil of a folder.
	apiServer func() *meshpb.OperatorAPIServer
	publisher *publish.Publisher // nil on Kubernetes
	// fleet returns everybody whom a rotation waits for.
	fleet func(context.Context) rotation.Fleet
	// answersPeers lets other replicas ask for the status on the agents' port.
	answersPeers bool
}

// Run serves until ctx ends, and then lets agents go gracefully. It fails when
// the state directory is not usable, an address is taken, or, at the very first
// start, the folder is refused: then there is nothing to go on with.
//
// On Kubernetes it fails for an address that is taken only: for everything else
// it waits, and says so where readiness is asked for.
func (o *Operator) Run(ctx context.Context) error {
	if o.cfg.Kubernetes != nil {
		return o.runCluster(ctx)
	}
	return o.runFolder(ctx)
}

func (o *Operator) runFolder(ctx context.Context) (err error) {
	state, err := publish.OpenState(o.cfg.StateDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, state.Close()) }()
	p := &parts{cfg: o.cfg, started: time.Now(), state: state, registry: prometheus.NewRegistry()}
	if err := p.open(ctx, publish.Load(o.cfg.Folder, o.cfg.UDPByIdentity)); err != nil {
		if ctx.Err() != nil {
			return nil // told to stop while it waited for SPIRE
		}
		return err
	}
	folder := report.NewFolder(p.publisher.Outcome, func() []report.Node { return acknowledged(nodesOf(p.discovery), podsOf(p.trust.Server)) })
	p.policies = folder.Policies
	listener := o.cfg.Listener
	if listener == nil {
		if listener, err = net.Listen("tcp", o.cfg.Listen); err != nil {
			return fmt.Errorf("listen for agents: %w", err)
		}
	}
	p.address = cmp.Or(o.cfg.Advertise, listener.Addr().String())
	o.cfg.Logger.Info("operator started", "fips140", fips.Describe(), "address", listener.Addr().String(), "trust_domain", p.authority.TrustDomain().Name(),
		"folder", o.cfg.Folder, "state", o.cfg.StateDir, "version", o.cfg.Version)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.serveAgents(ctx, listener) })
	g.Go(func() error { return p.publisher.Follow(ctx) })
	g.Go(func() error { return folder.Run(ctx) })
	g.Go(func() error { return p.trust.gates.Run(ctx) })
	g.Go(func() error { return p.keepGates(ctx) })
	g.Go(func() error { return p.authority.Run(ctx) })
	g.Go(func() error { return p.rotator.Run(ctx) })
	g.Go(func() error { return p.issuing.jwts.Run(ctx) })
	g.Go(func() error { return p.followSPIRE(ctx) })
	g.Go(func() error { return p.federation.Run(ctx) })
	g.Go(func() error { return p.serveBundle(ctx) })
	if o.cfg.AdminSocket != "" {
		g.Go(func() error { return p.serveAdmin(ctx) })
	}
	if o.cfg.Metrics != "" {
		g.Go(func() error { return p.serveMetrics(ctx) })
	}
	if o.cfg.Health != "" {
		// What could not be published at the start has ended it already.
		g.Go(func() error { return p.serveHealth(ctx, func() error { return nil }) })
	}
	return g.Wait()
}

// open makes the parts that need the trust domain, and publishes what there is:
// what was read from the folder, or the last good configuration.
func (p *parts) open(ctx context.Context, first publish.Loaded) error {
	td, err := p.state.TrustDomain(first)
	if err != nil {
		return err
	}
	p.authority, err = rotation.OpenDir(ctx, p.state.CA(), rotation.LiveConfig{
		Authority: identity.AuthorityConfig{TrustDomain: td, TTL: p.cfg.TTL}, First: p.awaitSPIRE(td), Logger: p.cfg.Logger,
	})
	if err != nil {
		return err
	}
	if p.key, err = identity.OpenConfigurationKey(p.state.CA()); err != nil {
		return err
	}
	if p.tokens, err = jointoken.OpenStore(p.state.Tokens(), nil); err != nil {
		return err
	}
	store := mesh.NewStore()
	if err := p.openDiscovery(store, nil, nil, p.tokens); err != nil {
		return err
	}
	if err := p.openIssuing(issuing.Config{Tokens: p.tokens}, store); err != nil {
		return err
	}
	p.fleet = func(context.Context) rotation.Fleet { return p.folderFleet(store.View()) }
	if err := p.openTrust(federation.Dir(p.cfg.StateDir), store); err != nil {
		return err
	}
	kept, err := p.keptGates().Load(ctx)
	if err != nil {
		p.cfg.Logger.Warn("not known which workloads were behind their gates: no datagrams pass until agents have reported", "error", err)
	}
	if err := p.openGates(kept, nil); err != nil {
		return err
	}
	p.publisher = publish.New(publish.Config{Folder: p.cfg.Folder, Debounce: p.cfg.Debounce, Relist: p.cfg.Relist, UDPByIdentity: p.cfg.UDPByIdentity, Gates: p.trust.gates, State: p.state,
		Key: p.key, Store: store, Server: p.discovery, Logger: p.cfg.Logger})
	p.configuration = func() *meshpb.OperatorConfiguration { return folderConfiguration(p.cfg.Folder, p.publisher.Status()) }
	if err := p.register(p.publisher); err != nil {
		return err
	}
	return p.publisher.Begin(first)
}

// openDiscovery makes the server of the configuration, for agents, and waypoints as these
// prove who they are.
func (p *parts) openDiscovery(store *mesh.Store, pods subscriber.Pods, meant func(mesh.Key) bool, tokens subscriber.Tokens) error {
	p.trust.callers = callers.New(p.authority.TrustDomain(), store.Snapshot)
	who, err := subscriber.New(subscriber.Config{Node: p.trust.callers.Node, View: func() subscriber.View { return store.View() }, Pods: pods, Meant: meant, Tokens: tokens, Logger: p.cfg.Logger})
	if err != nil {
		return err
	}
	p.discovery, err = discovery.NewServer(discovery.ServerConfig{Authenticate: who.Caller, Keys: p.configurationKeys(), Roots: p.authority.Roots, RootsChanged: p.authority.Changed, Logger: p.cfg.Logger})
	return err
}

// configurationKeys are those that verify what is served.
func (p *parts) configurationKeys() []ed25519.PublicKey {
	return []ed25519.PublicKey{p.key.Public().(ed25519.PublicKey)}
}

// serveAgents serves discovery, issuing and health until ctx ends.
func (p *parts) serveAgents(ctx context.Context, listener net.Listener) error {
	td := p.authority.TrustDomain()
	creds := nodeauth.NewServerCredentials(p.authority.Own, p.authority)
	// Who follows the configuration without an SVID is a waypoint, which discovery asks for
	// another proof.
	open := []string{meshpb.Issuing_Join_FullMethodName, grpc_health_v1.Health_Check_FullMethodName,
		discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName}
	if p.answersPeers {
		open = append(open, meshpb.OperatorAdmin_Status_FullMethodName, meshpb.OperatorAdmin_Certificates_FullMethodName, meshpb.OperatorAdmin_Gates_FullMethodName) // peerService asks who it is
	}
	server := grpc.NewServer(append(discovery.ServerOptions(), nodeauth.ServerOptions(creds, td, open...)...)...)
	if p.answersPeers {
		meshpb.RegisterOperatorAdminServer(server, &peerService{admin: &adminService{parts: p}})
	}
	p.discovery.Register(server)
	meshpb.RegisterIssuingServer(server, p.issuing.Server)
	meshpb.RegisterTrustServer(server, p.trust.Server)
	healthy := health.NewServer()
	grpc_health_v1.RegisterHealthServer(server, healthy)
	var g errgroup.Group
	g.Go(func() error { return p.trust.callers.Run(ctx) })
	served := make(chan struct{})
	g.Go(func() error {
		defer close(served)
		if err := server.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) { // stopped before it began
			return fmt.Errorf("serve agents: %w", err)
		}
		return nil
	})
	select {
	case <-ctx.Done():
	case <-served:
	}
	healthy.Shutdown()
	stopGently(server, 5*time.Second, func() { p.trust.Drain(); p.discovery.Drain() })
	return g.Wait()
}

// stopGently does what ends long calls, and lets calls finish, both up to a
// limit: an agent that does not read could hold its stream for longer.
func stopGently(server *grpc.Server, limit time.Duration, end func()) {
	timer := time.AfterFunc(limit, server.Stop)
	defer timer.Stop()
	end()
	server.GracefulStop() // returns early when Stop is called
}

func (p *parts) serveMetrics(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{}))
	return p.serveHTTP(ctx, "metrics", p.cfg.Metrics, mux)
}
