package dns

import "github.com/prometheus/client_golang/prometheus"

// outcome is what became of a query; the closed list of a label.
type outcome string

const (
	byMesh     outcome = "mesh"      // from the model
	byCache    outcome = "cache"     // kept, and holds
	byStale    outcome = "stale"     // kept, and holds no more; the server does not answer
	byUpstream outcome = "upstream"  // what the server says
	failed     outcome = "failed"    // the server does not answer
	refused    outcome = "refused"   // the namespace may not send there
	malformed  outcome = "malformed" // no query
	overBudget outcome = "budget"    // dropped: the pod has too many
)

// metrics are counters with labels from closed lists.
type metrics struct {
	queries  *prometheus.CounterVec
	asked    prometheus.Histogram
	failures *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		queries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "heddle_dns_queries_total", Help: "Queries of pods, by what answered them.",
		}, []string{"transport", "outcome"}),
		asked: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "heddle_dns_upstream_seconds", Help: "How long the servers took that were asked.",
			Buckets: []float64{5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1, 2.5, 5},
		}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "heddle_dns_upstream_failures_total", Help: "Questions that a server did not answer.",
		}, []string{"cause"}),
	}
	for _, transport := range []string{"udp", "tcp"} {
		for _, o := range []outcome{byMesh, byCache, byStale, byUpstream, failed, refused, malformed, overBudget} {
			m.queries.WithLabelValues(transport, string(o))
		}
	}
	for _, cause := range []string{causeTimeout, causeRefused, causeCode, causeOther} {
		m.failures.WithLabelValues(cause)
	}
	if reg != nil {
		reg.MustRegister(m.queries, m.asked, m.failures)
	}
	return m
}

func (m *metrics) count(transport string, o outcome) {
	m.queries.WithLabelValues(transport, string(o)).Inc()
}
