package routing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/internal/kube/routes"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/operator/cluster"
	"github.com/heddle-mesh/heddle/operator/say"
)

// The bounds of what is written.
const (
	maxWrites = 20 // per second
	atOnce    = 50
	// interval is the least time between two looks at everything, and between two times of
	// keeping.
	interval = 500 * time.Millisecond
	// tryAgain is when what could not be written is tried again.
	tryAgain = 5 * time.Second
)

// EventReason is that of events on what is refused of a route.
const EventReason = "RouteRefused"

// WriterConfig says what is written, and how.
type WriterConfig struct {
	// Routing returns what is there now, with the present statuses.
	Routing func() cluster.Routing
	// Compiled returns what routes were compiled to last, nil before the first time, and a
	// channel that is closed when that may be different.
	Compiled func() (*routes.Compiled, <-chan struct{})
	// Save keeps routes as they are good now.
	Save func(context.Context, routes.Good) error
	// Gateway reaches the Gateway API's group.
	Gateway rest.Interface
	Events  typedcorev1.EventsGetter
	Logger  *slog.Logger
}

// Writer writes what the leader writes of routes.
type Writer struct {
	cfg    WriterConfig
	limit  *rate.Limiter
	teller *say.Teller
}

// NewWriter checks the configuration.
func NewWriter(cfg WriterConfig) (*Writer, error) {
	if cfg.Routing == nil || cfg.Compiled == nil || cfg.Save == nil || cfg.Gateway == nil || cfg.Events == nil || cfg.Logger == nil {
		return nil, errors.New("writing of routes needs routes, what they were compiled to, a store, clients and a logger")
	}
	limit := rate.NewLimiter(maxWrites, atOnce)
	return &Writer{cfg: cfg, limit: limit, teller: say.NewTeller(cfg.Events, limit)}, nil
}

// Run writes until ctx ends. What cannot be written now is written later.
func (w *Writer) Run(ctx context.Context) error {
	var told *routes.Compiled
	var seen uint64
	for ctx.Err() == nil {
		compiled, changed := w.cfg.Compiled()
		routing := w.cfg.Routing()
		done := true
		if compiled != nil && (compiled != told || routing.Seen != seen) {
			done = compiled == told || w.keep(ctx, compiled.Good)
			done = w.pass(ctx, compiled, &routing) && done
		}
		if told, seen = compiled, routing.Seen; !done {
			told = nil
		}
		w.teller.Forget()
		pause(ctx, changed, done)
	}
	return nil
}

// keep keeps what is good. It returns false when that has to be tried again.
func (w *Writer) keep(ctx context.Context, good routes.Good) bool {
	err := w.cfg.Save(ctx, good)
	if err != nil && ctx.Err() == nil {
		w.cfg.Logger.Warn("routes are not kept as they are good: trying again", "error", err, "retry", tryAgain)
	}
	return err == nil
}

// pause waits for the next look: statuses that others write come without a new outcome.
func pause(ctx context.Context, changed <-chan struct{}, done bool) {
	least, most := time.NewTimer(interval), time.NewTimer(2*interval)
	defer least.Stop()
	defer most.Stop()
	if !done {
		most.Reset(tryAgain)
	}
	select {
	case <-ctx.Done():
		return
	case <-least.C:
	}
	select {
	case <-ctx.Done():
	case <-changed:
	case <-most.C:
	}
}

// written is a route whose status may have to be written.
type written struct {
	id       route.ID
	resource string
	meta     *metav1.ObjectMeta
	have     []gatewayv1.RouteParentStatus
}

// pass looks at all routes once. It returns false when something could not be written.
func (w *Writer) pass(ctx context.Context, compiled *routes.Compiled, routing *cluster.Routing) bool {
	statuses := map[route.ID]*routes.Status{}
	for i := range compiled.Statuses {
		statuses[compiled.Statuses[i].ID] = &compiled.Statuses[i]
	}
	done := true
	for _, r := range writtenOf(routing) {
		if ctx.Err() != nil {
			return false
		}
		var ours []gatewayv1.RouteParentStatus
		if s := statuses[r.id]; s != nil {
			if s.UID != r.meta.UID || s.Generation != r.meta.Generation {
				continue // what was compiled is older: the next has it
			}
			ours = s.Parents
		}
		if err := w.write(ctx, &r, ours); err != nil && ctx.Err() == nil {
			done = false
			w.cfg.Logger.Warn("status of a route is not written: trying again", "route", r.id, "error", err)
		}
		if err := w.tell(ctx, &r, ours); err != nil && ctx.Err() == nil {
			done = false
			w.cfg.Logger.Warn("event is not written: trying again", "route", r.id, "error", err)
		}
	}
	return done
}

