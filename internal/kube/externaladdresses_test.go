package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
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
		"inside the cluster's ranges": {"clusterIP: 10.96.0.1, externalIPs: [10.0.9.9, 192.0.2.1]", nil, "[192.0.2.1]", "spec.externalIPs[0]: address 10.0.9.9 is inside the mesh's cluster ranges"},
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
		"a pod's":                     {"clusterIP: 10.96.0.1, externalIPs: [10.0.0.1, 192.0.2.1]", nil, "[192.0.2.1]", "spec.externalIPs[0]: address 10.0.0.1 is inside the mesh's cluster ranges"},
		"another service's":           {"clusterIP: 10.96.0.1", balanced(corev1.LoadBalancerIngress{IP: "10.96.0.9"}), "[]", "status.loadBalancer.ingress[0].ip: address 10.96.0.9 is inside the mesh's cluster ranges"},
		"no address":                  {"clusterIP: 10.96.0.1, externalIPs: [x]", nil, "[]", `spec.externalIPs[0]: "x" is not an IP address`},
		"more than all agents are told": {"clusterIP: 10.96.0.1", func(s *corev1.Service) {
			for i := range 70 {
				s.Spec.ExternalIPs = append(s.Spec.ExternalIPs, fmt.Sprintf("192.0.2.%d", i))
			}
		}, "64", "spec.externalIPs: with the load balancer's, are 70, at 1 ports: only the first 64 are looked at"},
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

// TestSharedExternalAddress: one address may lead to several services, each at its ports.
// One that clashes at a port loses it: to a load balancer, then to the older, whatever
// their names.
func TestSharedExternalAddress(t *testing.T) {
	service := func(name, ip, ports string, age time.Duration) string {
		return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: %s, creationTimestamp: %[2]q}\nspec: {selector: {app: %[1]s}, clusterIP: %[3]s, ports: [%[4]s]}\n---\n",
			name, time.Unix(1e9, 0).Add(-age).UTC().Format(time.RFC3339), ip, ports)
	}
	const http, https = "{name: http, port: 80}", "{name: https, port: 443}"
	objs := clusterOf(t, service("a", "10.96.0.1", http+", "+https, 3*time.Hour)+service("b", "10.96.0.2", http, 2*time.Hour)+service("aa", "10.96.0.4", http, time.Hour)+service("c", "10.96.0.3", "{port: 8443}", time.Hour)+service("d", "10.96.0.5", http, 0),
		podOf("a", "10.0.0.1"), podOf("b", "10.0.0.2"), podOf("c", "10.0.0.3"), podOf("aa", "10.0.0.4"), podOf("d", "10.0.0.5"))
	for i, svc := range objs.Services {
		objs.Services[i].Origin = Origin{}
		switch svc.Value.Name {
		case "d": // the newest
			svc.Value.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
		default:
			svc.Value.Spec.ExternalIPs = []string{"192.0.2.1", "192.0.2.2"}
		}
	}
	compiled := compileEach(t, objs)
	view, err := compiled.View("r")
	if err != nil {
		t.Fatal(err)
	}
	src, _ := view.Workload(mesh.Key{Namespace: "shop", Name: "c"})
	for to, want := range map[string]string{"192.0.2.1:80": "d", "192.0.2.1:443": "", "192.0.2.1:8443": "c", "192.0.2.1:22": "", "192.0.2.2:80": "a", "192.0.2.2:443": "a", "192.0.2.2:8443": "c"} {
		r := view.Route(src, netip.MustParseAddrPort(to))
		if names(r.Candidates) != want || want == "" && r.Kind != mesh.RouteEgress {
			t.Errorf("%s leads to %v, want %s", to, names(r.Candidates), want)
		}
	}
	var said []string
	for _, p := range compiled.Refused {
		said = append(said, fmt.Sprint(p.Reason, " ", p.Ref.Name, " ", p.Field, " ", p.Text))
	}
	slices.Sort(said)
	if got, want := strings.Join(said, "\n"), `Conflict a spec.externalIPs[0] port 80 of address 192.0.2.1 leads to Service shop/d, and the address does not lead to this service
Conflict aa spec.externalIPs[0] port 80 of address 192.0.2.1 leads to Service shop/d, and the address does not lead to this service
Conflict b spec.externalIPs[0] port 80 of address 192.0.2.1 leads to Service shop/d, and the address does not lead to this service`; got != want {
		t.Errorf("refused are\n%s\nwant\n%s", got, want)
	}
	slices.Reverse(objs.Services)
	if again := compileEach(t, objs); fmt.Sprint(again.Services) != fmt.Sprint(compiled.Services) {
		t.Error("the order of objects matters")
	}
}

