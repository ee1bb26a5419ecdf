package publish

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/problem"
	"github.com/heddle-mesh/heddle/internal/kube/watch"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/operator/publish/routed"
)

// Loaded is what one reading of the folder gave: a compiled mesh, or an error.
type Loaded struct {
	objects  *kube.Objects
	compiled *kube.Compiled
	routes   *routed.Compiled
	told     *discovery.Routes
	revision string
	err      error
}

// withUDP begins the revisions of folders whose policies may name UDP.
const withUDP = "udp-"

// Load reads and compiles a folder, whose policies may name UDP where that is said.
func Load(dir string, udpByIdentity bool) Loaded {
	objs, err := kube.LoadDir(dir)
	if err != nil {
		return Loaded{err: refusal{err, problem.Unreadable.String()}}
	}
	objs.UDPByIdentity = udpByIdentity
	routed.Relay(objs)
	compiled, err := kube.Compile(objs)
	if err != nil {
		return Loaded{err: err}
	}
	routes, told, warnings, err := routed.Folder(objs)
	if err != nil {
		return Loaded{err: err}
	}
	compiled.Warnings = append(compiled.Warnings, warnings...)
	// 64 bits tell revisions apart; nothing is trusted because of them.
	revision := objs.Digest[:16]
	if udpByIdentity {
		revision = withUDP + revision // the same folder means something else
	}
	return Loaded{objects: objs, compiled: compiled, routes: routes, told: told, revision: revision}
}

// Check reads and compiles a folder as an operator would, and starts nothing.
// The error has every problem; warnings are about what is in force, but
// unlikely to do what was meant.
func Check(folder string, udpByIdentity bool) (warnings []string, err error) {
	l := Load(folder, udpByIdentity)
	if l.err != nil {
		return nil, l.err
	}
	view, err := l.compiled.View(l.revision)
	if err != nil {
		return nil, err
	}
	// Encoding finds objects that are too large to be told to agents.
	_, throwaway, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	if _, err := discovery.NewSnapshot(view, 1, throwaway); err != nil {
		return nil, err
	}
	return problemLines(l.compiled.Warnings), nil
}

func problemLines(problems []*kube.Problem) []string {
	var lines []string
	for _, p := range problems {
		lines = append(lines, p.Error())
	}
	return lines
}

// Status is what a Publisher knows of itself.
type Status struct {
	// Revision and Epoch are those of what is served, since Applied.
	Revision string
	Epoch    uint64
	Applied  time.Time
	// Workloads, Services and Policies are numbers of objects.
	Workloads, Services, Policies int
	// FromLastGood is set while the folder has been refused since the start.
	FromLastGood bool
	// Warnings are about objects that are in force.
	Warnings []string
	// Problems say why the folder's present content is refused, since Refused;
	// nil when it is what is served.
	Problems []string
	Refused  time.Time
}

// Config says what a Publisher reads, and where to.
type Config struct {
	// Folder has the YAML objects; see internal/kube.
	Folder string
	// Debounce is how long the folder must be quiet before it is read, Relist
	// how often it is read without a sign of a change.
	Debounce, Relist time.Duration
	// UDPByIdentity lets policies name UDP.
	UDPByIdentity bool
	// Gates says, where policies may name UDP, who is behind a gate.
	Gates Gates
	State *State
	// Key signs what is published.
	Key ed25519.PrivateKey
	// Store and Server receive each View; the Publisher is their only writer.
	Store  *mesh.Store
	Server *discovery.Server
	Logger *slog.Logger
}

// Publisher turns what is in the folder into what is served. Its methods may be called
// from any goroutine; one at a time publishes.
type Publisher struct {
	cfg      Config
	refusals *prometheus.CounterVec
	gating   gating
	// publishing is held by who publishes; last is the reading that was published last, and
	// zero while that is the last good configuration of before the start.
	publishing sync.Mutex
	last       Loaded

	now struct {
		sync.Mutex
		Status
		outcome Outcome
	}
}

// New returns a Publisher that has published nothing.
func New(cfg Config) *Publisher {
	return &Publisher{cfg: cfg, refusals: newRefusals(), gating: newGating(cfg.Gates, cfg.UDPByIdentity)}
}

// Status returns the state of this moment.
func (p *Publisher) Status() Status {
	p.now.Lock()
	defer p.now.Unlock()
	return p.now.Status
}

// Outcome returns what is served, and what is refused of the folder as it is now,
// which keeps all of it from being served. Its Objects are nil while the last good
// configuration of before a restart is.
func (p *Publisher) Outcome() Outcome {
	p.now.Lock()
	defer p.now.Unlock()
	return p.now.outcome
}

