package kube

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/fstest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/kube/policies"
)

// datagramPolicy lets everybody in at port 443 over UDP, where labels say.
func datagramPolicy(name string, labels map[string]v1alpha1.LabelValue, from ...v1alpha1.Source) Sourced[v1alpha1.AuthorizationPolicy] {
	udp := v1alpha1.ProtocolUDP
	rule := v1alpha1.Rule{From: from, To: []v1alpha1.Destination{{Protocol: &udp, Ports: []v1alpha1.Port{443}}}}
	p := &v1alpha1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: v1alpha1.AuthorizationPolicySpec{Rules: []v1alpha1.Rule{rule}}}
	if labels != nil {
		p.Spec.Selector = &v1alpha1.Selector{MatchLabels: labels}
	}
	return Sourced[v1alpha1.AuthorizationPolicy]{Value: p}
}

// cluster has pods shop/p0 to shop/pN, and a service over UDP that selects them.
func cluster(pods int, udp bool) *Objects {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "s"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Selector: map[string]string{"app": "p"},
		Ports: []corev1.ServicePort{{Protocol: corev1.ProtocolUDP, Port: 443, TargetPort: intstr.FromInt32(443)}}}}
	objs := &Objects{
		UDPByIdentity: udp,
		Meshes:        []Sourced[v1alpha1.Mesh]{{Value: &v1alpha1.Mesh{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.MeshSpec{TrustDomain: "example.org", ClusterRanges: []v1alpha1.AddressBlock{"10.0.0.0/8"}}}}},
		Namespaces:    []Sourced[corev1.Namespace]{{Value: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{v1alpha1.LabelMesh: v1alpha1.MeshEnabled}}}}},
		Services:      []Sourced[corev1.Service]{{Value: svc}},
	}
	for i := range pods {
		objs.Pods = append(objs.Pods, &Pod{Namespace: "shop", Name: fmt.Sprintf("p%d", i), UID: fmt.Sprint(i), Node: "n1", ServiceAccount: "p", Ready: true,
			Labels: map[string]string{"app": "p"}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}})
	}
	return objs
}

