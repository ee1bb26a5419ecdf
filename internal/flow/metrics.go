package flow

import (
	"slices"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the Prometheus metrics that follow from flow records. Every label
// takes its values from a closed enum, so the number of series is bounded
// whatever the traffic. docs/metrics.md lists them.
type Metrics struct {
	connections  *series[prometheus.Counter] // by direction, verdict and reason
	bytes        *series[prometheus.Counter] // by direction and transport
	drops        *prometheus.CounterVec
	duration     *series[prometheus.Observer] // this and the rest by direction
	handshake    *series[prometheus.Observer]
	connect      *series[prometheus.Observer]
	rtt          *series[prometheus.Observer]
	retransmits  *series[prometheus.Counter]
	datagrams    *series[prometheus.Counter]
	policyAudits prometheus.Counter
}

// latencyBuckets span 50 µs, a splice on one node, to 10 s, past every timeout.
func latencyBuckets() []float64 {
	return []float64{5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1, 2.5, 10}
}

func durationBuckets() []float64 {
	return []float64{0.001, 0.01, 0.1, 1, 10, 60, 600, 3600, 86400}
}

// NewMetrics makes the metrics and registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	// Requests are a waypoint's, which counts them itself.
	directions := enumOf(slices.DeleteFunc(Directions(), func(d Direction) bool { return d == DirectionRequest }))
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		reg.MustRegister(c)
		return c
	}
	histogram := func(name, help string, buckets []float64) *series[prometheus.Observer] {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, []string{"direction"})
		reg.MustRegister(h)
		return newSeries(h.WithLabelValues, directions)
	}
	m := &Metrics{
		connections: newSeries(counter("heddle_connections_total", "Finished and refused connections.", "direction", "verdict", "reason").WithLabelValues,
			directions, enumOf([]mesh.Verdict{mesh.VerdictDeny, mesh.VerdictAllow, mesh.VerdictAudit}), enumOf(mesh.Reasons())),
		bytes: newSeries(counter("heddle_bytes_total", "Payload bytes of finished connections, both ways together.", "direction", "transport").WithLabelValues,
			directions, enumOf(Transports())),
		datagrams: newSeries(counter("heddle_datagrams_total", "Datagrams (UDP) that the gate let pass by a policy about them, or out of the mesh by its egress.udp.", "direction").WithLabelValues,
			directions),
		drops: counter("heddle_kernel_drops_total", "Packets that the gate dropped and reported.", "reason"),
		retransmits: newSeries(counter("heddle_retransmits_total", "TCP segments sent again on the wire leg of finished connections.", "direction").WithLabelValues,
			directions),
		duration:  histogram("heddle_connection_duration_seconds", "How long allowed connections lasted.", durationBuckets()),
		handshake: histogram("heddle_handshake_seconds", "TLS handshakes of tunnel connections, as flows waited for them.", latencyBuckets()),
		connect:   histogram("heddle_connect_seconds", "From the application's connect until the far end accepted.", latencyBuckets()),
		rtt:       histogram("heddle_tcp_rtt_seconds", "Smoothed TCP round-trip time of the wire leg at the end of a flow.", latencyBuckets()),
		policyAudits: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "heddle_policy_audits_total", Help: "Flows that name an AUDIT policy, but for what the gate dropped.",
		}),
	}
	reg.MustRegister(m.policyAudits)
	for _, r := range mesh.Reasons() {
		// From the start at 0, so that the first drop shows as an increase.
		if strings.HasPrefix(r.String(), "Kernel") {
			m.drops.WithLabelValues(r.String())
		}
	}
	return m
}

