package report

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/kube/problem"
	"github.com/heddle-mesh/heddle/operator/publish"
)

// maxAnswer bounds an answer, in bytes: it must fit into one message of gRPC's
// default size with everything else that an operator says.
const maxAnswer = 3 << 20

// Policies returns what was found of each policy at the last look; nothing before
// the first. Nobody may change it. It may be called from any goroutine.
func (r *Reporter) Policies() []*meshpb.OperatorPolicy {
	if policies := r.policies.Load(); policies != nil {
		return *policies
	}
	return nil
}

// Folder says what became of each policy of a folder, whose objects have no status.
type Folder struct {
	outcome func() publish.Outcome
	nodes   func() []Node
	mu      sync.Mutex
	heard   heard
}

// NewFolder returns the Folder of an operator: outcome is what is served and refused now,
// nodes what agents have acknowledged and reported. Both are called from any goroutine.
func NewFolder(outcome func() publish.Outcome, nodes func() []Node) *Folder {
	return &Folder{outcome: outcome, nodes: nodes, heard: heard{}}
}

// Run listens to the nodes until ctx ends, so that it is known when an agent was heard last,
// whenever somebody asks. It returns nil.
func (f *Folder) Run(ctx context.Context) error {
	every := time.NewTicker(grace / 12)
	defer every.Stop()
	for {
		f.listen(time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-every.C:
		}
	}
}

// listen returns the nodes as they are now, with those that are silent.
func (f *Folder) listen(now time.Time) []Node {
	f.mu.Lock()
	defer f.mu.Unlock()
	nodes := f.nodes()
	f.heard.listen(nodes, now)
	return nodes
}

// Policies returns what became of each policy. It may be called from any goroutine.
func (f *Folder) Policies() []*meshpb.OperatorPolicy {
	outcome := f.outcome()
	return ofFolder(&outcome, f.listen(time.Now()))
}

// ofFolder returns what became of each policy. What is refused has kept the folder from
// being served as it is now: an older version of the object may be live. A policy is live on
// a node when its agent has applied what is served, and is not silent.
func ofFolder(outcome *publish.Outcome, nodes []Node) []*meshpb.OperatorPolicy {
	objs := outcome.Objects
	if objs == nil {
		objs = &kube.Objects{} // what is served is known from before a restart
	}
	r := &Reporter{since: map[generation]uint64{}}
	served := *outcome
	served.Objects = objs
	policies := policiesOf(r.reports(&served, objs, nodes))
	known := map[kube.Ref]bool{}
	for _, p := range policies {
		known[kube.Ref{Kind: p.GetKind(), Namespace: p.GetNamespace(), Name: p.GetName()}] = true
	}
	for ref, problems := range problem.ByObject(outcome.Refused) {
		if isPolicy(ref.Kind) && !known[ref] {
			policies = append(policies, &meshpb.OperatorPolicy{Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name, Message: message(problems)})
		}
	}
	slices.SortFunc(policies, compare)
	return policies
}

// isPolicy leaves Workloads out, which are pods: agents tell of those.
func isPolicy(kind string) bool {
	return slices.Contains([]string{"Mesh", "PeerAuthentication", "AuthorizationPolicy", "NetworkPolicy"}, kind)
}

func compare(a, b *meshpb.OperatorPolicy) int {
	return cmp.Or(cmp.Compare(a.GetKind(), b.GetKind()), cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
}

// policiesOf is what reports say of policies, in their order.
func policiesOf(reports []objectReport) []*meshpb.OperatorPolicy {
	var all []*meshpb.OperatorPolicy
	for i := range reports {
		o := &reports[i]
		if !isPolicy(o.ref.Kind) {
			continue
		}
		p := &meshpb.OperatorPolicy{Kind: o.ref.Kind, Namespace: o.ref.Namespace, Name: o.ref.Name, Pending: o.pending}
		if c := meta.FindStatusCondition(o.want.Conditions, v1alpha1.ConditionAccepted); c != nil {
			p.Accepted, p.Message = c.Status == "True", c.Message
			if c.Message == inUse {
				p.Message = ""
			}
		}
		if o.want.Nodes != nil {
			p.Live, p.Nodes = uint32(o.want.Nodes.Live), uint32(o.want.Nodes.Wanted)
		}
		all = append(all, p)
	}
	return all
}

// Bounded returns as many policies as one answer has room for, in their order, and
// how many were left out: first those that are well.
func Bounded(policies []*meshpb.OperatorPolicy) (kept []*meshpb.OperatorPolicy, leftOut int) {
	room, keep := maxAnswer, map[*meshpb.OperatorPolicy]bool{}
	for _, well := range []bool{false, true} {
		for _, p := range policies {
			if size := proto.Size(p) + 4; (p.GetAccepted() && p.GetLive() == p.GetNodes()) == well && size <= room {
				room, keep[p] = room-size, true
			}
		}
	}
	for _, p := range policies {
		if keep[p] {
			kept = append(kept, p)
		}
	}
	return kept, len(policies) - len(kept)
}
