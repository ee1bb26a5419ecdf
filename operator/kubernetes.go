package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	typedauthenticationv1 "k8s.io/client-go/kubernetes/typed/authentication/v1"
	typedcoordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/fips"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/operator/cluster"
	"github.com/heddle-mesh/heddle/operator/issuing"
	"github.com/heddle-mesh/heddle/operator/keys"
	"github.com/heddle-mesh/heddle/operator/leader"
	"github.com/heddle-mesh/heddle/operator/publish"
	"github.com/heddle-mesh/heddle/operator/report"
	"github.com/heddle-mesh/heddle/operator/rotation"
	"github.com/heddle-mesh/heddle/operator/routing"
	"github.com/heddle-mesh/heddle/operator/taint"
	"github.com/heddle-mesh/heddle/operator/tokenreview"
	"github.com/heddle-mesh/heddle/operator/waypoints"
)

// Defaults of Kubernetes.
const (
	DefaultNamespace    = "heddle-system"
	DefaultAgentAccount = "heddle-agent"
	DefaultAudience     = "heddle-operator"
)

// Kubernetes says how an operator is part of a cluster.
type Kubernetes struct {
	// Kubeconfig is a file; "" is for a pod of the cluster. Rest, when set, is
	// used in its place.
	Kubeconfig string
	Rest       *rest.Config
	// Namespace is the operator's own, where its Secret, Lease and agents are.
	Namespace string
	// Replica is the name of this one, its pod's.
	Replica string
	// AgentAccount is the name of the agents' service account, Audience what
	// their tokens are for.
	AgentAccount, Audience string
	// StartupTaint takes the taint v1alpha1.TaintAgentNotReady away from nodes whose
	// agents are ready, for which it needs the right to patch nodes.
	StartupTaint bool
	// Waypoints is how waypoints are run; without an image, none is. What it does not say of
	// the operator is as of its namespace and Audience.
	Waypoints waypoints.Program
}

func (k *Kubernetes) withDefaults() (*Kubernetes, error) {
	own := *k
	own.Namespace = cmp.Or(own.Namespace, DefaultNamespace)
	own.AgentAccount = cmp.Or(own.AgentAccount, DefaultAgentAccount)
	own.Audience = cmp.Or(own.Audience, DefaultAudience)
	own.Waypoints.Operator = cmp.Or(own.Waypoints.Operator, "heddle-operator."+own.Namespace+".svc:15012")
	own.Waypoints.Audience = cmp.Or(own.Waypoints.Audience, own.Audience)
	if own.Replica == "" {
		return nil, errors.New("new operator: the replica's name is not given")
	}
	if err := own.Waypoints.Check(); err != nil {
		return nil, fmt.Errorf("new operator: %w", err)
	}
	return &own, nil
}

// clusterParts are the parts of a running operator that a cluster needs beside
// those of every operator.
type clusterParts struct {
	*parts
	rest      *rest.Config
	answers   *cluster.Answers // of the API server
	source    *cluster.Source
	epochBase uint64
	core      *typedcorev1.CoreV1Client
	leases    *typedcoordinationv1.CoordinationV1Client
	review    *typedauthenticationv1.AuthenticationV1Client

	ready struct {
		sync.Mutex
		why error // nil when ready is to be asked
		ask func() error
	}
	publisher *publish.Cluster
	kept      *routing.Store
	election  *leader.Election
	peers     *peers
	// reporter is nil unless this replica leads.
	reporter atomic.Pointer[report.Reporter]
}

// runCluster serves what a cluster says until ctx ends.
func (o *Operator) runCluster(ctx context.Context) error {
	cfg := o.cfg.Kubernetes
	p := &clusterParts{parts: &parts{cfg: o.cfg, started: time.Now(), registry: prometheus.NewRegistry()}, rest: cfg.Rest}
	p.notReady(errors.New("starting"))
	var err error
	if p.rest == nil {
		if p.rest, err = cluster.Connect(cfg.Kubeconfig, "heddle-operator/"+o.cfg.Version); err != nil {
			return err
		}
	}
	p.rest, p.answers = cluster.Watch(p.rest, o.cfg.Logger)
	p.apiServer = p.apiServerHealth
	if err := p.connect(); err != nil {
		return err
	}
	if err := p.registerAnswers(); err != nil {
		return err
	}
	p.source = cluster.NewSource(p.rest, o.cfg.UDPByIdentity, o.cfg.Logger)
	listener := o.cfg.Listener
	if listener == nil {
		if listener, err = net.Listen("tcp", o.cfg.Listen); err != nil {
			return fmt.Errorf("listen for agents: %w", err)
		}
	}
	p.address = cmp.Or(o.cfg.Advertise, listener.Addr().String())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.source.Run(ctx) })
	g.Go(func() error { p.answers.Run(ctx); return nil })
	if o.cfg.Metrics != "" {
		g.Go(func() error { return p.serveMetrics(ctx) })
	}
	if o.cfg.Health != "" {
		g.Go(func() error { return p.serveHealth(ctx, p.Ready) })
	}
	g.Go(func() error { return p.begin(ctx, listener) })
	return g.Wait()
}

