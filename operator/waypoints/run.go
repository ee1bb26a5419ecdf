package waypoints

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube/routes"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/operator/cluster"
	"github.com/heddle-mesh/heddle/operator/say"
)

const (
	meshPort = mesh.WaypointPort
	// The bounds of what is written.
	maxWrites = 20 // per second
	atOnce    = 50
	// interval is how often everything is looked at, as replicas become ready.
	interval = time.Second
	// DefaultAgain is the default of Config.Again.
	DefaultAgain = time.Minute
)

// EventGone is the reason of events on services whose waypoint is not there any more.
const EventGone = "WaypointGone"

// EventReason is that of events on what keeps a Gateway from being served.
const EventReason = "WaypointRefused"

// NoImage is what Gateways are told by an operator that has not been told what waypoints are run from,
// which may not make one either.
const NoImage = "this operator runs no waypoints: it was installed with operator.waypoints.enabled=false, or started without --waypoint-image; install it with that on"

// NoCanary is what Gateways are told that ask for a canary of an operator that has no image to try.
const NoCanary = "; " + v1alpha1.AnnotationCanary + " has no effect, as there is no image to try: name one in operator.waypoints.canaryImage"

// Config says what is run, and how.
type Config struct {
	Program Program
	// Routing returns the Gateways, classes and services that are there, with the present
	// statuses.
	Routing func() cluster.Routing
	// Ready returns how many workloads of a waypoint's Service take connections, as agents
	// are told.
	Ready func(mesh.Key) int
	// Lost returns the services whose connections are refused as their waypoints are not
	// there, with those.
	Lost func() map[mesh.Key]mesh.Key
	// Roots returns the certificates by which the operator is known, in PEM.
	Roots   func() string
	Dynamic dynamic.Interface
	// Gateway reaches the Gateway API's group.
	Gateway rest.Interface
	Events  typedcorev1.EventsGetter
	// Again is how often what is there is compared with what is to be, whatever else
	// happens; 0 is DefaultAgain.
	Again  time.Duration
	Logger *slog.Logger
}

// Runner runs waypoints.
type Runner struct {
	cfg    Config
	limit  *rate.Limiter
	teller *say.Teller
	// applied has what was applied of each Gateway that is there.
	applied map[types.UID]applied
}

// applied is what became of applying.
type applied struct {
	digest  [sha256.Size]byte
	at      time.Time
	trouble string
}

// New checks the configuration.
func New(cfg Config) (*Runner, error) {
	if cfg.Routing == nil || cfg.Ready == nil || cfg.Lost == nil || cfg.Roots == nil || cfg.Dynamic == nil || cfg.Gateway == nil || cfg.Events == nil || cfg.Logger == nil {
		return nil, errors.New("running waypoints needs gateways, readiness, roots, clients and a logger")
	}
	cfg.Again = cmp.Or(cfg.Again, DefaultAgain)
	limit := rate.NewLimiter(maxWrites, atOnce)
	return &Runner{cfg: cfg, limit: limit, teller: say.NewTeller(cfg.Events, limit), applied: map[types.UID]applied{}}, nil
}

