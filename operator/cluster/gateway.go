package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/internal/kube/routes"
	"github.com/heddle-mesh/heddle/internal/kube/trim"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Routing is what requests are routed by, and who asks for waypoints. The objects are
// shared: read only. Their metadata is trimmed; it has resource versions.
type Routing struct {
	routes.Objects
	Classes  []*gatewayv1.GatewayClass
	Gateways []*gatewayv1.Gateway
	// Served has the resources of the Gateway API that the API server has.
	Served map[string]bool
	// Seen changes with every change, of statuses as well.
	Seen uint64
}

// RoutingChanged returns a channel that is closed when what Routing returns is different,
// but for statuses. Take it before Routing.
func (s *Source) RoutingChanged() <-chan struct{} {
	s.mirror.Lock()
	defer s.mirror.Unlock()
	return s.mirror.rerouted
}

// Routing returns all that is known at this moment.
func (s *Source) Routing() Routing {
	s.mirror.Lock()
	defer s.mirror.Unlock()
	out := Routing{Served: map[string]bool{}, Seen: s.mirror.seen}
	for _, t := range s.tables {
		if !t.resource.routes {
			continue
		}
		out.Served[t.resource.name] = t.served
		for _, row := range t.rows {
			switch object := row.(type) {
			case *corev1.Service:
				out.Services = append(out.Services, object)
			case *gatewayv1.HTTPRoute:
				out.HTTPRoutes = append(out.HTTPRoutes, object)
			case *gatewayv1.GRPCRoute:
				out.GRPCRoutes = append(out.GRPCRoutes, object)
			case *gatewayv1.TLSRoute:
				out.TLSRoutes = append(out.TLSRoutes, object)
			case *gatewayv1.TCPRoute:
				out.TCPRoutes = append(out.TCPRoutes, object)
			case *gatewayv1.ReferenceGrant:
				out.Grants = append(out.Grants, object)
			case *gatewayv1.GatewayClass:
				out.Classes = append(out.Classes, object)
			case *gatewayv1.Gateway:
				out.Gateways = append(out.Gateways, object)
			}
		}
	}
	return out
}

// written is what changes whenever somebody writes an object's spec, and with an object of the same name: of kinds whose
// labels and annotations nobody reads. The generation alone does not say it: what an API server has told by a definition that is
// no more lacks the fields that came with the next one, and has their object's generation.
func written(object metav1.Object, spec any) any {
	return [3]any{spec, object.GetGeneration(), object.GetUID()}
}

// olderGateway is the group's version in which ReferenceGrants are where they are not in v1.
var olderGateway = schema.GroupVersion{Group: gatewayv1.GroupName, Version: "v1beta1"}

// gatewayResources are the Gateway API's, which a cluster may not have, or get at any time.
func gatewayResources() []resource {
	of := func(r resource) resource {
		r.group, r.routes, r.apart, r.optional = schema.GroupVersion(gatewayv1.GroupVersion), true, true, true
		return r
	}
	return []resource{
		of(resource{
			name: "gatewayclasses", example: &gatewayv1.GatewayClass{},
			trim: whole(func(_ *trim.Trimmer, c *gatewayv1.GatewayClass) *gatewayv1.GatewayClass {
				return &gatewayv1.GatewayClass{ObjectMeta: trimVersioned(&c.ObjectMeta), Spec: c.Spec, Status: c.Status}
			}),
			same: equal(func(r *gatewayv1.GatewayClass) any { return written(r, r.Spec) }),
		}),
		of(resource{
			name: "gateways", example: &gatewayv1.Gateway{},
			trim: whole(func(_ *trim.Trimmer, g *gatewayv1.Gateway) *gatewayv1.Gateway {
				out := &gatewayv1.Gateway{ObjectMeta: trimVersioned(&g.ObjectMeta), Spec: g.Spec, Status: g.Status}
				out.Annotations = g.Annotations
				return out
			}),
			same: equal(func(g *gatewayv1.Gateway) any {
				return [4]any{written(g, g.Spec), g.Labels, g.Annotations, g.DeletionTimestamp}
			}),
		}),
		of(resource{
			name: "httproutes", example: &gatewayv1.HTTPRoute{},
			trim: whole(func(_ *trim.Trimmer, r *gatewayv1.HTTPRoute) *gatewayv1.HTTPRoute {
				return &gatewayv1.HTTPRoute{ObjectMeta: trimVersioned(&r.ObjectMeta), Spec: r.Spec, Status: r.Status}
			}),
			same: equal(func(r *gatewayv1.HTTPRoute) any { return written(r, r.Spec) }),
		}),
		of(resource{
			name: "grpcroutes", example: &gatewayv1.GRPCRoute{},
			trim: whole(func(_ *trim.Trimmer, r *gatewayv1.GRPCRoute) *gatewayv1.GRPCRoute {
				return &gatewayv1.GRPCRoute{ObjectMeta: trimVersioned(&r.ObjectMeta), Spec: r.Spec, Status: r.Status}
			}),
			same: equal(func(r *gatewayv1.GRPCRoute) any { return written(r, r.Spec) }),
		}),
		of(resource{
			name: "tlsroutes", example: &gatewayv1.TLSRoute{},
			trim: whole(func(_ *trim.Trimmer, r *gatewayv1.TLSRoute) *gatewayv1.TLSRoute {
				return &gatewayv1.TLSRoute{ObjectMeta: trimVersioned(&r.ObjectMeta), Spec: r.Spec, Status: r.Status}
			}),
			same: equal(func(r *gatewayv1.TLSRoute) any { return written(r, r.Spec) }),
		}),
		of(resource{
			name: "tcproutes", example: &gatewayv1.TCPRoute{},
			trim: whole(func(_ *trim.Trimmer, r *gatewayv1.TCPRoute) *gatewayv1.TCPRoute {
				return &gatewayv1.TCPRoute{ObjectMeta: trimVersioned(&r.ObjectMeta), Spec: r.Spec, Status: r.Status}
			}),
			same: equal(func(r *gatewayv1.TCPRoute) any { return written(r, r.Spec) }),
		}),
		of(resource{
			name: "referencegrants", example: &gatewayv1.ReferenceGrant{}, older: olderGateway,
			trim: whole(func(_ *trim.Trimmer, g *gatewayv1.ReferenceGrant) *gatewayv1.ReferenceGrant {
				return &gatewayv1.ReferenceGrant{ObjectMeta: trimVersioned(&g.ObjectMeta), Spec: g.Spec}
			}),
			same: equal(func(g *gatewayv1.ReferenceGrant) any { return [2]any{g.Spec, g.UID} }),
		}),
	}
}

