package network

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestAlikeDepartures: of the pods that the same policies isolate one is looked at, however
// many there are; those of other namespaces, or of further policies, are others.
func TestAlikeDepartures(t *testing.T) {
	o := &Objects{}
	for i := range 60 {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprint("ns-", i%3), Name: fmt.Sprint("p-", i), Labels: map[string]string{"app": fmt.Sprint("a", i%6)}}}
		o.Enrolled = append(o.Enrolled, pod)
	}
	policy := func(namespace, name string, labels map[string]string) {
		p := networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
		p.Spec.PodSelector.MatchLabels, p.Spec.PolicyTypes = labels, []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
		o.Policies = append(o.Policies, p)
	}
	policy("ns-0", "all", nil)
	policy("ns-1", "all", nil)
	policy("ns-1", "some", map[string]string{"app": "a4"})
	way := &waypoint{Key: mesh.Key{Namespace: "ns-2", Name: "w"}, selector: map[string]string{"app": "a5"}, pods: o.Enrolled[5:6]}
	d := o.departures(way)
	var got []string
	for _, client := range d.clients {
		got = append(got, fmt.Sprint(client.pod.Namespace, " ", len(client.isolating)))
	}
	if fmt.Sprint(got) != "[ns-0 1 ns-1 1 ns-1 2]" || len(d.free) != 10 || len(d.pods) != 1 || len(d.pods[0].isolating) != 0 {
		t.Errorf("got %q, %d that are free, the waypoint's %+v", got, len(d.free), d.pods)
	}
}
