package analyze

import (
	"fmt"
	"strings"
	"testing"
)

// TestPoliciesThatComeIntoForce: on a network that enforces none, the label does.
func TestPoliciesThatComeIntoForce(t *testing.T) {
	off := strings.Replace(shop, "heddle.dev/mesh: enabled", "a: b", 1)
	runs := func(daemonSet string) string {
		return fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: kube-system, name: p, ownerReferences: [{apiVersion: apps/v1, kind: DaemonSet, name: %s, uid: u}]}, spec: {nodeName: n1, containers: [{name: c}]}}", daemonSet)
	}
	policy := networkPolicy("p", "{podSelector: {matchLabels: {app: db}}}")
	for name, tc := range map[string]struct {
		objects []string
		says    string
	}{
		"Flannel":             {[]string{off, policy, runs("kube-flannel-ds")}, "(Flannel) enforces no NetworkPolicies: those of namespace shop (p) come into force"},
		"nothing known":       {[]string{off, policy, runs("kube-proxy")}, "if nothing does, those of namespace shop (p) come into force"},
		"Flannel with Calico": {[]string{off, policy, runs("kube-flannel-ds"), runs("canal")}, ""},
		"Cilium":              {[]string{off, policy, runs("cilium")}, ""},
		"enrolled already":    {[]string{shop, policy}, ""},
		"nobody is selected":  {[]string{off, networkPolicy("p", "{podSelector: {matchLabels: {app: none}}}")}, ""},
		"none":                {[]string{off}, ""},
	} {
		if got := read(t, tc.objects...).ComesIntoForce("shop"); !strings.Contains(got, tc.says) || tc.says == "" && got != "" {
			t.Errorf("%s: %q, want %q", name, got, tc.says)
		}
	}
}