// Begin publishes the first reading, or goes on with the last good one.
func (p *Publisher) Begin(first Loaded) error {
	if p.apply(first) {
		return nil
	}
	view, told, err := discovery.LoadView(p.cfg.State.lastGood(), p.cfg.Key.Public().(ed25519.PublicKey))
	switch {
	case err != nil:
		p.cfg.Logger.Error("last good configuration is not used", "error", err)
		return nil
	case view == nil:
		if p.cfg.State.record.Epoch == 0 {
			return fmt.Errorf("read configuration for the first time: %s", strings.Join(p.Status().Problems, "\n"))
		}
		p.cfg.Logger.Error("no last good configuration: agents go on with theirs, nodes that join wait")
		return nil
	}
	if !p.cfg.UDPByIdentity {
		view, err = withoutDatagrams(view)
	}
	if err == nil {
		err = p.publish(view, told, Loaded{}, true)
	}
	if err == nil {
		err = p.regate() // who was behind a gate then may not be now: before anybody is served
	}
	if err != nil {
		p.cfg.Logger.Error("last good configuration is not served", "error", err)
	}
	return nil
}

// withoutDatagrams is a View of a time when policies might name UDP, for one when they
// may not: without what it says about UDP, under a revision of its own.
func withoutDatagrams(view *mesh.View) (*mesh.View, error) {
	revision, had := strings.CutPrefix(view.Revision(), withUDP)
	revision, _, _ = strings.Cut(revision, gatedMark)
	if !had {
		return view, nil
	}
	var workloads []mesh.Workload
	for _, w := range view.Workloads() {
		closed := *w
		closed.Datagrams, closed.Gated = nil, false
		workloads = append(workloads, closed)
	}
	var services []mesh.Service
	for _, s := range view.Services() {
		closed := *s
		closed.UDPPorts = nil
		services = append(services, closed)
	}
	var policies []mesh.Policy
	for _, p := range view.Policies() {
		policies = append(policies, *p)
	}
	return mesh.NewView(revision, *view.Settings(), workloads, services, policies)
}

// apply publishes a reading, or notes why it is refused.
func (p *Publisher) apply(l Loaded) bool {
	p.publishing.Lock()
	defer p.publishing.Unlock()
	err := l.err
	if err == nil {
		err = p.applyCompiled(l)
	}
	if err != nil {
		p.refuse(err)
		return false
	}
	p.now.Lock()
	defer p.now.Unlock()
	if p.now.Problems != nil {
		p.cfg.Logger.Info("configuration folder is in order again", "revision", l.revision)
	}
	p.now.Problems, p.now.Refused, p.now.outcome.Refused = nil, time.Time{}, nil
	return true
}

func (p *Publisher) applyCompiled(l Loaded) error {
	now := p.Status()
	if served, _, _ := strings.Cut(now.Revision, gatedMark); served == l.revision && !now.FromLastGood {
		return nil // regate follows the gates
	}
	if was := p.cfg.State.record.TrustDomain; was != "" && l.compiled.Settings.TrustDomain.Name() != was {
		return refusal{fmt.Errorf("the Mesh's spec.trustDomain is %q, and the CA in %s was made for %q; change it back, or begin with a new state directory and join every node again",
			l.compiled.Settings.TrustDomain.Name(), p.cfg.State.CA(), was), reasonTrustDomain}
	}
	p.gating.all(l.compiled.Workloads)
	view, err := l.compiled.View(l.revision)
	if err != nil {
		return err
	}
	return p.publish(view.Named(nameGates(l.revision, view.Workloads())), l.told, l, false)
}

// regate publishes what is served anew when others are behind their gates.
func (p *Publisher) regate() error {
	p.publishing.Lock()
	defer p.publishing.Unlock()
	snapshot := p.Outcome().Snapshot
	if snapshot == nil {
		return nil
	}
	var change mesh.Change
	if p.gating.add(&change, snapshot.View()); change.Size() == 0 {
		return nil
	}
	view, err := snapshot.View().With(snapshot.View().Revision(), change)
	if err != nil {
		return err
	}
	return p.publish(view.Named(nameGates(view.Revision(), view.Workloads())), snapshot.Routes(), p.last, p.Status().FromLastGood)
}

