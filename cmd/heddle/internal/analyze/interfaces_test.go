package analyze

import (
	"fmt"
	"strings"
	"testing"
)

// TestFurtherInterfaces: who puts a pod on a second network hears before the label that the
// agent refuses it.
func TestFurtherInterfaces(t *testing.T) {
	const pod = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {namespace: shop, name: media}\nspec: {template: {metadata: {labels: {app: media%s}, annotations: {k8s.v1.cni.cncf.io/networks: %q}}, spec: {containers: [{name: c}]}}}\n"
	for networks, says := range map[string]string{
		"fast":         "(fast, by",
		"media/fast@f": "(media/fast@f, by",
		`[{"name": "fast", "namespace": "media"}, {"name": "slow", "ips": ["192.0.2.7/24"]}]`: "(media/fast, slow, by",
		`[{"name": 7}]`: `([{"name": 7}], by`,
	} {
		found := findings(t, read(t, shop, fmt.Sprintf(pod, "", networks)), "interfaces Pod shop/media")
		if len(found) == 1 && (!strings.Contains(found[0].Detail, says) || !strings.Contains(found[0].Remedy, "heddle.dev/mesh: disabled") || found[0].Fix != "") {
			t.Errorf("%s: %+v", networks, found[0])
		}
		findings(t, read(t, shop, fmt.Sprintf(pod, ", heddle.dev/mesh: disabled", networks)))
	}
	for _, none := range []string{"", " ", "[]"} {
		findings(t, read(t, shop, fmt.Sprintf(pod, "", none)))
	}
}
