// Package agent is the node agent: it wires the parts that enroll pods, carry
// their connections, hold their identities, follow the configuration and record
// what happened. The parts are packages of their own below this one and in
// internal/; here they only meet.
//
// An Agent runs once: New checks, Run blocks.
package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/heddle-mesh/heddle/agent/descriptors"
	"github.com/heddle-mesh/heddle/agent/dns"
	"github.com/heddle-mesh/heddle/agent/engine"
	"github.com/heddle-mesh/heddle/agent/enroll"
	"github.com/heddle-mesh/heddle/agent/handover"
	"github.com/heddle-mesh/heddle/agent/kernel"
	"github.com/heddle-mesh/heddle/agent/pace"
	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/agent/report"
	"github.com/heddle-mesh/heddle/agent/tidy"
	"github.com/heddle-mesh/heddle/agent/uplink"
	"github.com/heddle-mesh/heddle/agent/workloadapi"
	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/fips"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/flow/history"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/overdue"
)

// Agent is one node's agent.
type Agent struct{ cfg Config }

// New checks the configuration. It changes nothing on the system.
func New(cfg Config) (*Agent, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Agent{cfg: cfg.complete()}, nil
}

// parts are what Run wires. They are built in the order of the fields and
// closed in reverse.
type parts struct {
	// deed makes this the node's agent; nil until it is.
	deed *os.File
	// succession is what there is to take over; nil when no agent ran.
	succession *succession
	// restorePriority ends the patience of a successor's start.
	restorePriority func()
	kernel          *kernel.Datapath
	uplink          *uplink.Uplink
	newPods         *newPods // nil without a container runtime
	engine          engine.Engine
	ring            *flow.Ring
	history         *history.History // nil for none
	drops           *flow.Drops
	proxy           *proxy.Proxy
	svids           *workloadapi.Server
	pods            *enroll.Reconciler
	watch           *pausable // the kernel
	report          *report.Report
	admin           *admin.Server
	metrics         *net.TCPListener // nil for none
	registry        *prometheus.Registry
	handOver        atomic.Pointer[meshpb.HandOver]
	life            *life
}

// moves reports whether the engine can give its connections away.
func (p *parts) moves() bool {
	_, ok := p.engine.(hbone.Mover)
	return ok
}

// Run is the agent's life. When ctx ends it stops taking connections, drains
// for Config.Timeouts.Drain, and leaves the pods' gates in place unless
// Config.End says otherwise. It returns nil after that, and when another agent has
// taken over (see EndConfig.StayAfterHandOver); and an error when something failed
// that the agent cannot do without.
//
// When another agent runs on the node, this one takes its pods and connections
// over, as Config.TakeOver says. If that does not work the other one goes on,
// and Run returns an error.
func (a *Agent) Run(ctx context.Context) error {
	return a.answerProbes(ctx, func(l *life) error {
		if err := a.live(ctx, l); err != nil {
			return err
		}
		switch {
		case l.given.Load() && a.cfg.End.StayAfterHandOver:
			return a.park(ctx)
		case a.cfg.End.Uninstall && l.leftNode.Load():
			return a.cfg.removeFiles()
		}
		return nil
	})
}

// live is Run, until the node is another agent's or nobody's.
func (a *Agent) live(ctx context.Context, l *life) (err error) {
	p, err := a.build(ctx, l)
	defer func() {
		p.succession.end(err)
		if p.deed != nil {
			err = errors.Join(err, p.deed.Close()) // all that the lock is for has ended
		}
	}()
	if p.kernel != nil {
		defer func() { err = errors.Join(err, p.kernel.Close()) }()
	}
	if p.uplink != nil {
		defer func() { err = errors.Join(err, p.uplink.Close()) }()
	}
	if p.newPods != nil {
		defer func() { err = errors.Join(err, p.newPods.close()) }()
	}
	if p.metrics != nil {
		defer p.metrics.Close()
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil // told to stop while starting
		}
		return err
	}
	defer p.proxy.Close()
	return a.run(ctx, p)
}

