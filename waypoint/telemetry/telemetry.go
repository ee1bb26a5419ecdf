// Package telemetry counts what a waypoint does, in metrics whose labels have bounded sets of
// values: rate, errors and duration by route and backend, refusals by reason, retries and
// mirrored requests by outcome. docs/metrics.md has them all.
//
// Everything here is safe for concurrent use, and counting allocates nothing.
package telemetry

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// MaxSeries is how many pairs of a route and a backend are counted apart. Those that come
// after are counted together, as "other", unless pairs of earlier routes can make room.
const MaxSeries = 2000

// Other stands for all pairs beyond MaxSeries.
const Other = "other"

// codes are the values of the label code: no answer at all, and classes of statuses.
var codes = [...]string{"none", "1xx", "2xx", "3xx", "4xx", "5xx"}

// Metrics are those of one waypoint.
type Metrics struct {
	requests *prometheus.CounterVec
	passages *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	// Refusals are answers of the waypoint's own, and connections that it ended, by reason.
	Refusals *prometheus.CounterVec
	// Retries are requests that were sent once more, or were not because of the budget.
	Retries *prometheus.CounterVec
	// Mirrored are copies of requests, by what became of them.
	Mirrored *prometheus.CounterVec
	// Spans are those of traces, by what became of them.
	Spans *prometheus.CounterVec
	// Connections are those that are open, Accepted all that ever came.
	Connections *prometheus.GaugeVec
	Accepted    prometheus.Counter
	// Active are requests under way, Buffered bytes that are held for them.
	Active, Buffered prometheus.Gauge
	// Reloads are new configurations, by whether they were taken.
	Reloads *prometheus.CounterVec

	mu     sync.Mutex
	series map[[2]string]*Series
	passed map[[2]string]*Passages
	// routes are those by which series are looked up, and those before: a loop may be late. Epoch is
	// how often they changed.
	routes, before any
	epoch          int
}

// Values of labels.
const (
	Retried, BudgetSpent     = "retried", "budget_spent"
	Sent, Failed, Dropped    = "sent", "failed", "dropped" // of mirrored requests, and of spans
	ClientSide, WorkloadSide = "client", "workload"
	Taken, Refused           = "taken", "refused"
	Carried                  = "carried" // of connections, which are refused else
)

// New registers all metrics. Reasons are all values that the label reason of refusals may have,
// lost is how many lines of the access log were lost.
func New(reg prometheus.Registerer, reasons []string, lost func() float64) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	m := &Metrics{
		requests: counter("heddle_waypoint_requests_total", "Requests that ended, by route, backend and class of status.", "backend", "code", "route"),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "heddle_waypoint_request_seconds", Help: "From a request's head to the end of its response.",
			Buckets: []float64{5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}}, []string{"backend", "route"}),
		passages:    counter("heddle_waypoint_passages_total", "Connections that went by a TLSRoute or a TCPRoute and have ended, by what became of them.", "backend", "outcome", "route"),
		Refusals:    counter("heddle_waypoint_refusals_total", "Requests that the waypoint has answered itself, and connections that it has ended.", "reason"),
		Retries:     counter("heddle_waypoint_retries_total", "Requests that were sent once more, or not for want of budget.", "outcome"),
		Mirrored:    counter("heddle_waypoint_mirrored_total", "Copies of requests.", "outcome"),
		Spans:       counter("heddle_waypoint_spans_total", "Spans of requests that are sampled.", "outcome"),
		Connections: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "heddle_waypoint_connections", Help: "Open connections."}, []string{"side"}),
		Accepted:    prometheus.NewCounter(prometheus.CounterOpts{Name: "heddle_waypoint_accepted_total", Help: "Connections of clients."}),
		Active:      gauge("heddle_waypoint_active_requests", "Requests under way."),
		Buffered:    gauge("heddle_waypoint_buffered_bytes", "Bytes held for requests and responses under way."),
		Reloads:     counter("heddle_waypoint_configurations_total", "Configurations that came.", "outcome"),
		series:      map[[2]string]*Series{},
		passed:      map[[2]string]*Passages{},
	}
	for _, r := range reasons {
		m.Refusals.WithLabelValues(r)
	}
	for vec, values := range map[*prometheus.CounterVec][]string{m.Retries: {Retried, BudgetSpent}, m.Mirrored: {Sent, Failed, Dropped}, m.Spans: {Sent, Failed, Dropped}, m.Reloads: {Taken, Refused}} {
		for _, v := range values {
			vec.WithLabelValues(v)
		}
	}
	m.Connections.WithLabelValues(ClientSide)
	m.Connections.WithLabelValues(WorkloadSide)
	m.Series(Other, Other)
	m.Passages(Other, Other)
	if reg != nil {
		reg.MustRegister(m.requests, m.seconds, m.passages, m.Refusals, m.Retries, m.Mirrored, m.Spans, m.Connections, m.Accepted, m.Active, m.Buffered, m.Reloads,
			prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "heddle_waypoint_access_log_lost_total", Help: "Lines of the access log that were lost."}, lost))
	}
	return m
}

