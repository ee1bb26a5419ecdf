package trim

import (
	"net/netip"
	"reflect"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func get(port intstr.IntOrString) *corev1.Probe {
	return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: port}}}
}

func TestPod(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	named := []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}, {Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP}, {ContainerPort: 9999}}
	got := New().Pod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-1", UID: "u", Labels: map[string]string{"app": "web"}, CreationTimestamp: metav1.NewTime(time.Unix(7, 0)),
			DeletionTimestamp: &metav1.Time{}},
		Spec: corev1.PodSpec{NodeName: "n1", InitContainers: []corev1.Container{
			{Name: "setup", ReadinessProbe: get(intstr.FromInt32(1))},
			{Name: "sidecar", RestartPolicy: &always, StartupProbe: get(intstr.FromInt32(7070))},
		}, Containers: []corev1.Container{{
			Name: "main", Ports: named, LivenessProbe: get(intstr.FromString("http")), ReadinessProbe: get(intstr.FromInt32(8080)),
			StartupProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 6060}}},
		}, {
			Name: "other", LivenessProbe: get(intstr.FromString("http")), // of another container: there is no such port here
			ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(70000)}}},
		}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	})
	want := &kube.Pod{Namespace: "shop", Name: "web-1", UID: "u", Node: "n1", ServiceAccount: "default", Labels: map[string]string{"app": "web"},
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}, ProbePorts: []uint16{6060, 7070, 8080},
		Ports: []kube.NamedPort{{Name: "http", Port: 8080}}, Created: 7, Ready: true, Terminating: true}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	for _, phase := range []corev1.PodPhase{corev1.PodSucceeded, corev1.PodFailed} {
		if p := New().Pod(&corev1.Pod{Status: corev1.PodStatus{Phase: phase, PodIP: "10.0.0.9"}}); !p.Finished || len(p.Addresses) != 1 {
			t.Errorf("%s: %+v", phase, p)
		}
	}
}

func TestWhatIsEqualIsKeptOnce(t *testing.T) {
	trimmer := New()
	pod := func(name string) *kube.Pod {
		return trimmer.Pod(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: string([]byte("shop")), Name: name, Labels: map[string]string{"app": "web", "tier": "front"}}})
	}
	a, b := pod("a"), pod("b")
	if unsafe.StringData(a.Namespace) != unsafe.StringData(b.Namespace) {
		t.Error("two copies of a namespace's name")
	}
	if reflect.ValueOf(a.Labels).Pointer() != reflect.ValueOf(b.Labels).Pointer() {
		t.Error("two copies of a label set")
	}
	for i := range 2*maxKept + 2 {
		trimmer.text(string(rune(i)))
	}
	if len(trimmer.texts) > maxKept {
		t.Errorf("%d texts are kept", len(trimmer.texts))
	}
}

func TestEndpointSlice(t *testing.T) {
	port, no, name := int32(6443), false, "https"
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}, {Name: &name}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.1"}}, {Addresses: []string{"192.0.2.2"}, Conditions: discoveryv1.EndpointConditions{Ready: &no}}}}
	got := New().EndpointSlice(slice)
	if got == nil || got.Service != "kubernetes" || len(got.Ready) != 1 || len(got.Ports) != 1 || got.Ports[0] != (kube.NamedPort{Name: "https", Port: 6443}) {
		t.Errorf("%+v", got)
	}
	slice.Labels = nil
	if got := New().EndpointSlice(slice); got != nil {
		t.Errorf("a slice of no service: %+v", got)
	}
}
