package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// listenMetrics opens the port of metrics, or adopts that of the agent that this
// one succeeds; nil means that there is none.
func (a *Agent) listenMetrics(ctx context.Context, p *parts) (*net.TCPListener, error) {
	if a.cfg.Metrics == "" {
		return nil, nil
	}
	var l net.Listener
	var err error
	if s := p.succession; s != nil && s.estate.Metrics != nil && s.estate.MetricsAddress == a.cfg.Metrics {
		f := os.NewFile(uintptr(s.estate.Metrics.File), "metrics")
		s.estate.Metrics = nil // f owns it
		l, err = net.FileListener(f)
		err = errors.Join(err, f.Close())
	} else {
		var config net.ListenConfig
		l, err = config.Listen(ctx, "tcp", a.cfg.Metrics)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for metrics: %w", err)
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("listen for metrics: not TCP but %T", l), l.Close())
	}
	return tcp, nil
}

// serveMetrics serves /metrics, /healthz and /readyz until ctx is done. It is
// ready when a configuration was received and every pod was looked after.
func (a *Agent) serveMetrics(ctx context.Context, p *parts) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{Registry: p.registry}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !p.pods.Settled() {
			http.Error(w, "no configuration yet, or pods are being enrolled", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })() // whatever it was answering is of no use now
	if err := server.Serve(p.metrics); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
