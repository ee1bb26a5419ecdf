// Package standalone feeds a waypoint from a folder of YAML, the same that heddle-operator
// reads, with the routes and ReferenceGrants in it: a waypoint without a cluster.
//
// It serves nothing, and asks nobody.
package standalone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/folderroutes"
	"github.com/heddle-mesh/heddle/internal/kube/routes"
	"github.com/heddle-mesh/heddle/internal/kube/watch"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/waypoint/snapshot"
	"github.com/heddle-mesh/heddle/waypoint/telemetry"
)

// Config says what is read, and where to.
type Config struct {
	Folder string
	// Debounce is how long the folder must be quiet before it is read, Relist how often
	// it is read without a sign of a change.
	Debounce, Relist time.Duration
	Store            *snapshot.Store
	// Reloads counts configurations by outcome; nil for nobody.
	Reloads *prometheus.CounterVec
	Log     *slog.Logger
}

// Feed reads a folder into a Store.
type Feed struct {
	cfg    Config
	digest string // of what was read last, good or not
	wrong  string // what was said of it
	good   routes.Good
}

// New returns a Feed that has read nothing.
func New(cfg Config) *Feed { return &Feed{cfg: cfg} }

// Load reads the folder once. The error has every problem, each with file, line, field and
// remedy; then what was good before goes on. What is as it was changes nothing. It is not to
// be called while Run runs.
func (f *Feed) Load() error {
	objs, err := kube.LoadDir(f.cfg.Folder)
	if err != nil {
		return err
	}
	if objs.Digest == f.digest {
		return nil
	}
	folderroutes.Relay(objs)
	compiled, err := kube.Compile(objs)
	if err != nil {
		return err
	}
	if service := f.cfg.Store.Load().Waypoint; !isDefined(objs, service) {
		return fmt.Errorf("there is no Service %s, which is to be this waypoint's; define it in %s, or correct the name", service, f.cfg.Folder)
	}
	view, err := compiled.View(objs.Digest[:16])
	if err != nil {
		return err
	}
	in, origins := folderroutes.Objects(objs)
	routed := routes.Compile(in, f.good)
	if err := f.cfg.Store.Set(objs.Digest[:16], view, routed.Routes); err != nil {
		return err
	}
	f.digest, f.good = objs.Digest, routed.Good
	f.tell(objs.Digest[:16], compiled, routed, origins)
	return nil
}

func isDefined(objs *kube.Objects, key mesh.Key) bool {
	for _, s := range objs.Services {
		if s.Value.Namespace == key.Namespace && s.Value.Name == key.Name {
			return true
		}
	}
	return false
}

// tell says what is in force but not as its author wants it. Origins are the files and lines of routes.
func (f *Feed) tell(revision string, compiled *kube.Compiled, routed *routes.Compiled, origins folderroutes.Origins) {
	for _, w := range compiled.Warnings {
		f.cfg.Log.Warn("configuration", "warning", w.Error())
	}
	for _, status := range routed.Statuses {
		for _, parent := range status.Parents {
			for _, c := range parent.Conditions {
				if wanted := c.Type != string(gatewayv1.RouteConditionPartiallyInvalid); (c.Status == "True") != wanted {
					f.cfg.Log.Warn("a route is not in force as it is written", "route", status.ID.String(), "file", origins[status.ID].String(),
						"condition", c.Type, "reason", c.Reason, "message", c.Message)
				}
			}
		}
	}
	f.cfg.Log.Info("configuration is in force", "revision", revision, "routes", len(routed.Routes))
}

// Run reads the folder whenever it may have changed, until ctx is done.
func (f *Feed) Run(ctx context.Context) error {
	w := &watch.Folder{Dir: f.cfg.Folder, Debounce: f.cfg.Debounce, Relist: f.cfg.Relist, Log: f.cfg.Log}
	err := w.Run(ctx, f.reload)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// reload keeps what was good, and says once what is wrong.
func (f *Feed) reload() {
	before := f.digest
	err := f.Load()
	switch {
	case err == nil && f.digest != before:
		f.count(telemetry.Taken)
		f.wrong = ""
	case err == nil:
		f.wrong = ""
	case err.Error() != f.wrong:
		f.wrong = err.Error()
		f.count(telemetry.Refused)
		f.cfg.Log.Error("the folder is refused, and what was good before goes on", "folder", f.cfg.Folder, "error", err)
	}
}

func (f *Feed) count(outcome string) {
	if f.cfg.Reloads != nil {
		f.cfg.Reloads.WithLabelValues(outcome).Inc()
	}
}
