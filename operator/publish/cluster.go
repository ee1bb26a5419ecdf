package publish

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/delta"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/operator/publish/routed"
)

// Source is a mirror of a cluster; *cluster.Source is one.
type Source interface {
	// Changed returns a channel that is closed at the next change.
	Changed() <-chan struct{}
	// Synced is nil when everything was read once; else it names what is missing.
	Synced() error
	// Objects returns all that is known, read only, and its epoch.
	Objects() (*kube.Objects, uint64)
	// Since returns what has changed since a mark, that of Objects or of an earlier
	// Since, with the epoch and the mark of now; false when that is not known. It is
	// for one follower.
	Since(mark uint64) (changes []delta.Change, epoch, now uint64, ok bool)
}

// Defaults of ClusterConfig.
const (
	DefaultQuiet = 10 * time.Millisecond
	DefaultLimit = 50 * time.Millisecond
)

// RouteSource returns what routes are compiled from, and says when that is different.
type RouteSource = routed.Source

// ClusterConfig says what a Cluster compiles, and where to.
type ClusterConfig struct {
	Source Source
	// Routes is what requests are routed by; nil where there are no routes. Good are those
	// that were last good before the start, nil when that is not known: an Outcome has those
	// of now.
	Routes RouteSource
	Good   routed.Good
	// Through are the waypoints that services had in force before the start; nil when that
	// is not known.
	Through map[mesh.Key]mesh.Key
	// TrustDomain is the CA's: a Mesh of another one is refused.
	TrustDomain spiffeid.TrustDomain
	// UDPByIdentity lets policies name UDP. Gates says then who is behind a gate.
	UDPByIdentity bool
	Gates         Gates
	// Quiet is how long nothing must change before a change is compiled, Limit
	// how long it waits for that at most; zero takes the default. Besides, no
	// more than two thirds of the time go into compiling.
	Quiet, Limit time.Duration
	// Key signs what is published.
	Key ed25519.PrivateKey
	// EpochBase is added to the source's epochs: larger after a restored cluster
	// has begun to count anew.
	EpochBase uint64
	// Store and Server receive each View; the Cluster is their only writer.
	Store  *mesh.Store
	Server *discovery.Server
	Logger *slog.Logger
}

// Outcome is what compiling came to last. It is immutable.
type Outcome struct {
	// Snapshot is what is served; nil before the first.
	Snapshot *discovery.Snapshot
	// Published is when it was first served, Checked when it was last found to
	// be what the cluster says.
	Published, Checked time.Time
	// Objects are what was compiled. Of a cluster, they are without what there is much
	// of, pods, services and their endpoints.
	Objects *kube.Objects
	// Routes are those that are in force, with what is to be said of each; nil where there
	// are none, and while what is served is the last good configuration of before a restart.
	Routes *routed.Compiled
	// Refused and Warnings are about single objects, of which the others are in
	// force; of a folder, Refused has those for which it is refused as a whole. Err
	// says why nothing of Objects is in force: then Snapshot is an older one.
	Refused, Warnings []*kube.Problem
	Err               error
}

// Cluster turns what a cluster says into what is served. One goroutine
// publishes; the outcome may be taken from any.
type Cluster struct {
	cfg     ClusterConfig
	metrics clusterMetrics
	// compiler and mark, of what it has compiled, belong to the one that publishes.
	compiler delta.Compiler
	mark     uint64
	routing  *routed.Routing
	through  through
	gating   gating

	now struct {
		sync.Mutex
		Outcome
		changed chan struct{}
	}
}

// NewCluster returns a Cluster that has published nothing.
func NewCluster(cfg ClusterConfig) *Cluster {
	if cfg.Quiet == 0 {
		cfg.Quiet = DefaultQuiet
	}
	if cfg.Limit == 0 {
		cfg.Limit = DefaultLimit
	}
	c := &Cluster{cfg: cfg, metrics: newClusterMetrics(), routing: routed.New(cfg.Routes, cfg.Good), through: through{before: cfg.Through, waiting: map[mesh.Key]mesh.Key{}}, gating: newGating(cfg.Gates, cfg.UDPByIdentity)}
	c.now.changed = make(chan struct{})
	return c
}

// Outcome returns the last one, and a channel that is closed at the next.
func (c *Cluster) Outcome() (Outcome, <-chan struct{}) {
	c.now.Lock()
	defer c.now.Unlock()
	return c.now.Outcome, c.now.changed
}