// BuildInfo is the metric of which version a waypoint is: 1, with the version as its label.
func BuildInfo(version string) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "heddle_waypoint_build_info", Help: "1; version is the program's.", ConstLabels: prometheus.Labels{"version": version},
	}, func() float64 { return 1 })
}

// Series counts the requests of one route to one backend.
type Series struct {
	codes   [len(codes)]prometheus.Counter
	seconds prometheus.Observer
	epoch   int // of the metrics, when it was looked up last; 0 of those that are of no route
}

// Use says by which routes requests go from now on, told apart by ==: whoever keeps a Series
// looks it up anew then.
func (m *Metrics) Use(routes any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if routes != m.routes && routes != m.before {
		m.before, m.routes = m.routes, routes
		m.epoch++
	}
}

// Series returns that of a route and a backend. It is looked up once for all requests that go by
// the same routes, and kept.
func (m *Metrics) Series(route, backend string) *Series {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := [2]string{route, backend}
	if s := m.series[key]; s != nil {
		if s.epoch > 0 {
			s.epoch = m.epoch
		}
		return s
	}
	if len(m.series) > MaxSeries && !m.forgetLocked() {
		return m.series[[2]string{Other, Other}]
	}
	s := &Series{epoch: m.epoch, seconds: m.seconds.WithLabelValues(backend, route)}
	for i, code := range codes {
		s.codes[i] = m.requests.WithLabelValues(backend, code, route)
	}
	m.series[key] = s
	return s
}

// forgetLocked forgets those that nobody has looked up since the routes changed, which have had no
// request since, and reports whether there were any. One that comes back counts from 0, as after a
// restart. The caller holds mu.
func (m *Metrics) forgetLocked() (forgot bool) {
	for key, s := range m.series {
		if s.epoch == m.epoch || s.epoch == 0 {
			continue
		}
		delete(m.series, key)
		m.seconds.DeleteLabelValues(key[1], key[0])
		for _, code := range codes {
			m.requests.DeleteLabelValues(key[1], code, key[0])
		}
		forgot = true
	}
	return forgot
}

// Ended counts a request that was answered with a status, 0 for none.
func (s *Series) Ended(status int, took time.Duration) {
	class := status / 100
	if class < 0 || class >= len(codes) {
		class = 0
	}
	s.codes[class].Inc()
	s.seconds.Observe(took.Seconds())
}

// Retry counts a try that a budget has room for, or has not, and returns which. It is safe for concurrent use.
func (m *Metrics) Retry(room bool) bool {
	outcome := BudgetSpent
	if room {
		outcome = Retried
	}
	m.Retries.WithLabelValues(outcome).Inc()
	return room
}
