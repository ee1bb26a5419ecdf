package agent

import (
	"context"
	"net"
	"os"

	"github.com/heddle-mesh/heddle/agent/exposition"
)

// listenMetrics opens the port of metrics, or adopts that of the agent that this
// one succeeds; nil means that there is none.
func (a *Agent) listenMetrics(ctx context.Context, p *parts) (*net.TCPListener, error) {
	if a.cfg.Metrics == "" {
		return nil, nil
	}
	var inherited *os.File
	if s := p.succession; s != nil && s.estate.Metrics != nil && s.estate.MetricsAddress == a.cfg.Metrics {
		inherited = os.NewFile(uintptr(s.estate.Metrics.File), "metrics")
		s.estate.Metrics = nil // exposition owns it
	}
	return exposition.Listen(ctx, a.cfg.Metrics, inherited)
}

// serveMetrics is ready when a configuration was received and every pod was looked
// after.
func (a *Agent) serveMetrics(ctx context.Context, p *parts) error {
	return exposition.Serve(ctx, p.metrics, p.registry, p.pods.Settled)
}
