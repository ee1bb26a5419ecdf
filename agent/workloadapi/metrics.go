package workloadapi

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// outcome is what became of a request, or of a connection; the closed list of a label.
type outcome string

const (
	answered    outcome = "answered"      // by its client's or the agent's end
	noHeader    outcome = "header"        // without the security header
	malformed   outcome = "invalid"       // what is asked for, or a token, is not valid
	denied      outcome = "denied"        // no identity: revoked, or no longer asked for
	overBudget  outcome = "budget"        // the pod has too many
	foreign     outcome = "foreign"       // not by loopback
	unavailable outcome = "unavailable"   // no certificate yet, or the agent goes
	notThere    outcome = "unimplemented" // a profile that is not served, or has no keys
)

// jwtOutcome is what became of a JWT-SVID, of those that were asked for and those that were to be
// validated; the closed list of a label.
type jwtOutcome string

const (
	signed   jwtOutcome = "signed"   // by the operator, and given
	cached   jwtOutcome = "cached"   // given as another was before
	failed   jwtOutcome = "failed"   // asked for, and not to be had
	valid    jwtOutcome = "valid"    // validated
	rejected jwtOutcome = "rejected" // found not to be valid
)

// metrics are counters with labels from closed lists.
type metrics struct {
	outcomes *prometheus.CounterVec
	streams  prometheus.Gauge
	pods     prometheus.Gauge
	keys     prometheus.Counter
	jwts     *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "heddle_workload_api_requests_total", Help: "Requests to the Workload API that have ended, by how.",
		}, []string{"outcome"}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{Name: "heddle_workload_api_streams", Help: "Requests to the Workload API that are open."}),
		pods:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "heddle_workload_api_pods", Help: "Pods that have the Workload API."}),
		keys:    prometheus.NewCounter(prometheus.CounterOpts{Name: "heddle_workload_api_keys_given_total", Help: "SVIDs given to pods with their private keys."}),
	}
	m.jwts = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "heddle_workload_api_jwts_total", Help: "JWT-SVIDs that pods asked for or had validated, by what became of them."}, []string{"jwt"})
	for _, j := range []jwtOutcome{signed, cached, failed, valid, rejected} {
		m.jwts.WithLabelValues(string(j))
	}
	for _, o := range []outcome{answered, noHeader, malformed, denied, overBudget, foreign, unavailable, notThere} {
		m.outcomes.WithLabelValues(string(o))
	}
	if reg != nil {
		reg.MustRegister(m.outcomes, m.streams, m.pods, m.keys, m.jwts)
	}
	return m
}

func (m *metrics) count(err error) {
	o := answered
	switch status.Code(err) {
	case codes.InvalidArgument:
		if o = malformed; errors.Is(err, headerMissing{}) {
			o = noHeader
		}
	case codes.PermissionDenied:
		o = denied
	case codes.ResourceExhausted:
		o = overBudget
	case codes.Unavailable:
		o = unavailable
	case codes.Unimplemented:
		o = notThere
	}
	m.outcomes.WithLabelValues(string(o)).Inc()
}