// Run runs waypoints until ctx ends. What cannot be written now is written later.
func (r *Runner) Run(ctx context.Context) error {
	clear(r.applied)
	if r.cfg.Program.Image == "" {
		r.cfg.Logger.Info("no waypoints are run, and Gateways that ask for one are told so", "reason", NoImage)
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var said string
	for {
		err := r.pass(ctx)
		if err != nil && ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			r.cfg.Logger.Warn("waypoints are not all as they are to be: trying again", "error", err)
		}
		if err == nil {
			said = ""
		}
		r.teller.Forget()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// pass looks at everything once.
func (r *Runner) pass(ctx context.Context) error {
	routing := r.cfg.Routing()
	if err := r.tellLost(ctx, &routing); err != nil {
		return err
	}
	if !routing.Served["gatewayclasses"] || !routing.Served["gateways"] {
		return nil
	}
	ours, errs := map[gatewayv1.ObjectName]bool{}, []error{}
	for _, c := range routing.Classes {
		if c.Spec.ControllerName == routes.ControllerName {
			ours[gatewayv1.ObjectName(c.Name)] = c.Spec.ParametersRef == nil
			errs = append(errs, r.writeClass(ctx, c))
		}
	}
	if !slices.ContainsFunc(routing.Classes, func(c *gatewayv1.GatewayClass) bool { return c.Name == v1alpha1.ClassWaypoint }) {
		errs = append(errs, r.createClass(ctx))
	}
	there := map[types.UID]bool{}
	for _, g := range routing.Gateways {
		if !ours[g.Spec.GatewayClassName] || ctx.Err() != nil {
			continue
		}
		there[g.UID] = true
		if g.DeletionTimestamp == nil {
			errs = append(errs, r.one(ctx, g, &routing))
		}
	}
	for uid := range r.applied {
		if !there[uid] {
			delete(r.applied, uid)
		}
	}
	return errors.Join(errs...)
}

// tellLost warns of services whose connections are refused.
func (r *Runner) tellLost(ctx context.Context, routing *cluster.Routing) error {
	lost := r.cfg.Lost()
	if len(lost) == 0 {
		return nil
	}
	for _, s := range routing.Services {
		waypoint, gone := lost[mesh.Key{Namespace: s.Namespace, Name: s.Name}]
		if !gone {
			continue
		}
		about := corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: s.Namespace, Name: s.Name, UID: s.UID}
		message := fmt.Sprintf("waypoint %s is not there any more, and connections are refused: make it again (`heddle waypoint apply -n %s --name %s`), or take away the label %s that names it, of the Service or its namespace",
			waypoint, waypoint.Namespace, waypoint.Name, v1alpha1.LabelWaypoint)
		if err := r.teller.Warn(ctx, about, EventGone, message); err != nil {
			return err
		}
	}
	return nil
}

// createClass makes the class, whose definition may have come after Heddle.
func (r *Runner) createClass(ctx context.Context) error {
	class := &gatewayv1.GatewayClass{TypeMeta: metav1.TypeMeta{APIVersion: gatewayv1.GroupVersion.String(), Kind: "GatewayClass"},
		ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.ClassWaypoint, Labels: map[string]string{"app.kubernetes.io/part-of": "heddle", "app.kubernetes.io/managed-by": say.FieldManager}},
		Spec:       gatewayv1.GatewayClassSpec{ControllerName: routes.ControllerName}}
	body, err := json.Marshal(class)
	if err != nil {
		return fmt.Errorf("encode GatewayClass: %w", err)
	}
	err = r.cfg.Gateway.Post().Resource("gatewayclasses").VersionedParams(&metav1.CreateOptions{FieldManager: say.FieldManager}, metav1.ParameterCodec).Body(body).Do(ctx).Error()
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create GatewayClass %s: %w", v1alpha1.ClassWaypoint, err)
	}
	return nil
}

// one runs the waypoint of one Gateway, and says how it is.
func (r *Runner) one(ctx context.Context, g *gatewayv1.Gateway, routing *cluster.Routing) error {
	set, fault := read(g)
	s := &state{fault: fault}
	var failed error
	if set.canary > 0 && r.cfg.Program.Canary == "" {
		s.note = NoCanary
	}
	if fault == nil {
		s.trouble, failed = r.bring(ctx, g, &set)
		s.ready = r.cfg.Ready(mesh.Key{Namespace: g.Namespace, Name: g.Name})
		i := slices.IndexFunc(routing.Services, func(svc *corev1.Service) bool { return svc.Namespace == g.Namespace && svc.Name == g.Name })
		if i >= 0 && routing.Services[i].Labels[labelGateway] == g.Name {
			s.addresses = routing.Services[i].Spec.ClusterIPs
		}
	}
	return errors.Join(failed, r.writeGateway(ctx, g, s))
}

// bring makes a waypoint's objects what they are to be, when that has changed, or was not
// looked at for long. The trouble is for people to end; the error passes by itself.
func (r *Runner) bring(ctx context.Context, g *gatewayv1.Gateway, s *settings) (trouble string, err error) {
	if r.cfg.Program.Image == "" {
		return NoImage, nil
	}
	roots := r.cfg.Roots()
	if roots == "" {
		return "the operator has no root certificate yet, by which waypoints know it", nil
	}
	digest, err := digestOf(objects(&r.cfg.Program, g, s, roots, 0))
	if err != nil {
		return "", err
	}
	last, known := r.applied[g.UID]
	if known && last.digest == digest && time.Since(last.at) < r.cfg.Again {
		return last.trouble, nil
	}
	trouble, err = r.applyAll(ctx, g, s, roots)
	if err != nil {
		return last.trouble, fmt.Errorf("waypoint %s/%s: %w", g.Namespace, g.Name, err)
	}
	if !known {
		r.cfg.Logger.Info("waypoint is run", "waypoint", g.Namespace+"/"+g.Name, "image", r.cfg.Program.Image, "trouble", trouble)
	}
	r.applied[g.UID] = applied{digest, time.Now(), trouble}
	return trouble, nil
}

func digestOf(all []object) ([sha256.Size]byte, error) {
	text, err := json.Marshal(func() (values []any) {
		for _, o := range all {
			values = append(values, o.value)
		}
		return values
	}())
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("encode waypoint: %w", err)
	}
	return sha256.Sum256(text), nil
}

