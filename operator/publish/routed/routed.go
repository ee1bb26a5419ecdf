// Package routed compiles the routes that an operator serves: those of a cluster, when what
// they are made of changes, and those of a folder.
//
// It publishes nothing, and writes no statuses: who publishes, and who reports, take them
// from here. A Routing belongs to the goroutine that publishes.
package routed

import (
	"errors"
	"log/slog"

	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/folderroutes"
	"github.com/heddle-mesh/heddle/internal/kube/routes"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

// What routes are compiled from, and to; see package routes.
type (
	Objects  = routes.Objects
	Compiled = routes.Compiled
	Good     = routes.Good
)

// Source returns what routes are compiled from, read only, and a channel that is closed
// when that is different.
type Source func() (*Objects, <-chan struct{})

// Routing compiles the routes of a cluster. All of them are compiled when one changes, or a
// Service or a grant that one may refer to does: there are few such changes.
type Routing struct {
	source   Source // nil where there are no routes
	good     Good
	compiled *Compiled       // nil before the first
	changed  <-chan struct{} // what was compiled is not what there is any more
	told     *discovery.Routes
}

// New returns a Routing that has compiled nothing. Source may be nil; good are those that
// were last good before, nil when that is not known.
func New(source Source, good Good) *Routing { return &Routing{source: source, good: good} }

// Refresh compiles the routes if what they are made of is different.
func (r *Routing) Refresh(log *slog.Logger) {
	if r.source == nil {
		return
	}
	if r.compiled != nil {
		select {
		case <-r.changed:
		default:
			return
		}
	}
	var objs *Objects
	objs, r.changed = r.source()
	r.compiled = routes.Compile(objs, r.good)
	told, untold := discovery.NewRoutes(r.compiled.Routes)
	if len(untold) > 0 { // those are not good either: they are refused, and what was good before goes on
		without := *objs
		without.Untold = reasons(r.compiled.Routes, told, untold)
		r.compiled = routes.Compile(&without, r.good)
		told, untold = discovery.NewRoutes(r.compiled.Routes)
	}
	r.good = r.compiled.Good
	for _, why := range untold {
		log.Error("route is left out: it cannot be told to waypoints", "error", why)
	}
	if r.told == nil || !r.told.Equal(told) {
		r.told = told
	}
}

// reasons returns why some routes are not among those that are told. The errors are in the order
// of the routes.
func reasons(all []route.Route, told *discovery.Routes, untold []error) map[route.ID]string {
	is := map[route.ID]bool{}
	for _, r := range told.All() {
		is[r.ID] = true
	}
	why := map[route.ID]string{}
	for i := range all {
		if id := all[i].ID; !is[id] && len(untold) > 0 {
			why[id], untold = "cannot be told to waypoints: "+untold[0].Error(), untold[1:]
		}
	}
	return why
}

// Compiled returns what was compiled last; nil where there are no routes, or before the
// first Refresh.
func (r *Routing) Compiled() *Compiled { return r.compiled }

// Relayed are the ports at which connections are passed on as they are, see kube.Objects.
func (r *Routing) Relayed() map[mesh.Key][]uint16 {
	if r.compiled == nil {
		return nil
	}
	return routes.Relayed(r.compiled.Routes)
}

// Relay notes those of a folder in its objects, before they are compiled.
func Relay(objs *kube.Objects) { folderroutes.Relay(objs) }

// Changed returns a channel that is closed when a Refresh would compile; nil before the first.
func (r *Routing) Changed() <-chan struct{} { return r.changed }

// Told returns what waypoints are to be told: the same value for as long as it is as it was.
func (r *Routing) Told() *discovery.Routes { return r.told }

// Folder compiles the routes of a folder, and returns what waypoints are to be told. The
// error has every problem; also that a route cannot be told is one.
func Folder(objs *kube.Objects) (compiled *Compiled, told *discovery.Routes, warnings []*kube.Problem, err error) {
	compiled, warnings, err = folderroutes.Compile(objs)
	if err != nil {
		return nil, nil, nil, err
	}
	told, untold := discovery.NewRoutes(compiled.Routes)
	return compiled, told, warnings, errors.Join(untold...)
}
