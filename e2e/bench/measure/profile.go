package measure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/e2e/bench/flame"
	"github.com/heddle-mesh/heddle/e2e/bench/world"
	"github.com/heddle-mesh/heddle/internal/admin"
)

// Profile is where one agent's CPU time went under one load.
type Profile struct {
	// Name is short enough for a file; Title says which agent and load it is.
	Name, Title string
	Root        *flame.Frame
}

// Profiles looks at both agents of a world of Heddle's, while requests,
// connections and bulk go through them.
func Profiles(ctx context.Context, w *world.World, s Sizes, scratch string) ([]Profile, error) {
	loads := []struct {
		name, title string
		run         func(context.Context, *world.World, Sizes) ([]Sample, error)
	}{
		{"requests", "requests on 32 connections", requests},
		{"connections", "a request per connection", connections},
		{"throughput", "eight bulk streams", bulk(8)},
	}
	ends := []struct{ node, name string }{{"n1", "client"}, {"n2", "server"}}
	var profiles []Profile
	for _, load := range loads {
		var group sync.WaitGroup
		roots, errs := make([]*flame.Frame, len(ends)), make([]error, len(ends)+1)
		group.Go(func() { _, errs[len(ends)] = load.run(ctx, w, Sizes{Duration: s.Duration + time.Second}) })
		for i, end := range ends {
			group.Go(func() {
				roots[i], errs[i] = look(ctx, w.AdminSocket(end.node), s.Duration, filepath.Join(scratch, load.name+end.node))
			})
		}
		group.Wait()
		if err := errors.Join(errs...); err != nil {
			return nil, fmt.Errorf("profile %s: %w", load.title, err)
		}
		for i, end := range ends {
			profiles = append(profiles, Profile{load.name + "-" + end.name, "agent of the " + end.name + "'s node, " + load.title, roots[i]})
		}
	}
	return profiles, nil
}

// look takes a profile by an agent's admin socket; Go's own tool reads it.
func look(ctx context.Context, socket string, d time.Duration, path string) (*flame.Frame, error) {
	client, err := admin.Dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	taken, err := client.Admin.Profile(ctx, &meshpb.ProfileRequest{DurationNs: int64(d)})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, taken.GetCpu(), 0o600); err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, "go", "tool", "pprof", "-traces", "-sample_index=cpu", path).Output()
	if err != nil {
		return nil, fmt.Errorf("read profile: %w", err)
	}
	return flame.Read(bytes.NewReader(out))
}
