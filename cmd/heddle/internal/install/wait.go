package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
)

// waitHealthy waits for what runs.
func (c *Cluster) waitHealthy(ctx context.Context, r Request, objects []*unstructured.Unstructured) error {
	var running []*unstructured.Unstructured
	for _, o := range objects {
		if o.GetKind() == "Deployment" || o.GetKind() == "DaemonSet" {
			running = append(running, o)
		}
	}
	return c.waitFor(ctx, r, r.Wait, running)
}

// lastQuestion is how much longer than the wait a question may take. With less, the client's
// limit of requests refuses a question that could not be asked in time, and its error
// says nothing of what is waited for.
const lastQuestion = 5 * time.Second

// bounded returns the context of a wait, and that of its questions, which lasts longer.
func bounded(ctx context.Context, bound time.Duration) (wait, asking context.Context, cancel func()) {
	asking, stop := context.WithTimeout(ctx, bound+lastQuestion)
	wait, end := context.WithTimeout(asking, bound)
	return wait, asking, func() { end(); stop() }
}

// waitFor waits until every object is as its kind should be, and says what it
// waits for whenever that changes.
func (c *Cluster) waitFor(ctx context.Context, r Request, bound time.Duration, objects []*unstructured.Unstructured) error {
	ctx, asking, cancel := bounded(ctx, bound)
	defer cancel()
	tick := time.NewTicker(c.patient)
	defer tick.Stop()
	said := map[ref]string{}
	var missing []string // as it was last known
	for {
		var now []string
		for _, o := range objects {
			lack, err := c.lack(asking, o)
			if passing(err) {
				lack, err = "the API server does not answer: "+err.Error(), nil
			}
			if err != nil && ctx.Err() == nil {
				return err
			}
			if lack != "" {
				now = append(now, fmt.Sprintf("%s: %s", refOf(o), lack))
				if said[refOf(o)] != lack && ctx.Err() == nil {
					r.say("waiting for %s: %s", refOf(o), lack)
				}
			}
			said[refOf(o)] = lack
		}
		if ctx.Err() == nil { // or the last question had no answer
			missing = now
		}
		if len(missing) == 0 && ctx.Err() == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fmt.Errorf("not healthy after %s: %s; remedy: `heddle check --cluster` says what stands in the way; the same command goes on from here, --wait 5m waits longer",
				bound, strings.Join(missing, "; "))
		case <-tick.C:
		}
	}
}

// passing reports whether an error is of an API server that is busy, or away for a moment: who waits asks again.
func passing(err error) bool {
	return utilnet.IsTimeout(err) || utilnet.IsConnectionRefused(err) || utilnet.IsConnectionReset(err) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err) || apierrors.IsTooManyRequests(err) || apierrors.IsServiceUnavailable(err)
}

// lack says what an object lacks to be healthy; "" when nothing.
func (c *Cluster) lack(ctx context.Context, wanted *unstructured.Unstructured) (string, error) {
	o, err := c.get(ctx, wanted.GroupVersionKind(), wanted.GetNamespace(), wanted.GetName())
	if err != nil {
		return "", err
	}
	if o == nil {
		return "is gone", nil
	}
	missing := ""
	switch o.GetKind() {
	case "CustomResourceDefinition":
		if !health.Condition(o, "Established") {
			missing = "the API server has not established it"
		}
	case "Deployment":
		missing = health.LackOfDeployment(o)
	case "DaemonSet":
		missing = health.LackOfDaemonSet(o)
	}
	if missing == "" || o.GetKind() == "CustomResourceDefinition" {
		return missing, nil
	}
	why, err := c.stuckPods(ctx, o)
	if err != nil || why == "" {
		return missing, err
	}
	return missing + " (" + why + ")", nil
}

// stuckPods says why pods of a workload do not run.
func (c *Cluster) stuckPods(ctx context.Context, o *unstructured.Unstructured) (string, error) {
	match, _, err := unstructured.NestedStringMap(o.Object, "spec", "selector", "matchLabels")
	if err != nil {
		return "", fmt.Errorf("%s: selector: %w", refOf(o), err)
	}
	pods, err := c.list(ctx, core("Pod"), o.GetNamespace(), labels.SelectorFromSet(match).String())
	if err != nil {
		return "", err
	}
	var reasons []string
	for i := range pods {
		if reason := health.Stuck(&pods[i]); reason != "" && !slices.Contains(reasons, reason) {
			reasons = append(reasons, reason)
		}
	}
	slices.Sort(reasons)
	return strings.Join(reasons, ", "), nil
}
