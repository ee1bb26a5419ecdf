package trim

import (
	"net/netip"
	"reflect"
	"slices"
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
			{Name: "sidecar", RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 7070}}, StartupProbe: get(intstr.FromInt32(7070))},
		}, Containers: []corev1.Container{{
			Name: "main", Ports: named, LivenessProbe: get(intstr.FromString("http")), ReadinessProbe: get(intstr.FromInt32(8080)),
			StartupProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 6060}}},
		}, {
			Name: "other", LivenessProbe: get(intstr.FromString("http")), // of another container: there is no such port here
			ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(70000)}}},
		}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Unix(9, 0)}}},
	})
	want := &kube.Pod{Namespace: "shop", Name: "web-1", UID: "u", Node: "n1", ServiceAccount: "default", Labels: map[string]string{"app": "web"},
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}, ProbePorts: []uint16{6060, 7070, 8080},
		Ports: []kube.NamedPort{{Name: "http", Port: 8080}, {Name: "http", Port: 7070}}, Created: 7, Ready: true, ReadySince: 9, Terminating: true}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	for _, phase := range []corev1.PodPhase{corev1.PodSucceeded, corev1.PodFailed} {
		if p := New().Pod(&corev1.Pod{Status: corev1.PodStatus{Phase: phase, PodIP: "10.0.0.9"}}); !p.Finished || len(p.Addresses) != 1 {
			t.Errorf("%s: %+v", phase, p)
		}
	}
}

// TestLifecycleHooks: kubelet calls those over HTTP from the node, as it probes.
func TestLifecycleHooks(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	hook := func(port intstr.IntOrString) *corev1.LifecycleHandler {
		return &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Port: port}}
	}
	p := New().Pod(&corev1.Pod{Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{RestartPolicy: &always, Lifecycle: &corev1.Lifecycle{PreStop: hook(intstr.FromInt32(7001))}}},
		Containers: []corev1.Container{
			{Ports: []corev1.ContainerPort{{Name: "admin", ContainerPort: 7003}}, Lifecycle: &corev1.Lifecycle{PostStart: hook(intstr.FromInt32(7002)), PreStop: hook(intstr.FromString("admin"))}},
			{Lifecycle: &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{}}, PreStop: hook(intstr.FromString("nobody's"))}},
		}}})
	if want := []uint16{7001, 7002, 7003}; !slices.Equal(p.ProbePorts, want) {
		t.Errorf("ports %v, want %v", p.ProbePorts, want)
	}
}

// TestStaticPod: kubelet knows a static pod by the hash of its text, which its mirror has
// as an annotation (k8s.io/kubernetes/pkg/kubelet/config, applyDefaults).
func TestStaticPod(t *testing.T) {
	const hash = "5d3b8ee4d7d3f0c5b1d0a5b3ea7f1b0c"
	p := New().Pod(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "static-n1", UID: "of-the-mirror", Annotations: map[string]string{corev1.MirrorPodAnnotationKey: hash}},
		Spec: corev1.PodSpec{NodeName: "n1"}})
	if p.UID != "of-the-mirror" || p.StaticUID != hash {
		t.Errorf("UID %q, static %q", p.UID, p.StaticUID)
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
	port, no, yes, name, node, zone := int32(6443), false, true, "https", "n1", "a"
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}, {Name: &name}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.1"}}, {Addresses: []string{"192.0.2.2"}, Conditions: discoveryv1.EndpointConditions{Ready: &no}},
			{Addresses: []string{"192.0.2.3"}, NodeName: &node, Zone: &zone, Conditions: discoveryv1.EndpointConditions{Ready: &yes}},
			{Addresses: []string{"192.0.2.4"}, Conditions: discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}},
			{Addresses: []string{"192.0.2.5"}, Conditions: discoveryv1.EndpointConditions{Ready: &no, Serving: &no, Terminating: &yes}},
			{Addresses: []string{"192.0.2.6"}, Conditions: discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &no}}}}
	at := netip.MustParseAddr
	want := []kube.Endpoint{{Addr: at("192.0.2.1")}, {Addr: at("192.0.2.3"), Node: "n1", Zone: "a"}, {Addr: at("192.0.2.4"), Leaving: true}}
	got := New().EndpointSlice(slice)
	if got == nil || got.Service != "kubernetes" || !slices.Equal(got.Endpoints, want) || len(got.Ports) != 1 || got.Ports[0] != (kube.NamedPort{Name: "https", Port: 6443}) {
		t.Errorf("%+v", got)
	}
	slice.Labels = nil
	if got := New().EndpointSlice(slice); got != nil {
		t.Errorf("a slice of no service: %+v", got)
	}
}

// TestSlicesWithAFalseLabel: one that says it is of Kubernetes' own controller is nothing
// where it is like one, and else a claim, without what it says.
func TestSlicesWithAFalseLabel(t *testing.T) {
	port, yes, no := int32(53), true, false
	own := func() *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "s-abcde", Labels: map[string]string{discoveryv1.LabelServiceName: "s", discoveryv1.LabelManagedBy: Controller},
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Service", Name: "s", UID: "u", Controller: &yes, BlockOwnerDeletion: &yes}}},
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &port}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "shop", Name: "p", UID: "v"}}}}
	}
	if got := New().EndpointSlice(own()); got != nil {
		t.Errorf("the controller's own: %+v", got)
	}
	for what, change := range map[string]func(*discoveryv1.EndpointSlice){
		"nobody's":             func(s *discoveryv1.EndpointSlice) { s.OwnerReferences = nil },
		"another service's":    func(s *discoveryv1.EndpointSlice) { s.OwnerReferences[0].Name = "t" },
		"another kind's":       func(s *discoveryv1.EndpointSlice) { s.OwnerReferences[0].Kind = "Endpoints" },
		"of another group":     func(s *discoveryv1.EndpointSlice) { s.OwnerReferences[0].APIVersion = "example.org/v1" },
		"not controlled":       func(s *discoveryv1.EndpointSlice) { s.OwnerReferences[0].Controller = &no },
		"not said to be":       func(s *discoveryv1.EndpointSlice) { s.OwnerReferences[0].Controller = nil },
		"no pod":               func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].TargetRef = nil },
		"a node":               func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].TargetRef.Kind = "Node" },
		"of another namespace": func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].TargetRef.Namespace = "bank" },
		"an endpoint more": func(s *discoveryv1.EndpointSlice) {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{"192.0.2.1"}})
		},
	} {
		s := own()
		change(s)
		if got := New().EndpointSlice(s); got == nil || !got.Claims || got.Service != "s" || len(got.Endpoints)+len(got.Ports) > 0 {
			t.Errorf("%s: %+v", what, got)
		}
	}
}
