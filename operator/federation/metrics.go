package federation

import "github.com/prometheus/client_golang/prometheus"

// Collector returns the metrics, each of them by trust domain:
//
//	heddle_federation_roots_expiry_seconds   Unix time at which the last of its roots expires
//	heddle_federation_refreshed_seconds      Unix time at which its endpoint gave a bundle last
//	heddle_federation_failing                1 while the last attempt failed
func (f *Follower) Collector() prometheus.Collector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, []string{"trust_domain"}, nil)
	}
	return &collector{follower: f,
		expiry:    desc("heddle_federation_roots_expiry_seconds", "Unix time at which the last root of a federated trust domain expires."),
		refreshed: desc("heddle_federation_refreshed_seconds", "Unix time at which the bundle endpoint of a federated trust domain gave a bundle last."),
		failing:   desc("heddle_federation_failing", "1 while the bundle of a federated trust domain is not refreshed."),
	}
}

type collector struct {
	follower                   *Follower
	expiry, refreshed, failing *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.expiry, c.refreshed, c.failing} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	for _, k := range c.follower.Known() {
		gauge := func(d *prometheus.Desc, v float64) {
			out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, k.Domain.TrustDomain.Name())
		}
		if k.Bundle != nil {
			gauge(c.expiry, float64(k.Bundle.Expires().Unix()))
		}
		if !k.Fetched.IsZero() {
			gauge(c.refreshed, float64(k.Fetched.Unix()))
		}
		failing := 0.0
		if k.Err != nil {
			failing = 1
		}
		gauge(c.failing, failing)
	}
}
