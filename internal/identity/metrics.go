package identity

import (
	"github.com/prometheus/client_golang/prometheus"
)

// sourceMetrics are the metrics of one Source. They carry no identity as a
// label: a node may hold hundreds. Statuses has the details.
type sourceMetrics struct {
	source *Source

	held, missing, expiry, issues, refused *prometheus.Desc
}

// Collector returns the Source's metrics for a registry:
//
//	heddle_svids                       certificates held and valid
//	heddle_svids_missing               identities wanted without a valid one
//	heddle_svid_earliest_expiry_seconds  Unix time of the next NotAfter; 0 if none
//	heddle_svid_issues_total{outcome}  requests to the operator: issued, failed
//	heddle_stored_keys_refused_total   files of the key store that were refused
func (s *Source) Collector() prometheus.Collector {
	return &sourceMetrics{
		source:  s,
		held:    prometheus.NewDesc("heddle_svids", "Certificates held and valid.", nil, nil),
		missing: prometheus.NewDesc("heddle_svids_missing", "Identities wanted that have no valid certificate.", nil, nil),
		expiry:  prometheus.NewDesc("heddle_svid_earliest_expiry_seconds", "Unix time at which the first certificate expires; 0 without one.", nil, nil),
		issues:  prometheus.NewDesc("heddle_svid_issues_total", "Requests for certificates, by outcome.", []string{"outcome"}, nil),
		refused: prometheus.NewDesc("heddle_stored_keys_refused_total", "Files of the key store that were refused at start.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (m *sourceMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.held, m.missing, m.expiry, m.issues, m.refused} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (m *sourceMetrics) Collect(out chan<- prometheus.Metric) {
	valid, missing, expiry := m.source.summary()
	gauge := func(d *prometheus.Desc, v float64) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(m.held, float64(valid))
	gauge(m.missing, float64(missing))
	gauge(m.expiry, expiry)
	counter(m.issues, m.source.stats.issued.Load(), "issued")
	counter(m.issues, m.source.stats.failed.Load(), "failed")
	counter(m.refused, m.source.stats.refused.Load())
}
