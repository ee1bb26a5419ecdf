package discovery

import "github.com/prometheus/client_golang/prometheus"

var _ prometheus.Collector = (*Client)(nil)

// Describe and Collect make a Client a prometheus.Collector: what Status says,
// at the moment of the scrape.
func (c *Client) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect sends the metrics. Whether the operator is connected is left to the
// agent, whose heddle_operator_connected it is.
func (c *Client) Collect(ch chan<- prometheus.Metric) {
	s := c.Status()
	send := func(kind prometheus.ValueType, name, help string, value float64) {
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, nil, nil), kind, value)
	}
	truth := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	send(prometheus.GaugeValue, "heddle_discovery_current", "Whether the operator has confirmed that the applied configuration is its newest.", truth(s.Current))
	send(prometheus.GaugeValue, "heddle_discovery_epoch", "Epoch of the applied configuration.", float64(s.Epoch))
	send(prometheus.GaugeValue, "heddle_discovery_resources", "Resources in the applied configuration.", float64(s.Resources))
	send(prometheus.CounterValue, "heddle_discovery_connects_total", "Streams that the operator accepted.", float64(s.Connects))
	send(prometheus.CounterValue, "heddle_discovery_refused_total", "Configurations that this agent refused to apply.", float64(s.Refused))
	send(prometheus.CounterValue, "heddle_discovery_last_good_refused_total", "Last good files that were corrupt, or of another operator or node.", float64(s.LastGoodRefused))
	send(prometheus.CounterValue, "heddle_discovery_last_good_unsaved_total", "Writes of the last good file that failed.", float64(s.LastGoodUnsaved))
}
