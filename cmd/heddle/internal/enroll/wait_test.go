package enroll

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/cluster"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// clusterOf has three nodes, of which the agents' DaemonSet leaves out one, and a pod
// on each.
func clusterOf(t *testing.T) *cluster.Cluster {
	t.Helper()
	set := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "heddle-agent", Labels: map[string]string{"app.kubernetes.io/part-of": "heddle", "app.kubernetes.io/component": "agent"}}}
	set.Spec.Template.Spec.NodeSelector = map[string]string{"mesh": "yes"}
	core := fake.NewClientset(set)
	for node, label := range map[string]string{"n1": "yes", "n2": "yes", "n3": "no"} {
		for _, object := range []runtime.Object{
			&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node, Labels: map[string]string{"mesh": label}}},
			&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "on-" + node}, Spec: corev1.PodSpec{NodeName: node}},
		} {
			if err := core.Tracker().Add(object); err != nil {
				t.Fatal(err)
			}
		}
	}
	return &cluster.Cluster{Core: core}
}

func answer(node string, err error, pods ...*meshpb.PodStatus) reach.Answer[*meshpb.AgentStatus] {
	a := reach.Answer[*meshpb.AgentStatus]{Err: err, Value: &meshpb.AgentStatus{Pods: pods}}
	a.Target.Node = node
	return a
}

func TestWhoWasNotAskedHasNotFollowed(t *testing.T) {
	agents := func(context.Context, []string) ([]reach.Answer[*meshpb.AgentStatus], error) {
		return []reach.Answer[*meshpb.AgentStatus]{answer("n1", nil)}, nil // n2's is away
	}
	for in, want := range map[bool]string{
		false: "on-n1 outside true, on-n2 unknown false, on-n3 outside true",
		true:  "on-n1 outside false, on-n2 unknown false, on-n3 outside false",
	} {
		pods, err := look(t.Context(), clusterOf(t), agents, "shop", in)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range pods {
			got = append(got, fmt.Sprintf("%s %s %v", p.Name, p.State, p.Done))
			if says := map[string]string{"on-n2": "remedy", "on-n3": "to have no agent"}[p.Name]; !strings.Contains(p.Error, says) {
				t.Errorf("%s: %q does not say %q", p.Name, p.Error, says)
			}
		}
		if text := strings.Join(got, ", "); text != want {
			t.Errorf("in %v: %s, want %s", in, text, want)
		}
	}
}

func TestAnAgentThatDoesNotAnswerHasNotSaidSo(t *testing.T) {
	agents := func(context.Context, []string) ([]reach.Answer[*meshpb.AgentStatus], error) {
		return []reach.Answer[*meshpb.AgentStatus]{answer("n1", errors.New("no answer")), answer("n2", nil, &meshpb.PodStatus{Workload: "shop/on-n2", State: "unenrolling"})}, nil
	}
	pods, err := look(t.Context(), clusterOf(t), agents, "shop", false)
	if err != nil || len(pods) != 3 || pods[0].Done || pods[0].State != "unknown" || pods[1].Done || pods[1].State != "unenrolling" {
		t.Errorf("%+v, %v", pods, err)
	}
}

func TestAgentsThatCannotBeListed(t *testing.T) {
	gone := errors.New("the API server is away")
	agents := func(context.Context, []string) ([]reach.Answer[*meshpb.AgentStatus], error) { return nil, gone }
	var log strings.Builder
	pods, err := wait(t.Context(), clusterOf(t), agents, &Request{Namespace: "shop", Wait: time.Minute, Progress: &log}, false)
	if !errors.Is(err, gone) || len(pods) > 0 || log.Len() > 0 {
		t.Errorf("%v, %v, said %q", pods, err, &log)
	}
}