func (p *clusterParts) connect() (err error) {
	if p.core, err = typedcorev1.NewForConfig(p.rest); err != nil {
		return fmt.Errorf("connect to the API server: %w", err)
	}
	// A replica that waits for an answer for longer leads no more before it knows.
	timed := rest.CopyConfig(p.rest)
	timed.Timeout = leader.Patience
	if p.leases, err = typedcoordinationv1.NewForConfig(timed); err != nil {
		return fmt.Errorf("connect to the API server: %w", err)
	}
	if p.review, err = typedauthenticationv1.NewForConfig(p.rest); err != nil {
		return fmt.Errorf("connect to the API server: %w", err)
	}
	return nil
}

// notReady says why the operator cannot serve yet.
func (p *clusterParts) notReady(why error) {
	p.ready.Lock()
	defer p.ready.Unlock()
	p.ready.why = why
}

// Ready is nil when the operator has something to serve.
func (p *clusterParts) Ready() error {
	p.ready.Lock()
	why, ask := p.ready.why, p.ready.ask
	p.ready.Unlock()
	if why == nil {
		why = ask()
	}
	if silent := p.answers.Health().Err; why != nil && silent != nil {
		return fmt.Errorf("%w; the API server does not answer: %w", why, silent)
	}
	return why // without an API server, what is known is served on
}

// apiServerHealth is how the API server does, for the status.
func (p *clusterParts) apiServerHealth() *meshpb.OperatorAPIServer {
	health := p.answers.Health()
	out := &meshpb.OperatorAPIServer{SilentSinceNs: meshpb.Nanos(health.Silent), TookNs: int64(health.Took)}
	if health.Err != nil {
		out.Error = health.Err.Error()
	}
	return out
}

// registerAnswers has metrics say how the API server does.
func (p *clusterParts) registerAnswers() error {
	for name, gauge := range map[string]struct {
		help  string
		value func(cluster.Health) time.Duration
	}{
		"heddle_operator_api_server_silent_seconds": {"Since the API server has answered; 0 while it does.", func(h cluster.Health) time.Duration {
			if h.Err == nil {
				return 0
			}
			return time.Since(h.Silent)
		}},
		"heddle_operator_api_server_answer_seconds": {"How long the API server usually takes to answer.", func(h cluster.Health) time.Duration { return h.Took }},
	} {
		if err := p.register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: gauge.help},
			func() float64 { return gauge.value(p.answers.Health()).Seconds() })); err != nil {
			return err
		}
	}
	return nil
}

// begin waits for what everything else depends on, the trust domain and the keys,
// and serves.
func (p *clusterParts) begin(ctx context.Context, listener net.Listener) error {
	serving := false
	defer func() {
		if !serving {
			// A server that serves closes it; there is nobody to tell of this one.
			_ = listener.Close()
		}
	}()
	td, err := publish.AwaitTrustDomain(ctx, p.source, func(why error) {
		p.notReady(why)
		p.cfg.Logger.Info("waiting for the Mesh", "reason", why)
	})
	if err == nil {
		err = p.openKeys(ctx, td)
	}
	var before recalled
	if err == nil {
		before, err = p.recall(ctx)
	}
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	if err := p.openParts(td, before); err != nil {
		return err
	}
	p.ready.Lock()
	p.ready.why, p.ready.ask = nil, p.publisher.Ready
	p.ready.Unlock()
	p.cfg.Logger.Info("operator started", "fips140", fips.Describe(), "address", listener.Addr().String(), "trust_domain", td.Name(),
		"namespace", p.cfg.Kubernetes.Namespace, "replica", p.cfg.Kubernetes.Replica, "version", p.cfg.Version)
	serving = true
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.serveAgents(ctx, listener) })
	g.Go(func() error { return p.publisher.Follow(ctx) })
	g.Go(func() error { return p.trust.gates.Run(ctx) })
	g.Go(func() error { return p.authority.Run(ctx) })
	g.Go(func() error { return p.election.Run(ctx) })
	g.Go(func() error { return p.federation.Run(ctx) })
	g.Go(func() error { return p.serveBundle(ctx) })
	if p.cfg.AdminSocket != "" {
		g.Go(func() error { return p.serveAdmin(ctx) })
	}
	defer p.peers.Close() // of those that do not lead, too
	return g.Wait()
}

