package publish

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/problem"
)

// The reasons of heddle_operator_refusals_total, beside those of problems: a closed
// list, which docs/metrics.md has.
const (
	reasonTrustDomain = "TrustDomain" // the Mesh's is not the CA's
	reasonInternal    = "Internal"    // it cannot be encoded for agents, or not be kept
)

// reasons returns all of them.
func reasons() []string {
	all := []string{reasonTrustDomain, reasonInternal}
	for _, r := range problem.Reasons() {
		all = append(all, r.String())
	}
	return all
}

// refusal is an error with its reason.
type refusal struct {
	error
	reason string
}

// Unwrap makes the error's own causes be found.
func (r refusal) Unwrap() error { return r.error }

// reasonsOf returns why something is refused, each reason once.
func reasonsOf(err error) map[string]bool {
	found := map[string]bool{}
	for _, p := range kube.Problems(err) {
		found[p.Reason.String()] = true
	}
	var why refusal
	switch {
	case len(found) > 0:
	case errors.As(err, &why):
		found[why.reason] = true
	default:
		found[reasonInternal] = true
	}
	return found
}

// newRefusals counts from nothing, for every reason.
func newRefusals() *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "heddle_operator_refusals_total", Help: "Readings of the folder, or objects of the cluster, that were refused, by reason: each once while it lasts.",
	}, []string{"reason"})
	for _, reason := range reasons() {
		c.WithLabelValues(reason)
	}
	return c
}

// waypoints counts the pods of waypoints that are connected, and those of them that have not
// applied a revision.
func waypoints(server *discovery.Server, revision string) (connected, behind float64) {
	for _, w := range server.Waypoints() {
		if w.Connected == 0 {
			continue
		}
		connected++
		if w.Revision != revision {
			behind++
		}
	}
	return connected, behind
}

// The help of what is collected of a folder and of a cluster alike.
const (
	waypointsHelp       = "Pods of waypoints that are connected."
	waypointsBehindHelp = "Connected pods of waypoints that have not applied the configuration that is served."
)