// writtenOf lists the routes that are there.
func writtenOf(routing *cluster.Routing) []written {
	all := make([]written, 0, len(routing.HTTPRoutes)+len(routing.GRPCRoutes)+len(routing.TLSRoutes)+len(routing.TCPRoutes))
	for _, r := range routing.HTTPRoutes {
		all = append(all, written{idOf(route.HTTP, &r.ObjectMeta), "httproutes", &r.ObjectMeta, r.Status.Parents})
	}
	for _, r := range routing.GRPCRoutes {
		all = append(all, written{idOf(route.GRPC, &r.ObjectMeta), "grpcroutes", &r.ObjectMeta, r.Status.Parents})
	}
	for _, r := range routing.TLSRoutes {
		all = append(all, written{idOf(route.TLS, &r.ObjectMeta), "tlsroutes", &r.ObjectMeta, r.Status.Parents})
	}
	for _, r := range routing.TCPRoutes {
		all = append(all, written{idOf(route.TCP, &r.ObjectMeta), "tcproutes", &r.ObjectMeta, r.Status.Parents})
	}
	return all
}

// write puts our entries into a route's status, if they are not there as they are to be.
// The list is one value to the API server: it is changed of the version that was read, or
// not at all.
func (w *Writer) write(ctx context.Context, r *written, ours []gatewayv1.RouteParentStatus) error {
	want := routes.Merge(r.have, timed(ours, r.have, time.Now()))
	if len(want) == len(r.have) && (len(want) == 0 || equality.Semantic.DeepEqual(want, r.have)) {
		return nil
	}
	if err := w.limit.Wait(ctx); err != nil {
		return nil // ctx has ended
	}
	if want == nil {
		want = []gatewayv1.RouteParentStatus{}
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": r.meta.ResourceVersion, "uid": r.meta.UID},
		"status": map[string]any{"parents": want}})
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	err = w.cfg.Gateway.Patch(types.MergePatchType).Namespace(r.meta.Namespace).Resource(r.resource).Name(r.meta.Name).SubResource("status").
		VersionedParams(&metav1.PatchOptions{FieldManager: say.FieldManager}, metav1.ParameterCodec).Body(body).Do(ctx).Error()
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // deleted, or changed: that is seen in a moment, and looked at anew
	}
	return err
}

// timed gives our entries the times of those that are there.
func timed(ours, have []gatewayv1.RouteParentStatus, now time.Time) []gatewayv1.RouteParentStatus {
	out := make([]gatewayv1.RouteParentStatus, len(ours))
	for i, p := range ours {
		var before []metav1.Condition
		for _, h := range have {
			if h.ControllerName == routes.ControllerName && equality.Semantic.DeepEqual(h.ParentRef, p.ParentRef) {
				before = h.Conditions
			}
		}
		out[i] = p
		out[i].Conditions = say.Since(append([]metav1.Condition(nil), p.Conditions...), before, now)
	}
	return out
}

// tell creates an event for what is refused of a route, each once.
func (w *Writer) tell(ctx context.Context, r *written, ours []gatewayv1.RouteParentStatus) error {
	said := map[string]bool{}
	about := corev1.ObjectReference{APIVersion: gatewayv1.GroupVersion.String(), Kind: r.id.Kind.String(), Namespace: r.meta.Namespace, Name: r.meta.Name, UID: r.meta.UID}
	for _, p := range ours {
		for _, c := range p.Conditions {
			if !refuses(&c) || said[c.Message] {
				continue
			}
			said[c.Message] = true
			if err := w.teller.Warn(ctx, about, EventReason, c.Reason+": "+c.Message); err != nil {
				return err
			}
		}
	}
	return nil
}

// refuses reports whether a condition says that something of a route is not in force.
func refuses(c *metav1.Condition) bool {
	if c.Type == string(gatewayv1.RouteConditionPartiallyInvalid) {
		return c.Status == metav1.ConditionTrue
	}
	return c.Status == metav1.ConditionFalse
}
