package analyze

import (
	"fmt"
	"strings"
	"testing"
)

// hooked is a pod of shop with one hook.
func hooked(hook string) string {
	return fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: job-1, labels: {app: job}},
spec: {nodeName: n1, containers: [{name: main, ports: [{name: admin, containerPort: 7000}], lifecycle: {%s}}]}, status: {podIPs: [{ip: 10.244.1.9}]}}`, hook)
}

// TestLifecycleHooks: those to a pod's own ports enter as probes do; what else kubelet
// calls is plaintext, and what cannot work is said to be so.
func TestLifecycleHooks(t *testing.T) {
	const call = KindHook + " Pod shop/job"
	for name, c := range map[string]struct {
		hook string
		want []string
		says string // in Detail
	}{
		"own port":           {"preStop: {httpGet: {port: 7000}}", nil, ""},
		"own port by name":   {"postStart: {httpGet: {port: admin, scheme: HTTPS}}", nil, ""},
		"own address":        {"preStop: {httpGet: {port: 7000, host: 10.244.1.9}}", nil, ""},
		"the node itself":    {"preStop: {httpGet: {port: 7000, host: 127.0.0.1}}", nil, ""},
		"outside":            {"preStop: {httpGet: {port: 80, host: example.com}}", nil, ""},
		"exec":               {"preStop: {exec: {command: [x]}}", nil, ""},
		"tcpSocket":          {"postStart: {tcpSocket: {port: 7000}}", []string{call}, "no kubelet runs hooks of tcpSocket"},
		"an agent's port":    {"preStop: {httpGet: {port: 15008}}", []string{call}, "the agent's own in an enrolled pod, and refused under every mode: kubelet then goes on without it"},
		"nobody's name":      {"postStart: {httpGet: {port: none}}", []string{call}, "a name that no port of the container has"},
		"a service's name":   {"preStop: {httpGet: {port: 443, host: web.shop.svc.cluster.local}}", []string{call}, "hook preStop (httpGet) of container main goes to web.shop.svc.cluster.local:443: kubelet calls it, in plaintext, at port 8443 of pods app=web, which is STRICT"},
		"a service's number": {"postStart: {httpGet: {port: 443, host: 10.96.0.7}}", []string{call}, "kubelet then kills the container"},
		"another pod":        {"preStop: {httpGet: {port: 5432, host: 10.244.2.5}}", []string{call}, "at port 5432 of pods app=db"},
	} {
		t.Run(name, func(t *testing.T) {
			o := read(t, strings.Replace(shop, "spec: {selector: {app: web}", "spec: {clusterIP: 10.96.0.7, selector: {app: web}", 1), hooked(c.hook))
			all := findings(t, o, c.want...)
			if len(all) == 1 && (!strings.Contains(all[0].Detail, c.says) || all[0].Remedy == "" || all[0].Namespace != "shop") {
				t.Errorf("got %+v, want %q", all[0], c.says)
			}
		})
	}
	// Who calls is kubelet: that the pod is outside the mesh changes nothing.
	outside := strings.Replace(hooked("preStop: {httpGet: {port: 443, host: web.shop}}"), "app: job", "app: job, heddle.dev/mesh: disabled", 1)
	findings(t, read(t, shop, outside), call)
	// What is broken anyway is not the mesh's, outside it.
	findings(t, read(t, shop, strings.Replace(hooked("preStop: {tcpSocket: {port: 1}}"), "app: job", "app: job, heddle.dev/mesh: disabled", 1)))
}

// TestProbesElsewhere: a probe that goes to another host than its pod is a call to that one.
func TestProbesElsewhere(t *testing.T) {
	const pod = `{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: job-1, labels: {app: job}}, spec: {nodeName: n1, containers: [{name: main, ports: [{name: admin, containerPort: 7000}], %s}]},
status: {hostIP: 192.168.0.1, podIPs: [{ip: 10.244.1.9}]}}`
	for name, c := range map[string]struct {
		probe string
		found bool
		says  string // in Detail
	}{
		"own port":           {"livenessProbe: {httpGet: {port: admin}}, readinessProbe: {tcpSocket: {port: 7000}}, startupProbe: {grpc: {port: 7000}}", false, ""},
		"own address":        {"livenessProbe: {httpGet: {port: 7000, host: 10.244.1.9}}, readinessProbe: {tcpSocket: {port: 7000, host: 10.244.1.9}}", false, ""},
		"the node itself":    {"livenessProbe: {httpGet: {port: 7000, host: 127.0.0.1}}", false, ""},
		"outside":            {"readinessProbe: {httpGet: {port: 80, host: example.com}}", false, ""},
		"exec":               {"readinessProbe: {exec: {command: [x]}}", false, ""},
		"nobody's port":      {"readinessProbe: {httpGet: {port: none, host: web.shop}}", false, ""},
		"a service's name":   {"readinessProbe: {httpGet: {port: 443, host: web.shop.svc}}", true, "probe readinessProbe (httpGet) of container main goes to web.shop.svc:443: kubelet calls it, in plaintext, at port 8443 of pods app=web, which is STRICT: the pod is then never ready"},
		"a service's number": {"livenessProbe: {tcpSocket: {port: 443, host: 10.96.0.7}}", true, "probe livenessProbe (tcpSocket) of container main goes to 10.96.0.7:443: kubelet calls it, in plaintext, at port 8443 of pods app=web, which is STRICT: kubelet then kills the container"},
		"another pod":        {"startupProbe: {httpGet: {port: admin, host: 10.244.2.5}}", true, "probe startupProbe (httpGet) of container main goes to 10.244.2.5:7000: kubelet calls it, in plaintext, at port 7000 of pods app=db"},
	} {
		t.Run(name, func(t *testing.T) {
			var want []string
			if c.found {
				want = []string{KindProbe + " Pod shop/job"}
			}
			o := read(t, strings.Replace(shop, "spec: {selector: {app: web}", "spec: {clusterIP: 10.96.0.7, selector: {app: web}", 1), fmt.Sprintf(pod, c.probe))
			all := findings(t, o, want...)
			if len(all) == 1 && (!strings.Contains(all[0].Detail, c.says) || all[0].Fix == "") {
				t.Errorf("got %+v, want %q", all[0], c.says)
			}
		})
	}
	// Kubelet is in its node's network, and may be let in by its address.
	const allow = "{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: a}, spec: {rules: [{from: [{ipBlocks: [192.168.0.1/32]}]}]}}\n---\n" +
		"{apiVersion: heddle.dev/v1alpha1, kind: PeerAuthentication, metadata: {namespace: shop, name: m}, spec: {mode: PERMISSIVE}}\n---\n"
	probed := fmt.Sprintf(pod, "readinessProbe: {httpGet: {port: 443, host: web.shop}}")
	findings(t, read(t, shop, allow, probed))
	findings(t, read(t, shop, strings.Replace(allow, "0.1/32", "0.2/32", 1), probed), KindProbe+" Pod shop/job")
}
