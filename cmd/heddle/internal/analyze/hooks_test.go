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
