package cluster

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/operator/clustertest"
	"github.com/heddle-mesh/heddle/operator/publish"
)

// Whatever an API server says, in whichever order, what is served is in the end what
// compiling everything that the mirror has gives.
func TestWhatIsServedIsAllThatWasSaid(t *testing.T) {
	const pods, rounds = 60, 40
	source := NewSource((&clustertest.Server{}).Config(), false, slog.New(slog.DiscardHandler))
	fillWith(t, source, pods, pods/2)
	server, err := discovery.NewServer(discovery.ServerConfig{Authenticate: nobody, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	c := publish.NewCluster(publish.ClusterConfig{Source: source, TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Key: testKey(),
		Store: mesh.NewStore(), Server: server, Logger: slog.New(slog.DiscardHandler), Quiet: time.Millisecond, Limit: time.Millisecond})
	defer following(t, c)()
	random := rand.New(rand.NewPCG(1, 2))
	for round := range rounds {
		for i := range 1 + random.IntN(5) {
			if err := say(source, random, round*100+i+1000, random.IntN(pods)); err != nil {
				t.Fatal(err)
			}
		}
		objs, _ := source.Objects()
		compiled, err := kube.CompileEach(objs)
		if err != nil {
			t.Fatal(err)
		}
		want := snapshotOf(t, compiled).View().Revision()
		testenv.Eventually(t, 20*time.Second, fmt.Sprintf("round %d is served", round), func() bool {
			now, _ := c.Outcome()
			return now.Snapshot != nil && now.Snapshot.View().Revision() == want && len(now.Refused) == len(compiled.Refused) && len(now.Warnings) == len(compiled.Warnings)
		})
	}
}

// TestUDPOfACluster: policies about UDP are in force where the operator was told so, and
// refused, with the reason, where it was not.
func TestUDPOfACluster(t *testing.T) {
	for _, on := range []bool{false, true} {
		source := NewSource((&clustertest.Server{}).Config(), false, slog.New(slog.DiscardHandler))
		fillWith(t, source, 4, 2)
		udp, about := v1alpha1.ProtocolUDP, policy(1, 1000)
		about.Name, about.ResourceVersion, about.Spec = "quic", "1001", v1alpha1.AuthorizationPolicySpec{Rules: []v1alpha1.Rule{{To: []v1alpha1.Destination{{Protocol: &udp, Ports: []v1alpha1.Port{443}}}}}}
		server, err := discovery.NewServer(discovery.ServerConfig{Authenticate: nobody, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		c := publish.NewCluster(publish.ClusterConfig{Source: source, TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Key: testKey(), UDPByIdentity: on,
			Store: mesh.NewStore(), Server: server, Logger: slog.New(slog.DiscardHandler), Quiet: time.Millisecond, Limit: time.Millisecond})
		stop := following(t, c)
		testenv.Eventually(t, 20*time.Second, "something is served", func() bool { now, _ := c.Outcome(); return now.Snapshot != nil })
		if err := source.table("authorizationpolicies").Update(about); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, 20*time.Second, fmt.Sprintf("with the flag %v, the policy is refused or in force", on), func() bool {
			now, _ := c.Outcome()
			refused := len(now.Refused) == 1 && now.Refused[0].Ref.Name == "quic"
			return refused == !on && (len(now.Snapshot.View().Receivers()) > 0) == on
		})
		stop()
	}
}

// say changes something about the objects of a number.
func say(source *Source, random *rand.Rand, version, i int) error {
	p := pod(i)
	p.ResourceVersion = fmt.Sprint(version)
	switch random.IntN(9) {
	case 0:
		return source.table("pods").Delete(p)
	case 1, 2, 3:
		p.Status.Conditions[0].Status = corev1.ConditionFalse
		return source.table("pods").Update(p)
	case 4:
		p.Labels["app"] = fmt.Sprintf("app-%d", i/2)
		return source.table("pods").Update(p)
	case 5:
		return source.table("authorizationpolicies").Update(policy(i, version))
	case 6:
		return source.table("authorizationpolicies").Delete(policy(i, version))
	case 7:
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: "another", ResourceVersion: p.ResourceVersion},
			Spec: corev1.ServiceSpec{Selector: map[string]string{"version": "v1"}, ClusterIP: "None", Ports: []corev1.ServicePort{{Port: int32(80 + i)}}}}
		return source.table("services").Update(s)
	default: // the watch was lost: everything is listed anew
		return source.table("nodes").Replace([]any{&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: p.Spec.NodeName, Labels: map[string]string{corev1.LabelTopologyZone: string("abc"[random.IntN(3)])}}}}, p.ResourceVersion)
	}
}

// TestAReplacedNodeIsNotReady: the agent's pod of a node that is gone says nothing of the
// node that has taken its name.
func TestAReplacedNodeIsNotReady(t *testing.T) {
	source := NewSource((&clustertest.Server{}).Config(), false, slog.New(slog.DiscardHandler))
	put := func(resource string, object any) {
		t.Helper()
		if err := source.table(resource).Update(object); err != nil {
			t.Fatal(err)
		}
	}
	at := func(seconds int64) metav1.Time { return metav1.Unix(1e9+seconds, 0) }
	agent := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "heddle-system", Name: "agent", CreationTimestamp: at(0)}, Spec: corev1.PodSpec{NodeName: "n1", ServiceAccountName: "heddle-agent"}}
	for i, c := range []struct {
		node, since int64
		status      corev1.ConditionStatus
		ready       bool
	}{{0, 0, corev1.ConditionTrue, true}, {0, 9, corev1.ConditionTrue, true}, {10, 9, corev1.ConditionTrue, false}, {10, 12, corev1.ConditionFalse, false}, {10, 14, corev1.ConditionTrue, true}} {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", ResourceVersion: fmt.Sprint(2*i + 1), CreationTimestamp: at(c.node)}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: v1alpha1.TaintAgentNotReady, Effect: corev1.TaintEffectNoSchedule}}}}
		p := agent.DeepCopy()
		p.ResourceVersion = fmt.Sprint(2*i + 2)
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: c.status, LastTransitionTime: at(c.since)}}
		put("nodes", n)
		put("pods", p)
		if all := source.Tainted("heddle-system", "heddle-agent"); len(all) != 1 || all[0].Ready != c.ready {
			t.Errorf("a node of %d, and an agent that is ready %s since %d: %+v", c.node, c.status, c.since, all)
		}
	}
}
