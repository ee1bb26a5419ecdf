package wire

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Judge decides about connections to a node's workloads: by a View, and for a workload's
// former waypoint also by what was so until a moment ago. Its methods are safe for
// concurrent use.
type Judge struct {
	store  *mesh.Store
	node   string
	onNode OnNode
	grace  time.Duration
	// lent stands for the View that allows what none does any more.
	lent *mesh.View

	mu   sync.Mutex
	view *mesh.View         // guarded by mu; the last that was followed
	sent map[mesh.Sent]bool // guarded by mu; what it says
	// former are those of which earlier ones said so, until when that counts; guarded by mu.
	former map[mesh.Sent]time.Time
	next   time.Time // the earliest of them, zero for none; guarded by mu
}

// NewJudge returns the Judge of a node, by whom former waypoints are let in for grace.
func NewJudge(store *mesh.Store, node string, onNode OnNode, grace time.Duration) *Judge {
	return &Judge{store: store, node: node, onNode: onNode, grace: grace, lent: &mesh.View{}, former: map[mesh.Sent]time.Time{}}
}

// Follow notes what the Store's View says of waypoints, and what it says no more. What it
// returns is sent to when that counts no longer of one of them; nil while there is none.
// Call it whenever the View is replaced.
func (j *Judge) Follow() <-chan time.Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	if next := j.follow(); !next.IsZero() {
		return time.After(time.Until(next))
	}
	return nil
}

// follow returns when the first of former is over, the zero time for never; mu is held, so
// that no View is followed after a later one.
func (j *Judge) follow() (next time.Time) {
	view, now := j.store.View(), time.Now()
	if view == j.view && (j.next.IsZero() || now.Before(j.next)) {
		return j.next
	}
	if view != j.view {
		for was := range j.sent {
			j.former[was] = now.Add(j.grace)
		}
		j.view, j.sent = view, view.Sent(j.node)
	}
	for was, until := range j.former {
		switch {
		case j.sent[was], !now.Before(until):
			delete(j.former, was)
		case next.IsZero() || until.Before(next):
			next = until
		}
	}
	j.next = next
	return next
}

// wasSent reports whether a client was the waypoint of a workload's service until a moment ago.
func (j *Judge) wasSent(c *mesh.Connection) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.follow()
	_, ok := j.former[mesh.Sent{To: c.Destination.Key, Client: c.Peer, Port: c.Port}]
	return ok
}

// Authorize is View.Authorize for a connection that may come from the node, or from a
// workload's former waypoint. By is what allows it: the View, or for a former waypoint none
// that there is, so that it is judged again whenever somebody asks. Such a one is let in
// where it would have to be named by an ALLOW policy, and what policies say of requests is not
// asked again, as it has judged them: what a DENY policy, a NetworkPolicy or the deny-list
// refuses is refused.
func (j *Judge) Authorize(view *mesh.View, c mesh.Connection) (_ mesh.Permit, _ mesh.Decision, by *mesh.View) {
	permit, decision := Authorize(view, c, j.onNode)
	if !closed(decision.Reason) || c.Peer.IsZero() || !j.wasSent(&c) {
		return permit, decision, view
	}
	c.Former = true
	permit, decision = view.Authorize(c)
	return permit, decision, j.lent
}

// closed reports whether a waypoint would be let in where others are refused for a reason.
func closed(r mesh.Reason) bool {
	return r == mesh.ReasonPolicyNoMatch || r == mesh.ReasonRequestUnseen
}

// Early reports whether a decision to refuse a connection may be that of a View which does
// not know of a waypoint yet.
func Early(view *mesh.View, c *mesh.Connection, no mesh.Decision) bool {
	return (closed(no.Reason) || no.Reason == mesh.ReasonPolicyDeny) && view.MaySendOn(c.Destination, c.Peer, c.Source)
}

// Again asks whether the answer by a View is one too early, and again by each View that
// comes while it is, until limit or the end of ctx.
func Again(ctx context.Context, store *mesh.Store, limit time.Duration, early func(*mesh.View) bool) {
	over := time.NewTimer(limit)
	defer over.Stop()
	for {
		view, replaced := store.Snapshot()
		if !early(view) {
			return
		}
		select {
		case <-replaced:
		case <-over.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// NotThere reports whether a peer has answered that it is not asked for what is its own, as
// who is a service's waypoint no more does.
func NotThere(err error) bool {
	var status *hbone.StatusError
	return errors.As(err, &status) && status.Code == http.StatusBadRequest
}