// publish makes a View the one that is served. The epoch is on disk before any
// agent can see it; the issuer knows a workload before its agent does.
func (p *Publisher) publish(view *mesh.View, told *discovery.Routes, l Loaded, fromLastGood bool) error {
	began := time.Now()
	outcome := Outcome{Published: began, Checked: began, Objects: l.objects, Routes: l.routes}
	if l.compiled != nil {
		outcome.Warnings = l.compiled.Warnings
	}
	warnings := problemLines(outcome.Warnings)
	next := p.cfg.State.next(view.Settings().TrustDomain, view.Revision(), began)
	snapshot, err := discovery.NewRoutedSnapshot(view, told, next.Epoch, p.cfg.Key)
	if err != nil {
		return err
	}
	if err := p.cfg.State.keep(next); err != nil {
		return err
	}
	p.last = l
	p.cfg.Store.Replace(view)
	p.cfg.Server.Publish(snapshot)
	if !fromLastGood {
		if err := snapshot.Save(p.cfg.State.lastGood()); err != nil {
			p.cfg.Logger.Error("last good configuration is not saved: a restart with a bad folder would have none", "error", err)
		}
	}
	p.now.Lock()
	outcome.Snapshot, outcome.Refused = snapshot, p.now.outcome.Refused
	p.now.outcome = outcome
	s := &p.now.Status
	s.Revision, s.Epoch, s.Applied, s.FromLastGood, s.Warnings = view.Revision(), next.Epoch, began, fromLastGood, warnings
	s.Workloads, s.Services, s.Policies = len(view.Workloads()), len(view.Services()), len(view.Policies())
	p.now.Unlock()
	p.cfg.Logger.Info("configuration published", "revision", view.Revision(), "epoch", next.Epoch, "workloads", len(view.Workloads()),
		"services", len(view.Services()), "policies", len(view.Policies()), "routes", len(told.All()), "from_last_good", fromLastGood, "took", time.Since(began))
	for _, w := range warnings {
		p.cfg.Logger.Warn("configuration warning", "problem", w)
	}
	return nil
}

// refuse notes what is wrong, and logs it when it is news.
func (p *Publisher) refuse(err error) {
	problems := kube.Problems(err)
	lines := problemLines(problems)
	if len(lines) == 0 {
		lines = []string{err.Error()}
	}
	p.now.Lock()
	s := &p.now.Status
	news := !slices.Equal(s.Problems, lines)
	if s.Problems == nil {
		s.Refused = time.Now()
	}
	s.Problems, p.now.outcome.Refused = lines, problems
	p.now.Unlock()
	if !news {
		return
	}
	for reason := range reasonsOf(err) {
		p.refusals.WithLabelValues(reason).Inc()
	}
	for _, line := range lines {
		p.cfg.Logger.Error("configuration refused: going on with the last good one", "problem", line)
	}
}

// Follow reads the folder whenever it may have changed, and asks who is behind a gate
// whenever that may have, until ctx ends.
func (p *Publisher) Follow(ctx context.Context) error {
	var gates sync.WaitGroup
	defer gates.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	gates.Go(func() { p.followGates(ctx) })
	w := &watch.Folder{Dir: p.cfg.Folder, Debounce: p.cfg.Debounce, Relist: p.cfg.Relist, Log: p.cfg.Logger}
	err := w.Run(ctx, func() { p.apply(Load(p.cfg.Folder, p.cfg.UDPByIdentity)) })
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (p *Publisher) followGates(ctx context.Context) {
	for {
		changed := p.gating.changed()
		var retry <-chan time.Time
		if err := p.regate(); err != nil {
			p.cfg.Logger.Error("who is behind a gate is not published: trying again", "error", err)
			retry = time.After(time.Second)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-retry:
		}
	}
}

var _ prometheus.Collector = (*Publisher)(nil)

// Describe makes a publisher a prometheus.Collector.
func (p *Publisher) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(p, ch) }

// Collect sends what status says.
func (p *Publisher) Collect(ch chan<- prometheus.Metric) {
	s := p.Status()
	refused, connected := 0.0, 0.0
	if s.Problems != nil {
		refused = 1
	}
	behind := 0.0
	for _, n := range p.cfg.Server.Nodes() {
		if n.Connected > 0 {
			connected++
			if n.Epoch != s.Epoch {
				behind++
			}
		}
	}
	send := func(name, help string, value float64) {
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, nil, nil), prometheus.GaugeValue, value)
	}
	p.refusals.Collect(ch)
	send("heddle_operator_epoch", "Epoch of the configuration that is served.", float64(s.Epoch))
	send("heddle_operator_folder_refused", "1 while the configuration folder has a problem and the last good configuration is served.", refused)
	send("heddle_operator_nodes", "Nodes whose agents are connected.", connected)
	send("heddle_operator_nodes_behind", "Connected nodes that have not applied the configuration that is served.", behind)
	send("heddle_operator_longest_behind_seconds", longestBehindHelp, longestBehind(p.cfg.Server))
	connected, behind = waypoints(p.cfg.Server, s.Revision)
	send("heddle_operator_waypoints", waypointsHelp, connected)
	send("heddle_operator_waypoints_behind", waypointsBehindHelp, behind)
}
