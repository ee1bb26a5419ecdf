package hosts

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const objects = `
Services:
  - {metadata: {namespace: shop, name: web}, spec: {clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7, 'fd00:96::7'], externalIPs: [203.0.113.7]}, status: {loadBalancer: {ingress: [{ip: 203.0.113.8}, {hostname: lb.Example.com}]}}}
  - {metadata: {namespace: shop, name: peers}, spec: {clusterIP: None}}
  - {metadata: {namespace: ops, name: alias}, spec: {type: ExternalName, externalName: web.shop.svc.cluster.local.}}
  - {metadata: {namespace: ops, name: out}, spec: {type: ExternalName, externalName: www.example.com}}
  - {metadata: {namespace: ops, name: turn}, spec: {type: ExternalName, externalName: turn.ops.svc}}
Pods:
  - {metadata: {namespace: shop, name: old}, status: {phase: Succeeded, podIPs: [{ip: 10.244.1.5}]}}
  - {metadata: {namespace: shop, name: web-1}, status: {podIP: 10.244.1.5, podIPs: [{ip: 10.244.1.5}, {ip: 'fd00:244::5'}]}}
  - {metadata: {namespace: shop, name: one}, status: {podIP: 10.244.1.6}}
  - {metadata: {namespace: shop, name: host}, spec: {hostNetwork: true}, status: {podIP: 192.168.0.1, podIPs: [{ip: 192.168.0.1}]}}
`

// TestAt: a host is a service's by its names and addresses, or a pod's by its own, or nobody's.
func TestAt(t *testing.T) {
	var o Objects
	if err := yaml.UnmarshalStrict([]byte(objects), &o); err != nil {
		t.Fatal(err)
	}
	h := New(&o)
	for host, want := range map[string]string{
		"web.shop.svc": "Service shop/web", "web.shop": "Service shop/web", "web.shop.svc.cluster.local": "Service shop/web",
		"WEB.shop.svc.corp.example.": "Service shop/web", "alias.ops.svc": "Service shop/web", "lb.example.com": "Service shop/web",
		"10.96.0.7": "Service shop/web", "fd00:96:0::7": "Service shop/web", "::ffff:10.96.0.7": "Service shop/web", "203.0.113.7": "Service shop/web", "203.0.113.8": "Service shop/web",
		"peers.shop.svc": "direct Service shop/peers", "web-1.peers.shop.svc.cluster.local": "direct Service shop/peers", "web-1.web.shop.svc": "",
		"10.244.1.5": "direct Pod shop/web-1", "fd00:244::5": "direct Pod shop/web-1", "10.244.1.6": "direct Pod shop/one", "10-244-1-5.shop.pod.cluster.local": "direct Pod shop/web-1",
		"fd00-244--5.shop.pod": "direct Pod shop/web-1", "none-1.shop.pod": "",
		"192.168.0.1": "", "10.0.0.1": "", "127.0.0.1": "", "web": "", "": "", ".": "", "www.example.com": "", "example.com": "", "web.other.svc": "", "web.shop.example.com": "",
		"out.ops.svc": "", "turn.ops.svc": "",
	} {
		a, ok := h.At(host)
		got := ""
		if a.Direct {
			got = "direct "
		}
		switch {
		case a.Service != nil:
			got += "Service " + a.Service.Namespace + "/" + a.Service.Name
		case a.Pod != nil:
			got += "Pod " + a.Pod.Namespace + "/" + a.Pod.Name
		}
		if got != want || ok != (want != "") || a.Service != nil && a.Service.Spec.Type == corev1.ServiceTypeExternalName {
			t.Errorf("%q is %q, %v, want %q", host, got, ok, want)
		}
	}
}

// TestBehind: pods by the addresses that EndpointSlices have, each slice with ports of its own.
func TestBehind(t *testing.T) {
	const written = objects + `
Slices:
  - {metadata: {namespace: shop, name: a, labels: {kubernetes.io/service-name: web}}, addressType: IPv4, ports: [{name: https, port: 8443}, {name: dns, port: 53, protocol: UDP}], endpoints: [{addresses: [10.244.1.5]}, {addresses: [192.168.0.1]}, {addresses: [10.0.0.1]}]}
  - {metadata: {namespace: shop, name: b, labels: {kubernetes.io/service-name: web}}, addressType: IPv4, ports: [{port: 9443}], endpoints: [{addresses: [10.244.1.6], conditions: {ready: false}}]}
  - {metadata: {namespace: shop, name: c, labels: {kubernetes.io/service-name: peers}}, addressType: FQDN, endpoints: [{addresses: [web.shop.svc]}]}
  - {metadata: {namespace: ops, name: d, labels: {kubernetes.io/service-name: web}}, addressType: IPv4, endpoints: [{addresses: [10.244.1.5]}]}
`
	var o Objects
	if err := yaml.UnmarshalStrict([]byte(written), &o); err != nil {
		t.Fatal(err)
	}
	h := New(&o)
	all := h.Behind(h.Service(mesh.Key{Namespace: "shop", Name: "web"}))
	if len(all) != 2 || all[0].Pod.Name != "web-1" || all[1].Pod.Name != "one" {
		t.Fatalf("got %+v", all)
	}
	for name, want := range map[string][2]int32{"https": {8443, 0}, "dns": {0, 0}, "": {0, 9443}, "none": {0, 0}} {
		if got := [2]int32{all[0].Port(name), all[1].Port(name)}; got != want {
			t.Errorf("port %q is %v, want %v", name, got, want)
		}
	}
	if some := h.Behind(h.Service(mesh.Key{Namespace: "shop", Name: "peers"})); len(some) != 0 {
		t.Errorf("behind a name: %+v", some)
	}
}