// applyAll applies the objects, none of which may be somebody else's.
func (r *Runner) applyAll(ctx context.Context, g *gatewayv1.Gateway, s *settings, roots string) (trouble string, err error) {
	deployment, err := r.get(ctx, appsv1.SchemeGroupVersion.WithResource("deployments"), g.Namespace, g.Name)
	if err != nil {
		return "", err
	}
	all := objects(&r.cfg.Program, g, s, roots, replicasOf(deployment))
	if !r.cfg.Program.tries(s) {
		over, err := r.endCanary(ctx, g, &waypoint{&r.cfg.Program, g, s, roots})
		if err != nil {
			return "", err
		}
		all = append(all, over...)
	}
	for _, o := range all {
		u, err := o.apply()
		if err != nil {
			return "", err
		}
		if trouble, err := r.foreign(ctx, g, &o, u.GetName()); trouble != "" || err != nil {
			return trouble, err
		}
		if err := r.limit.Wait(ctx); err != nil {
			return "", nil // ctx has ended
		}
		_, err = r.cfg.Dynamic.Resource(o.resource).Namespace(g.Namespace).Apply(ctx, u.GetName(), u, metav1.ApplyOptions{FieldManager: say.FieldManager, Force: true})
		switch {
		case apierrors.IsForbidden(err) && strings.HasSuffix(strings.TrimSpace(err.Error()), "is forbidden:"):
			// It may be changed, and not be made: the API server does not say so.
			return "", fmt.Errorf("cannot create resource %q in API group %q: %w", o.resource.Resource, o.resource.Group, err)
		case apierrors.IsInvalid(err) || apierrors.IsForbidden(err) && !missesRight(err):
			return fmt.Sprintf("%s %s: the API server refuses it: %v", o.kind, u.GetName(), err), nil
		case err != nil:
			return "", fmt.Errorf("apply %s %s: %w", o.kind, u.GetName(), err)
		}
	}
	if !s.scales() {
		return "", r.endScaling(ctx, g)
	}
	return "", nil
}

// missesRight reports whether it is the operator that lacks a right; what a quota or an
// admission policy forbids is the namespace's own affair. Only authorization says that an
// account "cannot" do something.
func missesRight(err error) bool { return strings.Contains(err.Error(), " cannot ") }

// foreign says whose an object is that has a name that the waypoint needs; "" when it is
// free, or the waypoint's own.
func (r *Runner) foreign(ctx context.Context, g *gatewayv1.Gateway, o *object, name string) (string, error) {
	have, err := r.get(ctx, o.resource, g.Namespace, name)
	if err != nil || have == nil {
		return "", err
	}
	owner := metav1.GetControllerOf(have)
	switch {
	case metav1.IsControlledBy(have, g):
		return "", nil
	case owner != nil && owner.Kind == "Gateway" && owner.Name == g.Name:
		return fmt.Sprintf("%s %s is an earlier Gateway's of the same name, and about to go", o.kind, name), nil
	}
	return fmt.Sprintf("there is a %s %s that is not the waypoint's; rename it, or make a Gateway of another name", o.kind, name), nil
}

// endCanary returns the Deployment of a waypoint that tried an image, to be applied without replicas: the operator has no
// right to delete one.
func (r *Runner) endCanary(ctx context.Context, g *gatewayv1.Gateway, w *waypoint) ([]object, error) {
	have, err := r.get(ctx, appsv1.SchemeGroupVersion.WithResource("deployments"), g.Namespace, g.Name+canarySuffix)
	if err != nil || replicasOf(have) == 0 {
		return nil, err
	}
	if !metav1.IsControlledBy(have, g) {
		return nil, nil // somebody's own
	}
	return []object{w.canary(0)}, nil
}

// endScaling deletes the autoscaler of a waypoint that had one.
func (r *Runner) endScaling(ctx context.Context, g *gatewayv1.Gateway) error {
	have, err := r.get(ctx, autoscalers(), g.Namespace, g.Name)
	if err != nil || have == nil {
		return err
	}
	if !metav1.IsControlledBy(have, g) {
		return nil // somebody's own
	}
	err = r.cfg.Dynamic.Resource(autoscalers()).Namespace(g.Namespace).Delete(ctx, g.Name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete HorizontalPodAutoscaler %s: %w", g.Name, err)
	}
	return nil
}

// get returns an object; nil when there is none.
func (r *Runner) get(ctx context.Context, of schema.GroupVersionResource, namespace, name string) (*unstructured.Unstructured, error) {
	o, err := r.cfg.Dynamic.Resource(of).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get %s %s/%s: %w", of.Resource, namespace, name, err)
	}
	return o, nil
}

func replicasOf(deployment *unstructured.Unstructured) int32 {
	if deployment == nil {
		return 0
	}
	n, _, err := unstructured.NestedInt64(deployment.Object, "spec", "replicas")
	if err != nil {
		return 0
	}
	return int32(n)
}
