package measure

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/heddle-mesh/heddle/e2e/bench/world"
)

// farDelay is of each direction: 50 ms there and back.
const farDelay = 25 * time.Millisecond

// farAway measures throughput between nodes that are far apart, on a way that
// loses nothing and on one that loses a hundredth.
func farAway(ctx context.Context, w *world.World, s Sizes) (samples []Sample, err error) {
	far, err := w.MoveApart(ctx, farDelay)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, far.Close(), w.RestartProxies(ctx)) }()
	var failed error
	for _, percent := range []int{0, 1} {
		if err := far.Lose(float64(percent) / 100); err != nil {
			return samples, err
		}
		for _, streams := range []int{1, 100} {
			metric := fmt.Sprintf("wan%d_%d", percent, streams)
			// The first two seconds, in which windows open, do not count.
			r, err := iperf(ctx, w, world.Client(0), streams, s.Duration, "-O", "2")
			if err != nil {
				samples, failed = append(samples, Sample{Metric: metric, Errors: 1}), errors.Join(failed, fmt.Errorf("%s: %w", metric, err))
				continue
			}
			samples = append(samples, Sample{metric, r.End.Received.BitsPerSecond / 1e6, 0})
		}
	}
	return samples, failed
}