// openKeys tries until the API server has given or taken the keys.
func (p *clusterParts) openKeys(ctx context.Context, td spiffeid.TrustDomain) error {
	cfg := identity.AuthorityConfig{TrustDomain: td, TTL: p.cfg.TTL, NodeTTL: cmp.Or(p.cfg.TTL, identity.DefaultTTL)}
	for delay := time.Second; ; delay = min(2*delay, 30*time.Second) {
		kept, err := keys.Open(ctx, p.core, p.cfg.Kubernetes.Namespace, cfg, p.firstOfSPIRE(td))
		if err == nil {
			p.authority, err = rotation.Open(ctx, rotation.LiveConfig{Store: keys.NewStore(p.core, p.cfg.Kubernetes.Namespace, kept, p.cfg.Logger), Authority: cfg, Logger: p.cfg.Logger})
		}
		if err == nil {
			p.key, p.epochBase = kept.Configuration, kept.EpochBase
			return nil
		}
		p.notReady(err)
		p.cfg.Logger.Error("no keys yet: trying again", "error", err, "retry", delay)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(delay):
		}
	}
}

// openParts makes everything that needs the keys.
func (p *clusterParts) openParts(td spiffeid.TrustDomain, before recalled) (err error) {
	k := p.cfg.Kubernetes
	reviewer, err := tokenreview.New(tokenreview.Config{Client: p.review, Audience: k.Audience, Namespace: k.Namespace, Account: k.AgentAccount, Pod: p.source.Pod})
	if err != nil {
		return err
	}
	store := mesh.NewStore()
	if err := p.openDiscovery(store, reviewer, func(key mesh.Key) bool { return p.meant(store.View(), key) }, nil); err != nil {
		return err
	}
	if err := p.openIssuing(issuing.Config{Accounts: reviewer, KnownNode: p.source.HasNode}, store); err != nil {
		return err
	}
	p.answersPeers, p.peers = true, newPeers(p)
	if err := p.openGates(before.gates, p.peers.AskGates()); err != nil {
		return err
	}
	p.publisher = publish.NewCluster(publish.ClusterConfig{Source: p.source, Routes: p.routeSource, Good: before.good, Through: before.through, TrustDomain: td, UDPByIdentity: p.cfg.UDPByIdentity, Gates: p.trust.gates, Key: p.key, EpochBase: p.epochBase, Store: store, Server: p.discovery, Logger: p.cfg.Logger})
	p.configuration = func() *meshpb.OperatorConfiguration {
		now, _ := p.publisher.Outcome()
		return clusterConfiguration(now)
	}
	p.policies = func() []*meshpb.OperatorPolicy {
		if reporter := p.reporter.Load(); reporter != nil {
			return reporter.Policies()
		}
		return nil
	}
	p.fleet = p.peers.fleet
	if err := p.openTrust(keys.NewBundles(p.core, k.Namespace), store); err != nil {
		return err
	}
	if err := p.register(p.publisher); err != nil {
		return err
	}
	p.election, err = leader.New(leader.Config{Client: p.leases, Namespace: k.Namespace, Replica: k.Replica, Lead: p.lead, Logger: p.cfg.Logger})
	return err
}

// lead does what one replica does.
func (p *clusterParts) lead(ctx context.Context) error {
	heddle, err := cluster.HeddleClient(p.rest)
	if err != nil {
		return err
	}
	reporter, err := report.New(report.Config{Objects: p.source.Objects, Outcome: p.publisher.Outcome, Nodes: p.peers.nodes, Federation: p.federationStatus,
		Heddle: heddle, Events: p.core, Logger: p.cfg.Logger})
	if err != nil {
		return err
	}
	p.reporter.Store(reporter)
	defer p.reporter.Store(nil)
	defer p.peers.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.publishRoots(ctx) })
	g.Go(func() error { return reporter.Run(ctx) })
	g.Go(func() error { return p.rotator.Run(ctx) })
	g.Go(func() error { return p.issuing.jwts.Run(ctx) })
	g.Go(func() error { return p.followSPIRE(ctx) })
	g.Go(func() error { return p.takeTaints(ctx) })
	g.Go(func() error { return p.writeRoutes(ctx) })
	g.Go(func() error { return p.keepThrough(ctx) })
	g.Go(func() error { return p.keepGates(ctx) })
	g.Go(func() error { return p.runWaypoints(ctx) })
	return g.Wait()
}

// takeTaints takes startup taints away, if that is wanted.
func (p *clusterParts) takeTaints(ctx context.Context) error {
	k := p.cfg.Kubernetes
	if !k.StartupTaint {
		return nil
	}
	remover, err := taint.New(taint.Config{Changed: p.source.Changed, Nodes: p.core, Logger: p.cfg.Logger,
		Tainted: func() []cluster.Tainted { return p.source.Tainted(k.Namespace, k.AgentAccount) }})
	if err != nil {
		return err
	}
	return remover.Run(ctx)
}

// publishRoots keeps the roots where agents look for them, also when they change
// or somebody deletes them.
func (p *clusterParts) publishRoots(ctx context.Context) error {
	for {
		delay := time.Minute
		changed := p.authority.Changed()
		if err := keys.PublishRoots(ctx, p.core, p.cfg.Kubernetes.Namespace, p.authority.Roots()); err != nil && ctx.Err() == nil {
			delay = 5 * time.Second
			p.cfg.Logger.Error("roots are not published: agents cannot join; trying again", "error", err, "retry", delay)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-time.After(delay):
		}
	}
}
