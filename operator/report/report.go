package report

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/operator/publish"
)

// The bounds of what is written.
const (
	maxWrites = 20 // per second
	atOnce    = 50
	// interval is the least time between two looks at everything. With the 900 ms in which an
	// agent finds what somebody changed in the kernel, a status says it within two seconds.
	interval = 900 * time.Millisecond
)

// Node is what one node's agent has acknowledged, and how many of its pods are not as
// that says; or what a pod of a waypoint that is connected has, named as its waypoint is,
// "namespace/name/pod".
type Node struct {
	Name, Revision string
	Epoch          uint64
	Amiss          uint32
	// Connected is set while any replica has its stream, Reports while any hears of its pods.
	Connected, Reports bool
	// silent is set of a node whose last word does not count any more.
	silent bool
}

// Config says what is reported, and how.
type Config struct {
	// Objects returns what the cluster has now, with the present statuses.
	Objects func() (*kube.Objects, uint64)
	// Outcome returns what compiling came to last, and a channel that is closed
	// at the next time.
	Outcome func() (publish.Outcome, <-chan struct{})
	// Nodes returns the acknowledgements and reports of all nodes and pods of waypoints,
	// those to other replicas too.
	Nodes func(context.Context) []Node
	// Federation returns what is known of other trust domains.
	Federation func() []v1alpha1.FederationStatus
	// Heddle reaches the heddle.dev group.
	Heddle rest.Interface
	Events typedcorev1.EventsGetter
	Logger *slog.Logger
}

// Reporter reports.
type Reporter struct {
	cfg   Config
	limit *rate.Limiter
	// since has the epoch with which an object's generation was first served,
	// told the events that were created and when: both of objects that are there.
	since map[generation]uint64
	told  map[string]time.Time
	// recorded is what the record says of each object; nil before the first look.
	recorded map[kube.Ref]*recorded
	// heard is when each node was last.
	heard heard
	// policies are those of the last look.
	policies atomic.Pointer[[]*meshpb.OperatorPolicy]
}

// generation is one version of what an object says.
type generation struct {
	ref    kube.Ref
	uid    string
	number int64
}

// New checks the configuration.
func New(cfg Config) (*Reporter, error) {
	if cfg.Objects == nil || cfg.Outcome == nil || cfg.Nodes == nil || cfg.Federation == nil || cfg.Heddle == nil || cfg.Events == nil || cfg.Logger == nil {
		return nil, errors.New("report needs objects, outcomes, nodes, federation, clients and a logger")
	}
	return &Reporter{cfg: cfg, limit: rate.NewLimiter(maxWrites, atOnce)}, nil
}

// Run reports until ctx ends. What cannot be written now is written later.
func (r *Reporter) Run(ctx context.Context) error {
	r.since, r.told, r.recorded, r.heard = map[generation]uint64{}, map[string]time.Time{}, nil, heard{}
	for {
		began := time.Now()
		outcome, _ := r.cfg.Outcome()
		r.pass(ctx, &outcome)
		// Acknowledgements come without a change of the outcome.
		wait := time.NewTimer(max(interval-time.Since(began), interval/10))
		select {
		case <-ctx.Done():
			wait.Stop()
			return nil
		case <-wait.C:
		}
	}
}

// pass looks at everything once.
func (r *Reporter) pass(ctx context.Context, outcome *publish.Outcome) {
	if outcome.Objects == nil {
		return
	}
	objs, _ := r.cfg.Objects()
	nodes := r.cfg.Nodes(ctx)
	r.heard.listen(nodes, time.Now())
	reports := r.reports(outcome, objs, nodes)
	policies := policiesOf(reports)
	r.policies.Store(&policies)
	r.audit(reports, objs, outcome) // before the statuses, by which another leader knows of it
	for i := range reports {
		if ctx.Err() != nil {
			return
		}
		if err := r.writeStatus(ctx, &reports[i]); err != nil {
			r.cfg.Logger.Warn("status is not written: trying again", "object", reports[i].ref, "error", err)
		}
	}
	var about map[kube.Ref]corev1.ObjectReference
	if len(outcome.Refused) > 0 {
		about = references(outcome.Refused, objs)
	}
	for _, p := range outcome.Refused {
		if ctx.Err() != nil {
			return
		}
		if err := r.tell(ctx, p, about[p.Ref]); err != nil {
			r.cfg.Logger.Warn("event is not written: trying again", "problem", p, "error", err)
		}
	}
	r.forget(reports)
}

// forget drops what is known of objects and events that are gone.
func (r *Reporter) forget(reports []objectReport) {
	there := map[generation]bool{}
	for i := range reports {
		there[reports[i].generation()] = true
	}
	for g := range r.since {
		if !there[g] {
			delete(r.since, g)
		}
	}
	for name, at := range r.told {
		if time.Since(at) > retell {
			delete(r.told, name)
		}
	}
}