// Observe counts one record.
func (m *Metrics) Observe(r *Record) {
	if r.Direction == DirectionKernel {
		m.drops.WithLabelValues(r.Reason.String()).Add(float64(max(r.Packets, 1)))
		return
	}
	if r.Direction == DirectionDNS {
		return // agent/dns counts every query
	}
	direction := int(r.Direction)
	if r.Protocol == ProtocolUDP {
		m.datagrams.of(direction).Add(float64(r.Packets))
		if r.audited() {
			m.policyAudits.Inc()
		}
		return
	}
	m.connections.of(direction, int(r.Verdict), int(r.Reason)).Add(float64(max(r.Packets, 1)))
	if r.audited() {
		m.policyAudits.Inc()
	}
	m.bytes.of(direction, int(r.Transport)).Add(float64(r.BytesSent + r.BytesReceived))
	m.retransmits.of(direction).Add(float64(r.Retransmits))
	if r.Verdict != mesh.VerdictDeny {
		m.duration.of(direction).Observe(r.Duration.Seconds())
	}
	observe(m.handshake, direction, r.Timing.Handshake)
	observe(m.connect, direction, r.Timing.Connect)
	observe(m.rtt, direction, r.Timing.RTT)
}

// audited reports whether an AUDIT policy matched. An agent of a version before, whose connections
// this one goes on with, has not said which.
func (r *Record) audited() bool { return r.Audited != "" || r.Verdict == mesh.VerdictAudit }

// observe leaves out what was not measured.
func observe(h *series[prometheus.Observer], direction int, d time.Duration) {
	if d > 0 {
		h.of(direction).Observe(d.Seconds())
	}
}

// RegisterRing registers what a Ring counts about itself.
func RegisterRing(reg prometheus.Registerer, r *Ring) {
	for _, c := range []struct {
		name, help string
		value      func() uint64
	}{
		{"heddle_flow_records_total", "Flow records made.", r.Added},
		{"heddle_flow_overwritten_total", "Flow records that newer ones have replaced.", r.Overwritten},
		{"heddle_flow_lost_total", "Flow records that a watcher was too slow to see, summed over watchers.", r.Lost},
	} {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: c.name, Help: c.help},
			func() float64 { return float64(c.value()) }))
	}
}

// Gauges are read from the agent whenever the metrics are scraped. Each func
// must be safe for concurrent use and fast.
type Gauges struct {
	// Certificates returns the time until expiry of the SVID of each identity
	// on the node; there are at most as many as pods.
	Certificates func() map[string]time.Duration
	// Pods counts the node's pods by enrolment state.
	Pods func() map[string]int
	// OpenConnections counts the live connections.
	OpenConnections func() int
	// OperatorConnected says whether configuration is being streamed.
	OperatorConnected func() bool
	// UnreportedDrops counts kernel drop records that the kernel's ring buffer
	// had no room for.
	UnreportedDrops func() uint64
	// EnrolmentFailures counts the tries to enroll a pod that failed.
	EnrolmentFailures func() uint64
}

// collector turns Gauges into metrics.
type collector struct {
	gauges                                               Gauges
	expiry, pods, connections, connected, unseen, failed *prometheus.Desc
}

// RegisterGauges registers gauges, each of whose funcs must be set.
func RegisterGauges(reg prometheus.Registerer, g Gauges) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	reg.MustRegister(&collector{
		gauges:      g,
		expiry:      desc("heddle_certificate_expiry_seconds", "Time until an identity's SVID expires; negative afterwards.", "identity"),
		pods:        desc("heddle_pods", "Pods of the node by enrolment state.", "state"),
		connections: desc("heddle_open_connections", "Connections that the agent carries now."),
		connected:   desc("heddle_operator_connected", "1 while the operator streams configuration to the agent."),
		unseen:      desc("heddle_kernel_drops_unreported_total", "Drop records that the kernel's ring buffer had no room for."),
		failed:      desc("heddle_enrolment_failures_total", "Tries to enroll a pod, or to change an enrolled one, that failed."),
	})
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.expiry, c.pods, c.connections, c.connected, c.unseen, c.failed} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for identity, left := range c.gauges.Certificates() {
		gauge(c.expiry, left.Seconds(), identity)
	}
	for state, n := range c.gauges.Pods() {
		gauge(c.pods, float64(n), state)
	}
	gauge(c.connections, float64(c.gauges.OpenConnections()))
	connected := 0.0
	if c.gauges.OperatorConnected() {
		connected = 1
	}
	gauge(c.connected, connected)
	ch <- prometheus.MustNewConstMetric(c.unseen, prometheus.CounterValue, float64(c.gauges.UnreportedDrops()))
	ch <- prometheus.MustNewConstMetric(c.failed, prometheus.CounterValue, float64(c.gauges.EnrolmentFailures()))
}
