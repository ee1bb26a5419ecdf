package waypoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/admin"
	"github.com/heddle-mesh/heddle/internal/fips"
	"github.com/heddle-mesh/heddle/internal/flow/sample"
	"github.com/heddle-mesh/heddle/waypoint/accesslog"
	"github.com/heddle-mesh/heddle/waypoint/feed"
	"github.com/heddle-mesh/heddle/waypoint/plan"
	"github.com/heddle-mesh/heddle/waypoint/record"
	"github.com/heddle-mesh/heddle/waypoint/requests"
	"github.com/heddle-mesh/heddle/waypoint/serve"
	"github.com/heddle-mesh/heddle/waypoint/snapshot"
	"github.com/heddle-mesh/heddle/waypoint/standalone"
	"github.com/heddle-mesh/heddle/waypoint/telemetry"
	"github.com/heddle-mesh/heddle/waypoint/trace"
)

// Waypoint is one replica of a waypoint. It is made by New, and run once.
type Waypoint struct {
	cfg      Config
	store    *snapshot.Store
	source   source
	registry *prometheus.Registry
	metrics  *telemetry.Metrics
}

// source brings configurations into the store.
type source interface {
	// Run brings them, until ctx is done.
	Run(ctx context.Context) error
}

// New checks a Config. Nothing on the system changes, and nothing is read, before Run.
func New(cfg Config) (*Waypoint, error) {
	key, err := cfg.check()
	if err != nil {
		return nil, err
	}
	if _, err := accesslog.New(io.Discard, cfg.Access); err != nil {
		return nil, err
	}
	w := &Waypoint{cfg: cfg, store: snapshot.NewStore(key), registry: prometheus.NewRegistry()}
	w.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), telemetry.BuildInfo(cfg.Version), fips.Collector())
	return w, nil
}

// Check reads the configuration once, as Run would, and serves nothing.
func (w *Waypoint) Check() error {
	if w.cfg.Folder == "" {
		return errors.New("there is no folder to read: what an operator serves is checked there, by heddle check")
	}
	return standalone.New(standalone.Config{Folder: w.cfg.Folder, Store: w.store, Log: w.cfg.Log}).Load()
}

// Run serves until ctx is done, lets what is under way end, and waits for all that it has started.
// The first configuration of a folder must be good; of later ones, the last good one goes on. One
// that follows an operator is not ready until it has a configuration, from there or from before.
func (w *Waypoint) Run(ctx context.Context) error {
	out, closeOut, err := w.accessOutput()
	if err != nil {
		return err
	}
	defer closeOut()
	access, err := accesslog.New(out, w.cfg.Access)
	if err != nil {
		return err
	}
	w.metrics = telemetry.New(w.registry, plan.Reasons(), func() float64 { return float64(access.Lost()) })
	cfg := w.cfg.Serve
	if cfg.Sinks, err = w.sinks(access); err != nil {
		return err
	}
	if err := w.open(); err != nil {
		return err
	}
	cfg.Store, cfg.Metrics, cfg.Log = w.store, w.metrics, w.cfg.Log
	server, err := serve.New(cfg)
	if err != nil {
		return err
	}
	return w.serve(ctx, server, &cfg.Sinks)
}

// sinks are what requests are told to.
func (w *Waypoint) sinks(access *accesslog.Log) (record.Sinks, error) {
	s := record.Sinks{Access: access}
	replica := w.cfg.Replica
	if replica == "" {
		replica, _ = os.Hostname() // without one it has no name
	}
	self := w.store.Load().Waypoint
	shown, err := sample.Parse(w.cfg.Flows.Sample)
	if err != nil {
		return s, named("--flow-sample", err)
	}
	rules, err := sample.Parse(w.cfg.Traces.Sample)
	if err != nil {
		return s, named("--trace-sample", err)
	}
	if w.cfg.Flows.AdminSocket != "" {
		s.Flows = requests.New(requests.Config{Waypoint: self, Replica: replica, Size: w.cfg.Flows.Records, Rules: shown})
	}
	s.Traces, err = trace.New(trace.Config{Endpoint: w.cfg.Traces.Endpoint, Rules: rules, Waypoint: self, Replica: replica, Version: w.cfg.Version, Log: w.cfg.Log,
		Count: func(outcome string, n int) { w.metrics.Spans.WithLabelValues(outcome).Add(float64(n)) }})
	return s, named("--trace-endpoint", err)
}

