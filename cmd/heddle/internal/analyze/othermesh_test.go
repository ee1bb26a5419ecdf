package analyze

import (
	"fmt"
	"strings"
	"testing"
)

// podOf is a pod of shop, with more in its metadata and its spec.
func podOf(metadata, spec string) string {
	return fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: job-1, labels: {app: job%s}, spec: {nodeName: n1, containers: [{name: main}]%s}, status: {podIPs: [{ip: 10.244.1.9}]}}", metadata, spec)
}

const (
	istiod = "{apiVersion: v1, kind: Pod, metadata: {namespace: istio-system, name: istiod-1, labels: {app: istiod}}, spec: {nodeName: n1, containers: [{name: discovery}]}}"
	linked = "{apiVersion: v1, kind: Pod, metadata: {namespace: linkerd, name: d-1, labels: {linkerd.io/control-plane-component: destination}}, spec: {nodeName: n1, containers: [{name: destination}]}}"
)

// TestOtherMeshes: who enrolls is told of pods that another mesh has captured, and of a namespace that one that runs
// will capture; not of what carries no connections, nor of marks that are left over.
func TestOtherMeshes(t *testing.T) {
	const pod, namespace = KindOtherMesh + " Pod shop/job", KindOtherMesh + " Namespace shop"
	marked := func(marks string) string {
		return "{apiVersion: v1, kind: Namespace, metadata: {name: shop, " + marks + "}}"
	}
	for name, c := range map[string]struct {
		objects []string
		want    []string
		says    string // in the Detail
	}{
		"none":                    {[]string{marked(""), podOf("}", ""), istiod}, nil, ""},
		"Istio's sidecar":         {[]string{marked(""), podOf("}", ", initContainers: [{name: istio-init}]")}, []string{pod}, "pods app=job are in Istio (init container istio-init)"},
		"with Istio's CNI":        {[]string{marked(""), podOf("}", ", initContainers: [{name: istio-validation}]")}, []string{pod}, "istio-validation"},
		"Istio's ztunnel":         {[]string{marked(""), podOf("}, annotations: {ambient.istio.io/redirection: enabled}", "")}, []string{pod}, "annotation ambient.istio.io/redirection"},
		"not Istio's ztunnel":     {[]string{marked(""), podOf("}, annotations: {ambient.istio.io/redirection: disabled}", "")}, nil, ""},
		"Linkerd":                 {[]string{marked(""), podOf("}", ", initContainers: [{name: linkerd-network-validator}]")}, []string{pod}, "Linkerd"},
		"a gateway":               {[]string{marked(""), podOf("}", ", initContainers: [{name: prepare}]"), strings.Replace(podOf("}", ""), "name: main", "name: istio-proxy", 1)}, nil, ""},
		"outside Heddle":          {[]string{marked(""), podOf(", heddle.dev/mesh: disabled}", ", initContainers: [{name: istio-init}]")}, nil, ""},
		"injected, and it runs":   {[]string{marked("labels: {istio-injection: enabled}"), podOf("}", ""), istiod}, []string{namespace}, "namespace shop is in Istio, which runs, by istio-injection=enabled"},
		"injected, and it is not": {[]string{marked("labels: {istio-injection: enabled}"), podOf("}", ""), linked}, nil, ""},
		"Linkerd's mark":          {[]string{marked("annotations: {linkerd.io/inject: enabled}"), podOf("}", ""), linked}, []string{namespace}, "linkerd.io/inject=enabled"},
		"not Linkerd's mark":      {[]string{marked("annotations: {linkerd.io/inject: disabled}"), podOf("}", ""), linked}, nil, ""},
		"both":                    {[]string{marked("labels: {istio.io/dataplane-mode: ambient}"), podOf("}", ", initContainers: [{name: istio-init}]"), istiod}, []string{namespace, pod}, "istio.io/dataplane-mode=ambient"},
	} {
		t.Run(name, func(t *testing.T) {
			o := read(t, c.objects...)
			findings(t, o)
			o.Enroll("shop", false)
			all := findings(t, o, c.want...)
			if len(all) > 0 && (!strings.Contains(all[0].Detail, c.says) || all[0].Remedy == "" || all[0].Namespace != "shop") {
				t.Errorf("got %+v, want %q", all[0], c.says)
			}
		})
	}
}
