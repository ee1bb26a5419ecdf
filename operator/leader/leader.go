// Package leader sees to it that of several replicas one does what only one may
// do. Everything else, streaming and signing above all, every replica does at any
// time: without a leader, or without an API server, nothing of that stops.
//
// # Rights
//
// In the operator's own namespace: create on leases of coordination.k8s.io, and
// get and update on the one named LeaseName.
//
// Run blocks, and ends what it starts.
package leader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcoordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

// LeaseName is the name of the Lease.
const LeaseName = "heddle-operator"

// How long a leader that is gone is waited for, how long one that cannot renew
// goes on, and how often it tries: those of Kubernetes' own components.
const (
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
	// Patience is what a request of Config.Client may take: with more, one that an
	// API server never answers would be all that is tried before the deadline.
	Patience = renewDeadline / 2
)

// Config says who takes part.
type Config struct {
	// Client's requests take Patience at most.
	Client    typedcoordinationv1.LeasesGetter
	Namespace string
	// Replica is the name of this one, unlike any other's.
	Replica string
	// Lead does what only one may do, until its context ends.
	Lead   func(context.Context) error
	Logger *slog.Logger
}

// Election is one replica's part in it.
type Election struct {
	cfg     Config
	leading atomic.Bool
}

// New checks the configuration. It starts nothing.
func New(cfg Config) (*Election, error) {
	if cfg.Client == nil || cfg.Namespace == "" || cfg.Replica == "" || cfg.Lead == nil || cfg.Logger == nil {
		return nil, errors.New("leader election needs a client, a namespace, the replica's name, something to do, and a logger")
	}
	return &Election{cfg: cfg}, nil
}

// Leading reports whether this replica leads.
func (e *Election) Leading() bool { return e.leading.Load() }

// Run takes part until ctx ends, and then gives leadership back, so that another
// need not wait. It returns Lead's error.
func (e *Election) Run(ctx context.Context) error {
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(e.cfg.Logger.Handler()))
	for ctx.Err() == nil {
		if err := e.term(ctx); err != nil {
			return err
		}
	}
	return nil
}

// term is one try to lead, and the time of leading.
func (e *Election) term(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var led struct {
		sync.WaitGroup
		err error
	}
	led.Add(1)
	var once sync.Once // OnStoppedLeading is called without having led, too
	lock := &resourcelock.LeaseLock{LeaseMeta: metav1.ObjectMeta{Namespace: e.cfg.Namespace, Name: LeaseName}, Client: e.cfg.Client,
		LockConfig: resourcelock.ResourceLockConfig{Identity: e.cfg.Replica}}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod, ReleaseOnCancel: true, Name: LeaseName,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				once.Do(func() {
					defer led.Done()
					e.leading.Store(true)
					defer e.leading.Store(false)
					e.cfg.Logger.Info("leading", "replica", e.cfg.Replica)
					if led.err = e.cfg.Lead(ctx); led.err != nil {
						cancel()
					}
				})
			},
			OnStoppedLeading: func() {
				once.Do(led.Done)
				e.cfg.Logger.Info("not leading", "replica", e.cfg.Replica)
			},
		},
	})
	if err != nil {
		return fmt.Errorf("take part in leader election: %w", err)
	}
	elector.Run(ctx)
	led.Wait()
	return led.err
}