// Ready is nil when there is something to serve, else says why not.
func (c *Cluster) Ready() error {
	if err := c.cfg.Source.Synced(); err != nil {
		return err
	}
	if now, _ := c.Outcome(); now.Snapshot == nil {
		return errors.Join(errors.New("nothing published yet"), now.Err)
	}
	return nil
}

// AwaitTrustDomain waits until the cluster has a Mesh whose trust domain can be
// read. It tells report what is missing, when that changes.
func AwaitTrustDomain(ctx context.Context, source Source, report func(error)) (spiffeid.TrustDomain, error) {
	var said string
	for {
		changed := source.Changed()
		err := source.Synced()
		if err == nil {
			objs, _ := source.Objects()
			var compiled *kube.Compiled
			if compiled, err = kube.CompileEach(&kube.Objects{Meshes: objs.Meshes}); err == nil {
				return compiled.Settings.TrustDomain, nil
			}
		}
		if err.Error() != said {
			said = err.Error()
			report(err)
		}
		select {
		case <-ctx.Done():
			return spiffeid.TrustDomain{}, fmt.Errorf("await the Mesh: %w; last: %w", context.Cause(ctx), err)
		case <-changed:
		}
	}
}

// Follow compiles and publishes whenever something has changed, until ctx ends.
func (c *Cluster) Follow(ctx context.Context) error {
	for {
		changed, regated := c.cfg.Source.Changed(), c.gating.changed()
		began := time.Now()
		if c.cfg.Source.Synced() == nil {
			c.compile()
		}
		rest := time.NewTimer(time.Since(began) / 2)
		select {
		case <-ctx.Done():
		case <-c.routing.Changed(): // never before routes were compiled
			c.settle(ctx, changed)
		case <-regated:
			c.settle(ctx, changed)
		case <-changed:
			c.settle(ctx, changed)
		}
		select {
		case <-ctx.Done():
			rest.Stop()
			return nil
		case <-rest.C:
		}
	}
}

// settle returns when nothing has changed for a moment, or the limit is reached.
func (c *Cluster) settle(ctx context.Context, changed <-chan struct{}) {
	limit := time.NewTimer(c.cfg.Limit)
	defer limit.Stop()
	quiet := time.NewTimer(c.cfg.Quiet)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-limit.C:
			return
		case <-quiet.C:
			return
		case <-changed:
			changed = c.cfg.Source.Changed()
			quiet.Reset(c.cfg.Quiet)
		}
	}
}

func (c *Cluster) compile() {
	began := time.Now()
	now, _ := c.Outcome()
	c.routing.Refresh(c.cfg.Logger)
	next, err := c.compileChanges(&now), error(nil)
	if next == nil {
		next, err = c.compileAll(&now)
	}
	if err == nil && c.through.due(next.Snapshot.View()) {
		if all, failed := c.compileAll(next); failed == nil {
			next = all
		}
	}
	next.Routes = c.routing.Compiled()
	switch {
	case err != nil:
		next.Snapshot, next.Err = now.Snapshot, err
		if now.Err == nil || now.Err.Error() != err.Error() {
			c.cfg.Logger.Error("configuration refused: going on with the last good one", "error", err)
			for reason := range reasonsOf(err) {
				c.metrics.refusals.WithLabelValues(reason).Inc()
			}
		}
	case next.Snapshot != now.Snapshot:
		next.Published, next.Checked = time.Now(), time.Now()
	default:
		next.Checked = time.Now()
	}
	took := time.Since(began)
	c.metrics.seconds.Observe(took.Seconds())
	if next.Snapshot != now.Snapshot {
		view := next.Snapshot.View()
		c.cfg.Logger.Info("configuration published", "revision", view.Revision(), "epoch", next.Snapshot.Epoch(), "workloads", len(view.Workloads()),
			"services", len(view.Services()), "policies", len(view.Policies()), "refused", len(next.Refused), "took", took)
	}
	c.logRefused(now.Refused, next.Refused)
	c.now.Lock()
	defer c.now.Unlock()
	c.now.Outcome = *next
	close(c.now.changed)
	c.now.changed = make(chan struct{})
}

