package network

import (
	"fmt"
	"math"
	"testing"
	"time"

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

// TestManyPods: pods behind a waypoint that are alike are looked at once, so that what a namespace
// takes grows as its pods do, not as their square.
func TestManyPods(t *testing.T) {
	const services, most = 10, 60
	one := alikeOnes(services, 1).hopsTake(t)
	many := alikeOnes(services, most).hopsTake(t)
	t.Logf("%v for a pod of each of %d kinds, %v for %d", one, services, many, most)
	if many > 6*most*one {
		t.Errorf("%d pods of a kind take %v, one of each %v", most, many, one)
	}
}

// alikeOnes are services behind a waypoint, with some pods of each, and a policy of both directions.
func alikeOnes(services, pods int) *Objects {
	o := &Objects{Namespaces: []corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"heddle.dev/waypoint": "waypoint"}}}}}
	for i := range services {
		app := map[string]string{"app": fmt.Sprint("a", i)}
		o.Services = append(o.Services, corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprint("s", i)}, Spec: corev1.ServiceSpec{Selector: app, Ports: []corev1.ServicePort{{Port: 80}}}})
		for n := range pods {
			o.Enrolled = append(o.Enrolled, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprint("p", i, "-", n), Labels: app}})
		}
	}
	last := []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprint("a", services-1)}}}}
	p := networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}}
	p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: last}}
	p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: last}}
	o.Policies = append(o.Policies, p)
	return o
}

// hopsTake is the least time of three that Hops takes.
func (o *Objects) hopsTake(t *testing.T) time.Duration {
	t.Helper()
	least := time.Duration(math.MaxInt64)
	for range 3 {
		start := time.Now()
		if len(o.Hops()) == 0 {
			t.Fatal("nothing is found")
		}
		least = min(least, time.Since(start))
	}
	return least
}
