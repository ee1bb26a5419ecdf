package report

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/problem"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/operator/publish"
	"github.com/heddle-mesh/heddle/operator/report/enforcers"
)

// fieldManager owns what is applied.
const fieldManager = "heddle-operator"

// inUse is said of what is accepted.
const inUse = "in use"

// Bounds of a message.
const (
	maxProblems = 5
	maxNamed    = 5
	maxMessage  = 4096 // bytes
)

// objectReport is what is to be said of one object.
type objectReport struct {
	ref kube.Ref
	// resource is "" for a kind that is not Heddle's, whose status is not either.
	resource string
	uid      string
	number   int64
	// by is the program that has changed it last; zero when that is not known.
	by metav1.ManagedFieldsEntry
	// have is the present status, want the one to be.
	have, want v1alpha1.MeshStatus
	// pending are the nodes that have not applied it, or not to every pod.
	pending []string
}

func (o *objectReport) generation() generation { return generation{o.ref, o.uid, o.number} }

// subject is an object of one of Heddle's kinds, or a NetworkPolicy.
type subject struct {
	ref      kube.Ref
	resource string
	meta     *metav1.ObjectMeta
	status   *v1alpha1.Status
	// federation is the present one of a Mesh; nil of others.
	federation *[]v1alpha1.FederationStatus
	// nodes returns those that enforce the object.
	nodes func(*mesh.View) map[string]bool
	// waypoints returns those that do, too; nil for none.
	waypoints func(*mesh.View) map[mesh.Key]bool
}

// enforcers are the names of the nodes that enforce an object, and of the pods of waypoints:
// of a waypoint that has none connected its own.
func (s *subject) enforcers(v *mesh.View, connected map[string]Node) map[string]bool {
	names := s.nodes(v)
	if s.waypoints == nil {
		return names
	}
	for waypoint := range s.waypoints(v) {
		before, own := len(names), waypoint.String()
		for name := range connected {
			if strings.HasPrefix(name, own+"/") {
				names[name] = true
			}
		}
		if len(names) == before {
			names[own] = true
		}
	}
	return names
}

// subjects lists the objects, sorted, so that what the limit leaves for later is
// not always the same.
func subjects(objs *kube.Objects) []subject {
	var all []subject
	for _, m := range objs.Meshes {
		all = append(all, subject{kube.Ref{Kind: "Mesh", Name: m.Value.Name}, "meshes", &m.Value.ObjectMeta, &m.Value.Status.Status, &m.Value.Status.Federation, enforcers.All, nil})
	}
	for _, w := range objs.Workloads {
		key := mesh.Key{Namespace: w.Value.Namespace, Name: w.Value.Name}
		all = append(all, subject{refOf("Workload", &w.Value.ObjectMeta), "workloads", &w.Value.ObjectMeta, &w.Value.Status, nil,
			func(v *mesh.View) map[string]bool { return enforcers.OfWorkload(v, key) }, nil})
	}
	for _, p := range objs.PeerAuthentications {
		all = append(all, subject{refOf("PeerAuthentication", &p.Value.ObjectMeta), "peerauthentications", &p.Value.ObjectMeta, &p.Value.Status, nil,
			selecting(p.Value.Namespace, p.Value.Spec.Selector), nil})
	}
	for _, p := range objs.AuthorizationPolicies {
		all = append(all, subject{refOf("AuthorizationPolicy", &p.Value.ObjectMeta), "authorizationpolicies", &p.Value.ObjectMeta, &p.Value.Status, nil,
			selecting(p.Value.Namespace, p.Value.Spec.Selector),
			func(v *mesh.View) map[mesh.Key]bool {
				return enforcers.Waypoints(v, mesh.Key{Namespace: p.Value.Namespace, Name: p.Value.Name})
			}})
	}
	for _, p := range objs.NetworkPolicies {
		all = append(all, subject{refOf("NetworkPolicy", &p.Value.ObjectMeta), "", &p.Value.ObjectMeta, &v1alpha1.Status{}, nil,
			func(v *mesh.View) map[string]bool { return enforcers.Isolating(v, p.Value.Namespace, p.Value.Name) }, nil})
	}
	slices.SortFunc(all, func(a, b subject) int {
		return cmp.Or(cmp.Compare(a.ref.Kind, b.ref.Kind), cmp.Compare(a.ref.Namespace, b.ref.Namespace), cmp.Compare(a.ref.Name, b.ref.Name))
	})
	return all
}

// selecting returns which nodes have workloads that a selector picks.
func selecting(namespace string, by *v1alpha1.Selector) func(*mesh.View) map[string]bool {
	var labels map[string]string
	if by != nil {
		labels = by.Labels()
	}
	return func(v *mesh.View) map[string]bool { return enforcers.Selected(v, namespace, labels) }
}