// compileChanges compiles what has changed since the last time; nil when it takes a
// compilation of everything.
func (c *Cluster) compileChanges(now *Outcome) *Outcome {
	if now.Snapshot == nil || now.Err != nil {
		return nil
	}
	// Policies of any namespace may be about what is seen at these.
	if !maps.EqualFunc(now.Objects.Relayed, c.routing.Relayed(), slices.Equal) {
		return nil
	}
	changes, epoch, mark, ok := c.cfg.Source.Since(c.mark)
	if !ok {
		return nil
	}
	result, ok := c.compiler.Apply(now.Snapshot.View(), changes)
	if !ok {
		return nil
	}
	c.mark = mark
	next := &Outcome{Snapshot: now.Snapshot, Published: now.Published, Checked: now.Checked, Objects: result.Objects, Refused: result.Refused, Warnings: result.Warnings}
	c.gating.add(&result.Change, now.Snapshot.View())
	if result.Change.Size() == 0 && now.Snapshot.Routes() == c.routing.Told() {
		return next
	}
	c.through.changed(result.Change.Services, now.Snapshot.View())
	snapshot, err := now.Snapshot.WithRouted(result.Change, c.routing.Told(), max(epoch+c.cfg.EpochBase, now.Snapshot.Epoch()))
	if err != nil {
		return nil // compiling everything says more
	}
	next.Snapshot = c.serve(snapshot, now.Snapshot)
	return next
}

// compileAll compiles everything.
func (c *Cluster) compileAll(now *Outcome) (*Outcome, error) {
	objs, epoch := c.cfg.Source.Objects()
	c.mark = objs.Mark
	objs.UDPByIdentity, objs.Relayed = c.cfg.UDPByIdentity, c.routing.Relayed()
	small := *objs
	small.Pods, small.Services, small.Slices = nil, nil, nil
	next := &Outcome{Snapshot: now.Snapshot, Published: now.Published, Checked: now.Checked, Objects: &small}
	compiled, err := c.compiler.Compile(objs)
	if err == nil {
		var last *mesh.View
		if now.Snapshot != nil {
			last = now.Snapshot.View()
		}
		c.through.all(compiled, last)
		c.gating.all(compiled.Workloads)
		next.Refused, next.Warnings = compiled.Refused, compiled.Warnings
		next.Snapshot, err = c.publish(compiled, epoch+c.cfg.EpochBase, now.Snapshot)
	}
	return next, err
}

// publish makes what was compiled the one that is served, unless that is the
// same as before.
func (c *Cluster) publish(compiled *kube.Compiled, epoch uint64, last *discovery.Snapshot) (*discovery.Snapshot, error) {
	if td := compiled.Settings.TrustDomain; td != c.cfg.TrustDomain {
		return nil, refusal{fmt.Errorf("the Mesh's spec.trustDomain is %q, and the CA was made for %q; change it back, or delete the CA's Secret and restart every agent",
			td.Name(), c.cfg.TrustDomain.Name()), reasonTrustDomain}
	}
	view, err := compiled.View("") // named by its content
	if err != nil {
		return nil, err
	}
	var next *discovery.Snapshot
	if last == nil {
		next, err = discovery.NewRoutedSnapshot(view, c.routing.Told(), epoch, c.cfg.Key)
	} else {
		next, err = last.NextRouted(view, c.routing.Told(), max(epoch, last.Epoch()))
	}
	if err != nil {
		return nil, err
	}
	return c.serve(next, last), nil
}

// serve makes a snapshot the one that is served, unless it is the same as the last. It
// returns the one that is.
func (c *Cluster) serve(next, last *discovery.Snapshot) *discovery.Snapshot {
	if last != nil && last.View().Revision() == next.View().Revision() {
		was, is := last.View().Settings(), next.View().Settings()
		if slices.Equal(was.RevokedUntold, is.RevokedUntold) && slices.EqualFunc(was.Federation, is.Federation, mesh.FederatedDomain.Equal) {
			return last
		}
		c.cfg.Store.Replace(next.View()) // which agents are not told of, and the issuer and who asks for bundles are
		return next
	}
	// The issuer knows a workload before its agent does.
	c.cfg.Store.Replace(next.View())
	c.cfg.Server.Publish(next)
	return next
}

