package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// TestExternalAddresses: where kube-proxy takes a service's connections, the mesh does.
func TestExternalAddresses(t *testing.T) {
	const ports = "ports: [{port: 80, targetPort: 8080}]"
	proxy, vip := corev1.LoadBalancerIPModeProxy, corev1.LoadBalancerIPModeVIP
	balanced := func(all ...corev1.LoadBalancerIngress) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Status.LoadBalancer.Ingress = all }
	}
	for name, c := range map[string]struct {
		spec    string // of service web
		change  func(*corev1.Service)
		want    string
		refused string
	}{
		"external IPs":                {"clusterIP: 10.96.0.1, externalIPs: [192.0.2.2, 192.0.2.1, 192.0.2.2]", nil, "[192.0.2.1 192.0.2.2]", ""},
		"inside the cluster's ranges": {"clusterIP: 10.96.0.1, externalIPs: [10.0.9.9]", nil, "[10.0.9.9]", ""},
		"a load balancer":             {"clusterIP: 10.96.0.1, type: LoadBalancer", balanced(corev1.LoadBalancerIngress{IP: "192.0.2.7"}, corev1.LoadBalancerIngress{IP: "192.0.2.8", IPMode: &vip}), "[192.0.2.7 192.0.2.8]", ""},
		"one that is to be passed":    {"clusterIP: 10.96.0.1, type: LoadBalancer", balanced(corev1.LoadBalancerIngress{IP: "192.0.2.7", IPMode: &proxy}), "[]", ""},
		"one with a name":             {"clusterIP: 10.96.0.1, type: LoadBalancer", balanced(corev1.LoadBalancerIngress{Hostname: "lb.example"}), "[]", ""},
		"for some":                    {"clusterIP: 10.96.0.1, externalIPs: [192.0.2.1], loadBalancerSourceRanges: [203.0.113.0/24, ' 10.0.0.0/9']", balanced(corev1.LoadBalancerIngress{IP: "192.0.2.7"}), "[192.0.2.1]", ""},
		"for the mesh, too":           {"clusterIP: 10.96.0.1, loadBalancerSourceRanges: [203.0.113.0/24, ' 0.0.0.0/0']", balanced(corev1.LoadBalancerIngress{IP: "192.0.2.7"}), "[192.0.2.7]", ""},
		"headless":                    {"clusterIP: None, externalIPs: [192.0.2.1]", nil, "[]", ""},
		"no address yet":              {"externalIPs: [192.0.2.1]", nil, "[]", ""},
		"of the other family":         {"clusterIP: 10.96.0.1, externalIPs: ['2001:db8::1', 192.0.2.1]", nil, "[192.0.2.1]", ""},
		"its own, and nobody's":       {"clusterIP: 10.96.0.1, externalIPs: [10.96.0.1, 127.0.0.1, 224.0.0.1, 0.0.0.0]", nil, "[]", ""},
		"another proxy's":             {"clusterIP: 10.96.0.1, externalIPs: [192.0.2.1]", func(s *corev1.Service) { s.Labels = map[string]string{proxyNameLabel: "x"} }, "[]", ""},
		"a pod's":                     {"clusterIP: 10.96.0.1, externalIPs: [10.0.0.1, 192.0.2.1]", nil, "[192.0.2.1]", "spec.externalIPs[0]: address 10.0.0.1 is that of Pod shop/web-1, and does not lead to this service"},
		"another service's":           {"clusterIP: 10.96.0.1", balanced(corev1.LoadBalancerIngress{IP: "10.96.0.9"}), "[]", "status.loadBalancer.ingress[0].ip: address 10.96.0.9 is that of Service shop/zz"},
		"no address":                  {"clusterIP: 10.96.0.1, externalIPs: [x]", nil, "[]", `spec.externalIPs[0]: "x" is not an IP address`},
		"more than all agents are told": {"clusterIP: 10.96.0.1", func(s *corev1.Service) {
			for i := range 70 {
				s.Spec.ExternalIPs = append(s.Spec.ExternalIPs, fmt.Sprintf("192.0.2.%d", i))
			}
		}, "64", "spec.externalIPs: with the load balancer's, are 70: the first 64 lead to the service"},
	} {
		t.Run(name, func(t *testing.T) {
			objs := clusterOf(t, fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec: {selector: {app: web-1}, %s, %s}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: zz}
spec: {selector: {app: web-1}, clusterIP: 10.96.0.9, %s}
`, c.spec, ports, ports), podOf("web-1", "10.0.0.1"))
			if c.change != nil {
				c.change(objs.Services[0].Value)
			}
			compiled := compileEach(t, objs)
			got := fmt.Sprint(compiled.Services[0].External)
			if n := len(compiled.Services[0].External); n > 9 {
				got = fmt.Sprint(n)
			}
			if refused := problemLines(compiled.Refused); got != c.want || (refused == "") != (c.refused == "") || !strings.Contains(refused, c.refused) {
				t.Errorf("leads from %s, want %s; refused %s", got, c.want, refused)
			}
		})
	}
}

// TestSharedExternalAddress: one address may lead to several services, each at its ports,
// and the first has a port that two have; elsewhere it stays what it is.
func TestSharedExternalAddress(t *testing.T) {
	service := func(name, ip string, port int) string {
		return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: %s}\nspec: {selector: {app: %[1]s}, clusterIP: %s, externalIPs: [192.0.2.1], ports: [{port: %d, targetPort: 8080}]}\n---\n", name, ip, port)
	}
	objs := clusterOf(t, service("b", "10.96.0.2", 80)+service("a", "10.96.0.1", 80)+service("c", "10.96.0.3", 443), podOf("a", "10.0.0.1"), podOf("b", "10.0.0.2"), podOf("c", "10.0.0.3"))
	compiled := compileEach(t, objs)
	view, err := compiled.View("r")
	if err != nil || len(compiled.Refused) > 0 {
		t.Fatal(err, compiled.Refused)
	}
	src, _ := view.Workload(mesh.Key{Namespace: "shop", Name: "c"})
	for port, want := range map[uint16]string{80: "a", 443: "c", 22: ""} {
		r := view.Route(src, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port))
		if names(r.Candidates) != want || want == "" && r.Kind != mesh.RouteEgress {
			t.Errorf("port %d leads to %v, want %s", port, names(r.Candidates), want)
		}
	}
	slices.Reverse(objs.Services)
	if again := compileEach(t, objs); fmt.Sprint(again.Services) != fmt.Sprint(compiled.Services) {
		t.Error("the order of objects matters")
	}
}