func compileCluster(t *testing.T, objs *Objects) *Compiled {
	t.Helper()
	compiled, err := CompileEach(objs)
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

// TestUDPIsOff: without the experiment nothing is said about UDP, and a policy that names
// it is refused with the reason.
func TestUDPIsOff(t *testing.T) {
	objs := cluster(2, false)
	objs.AuthorizationPolicies = append(objs.AuthorizationPolicies, datagramPolicy("quic", nil))
	off := compileCluster(t, objs)
	if len(off.Refused) != 1 || !strings.Contains(off.Refused[0].Error(), "policies about UDP are off in this mesh") || off.Refused[0].Ref.Name != "quic" {
		t.Errorf("refused: %v", off.Refused)
	}
	objs.UDPByIdentity = true
	on := compileCluster(t, objs)
	if len(on.Refused) != 0 {
		t.Errorf("refused where it is on: %v", on.Refused)
	}
	for _, c := range []struct {
		compiled *Compiled
		said     bool
	}{{off, false}, {on, true}} {
		if has := c.compiled.Workloads[0].Datagrams != nil; has != c.said || (c.compiled.Services[0].UDPPorts != nil) != c.said {
			t.Errorf("on %v: %+v, %+v", c.said, c.compiled.Workloads[0], c.compiled.Services[0])
		}
	}
}

// TestPoliciesThatMatchNobodyClose: what somebody wrote so that it matches nobody is a
// policy about TCP still, and closes it.
func TestPoliciesThatMatchNobodyClose(t *testing.T) {
	for _, to := range []string{"{ports: [1], notPorts: [1]}", "{protocol: TCP, ports: [1], notPorts: [1]}"} {
		for _, udp := range []bool{false, true} {
			got, ok := outcome(t, fstest.MapFS{"mesh.yaml": {Data: []byte(`{apiVersion: heddle.dev/v1alpha1, kind: Mesh, metadata: {name: default}, spec: {trustDomain: example.org, clusterRanges: [10.0.0.0/8]}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: nobody}, spec: {rules: [{to: [` + to + `]}]}}
`)}}, udp)
			if !ok || !strings.Contains(got, "policy shop/nobody ALLOW") {
				t.Errorf("%s, UDP %v: no policy to ALLOW, so that everything is open:\n%s", to, udp, got)
			}
		}
	}
}

// TestServicesThatMayLeadElsewhere: where an address of a service may lead to somebody
// whom the mesh does not count among its endpoints, it has no port over UDP.
func TestServicesThatMayLeadElsewhere(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Objects)
		ports  int
		says   string
	}{
		"all known": {func(*Objects) {}, 1, ""},
		"a foreign slice": {func(o *Objects) {
			o.Slices = append(o.Slices, &EndpointSlice{Namespace: "shop", Name: "mine", Service: "s"})
		}, 0, "of EndpointSlice mine"},
		"a slice with a false label": {func(o *Objects) {
			o.Slices = append(o.Slices, &EndpointSlice{Namespace: "shop", Name: "mine", Service: "s", Claims: true})
		}, 0, "EndpointSlice mine says that it is of Kubernetes' own controller"},
		"of another service": {func(o *Objects) {
			o.Slices = append(o.Slices, &EndpointSlice{Namespace: "shop", Name: "mine", Service: "t"})
		}, 1, ""},
		"no selector":         {func(o *Objects) { o.Services[0].Value.Spec.Selector = nil }, 0, "written by hand"},
		"outside the ranges":  {func(o *Objects) { o.Pods[0].Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.1")} }, 0, "does not know"},
		"one address outside": {func(o *Objects) { o.Pods[0].Addresses = append(o.Pods[0].Addresses, netip.MustParseAddr("fd00::1")) }, 0, "does not know"},
		"outside, and another's": {func(o *Objects) {
			o.Pods[0].Addresses, o.Pods[0].Labels = []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
		}, 1, ""},
		"too many labels": {func(o *Objects) {
			o.Pods[0].Labels = map[string]string{"app": "p", "x": strings.Repeat("x", maxLabelBytes)}
		}, 0, "does not know"},
		"in the node's network": {func(o *Objects) { o.Pods[0].HostNetwork, o.Pods[0].Ready = true, false }, 0, "does not know"},
		"an address of two":     {func(o *Objects) { o.Pods[0].Addresses = o.Pods[1].Addresses }, 0, "does not know"},
		"too many":              {func(o *Objects) { o.Pods = cluster(3001, true).Pods }, 0, "more endpoints than agents take"},
	} {
		objs := cluster(3, true)
		c.change(objs)
		compiled := compileCluster(t, objs)
		var says []string
		for _, w := range compiled.Warnings {
			says = append(says, w.Error())
		}
		if got := len(compiled.Services[0].UDPPorts); got != c.ports || !strings.Contains(strings.Join(says, "\n"), c.says) {
			t.Errorf("%s: %d ports over UDP, want %d; says %q, want %q", name, got, c.ports, says, c.says)
		}
	}
}

// TestUDPIsBoundedPerNamespace: what all agents are told about UDP of a namespace is
// bounded, whatever its policies select, and the policies say so.
func TestUDPIsBoundedPerNamespace(t *testing.T) {
	var blocks []v1alpha1.AddressBlock
	for i := range 1000 {
		blocks = append(blocks, v1alpha1.AddressBlock(fmt.Sprintf("10.%d.%d.0/24", i/250, i%250)))
	}
	objs := cluster(60, true)
	objs.AuthorizationPolicies = append(objs.AuthorizationPolicies, datagramPolicy("wide", nil, v1alpha1.Source{IPBlocks: blocks}))
	compiled := compileCluster(t, objs)
	told := 0
	for _, w := range compiled.Workloads {
		if w.Datagrams != nil {
			told++
		}
	}
	const each = 1000 * 32
	if told == 0 || told*each > policies.MaxNamespace || (told+2)*each < policies.MaxNamespace {
		t.Errorf("%d workloads are told of %d bytes each", told, each)
	}
	if len(compiled.Refused) != 1 || !strings.Contains(compiled.Refused[0].Error(), fmt.Sprintf("no datagrams pass to %d of them", 60-told)) {
		t.Errorf("refused: %v", compiled.Refused)
	}
	if _, err := compiled.View("r"); err != nil {
		t.Error(err)
	}
}
