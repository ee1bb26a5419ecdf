package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/client-go/dynamic"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/kube/routes"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/operator/cluster"
	"github.com/heddle-mesh/heddle/operator/gated"
	"github.com/heddle-mesh/heddle/operator/publish"
	"github.com/heddle-mesh/heddle/operator/routing"
	"github.com/heddle-mesh/heddle/operator/waypoints"
)

// routeSource is what routes are compiled from.
func (p *clusterParts) routeSource() (*routes.Objects, <-chan struct{}) {
	changed := p.source.RoutingChanged()
	routing := p.source.Routing()
	return &routing.Objects, changed
}

// recalled is what was in force before the start.
type recalled struct {
	good    routes.Good
	through map[mesh.Key]mesh.Key // waypoints, by service
	gates   gated.Prints
}

// recall tries until it is known which routes were good before, which waypoints were in
// force, and who was behind a gate: a restart must not forget what is bad, or down, by now.
func (p *clusterParts) recall(ctx context.Context) (before recalled, err error) {
	p.kept = routing.NewStore(p.core, p.cfg.Kubernetes.Namespace, p.cfg.Logger)
	for delay := time.Second; ; delay = min(2*delay, 30*time.Second) {
		if before.good, err = p.kept.Load(ctx); err == nil {
			before.through, err = p.kept.LoadThrough(ctx)
		}
		if err == nil && p.cfg.UDPByIdentity {
			before.gates, err = gated.NewStore(p.core, p.cfg.Kubernetes.Namespace, p.cfg.Logger).Load(ctx)
		}
		if err == nil {
			return before, nil
		}
		p.notReady(err)
		p.cfg.Logger.Error("not known what was in force before: trying again", "error", err, "retry", delay)
		select {
		case <-ctx.Done():
			return before, err
		case <-time.After(delay):
		}
	}
}

// writeRoutes says on routes what became of them, and keeps those that are good.
func (p *clusterParts) writeRoutes(ctx context.Context) error {
	gateway, err := cluster.GatewayClient(p.rest)
	if err != nil {
		return err
	}
	compiled := func() (*routes.Compiled, <-chan struct{}) {
		now, changed := p.publisher.Outcome()
		return now.Routes, changed
	}
	writer, err := routing.NewWriter(routing.WriterConfig{Routing: p.source.Routing, Compiled: compiled, Save: p.kept.Save, Gateway: gateway, Events: p.core, Logger: p.cfg.Logger})
	if err != nil {
		return err
	}
	return writer.Run(ctx)
}

// keepThrough keeps which waypoints are in force.
func (p *clusterParts) keepThrough(ctx context.Context) error {
	var kept *discovery.Snapshot
	for ctx.Err() == nil {
		now, changed := p.publisher.Outcome()
		if now.Snapshot != nil && now.Snapshot != kept {
			kept = now.Snapshot
			if err := p.kept.SaveThrough(ctx, publish.Through(kept.View())); err != nil && ctx.Err() == nil {
				p.cfg.Logger.Warn("not kept which waypoints are in force: trying again", "error", err)
				kept, changed = nil, nil
			}
		}
		select { // no more often than that
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-time.After(5 * time.Second):
		}
	}
	return nil
}

// runWaypoints runs the waypoints that Gateways ask for.
func (p *clusterParts) runWaypoints(ctx context.Context) error {
	gateway, err := cluster.GatewayClient(p.rest)
	all, failed := dynamic.NewForConfig(p.rest)
	if err := errors.Join(err, failed); err != nil {
		return fmt.Errorf("connect to the API server: %w", err)
	}
	runner, err := waypoints.New(waypoints.Config{Program: p.cfg.Kubernetes.Waypoints, Routing: p.source.Routing, Ready: func(key mesh.Key) int { return waypoints.ReadyIn(p.view(), key) }, Lost: func() map[mesh.Key]mesh.Key { return waypoints.LostIn(p.view()) },
		Roots:   func() string { return string(identity.CertificatesText(p.authority.Roots())) },
		Dynamic: all, Gateway: gateway, Events: p.core, Logger: p.cfg.Logger})
	if err != nil {
		return err
	}
	return runner.Run(ctx)
}

// meant reports whether anybody wants a Service to be a waypoint. One is in the view when it
// is in force, which it is only once it is ready: what labels say counts before.
func (p *clusterParts) meant(view *mesh.View, key mesh.Key) bool {
	routing := p.source.Routing()
	for _, g := range routing.Gateways {
		if g.Namespace == key.Namespace && g.Name == key.Name && slices.ContainsFunc(routing.Classes, func(c *gatewayv1.GatewayClass) bool {
			return c.Name == string(g.Spec.GatewayClassName) && c.Spec.ControllerName == routes.ControllerName
		}) {
			return true
		}
	}
	if slices.ContainsFunc(view.Services(), func(s *mesh.Service) bool { return s.Waypoint == key }) {
		return true
	}
	objects, _ := p.source.Objects()
	names := func(namespace string, labels map[string]string) bool {
		return namespace == key.Namespace && labels[v1alpha1.LabelWaypoint] == key.Name
	}
	for i := range objects.Namespaces {
		if ns := objects.Namespaces[i].Value; names(ns.Name, ns.Labels) {
			return true
		}
	}
	for i := range objects.Services {
		if svc := objects.Services[i].Value; names(svc.Namespace, svc.Labels) {
			return true
		}
	}
	return false
}

// view is what agents are told, or nil.
func (p *clusterParts) view() *mesh.View {
	now, _ := p.publisher.Outcome()
	return viewOf(now.Snapshot)
}