// trimVersioned keeps, of objects whose statuses are written by several, what says that it
// is the present one that is changed.
func trimVersioned(m *metav1.ObjectMeta) metav1.ObjectMeta {
	out := trimMeta(m)
	out.ResourceVersion, out.DeletionTimestamp = m.ResourceVersion, m.DeletionTimestamp
	return out
}

// How often an API server is asked which of the optional resources it has: while one is
// missing, and while none is.
const (
	lookForMissing = 2 * time.Second
	lookForGone    = 30 * time.Second
	// lookTimeout bounds each question.
	lookTimeout = 10 * time.Second
)

// followed is an optional resource that is being mirrored.
type followed struct {
	group schema.GroupVersion
	// stop ends it, and returns when it has ended.
	stop func()
}

// followServed mirrors those tables' resources that the API server has, from when it has
// them and for as long as it does, until ctx ends.
func (s *Source) followServed(ctx context.Context, scheme *runtime.Scheme, tables []*table, klogger *logr.Logger) error {
	client, err := restClient(s.cfg, scheme, schema.GroupVersion(gatewayv1.GroupVersion))
	if err != nil {
		return err
	}
	running := map[*table]followed{}
	defer func() {
		for _, f := range running {
			f.stop()
		}
	}()
	var said string
	for {
		wait := lookForMissing
		served, err := servedResources(ctx, client, tables)
		switch {
		case err == nil:
			said = ""
			if err := s.followThese(ctx, scheme, tables, served, running, klogger); err != nil {
				return err
			}
			if len(running) == len(tables) {
				wait = lookForGone
			}
		case ctx.Err() == nil && err.Error() != said:
			said = err.Error()
			s.log.Warn("not known whether the cluster has the Gateway API: asking again", "error", err, "retry", wait)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// followThese starts and stops mirroring, so that it is of what is served.
func (s *Source) followThese(ctx context.Context, scheme *runtime.Scheme, tables []*table, served map[string]schema.GroupVersion, running map[*table]followed, klogger *logr.Logger) error {
	for _, t := range tables {
		group, has := served[t.resource.name]
		f, runs := running[t]
		if runs && (!has || f.group != group) {
			f.stop()
			delete(running, t)
			s.log.Info("resource of the Gateway API is no longer served", "resource", t.resource.name, "version", f.group.Version)
			runs = false
		}
		switch {
		case !has:
			t.absent()
		case !runs:
			reflector, err := s.reflector(scheme, t, group, klogger)
			if err != nil {
				return err
			}
			one, cancel := context.WithCancel(ctx)
			var g errgroup.Group
			g.Go(func() error { reflector.RunWithContext(one); return nil })
			running[t] = followed{group, func() { cancel(); _ = g.Wait() }} // it returns no error
			s.log.Info("resource of the Gateway API is watched", "resource", t.resource.name, "version", group.Version)
		}
	}
	return nil
}

// absent notes that the API server has no such resource.
func (t *table) absent() {
	t.source.mirror.Lock()
	defer t.source.mirror.Unlock()
	if t.synced && !t.served && len(t.rows) == 0 {
		return
	}
	t.served = false
	t.replaceLocked(map[mesh.Key]any{}, "")
}

// servedResources returns in which version each of the tables' resources is served. It takes
// no right of its own: Kubernetes tells every account what it serves.
func servedResources(ctx context.Context, client rest.Interface, tables []*table) (map[string]schema.GroupVersion, error) {
	served := map[string]schema.GroupVersion{}
	look := func(group schema.GroupVersion, wanted func(resource string) bool) error {
		ctx, cancel := context.WithTimeout(ctx, lookTimeout)
		defer cancel()
		text, err := client.Get().AbsPath("/apis/" + group.String()).Do(ctx).Raw()
		if apierrors.IsNotFound(err) {
			return nil
		}
		var list metav1.APIResourceList
		if err == nil {
			err = json.Unmarshal(text, &list)
		}
		if err != nil {
			return fmt.Errorf("ask for the resources of %s: %w", group, err)
		}
		for _, r := range list.APIResources {
			if wanted(r.Name) {
				served[r.Name] = group
			}
		}
		return nil
	}
	if err := look(schema.GroupVersion(gatewayv1.GroupVersion), func(string) bool { return true }); err != nil {
		return nil, err
	}
	older := func(resource string) bool {
		_, has := served[resource]
		return !has && slices.ContainsFunc(tables, func(t *table) bool { return t.resource.name == resource && t.resource.older == olderGateway })
	}
	if len(served) > 0 && slices.ContainsFunc(tables, func(t *table) bool { return older(t.resource.name) }) {
		return served, look(olderGateway, older)
	}
	return served, nil
}