// TestExternalAddressesAreBounded: what agents look up is, and what is said of it.
func TestExternalAddressesAreBounded(t *testing.T) {
	service := func(name, ip string, texts, ports int) Sourced[corev1.Service] {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ip, Selector: map[string]string{"app": "a"}}}
		for i := range texts {
			s.Spec.ExternalIPs = append(s.Spec.ExternalIPs, fmt.Sprintf("192.0.2.%d", i))
		}
		for i := range ports {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprintf("p%d", i), Port: int32(1000 + i)})
		}
		return Sourced[corev1.Service]{Value: s}
	}
	objs := clusterOf(t, "", podOf("a", "10.0.0.1"))
	many := service("many", "10.96.0.1", 10, 300)
	wrong := service("wrong", "10.96.0.2", 0, 2000)
	wrong.Value.Spec.ExternalIPs = slices.Repeat([]string{"x"}, 5000)
	objs.Services = append(objs.Services, many, wrong)
	for i := range 70 {
		s := service(fmt.Sprintf("sharing-%02d", i), fmt.Sprintf("10.96.1.%d", i), 0, 1)
		s.Value.Spec.ExternalIPs, s.Value.Spec.Ports[0].Port = []string{"192.0.2.200"}, int32(1+i)
		objs.Services = append(objs.Services, s)
	}
	compiled := compileEach(t, objs)
	sharing := 0
	for _, s := range compiled.Services {
		if s.Name == "many" && len(s.External) != 3 {
			t.Errorf("%d addresses at 300 ports", len(s.External))
		}
		if strings.HasPrefix(s.Name, "sharing") {
			sharing += len(s.External)
		}
	}
	said := map[string][]string{}
	for _, p := range compiled.Refused {
		said[p.Ref.Name] = append(said[p.Ref.Name], p.Text)
	}
	if sharing != maxSharing || len(said["sharing-69"]) != 1 || len(said["sharing-63"]) != 0 {
		t.Errorf("%d services share an address; said is %s, %s", sharing, said["sharing-63"], said["sharing-69"])
	}
	if got, want := fmt.Sprint(said["many"], said["wrong"]), `[with the load balancer's, are 10, at 300 ports: only the first 3 are looked at] [with the load balancer's, are 5000, at 2000 ports: only the first 256 are looked at "x" is not an IP address]`; got != want {
		t.Errorf("said is %s, want %s", got, want)
	}
}

// TestSourceRangesOfOneFamily: who may come to an IPv4 address says nothing of IPv6.
func TestSourceRangesOfOneFamily(t *testing.T) {
	for sources, want := range map[string]string{
		"0.0.0.0/0": "[192.0.2.7]", "::/0": "[2001:db8::7]", "0.0.0.0/0 fd00::/8": "[192.0.2.7 2001:db8::7]", "10.0.0.0/9 fd00::/8": "[2001:db8::7]", "10.0.0.0/9 fd00::/9": "[]",
	} {
		objs := clusterOf(t, "", podOf("a", "10.0.0.1"))
		objs.Meshes[0].Value.Spec.ClusterRanges = []v1alpha1.AddressBlock{"10.0.0.0/8", "fd00::/8"}
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a"}, Spec: corev1.ServiceSpec{ClusterIPs: []string{"10.96.0.1", "fd00::1"}, LoadBalancerSourceRanges: strings.Fields(sources),
			Ports: []corev1.ServicePort{{Port: 80}}}}
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.7"}, {IP: "2001:db8::7"}}
		objs.Services = []Sourced[corev1.Service]{{Value: s}}
		if got := fmt.Sprint(compileEach(t, objs).Services[0].External); got != want {
			t.Errorf("for %s it leads from %s, want %s", sources, got, want)
		}
	}
}
