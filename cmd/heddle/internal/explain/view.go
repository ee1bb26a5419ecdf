package explain

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/operator/cluster"
)

// FromFolder compiles a folder, as the operator does.
func FromFolder(folder string) (*mesh.View, error) {
	objects, err := kube.LoadDir(folder)
	if err != nil {
		return nil, err
	}
	compiled, err := kube.Compile(objects)
	if err != nil {
		return nil, err
	}
	return compiled.View("explain")
}

// FromCluster reads and compiles a cluster's objects, as the operator does.
func FromCluster(ctx context.Context, cfg *rest.Config) (*mesh.View, error) {
	cfg.Timeout = 0 // watches last
	source := cluster.NewSource(cfg, slog.New(slog.DiscardHandler))
	running, cancel := context.WithCancel(ctx)
	var g errgroup.Group
	g.Go(func() error { return source.Run(running) })
	err := await(ctx, source.Synced)
	cancel()
	if failed := g.Wait(); failed != nil {
		return nil, fmt.Errorf("read the cluster: %w", failed)
	}
	if err != nil {
		return nil, err
	}
	objects, _ := source.Objects()
	compiled, err := kube.CompileEach(objects)
	if err != nil {
		return nil, err
	}
	return compiled.View("explain")
}

// await waits until synced is nil.
func await(ctx context.Context, synced func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := synced()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("read the cluster: %w: %w; remedy: this needs the rights list and watch of these, and an installation of Heddle", ctx.Err(), err)
		case <-tick.C:
		}
	}
}