func refOf(kind string, m *metav1.ObjectMeta) kube.Ref {
	return kube.Ref{Kind: kind, Namespace: m.Namespace, Name: m.Name}
}

// seldom is how often a status says that a bundle was refreshed: it is, every minute or so.
const seldom = 10 * time.Minute

// settled is what a Mesh's status is to say of other trust domains, without a moment that is
// hardly another than the one that it has, and without an error that differs in a port only.
func settled(want, have []v1alpha1.FederationStatus) []v1alpha1.FederationStatus {
	for i := range want {
		for _, h := range have {
			if h.TrustDomain == want[i].TrustDomain && withoutDigits(h.Error) == withoutDigits(want[i].Error) {
				want[i].Error = h.Error
			}
			if h.TrustDomain == want[i].TrustDomain && h.LastRefreshed != nil && want[i].LastRefreshed != nil && want[i].LastRefreshed.Sub(h.LastRefreshed.Time).Abs() < seldom {
				want[i].LastRefreshed = h.LastRefreshed
			}
		}
	}
	return want
}

func withoutDigits(text string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, text)
}

// reports says what there is to say. Objects that are newer than what was
// compiled wait for the next time.
func (r *Reporter) reports(outcome *publish.Outcome, objs *kube.Objects, acknowledged []Node) []objectReport {
	compiled := map[generation]bool{}
	for _, s := range subjects(outcome.Objects) {
		compiled[generation{s.ref, string(s.meta.UID), s.meta.Generation}] = true
	}
	refused, warnings := problem.ByObject(outcome.Refused), problem.ByObject(outcome.Warnings)
	if outcome.Err != nil {
		refused = problem.ByObject(kube.Problems(outcome.Err))
	}
	nodes := map[string]Node{}
	for _, n := range acknowledged {
		nodes[n.Name] = n
	}
	var all []objectReport
	for _, s := range subjects(objs) {
		o := objectReport{ref: s.ref, resource: s.resource, uid: string(s.meta.UID), number: s.meta.Generation, have: v1alpha1.MeshStatus{Status: *s.status}}
		if !compiled[o.generation()] || outcome.Err != nil && len(refused[s.ref]) == 0 {
			continue
		}
		if len(s.meta.ManagedFields) > 0 {
			o.by = s.meta.ManagedFields[0]
		}
		o.want.ObservedGeneration = s.meta.Generation
		if s.federation != nil && r.cfg.Federation != nil { // a folder has no status
			o.have.Federation, o.want.Federation = *s.federation, settled(r.cfg.Federation(), *s.federation)
		}
		conditions := []metav1.Condition{accepted(refused[s.ref], warnings[s.ref])}
		if outcome.Snapshot != nil && outcome.Err == nil {
			view := outcome.Snapshot.View()
			wanted := s.enforcers(view, nodes)
			if s.waypoints != nil { // it may be about UDP
				maps.Copy(wanted, r.senders.Of(view, mesh.Key{Namespace: s.ref.Namespace, Name: s.ref.Name}))
			}
			live, count := r.live(&o, wanted, nodes, outcome)
			if o.want.Nodes = &count; live.Status == metav1.ConditionTrue && len(refused[s.ref]) > 0 {
				live.Message += ", but not as it says: " + standIn(s.ref.Kind)
			}
			conditions = append(conditions, live)
		}
		o.want.Conditions = withTimes(conditions, s.status.Conditions, s.meta.Generation)
		all = append(all, o)
	}
	return all
}

func accepted(refused, warnings []*kube.Problem) metav1.Condition {
	if len(refused) == 0 {
		c := metav1.Condition{Type: v1alpha1.ConditionAccepted, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonAccepted, Message: inUse}
		if len(warnings) > 0 {
			c.Message = inUse + ", but: " + message(warnings)
		}
		return c
	}
	c := metav1.Condition{Type: v1alpha1.ConditionAccepted, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonInvalid, Message: message(refused)}
	if refused[0].Reason == problem.Conflict {
		c.Reason = v1alpha1.ReasonConflict
	}
	return c
}

// standIn says what is in force where an object is live that is refused.
func standIn(kind string) string {
	if kind == "PeerAuthentication" {
		return "what is in force in place of what is refused is STRICT"
	}
	return "what is in force in place of what is refused lets nobody in"
}

// message says field, fault and remedy of each problem, up to a bound.
func message(problems []*kube.Problem) string {
	var parts []string
	for _, p := range problems[:min(len(problems), maxProblems)] {
		parts = append(parts, sentence(p))
	}
	if more := len(problems) - maxProblems; more > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", more))
	}
	text := strings.Join(parts, ". ")
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "") + "..."
	}
	return text
}

