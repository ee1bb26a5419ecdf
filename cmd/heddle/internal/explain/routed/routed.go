// Package routed reads what a cluster's waypoints go by, and compiles the routes of a cluster or of a folder as the
// operator does. It knows nothing of which routes were good before: what cannot be served is left out.
//
// Its functions may be called from any goroutine.
package routed

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	access "github.com/heddle-mesh/heddle/cmd/heddle/internal/cluster"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/folders"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/folderroutes"
	"github.com/heddle-mesh/heddle/internal/kube/routes"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
	"github.com/heddle-mesh/heddle/operator/cluster"
)

// Objects are what routes are compiled from.
type Objects = routes.Objects

// Unfit is what an API server would refuse of objects.
type Unfit = folders.Refusals

// ReadFolder reads the objects of a folder, or of a file, or of in in place of "-".
func ReadFolder(in io.Reader, path string) (*kube.Objects, Unfit, error) {
	return folders.Named(in, path)
}

// Of compiles a cluster's routes, or without them those that a folder has.
func Of(folder *kube.Objects, in *Objects) []route.Route {
	if in == nil {
		in, _ = folderroutes.Objects(folder)
	}
	return routes.Compile(in, nil).Routes
}

// Relay notes in objects at which ports routes have connections passed on as they are.
func Relay(objects *kube.Objects, all []route.Route) { objects.Relayed = routes.Relayed(all) }

// readBound bounds how long a cluster's objects are read.
const readBound = time.Minute

// Connect reads the objects of the cluster that flags mean, and its routes. Policies may name UDP
// where that is wanted, or the cluster's operator takes such; doubt is said where it cannot be asked.
func Connect(ctx context.Context, flags access.Options, udp bool, doubt func(error)) (*kube.Objects, *Objects, error) {
	c, err := access.Connect(flags)
	if err != nil {
		return nil, nil, err
	}
	if _, err := c.Core.Discovery().ServerVersionWithContext(ctx); err != nil { // said at once, in place of after the bound
		return nil, nil, c.Explain("ask the cluster for its version", err)
	}
	ctx, cancel := context.WithTimeout(ctx, readBound)
	defer cancel()
	if !udp {
		if udp, err = c.TakesUDP(ctx); err != nil {
			doubt(err)
		}
	}
	objects, routing, err := ReadCluster(ctx, c.Config(), udp)
	if err == nil {
		objects.UDPByIdentity = udp
	}
	return objects, routing, err
}

// ReadCluster reads a cluster's objects, as the operator does, and its routes; with allSlices, all
// EndpointSlices, as one does whose policies may name UDP.
func ReadCluster(ctx context.Context, cfg *rest.Config, allSlices bool) (*kube.Objects, *Objects, error) {
	refused := &refusals{}
	cfg = refused.noted(cfg)
	cfg.Timeout = 0 // watches last
	source := cluster.NewSource(cfg, allSlices, slog.New(slog.DiscardHandler))
	running, cancel := context.WithCancel(ctx)
	var g errgroup.Group
	g.Go(func() error { return source.Run(running) })
	err := await(ctx, source.Synced, refused.err)
	cancel()
	if failed := g.Wait(); failed != nil {
		return nil, nil, fmt.Errorf("read the cluster: %w", failed)
	}
	if err != nil {
		return nil, nil, err
	}
	objects, _ := source.Objects()
	routing := source.Routing()
	return objects, &routing.Objects, nil
}

// await waits until synced is nil, or it is refused that it will be.
func await(ctx context.Context, synced, refused func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := synced()
		if err == nil {
			return nil
		}
		if never := refused(); never != nil {
			return never
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("read the cluster: %w: %w; remedy: this needs the rights list and watch of these, and an installation of Heddle", ctx.Err(), err)
		case <-tick.C:
		}
	}
}
