package operator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// serveHealth serves what a kubelet asks: GET /livez, which answers as long as
// the process does, and GET /readyz, which says why there is nothing to serve.
func (p *parts) serveHealth(ctx context.Context, ready func() error) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { answer(w, nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { answer(w, ready()) })
	return p.serveHTTP(ctx, "health", p.cfg.Health, mux)
}

func answer(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	text := "ok\n"
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		text = err.Error() + "\n"
	}
	// Whoever asked may be gone; there is nobody else to tell.
	_, _ = w.Write([]byte(text))
}

// serveHTTP serves until ctx ends; what names it in errors.
func (p *parts) serveHTTP(ctx context.Context, what, address string, handler http.Handler) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listen for %s: %w", what, err)
	}
	p.cfg.Logger.Info("endpoint opened", "what", what, "address", listener.Addr().String())
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10}
	stop := context.AfterFunc(ctx, func() {
		if err := server.Close(); err != nil {
			p.cfg.Logger.Warn("endpoint did not close", "what", what, "error", err)
		}
	})
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", what, err)
	}
	return nil
}