func sentence(p *kube.Problem) string {
	alone := *p
	alone.Origin, alone.Object = kube.Origin{}, ""
	return alone.Error()
}

// ofWaypoint reports whether a name of enforcers is a waypoint's, or of a pod of one: a node's has no slash.
func ofWaypoint(name string) bool { return strings.Contains(name, "/") }

// live says on which of the nodes and pods of waypoints that need an object its generation is
// applied: to every pod of a node, as agents do not say which are amiss.
func (r *Reporter) live(o *objectReport, wanted map[string]bool, nodes map[string]Node, outcome *publish.Outcome) (metav1.Condition, v1alpha1.NodeCount) {
	since, known := r.since[o.generation()]
	if !known {
		since = outcome.Snapshot.Epoch()
		r.since[o.generation()] = since
	}
	revision := outcome.Snapshot.View().Revision()
	var missing, why []string
	places := fmt.Sprintf("%d nodes", len(wanted))
	names := slices.Sorted(maps.Keys(wanted))
	if slices.ContainsFunc(names, ofWaypoint) {
		places += " and pods of waypoints"
	}
	for _, name := range names {
		n, ok := nodes[name]
		said := name
		if ofWaypoint(name) {
			said = "waypoint pod " + name
		}
		switch {
		case !ok && strings.Count(name, "/") == 1:
			missing, why = append(missing, name), append(why, fmt.Sprintf("waypoint %s (none of its pods is connected)", name))
		case !ok || n.Revision != revision && (n.Epoch == 0 || n.Epoch < since):
			missing, why = append(missing, name), append(why, said)
		case n.silent:
			missing, why = append(missing, name), append(why, name+" ("+unheard(&n)+")")
		case n.Amiss > 0:
			missing, why = append(missing, name), append(why, fmt.Sprintf("%s (%d of its pods not as they should be: `heddle check` there says why)", name, n.Amiss))
		}
	}
	count := v1alpha1.NodeCount{Live: int32(len(wanted) - len(missing)), Wanted: int32(len(wanted))}
	count.Summary = fmt.Sprintf("%d/%d", count.Live, count.Wanted)
	o.pending = missing[:min(len(missing), maxNamed)]
	c := metav1.Condition{Type: v1alpha1.ConditionLive, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonLive,
		Message: "on all of " + places}
	switch {
	case len(wanted) == 0:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, v1alpha1.ReasonNotNeeded, "no node has an enrolled workload that it is about"
	case len(missing) > 0:
		c.Status, c.Reason = metav1.ConditionFalse, v1alpha1.ReasonPending
		c.Message = fmt.Sprintf("on %d of %s; not on %s", count.Live, places, strings.Join(why[:len(o.pending)], ", "))
		if more := len(missing) - maxNamed; more > 0 {
			c.Message += fmt.Sprintf(" and %d more", more)
		}
	}
	return c, count
}

// withTimes gives conditions the time since when they have their status, and those the
// generation that do not say of which they are.
func withTimes(want, have []metav1.Condition, generation int64) []metav1.Condition {
	for i := range want {
		c := &want[i]
		c.ObservedGeneration, c.LastTransitionTime = cmp.Or(c.ObservedGeneration, generation), metav1.Now().Rfc3339Copy()
		for _, h := range have {
			if h.Type == c.Type && h.Status == c.Status && !h.LastTransitionTime.IsZero() {
				c.LastTransitionTime = h.LastTransitionTime
			}
		}
	}
	return want
}

// writeStatus applies a status that differs from the present one, if it is ours.
func (r *Reporter) writeStatus(ctx context.Context, o *objectReport) error {
	if o.resource == "" || equality.Semantic.DeepEqual(o.have, o.want) {
		return nil
	}
	if err := r.limit.Wait(ctx); err != nil {
		return nil // ctx has ended
	}
	metadata := map[string]string{"name": o.ref.Name}
	if o.ref.Namespace != "" {
		metadata["namespace"] = o.ref.Namespace
	}
	body, err := json.Marshal(map[string]any{"apiVersion": v1alpha1.GroupVersion().String(), "kind": o.ref.Kind, "metadata": metadata, "status": o.want})
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	force := true
	err = r.cfg.Heddle.Patch(types.ApplyPatchType).NamespaceIfScoped(o.ref.Namespace, o.ref.Namespace != "").Resource(o.resource).Name(o.ref.Name).
		SubResource("status").VersionedParams(&metav1.PatchOptions{FieldManager: fieldManager, Force: &force}, metav1.ParameterCodec).Body(body).Do(ctx).Error()
	if apierrors.IsNotFound(err) {
		return nil // deleted meanwhile
	}
	return err
}
