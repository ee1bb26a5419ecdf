package report

import (
	"log/slog"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/operator/publish"
)

// recorded is what the record says of an object that is there.
type recorded struct {
	generation generation
	// began is when this generation was first looked at; zero when that was another leader.
	began    time.Time
	accepted bool
	// live is set once it was live on all nodes that need it.
	live bool
}

// audit records what has changed since the last look: each generation of an object with
// who changed it and what became of it, when it is first live on all nodes that need
// it, and when the object is gone. A Reporter that begins takes up what another has recorded,
// as statuses say; what is recorded as its leader ends may be recorded twice, and not less than once.
func (r *Reporter) audit(reports []objectReport, objs *kube.Objects, outcome *publish.Outcome) {
	begins := r.recorded == nil
	if begins {
		r.recorded = map[kube.Ref]*recorded{}
	}
	reported := make(map[kube.Ref]bool, len(reports))
	for i := range reports {
		o := &reports[i]
		reported[o.ref] = true
		if begins {
			r.takeUp(o)
		}
		r.record(o, outcome)
	}
	r.recordGone(reported, objs)
}

// takeUp knows what the leader before has recorded, by the status, if it is of this
// generation. Of what has no status everything is taken for granted.
func (r *Reporter) takeUp(o *objectReport) {
	switch {
	case o.resource == "":
		r.recorded[o.ref] = &recorded{generation: o.generation(), accepted: is(o.want.Conditions, v1alpha1.ConditionAccepted), live: true}
	case o.have.ObservedGeneration == o.number && len(o.have.Conditions) > 0:
		r.recorded[o.ref] = &recorded{generation: o.generation(), accepted: is(o.have.Conditions, v1alpha1.ConditionAccepted), live: is(o.have.Conditions, v1alpha1.ConditionLive)}
	}
}

func (r *Reporter) record(o *objectReport, outcome *publish.Outcome) {
	accepted := meta.FindStatusCondition(o.want.Conditions, v1alpha1.ConditionAccepted)
	now := is(o.want.Conditions, v1alpha1.ConditionAccepted)
	last, same := r.recorded[o.ref], false
	if last != nil {
		same = last.generation == o.generation()
	}
	log := r.about(o.generation())
	if outcome.Snapshot != nil {
		log = log.With("epoch", outcome.Snapshot.Epoch(), "revision", outcome.Snapshot.View().Revision())
	}
	switch {
	case !same:
		last = &recorded{generation: o.generation(), began: time.Now(), accepted: now}
		r.recorded[o.ref] = last
		log.Info("audit: object has changed", "by", o.by.Manager, "operation", o.by.Operation, "at", o.by.Time, "accepted", now, "verdict", accepted.Message)
	case last.accepted != now:
		last.accepted = now
		log.Info("audit: object is judged anew", "accepted", now, "verdict", accepted.Message)
	}
	if !last.live && now && is(o.want.Conditions, v1alpha1.ConditionLive) {
		last.live = true
		if !last.began.IsZero() {
			log = log.With("after", time.Since(last.began).Round(time.Millisecond))
		}
		log.Info("audit: object is live", "nodes", o.want.Nodes.Wanted)
	}
}

// recordGone records what is no more. What is only not compiled yet is there.
func (r *Reporter) recordGone(reported map[kube.Ref]bool, objs *kube.Objects) {
	var there map[kube.Ref]bool
	for ref, last := range r.recorded {
		if reported[ref] {
			continue
		}
		if there == nil {
			there = map[kube.Ref]bool{}
			for _, s := range subjects(objs) {
				there[s.ref] = true
			}
		}
		if !there[ref] {
			delete(r.recorded, ref)
			r.about(last.generation).Info("audit: object is gone")
		}
	}
}

func (r *Reporter) about(g generation) *slog.Logger {
	return r.cfg.Logger.With("kind", g.ref.Kind, "namespace", g.ref.Namespace, "name", g.ref.Name, "uid", g.uid, "generation", g.number)
}

func is(conditions []metav1.Condition, kind string) bool {
	return meta.IsStatusConditionTrue(conditions, kind)
}
