// Package exposition is the agent's port for those who watch it: /metrics in
// Prometheus' exposition format, /healthz and /readyz.
package exposition

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Listen opens the port at address, or adopts that of the agent that this one
// succeeds, which it owns from then on; nil means that there is none.
func Listen(ctx context.Context, address string, inherited *os.File) (*net.TCPListener, error) {
	var l net.Listener
	var err error
	if inherited != nil {
		l, err = net.FileListener(inherited)
		err = errors.Join(err, inherited.Close())
	} else {
		var config net.ListenConfig
		l, err = config.Listen(ctx, "tcp", address)
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

// Serve answers on a port until ctx is done, then it closes it. /readyz is what
// ready says.
func Serve(ctx context.Context, port *net.TCPListener, registry *prometheus.Registry, ready func() bool) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{Registry: registry}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready() {
			http.Error(w, "no configuration yet, or pods are being enrolled", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })() // whatever it was answering is of no use now
	if err := server.Serve(port); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