// build makes the parts. After an error those that were made are in what it
// returns, for Run to close.
func (a *Agent) build(ctx context.Context, l *life) (p *parts, err error) {
	p = &parts{restorePriority: func() {}, life: l}
	cfg := a.cfg
	cfg.Log.Info("agent starts", "node", cfg.Node, "version", cfg.Version, "pid", os.Getpid(), "fips140", fips.Describe())
	for _, dir := range []string{cfg.RunDir, filepath.Dir(cfg.AdminSocket)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return p, fmt.Errorf("make directory: %w", err)
		}
	}
	files, err := descriptors.RaiseLimit()
	if err != nil {
		return p, err
	}
	cfg.Budget.Sockets = descriptors.ForSockets(files)
	p.engine = engine.New(cfg.Engine, cfg.Crypto, cfg.Log)
	if p.succession, err = a.succeed(ctx, p); err != nil {
		return p, err
	}
	if p.succession != nil {
		p.restorePriority = pace.Yield()
	}
	// First of all: sockets count as the agent's only when they are made in its
	// cgroup with the kernel's part loaded, and the gates need no operator.
	p.kernel, err = kernel.Open(ctx, kernel.Config{
		Node: cfg.Node, PinDir: cfg.Kernel.PinDir, StateDir: cfg.RunDir, Cgroup: cfg.Kernel.Cgroup, Kubelet: cfg.Kernel.Kubelet,
		Mark: cfg.Kernel.Mark, MarkMask: cfg.Kernel.MarkMask, FlowsPerPod: cfg.Kernel.FlowsPerPod, Grandfather: cfg.Kernel.Grandfather,
		CaptureDNS: cfg.Kernel.DNS == DNSCapture, SystemCongestion: cfg.Kernel.SystemCongestion, Inherited: p.succession.inherited(), Beside: p.succession.donor(), Log: cfg.Log,
	})
	if err != nil {
		return p, err
	}
	if p.uplink, err = a.join(ctx); err != nil {
		return p, err
	}
	if p.succession != nil { // an agent that joins for the first time could not say it before
		if err := p.succession.Donor.SameMesh(handover.Self{TrustDomain: p.uplink.TrustDomain()}); err != nil {
			return p, fmt.Errorf("take over: %w", err)
		}
	}
	if p.newPods, err = meetRuntime(cfg); err != nil {
		return p, err
	}
	if p.metrics, err = a.listenMetrics(ctx, p); err != nil {
		return p, err
	}
	return p, a.wire(cfg, p, files)
}

// join has no bound but ctx: an agent that has never joined can do nothing but wait
// for the operator. What it reads and mounts may wait for a disk, or for whoever has
// the machine's mounts locked.
func (a *Agent) join(ctx context.Context) (*uplink.Uplink, error) {
	joining := overdue.Step{What: "for the node's credential and keys, or for the operator to give them"}
	return overdue.Do(ctx, a.cfg.Log, joining, func() (*uplink.Uplink, error) {
		return uplink.Join(ctx, a.uplinkConfig())
	}, func(late *uplink.Uplink) { _ = late.Close() }) // nobody is there to hear of it
}

func (a *Agent) uplinkConfig() uplink.Config {
	return uplink.Config{
		Node: a.cfg.Node, Token: a.cfg.JoinToken, TokenFile: a.cfg.Account.TokenFile, RootsFile: a.cfg.Account.RootsFile,
		Operator: a.cfg.Operator, StateDir: a.cfg.StateDir,
		KeyDir: a.cfg.KeyDir, MountKeys: true, Log: a.cfg.Log,
	}
}

// wire makes what needs no system: from here on everything has what it needs.
func (a *Agent) wire(cfg Config, p *parts, files uint64) (err error) {
	p.registry = prometheus.NewRegistry()
	p.ring = flow.NewRing(cfg.Flows.Records)
	p.history = history.New(history.Config{Dir: filepath.Join(cfg.StateDir, "flows"), Bounds: cfg.Flows.History, Log: cfg.Log})
	recorder := &flow.Recorder{Node: cfg.Node, Ring: p.ring, Metrics: flow.NewMetrics(p.registry), History: p.history}
	p.drops = flow.NewDrops(recorder)
	store := p.uplink.Store()
	p.proxy = proxy.New(proxy.Config{
		Node: cfg.Node, Store: store, Engine: p.engine, Identities: p.uplink.Source(), Flows: recorder,
		Log: cfg.Log, Budget: cfg.Budget, Timeouts: cfg.Timeouts, OnNode: kernel.OnNode,
	})
	var datapath enroll.Datapath = p.kernel
	names := dns.New(dns.Config{Store: store, Flows: p.drops, Registry: p.registry, Log: cfg.Log})
	p.svids = workloadapi.New(workloadapi.Config{Node: cfg.Node, Store: store, Identities: p.uplink.Given(), JWT: p.uplink.JWTKeys(), SignJWT: p.uplink.SignJWT, Registry: p.registry, Log: cfg.Log})
	var server enroll.Server = p.kernel.Answering(p.proxy, names, p.svids)
	if p.succession != nil {
		careful := cautious{p.kernel, server, p.succession, store}
		datapath, server = careful, careful
	}
	p.pods = enroll.New(enroll.Config{
		Node: cfg.Node, Store: store, Places: p.newPods.asPlaces(), Datapath: datapath, Server: server, Identities: p.uplink.Source(),
		Log: cfg.Log, UnenrollOnExit: cfg.End.leaves(),
		// What an earlier agent left is not taken back while it is there.
		Confirmed: func() bool { return p.leftToAnother() == nil && p.uplink.Discovery().Status().Current },
	})
	if err := p.newPods.answer(cfg, p); err != nil {
		return err
	}
	p.watch = newPausable(func(ctx context.Context) error { return p.kernel.Run(ctx, store, p.drops, p.pods.Gone) })
	p.report = &report.Report{
		Node: cfg.Node, Version: cfg.Version, Started: time.Now(), Uplink: p.uplink, Datapath: p.kernel.Pods(),
		Enrolments: p.pods, Carrier: p.proxy, MaxFiles: files, PodConnections: cfg.Budget.Alone(), Engine: cfg.Engine, Crypto: engine.Describe(cfg.Engine, cfg.Crypto), FIPS140: fips.Describe(), HandOver: p.handOver.Load, History: p.history.Problem, Kubelet: p.kernel.Kubelet(), Drift: p.kernel.Drift(), Room: p.kernel.Room(), NameServers: names.Checks, WorkloadAPI: p.svids.Checks, NewPods: p.newPods.checks,
	}
	p.uplink.Tell(p.report.PodsAmiss, p.kernel.Drift().Repaired, p.report.Gated)
	p.admin, err = admin.NewServer(admin.Config{Node: cfg.Node, Socket: cfg.AdminSocket, Ring: p.ring, History: p.history, Agent: p.report, Log: cfg.Log})
	if err != nil {
		return err
	}
	a.register(p)
	return nil
}