// logRefused logs, and counts, what is refused now and was not before.
func (c *Cluster) logRefused(before, now []*kube.Problem) {
	known := map[string]bool{}
	for _, p := range before {
		known[p.Error()] = true
	}
	for _, p := range now {
		if !known[p.Error()] {
			c.cfg.Logger.Warn("object refused", "problem", p)
			c.metrics.refusals.WithLabelValues(p.Reason.String()).Inc()
		}
	}
}

// Behind returns the connected nodes that have not applied what is served.
func (c *Cluster) Behind() []string {
	now, _ := c.Outcome()
	var behind []string
	for _, n := range c.cfg.Server.Nodes() {
		if n.Connected > 0 && (now.Snapshot == nil || n.Revision != now.Snapshot.View().Revision()) {
			behind = append(behind, n.Node)
		}
	}
	slices.Sort(behind)
	return behind
}

const longestBehindHelp = "For how long the connected node that is behind longest has lacked something; 0 while none does."

// longestBehind returns seconds.
func longestBehind(server *discovery.Server) (longest float64) {
	for _, n := range server.Nodes() {
		if n.Connected > 0 && !n.BehindSince.IsZero() {
			longest = max(longest, time.Since(n.BehindSince).Seconds())
		}
	}
	return longest
}

// clusterMetrics are those that are not taken from the outcome at each scrape.
type clusterMetrics struct {
	seconds  prometheus.Histogram
	refusals *prometheus.CounterVec
}

func newClusterMetrics() clusterMetrics {
	return clusterMetrics{refusals: newRefusals(), seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "heddle_operator_compile_duration_seconds", Help: "From what the cluster says to what is served, for each change.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5},
	})}
}

var _ prometheus.Collector = (*Cluster)(nil)

// Describe makes a Cluster a prometheus.Collector.
func (c *Cluster) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect sends what the outcome says.
func (c *Cluster) Collect(ch chan<- prometheus.Metric) {
	now, _ := c.Outcome()
	send := func(name, help string, value float64, labels ...string) {
		var names []string
		if len(labels) > 0 {
			names = []string{"kind"}
		}
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), prometheus.GaugeValue, value, labels...)
	}
	connected := 0.0
	for _, n := range c.cfg.Server.Nodes() {
		if n.Connected > 0 {
			connected++
		}
	}
	refusedAll := 0.0
	if now.Err != nil {
		refusedAll = 1
	}
	c.metrics.seconds.Collect(ch)
	c.metrics.refusals.Collect(ch)
	send("heddle_operator_nodes", "Nodes whose agents are connected.", connected)
	send("heddle_operator_nodes_behind", "Connected nodes that have not applied the configuration that is served.", float64(len(c.Behind())))
	send("heddle_operator_longest_behind_seconds", longestBehindHelp, longestBehind(c.cfg.Server))
	revision := ""
	if now.Snapshot != nil {
		revision = now.Snapshot.View().Revision()
	}
	gates, late := waypoints(c.cfg.Server, revision)
	send("heddle_operator_waypoints", waypointsHelp, gates)
	send("heddle_operator_waypoints_behind", waypointsBehindHelp, late)
	send("heddle_operator_configuration_refused", "1 while the Mesh has a problem and an older configuration is served.", refusedAll)
	refused := map[string]float64{}
	for _, p := range now.Refused {
		refused[p.Ref.Kind]++
	}
	for _, kind := range []string{"Mesh", "Namespace", "Pod", "Service", "Workload", "PeerAuthentication", "AuthorizationPolicy", "NetworkPolicy"} {
		send("heddle_operator_refused_objects", "Problems of objects that are left out, wholly or in part.", refused[kind], kind)
	}
	if now.Snapshot == nil {
		return
	}
	view := now.Snapshot.View()
	send("heddle_operator_epoch", "Epoch of the configuration that is served.", float64(now.Snapshot.Epoch()))
	send("heddle_operator_snapshot_age_seconds", "Since when the configuration that is served has been the newest.", time.Since(now.Published).Seconds())
	send("heddle_operator_snapshot_checked_seconds", "Since the configuration that is served was last compared with the cluster.", time.Since(now.Checked).Seconds())
	for kind, n := range map[string]int{"Workload": len(view.Workloads()), "Service": len(view.Services()), "Policy": len(view.Policies()),
		"NetworkPolicy": len(view.Network().Policies())} {
		send("heddle_operator_objects", "Objects of the model that is served.", float64(n), kind)
	}
}
