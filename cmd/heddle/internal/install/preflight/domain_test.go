package preflight

import (
	"fmt"
	"strings"
	"testing"
)

// TestClusterDomain: of a cluster whose services have names of another domain it is said
// what that concerns.
func TestClusterDomain(t *testing.T) {
	for line, want := range map[string]string{
		"kubernetes cluster.local in-addr.arpa ip6.arpa {":        "",
		"kubernetes corp.example cluster.local in-addr.arpa {":    "",
		"kubernetes Cluster.Local. {":                             "",
		"kubernetes corp.example. in-addr.arpa ip6.arpa { # mine": "warn cluster: CoreDNS has services under corp.example (ConfigMap kube-system/coredns), and agents know names of cluster.local alone",
		"kubernetes in-addr.arpa {":                               "", // by the server block's zones
		"forward . 192.0.2.53":                                    "",
	} {
		config := fmt.Sprintf("{apiVersion: v1, kind: ConfigMap, metadata: {namespace: kube-system, name: coredns}, data: {Corefile: %q}}", ".:53 {\n  errors\n  "+line+"\n    pods insecure\n  }\n}\n")
		if got := said(looked(t, &Plan{}, config), "cluster domain"); !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
	if got := said(looked(t, &Plan{}), "cluster domain"); got != "" {
		t.Errorf("without CoreDNS: %q", got)
	}
}