func (a *Agent) register(p *parts) {
	flow.RegisterRing(p.registry, p.ring)
	p.history.Register(p.registry)
	flow.RegisterGauges(p.registry, flow.Gauges{
		Certificates:      p.report.CertificateLives,
		Pods:              p.report.PodStates,
		OpenConnections:   p.proxy.Open,
		OperatorConnected: func() bool { return p.uplink.Discovery().Status().Connected },
		UnreportedDrops:   p.kernel.LostDrops,
		EnrolmentFailures: p.pods.Failures,
	})
	p.registry.MustRegister(p.kernel.Drift(), p.kernel.Room().Collector(), fips.Collector(), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	p.registry.MustRegister(p.uplink.Collectors()...)
}

// run runs the parts. The pods' connections are carried until they have
// drained; everything that they need goes on until then.
func (a *Agent) run(ctx context.Context, p *parts) error {
	defer p.record(ctx)()
	support, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, support := errgroup.WithContext(support)
	pods, stopPods := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stopPods(nil)
	defer context.AfterFunc(ctx, func() { stopPods(p.leftToAnother()) })()
	// A part that fails takes the pods' serving down in good order, too.
	defer context.AfterFunc(support, func() {
		stopPods(cmp.Or(p.leftToAnother(), errors.New("a part of the agent failed")))
	})()

	group.Go(func() error { return named("follow the operator", p.uplink.Run(support)) })
	group.Go(func() error { return named("run the proxy", p.proxy.Run(support)) })
	group.Go(func() error { p.drops.Run(support); return nil })
	group.Go(func() error { p.svids.Run(support); return nil })
	group.Go(func() error { p.newPods.follow(support); return nil })
	group.Go(func() error { tidy.Run(support, a.cfg.Log); return nil })
	p.life.carries(p)
	group.Go(func() error {
		if p.succession != nil {
			if err := a.takeOver(support, p); err != nil {
				return named("take over", err)
			}
		}
		return a.attend(support, p, func() { stopPods(enroll.ErrLeave) })
	})
	a.cfg.Log.Info("agent runs", "node", a.cfg.Node, "version", a.cfg.Version, "operator", p.uplink.Operator(), "engine", a.cfg.Engine)
	group.Go(func() error {
		defer stop()
		err := p.pods.Run(pods)
		a.cfg.Log.Info("agent has drained", "unenrolled", a.cfg.End.leaves())
		return named("enroll pods", err)
	})
	err := group.Wait()
	if a.cfg.End.leaves() && !errors.Is(context.Cause(pods), enroll.ErrLeave) {
		err = errors.Join(err, a.leaveNode(ctx, p))
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if closing := p.engine.Close(end); closing != nil && !errors.Is(closing, context.DeadlineExceeded) {
		err = errors.Join(err, closing)
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// record runs the history until end is called: when nothing is left that has something
// to record, so that the last of it is on disk.
func (p *parts) record(ctx context.Context) (end func()) {
	recording, stop := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	running.Go(func() { p.history.Run(recording) })
	return func() {
		p.drops.Flush() // those of the kernel's last words
		stop()
		running.Wait()
	}
}

func named(what string, err error) error {
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
