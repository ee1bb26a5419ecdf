package analyze

import (
	"fmt"
	"strings"
	"testing"
)

// TestUnreadPolicies: whoever enrolls a namespace is told of policies that its network
// enforces and nobody here reads; nothing is refused for them.
func TestUnreadPolicies(t *testing.T) {
	for kind, where := range map[string]string{
		"cilium.io/v2 CiliumNetworkPolicy":                       "namespace: shop, ",
		"cilium.io/v2 CiliumClusterwideNetworkPolicy":            "",
		"projectcalico.org/v3 NetworkPolicy":                     "namespace: shop, ",
		"crd.projectcalico.org/v1 GlobalNetworkPolicy":           "",
		"policy.networking.k8s.io/v1alpha1 AdminNetworkPolicy":   "",
		"policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy": "",
		"crd.antrea.io/v1beta1 ClusterNetworkPolicy":             "",
	} {
		version, name, _ := strings.Cut(kind, " ")
		group, _, _ := strings.Cut(version, "/")
		o := read(t, shop)
		for i := range 10 {
			text := fmt.Sprintf("{apiVersion: %s, kind: %s, metadata: {%sname: p%d}}", version, name, where, i)
			if err := o.Read(strings.NewReader(text), "default"); err != nil {
				t.Fatal(err)
			}
		}
		all := findings(t, o, "unread-policy "+name+"."+group+" p0, p1, p2, p3, p4, p5, p6, p7, ...")
		if len(all) == 1 && (!all[0].Warning || all[0].Fix != "" || !strings.Contains(all[0].Detail, "15008")) {
			t.Errorf("%s: %+v", kind, all[0])
		}
	}
	findings(t, read(t, shop, "{apiVersion: cilium.io/v2, kind: CiliumEndpoint, metadata: {namespace: shop, name: web-1}}", "{apiVersion: crd.projectcalico.org/v1, kind: NetworkPolicy, metadata: {namespace: bank, name: p}}"))
}
