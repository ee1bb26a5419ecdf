// Package taint takes the startup taint away from nodes whose agents are ready: pods that
// do not tolerate it then start where the node can protect them. It puts no taint on a
// node, and takes no other one away.
//
// # Rights
//
// patch on nodes, which Kubernetes cannot bind to taints: whoever has it may change every
// node's labels and spec. Nothing asks for it unless this package is used.
//
// Run blocks, and ends what it starts.
package taint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/operator/cluster"
)

const (
	// interval is the least time between two looks at the nodes.
	interval = 200 * time.Millisecond
	// DefaultAgain is the default of Config.Again.
	DefaultAgain = 5 * time.Second
)

// Config says where nodes are seen and changed.
type Config struct {
	// Tainted returns the nodes with the taint, as they were seen last.
	Tainted func() []cluster.Tainted
	// Changed returns a channel that is closed when that may be different.
	Changed func() <-chan struct{}
	Nodes   typedcorev1.NodesGetter
	// Again is when what could not be changed is tried again, whatever else happens;
	// 0 is DefaultAgain.
	Again  time.Duration
	Logger *slog.Logger
}

// Remover takes taints away. Its Run is for one goroutine.
type Remover struct {
	cfg Config
	// complaint is what was said of a node that could not be changed.
	complaint map[string]string
}

// New checks the configuration.
func New(cfg Config) (*Remover, error) {
	if cfg.Tainted == nil || cfg.Changed == nil || cfg.Nodes == nil || cfg.Logger == nil {
		return nil, errors.New("the startup taint needs nodes, a client and a logger")
	}
	if cfg.Again == 0 {
		cfg.Again = DefaultAgain
	}
	return &Remover{cfg: cfg, complaint: map[string]string{}}, nil
}

// Run takes taints away as agents become ready, until ctx ends.
func (r *Remover) Run(ctx context.Context) error {
	r.cfg.Logger.Info("operator takes startup taints away from nodes whose agents are ready", "taint", v1alpha1.TaintAgentNotReady)
	for {
		changed, timer := r.cfg.Changed(), time.NewTimer(interval)
		complete := r.pass(ctx)
		if !complete {
			timer.Reset(r.cfg.Again)
		}
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		if !complete {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// pass looks at each node once. It returns false when one could not be changed.
func (r *Remover) pass(ctx context.Context) bool {
	complete, seen := true, map[string]bool{}
	for _, node := range r.cfg.Tainted() {
		seen[node.Name] = true
		if !node.Ready || ctx.Err() != nil {
			continue
		}
		err := r.remove(ctx, &node)
		switch {
		case err == nil:
			r.cfg.Logger.Info("node takes pods: its agent is ready, and the startup taint is taken away", "node", node.Name, "taint", v1alpha1.TaintAgentNotReady)
			continue
		case ctx.Err() != nil || apierrors.IsNotFound(err):
			continue
		}
		complete = false
		// A node whose taints have changed meanwhile is seen again in a moment.
		if !apierrors.IsInvalid(err) && !apierrors.IsConflict(err) && r.complaint[node.Name] != err.Error() {
			r.complaint[node.Name] = err.Error()
			r.cfg.Logger.Warn("node's agent is ready, and the startup taint is not taken away: trying again", "node", node.Name, "error", err)
		}
	}
	for name := range r.complaint {
		if !seen[name] {
			delete(r.complaint, name)
		}
	}
	return complete
}

// operation is one of a JSON Patch (RFC 6902).
type operation struct {
	Op    string         `json:"op"`
	Path  string         `json:"path"`
	Value []corev1.Taint `json:"value,omitempty"`
}

// remove takes the taint away, with each of its effects, unless the node's taints are
// others by now than those that were seen.
func (r *Remover) remove(ctx context.Context, node *cluster.Tainted) error {
	const path = "/spec/taints"
	others := slices.DeleteFunc(slices.Clone(node.Taints), func(t corev1.Taint) bool { return t.Key == v1alpha1.TaintAgentNotReady })
	change := operation{Op: "replace", Path: path, Value: others}
	if len(others) == 0 {
		change = operation{Op: "remove", Path: path}
	}
	patch, err := json.Marshal([]operation{{Op: "test", Path: path, Value: node.Taints}, change})
	if err != nil {
		return fmt.Errorf("write patch of node %s: %w", node.Name, err)
	}
	_, err = r.cfg.Nodes.Nodes().Patch(ctx, node.Name, types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: "heddle-operator"})
	return err
}