// open finds where configurations come from, and reads the first one of a folder.
func (w *Waypoint) open() error {
	if w.cfg.Folder != "" {
		folder := standalone.New(standalone.Config{Folder: w.cfg.Folder, Debounce: debounce, Relist: w.cfg.Relist, Store: w.store, Reloads: w.metrics.Reloads, Log: w.cfg.Log})
		w.source = folder
		if err := folder.Load(); err != nil {
			return fmt.Errorf("read configuration: %w", err)
		}
		return nil
	}
	follow := w.cfg.Follow
	operator, err := feed.New(feed.Config{Waypoint: w.store.Load().Waypoint, Operator: follow.Operator, TokenFile: follow.TokenFile + follow.JoinTokenFile,
		RootsFile: follow.RootsFile, StateDir: follow.StateDir, Store: w.store, Logger: w.cfg.Log})
	if err != nil {
		return err
	}
	w.source = operator
	if err := w.registry.Register(operator); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	return nil
}

// synced is nil once there is a configuration.
func (w *Waypoint) synced() error {
	if s, ok := w.source.(interface{ Synced() error }); ok {
		return s.Synced()
	}
	if !w.store.Load().Synced() {
		return errors.New("no configuration yet")
	}
	return nil
}

// serve runs the parts. Those that tell of requests go on until the last request has ended.
func (w *Waypoint) serve(ctx context.Context, server *serve.Server, sinks *record.Sinks) error {
	l, err := listen(ctx, w.cfg.Listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	defer l.Close()
	rest, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var parts, outlasting errgroup.Group
	if w.cfg.Metrics != "" {
		port, err := listen(ctx, w.cfg.Metrics)
		if err != nil {
			return fmt.Errorf("--metrics: %w", err)
		}
		outlasting.Go(func() error { return w.expose(rest, port, ctx) })
	}
	outlasting.Go(func() error { sinks.Access.Run(rest); return nil })
	outlasting.Go(func() error { return sinks.Traces.Run(rest) })
	if flows := sinks.Flows; flows != nil {
		outlasting.Go(func() error {
			return admin.Serve(rest, w.cfg.Flows.AdminSocket, func(g *grpc.Server) { meshpb.RegisterFlowsServer(g, flows) }, w.cfg.Log)
		})
	}
	w.cfg.Log.Info("waypoint serves", "waypoint", w.cfg.Waypoint, "address", l.Addr().String(), "version", w.cfg.Version)
	together, failed := context.WithCancel(ctx)
	defer failed()
	parts.Go(func() error { defer failed(); return w.source.Run(together) })
	parts.Go(func() error { defer failed(); return server.Run(together, l) })
	err = parts.Wait()
	stop()
	return errors.Join(err, outlasting.Wait())
}

func listen(ctx context.Context, address string) (*net.TCPListener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil // "tcp" gives no other
}

// accessOutput opens what the access log is written to.
func (w *Waypoint) accessOutput() (io.Writer, func(), error) {
	switch path := w.cfg.AccessPath; path {
	case "":
		w.cfg.Access.Sample = 0
		return io.Discard, func() {}, nil
	case "-":
		return w.cfg.Output, func() {}, nil
	default:
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
		if err != nil {
			return nil, nil, fmt.Errorf("--access-log: %w", err)
		}
		return f, func() { _ = f.Close() }, nil // each line was written, or counted as lost
	}
}

// expose answers on the port of metrics until ctx is done. Ready is false from the moment on that
// serving ends.
func (w *Waypoint) expose(ctx context.Context, port *net.TCPListener, serving context.Context) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(w.registry, promhttp.HandlerOpts{Registry: w.registry}))
	mux.HandleFunc("GET /healthz", func(out http.ResponseWriter, _ *http.Request) { fmt.Fprintln(out, "ok") })
	mux.HandleFunc("GET /readyz", func(out http.ResponseWriter, _ *http.Request) {
		switch {
		case serving.Err() != nil:
			http.Error(out, "draining", http.StatusServiceUnavailable)
		default:
			if err := w.synced(); err != nil {
				http.Error(out, err.Error(), http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintln(out, "ready")
		}
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })() // whatever it was answering is of no use now
	if err := server.Serve(port); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
