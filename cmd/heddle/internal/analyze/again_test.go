package analyze

import (
	"strings"
	"testing"
)

// TestFixesThatHaveNoEffect: what is printed mends what it is printed for, or else what holds
// against it is named.
func TestFixesThatHaveNoEffect(t *testing.T) {
	const hook = "{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, metadata: {name: guard}, webhooks: [{name: g.x, failurePolicy: Fail, clientConfig: {service: {namespace: shop, name: web}}}]}\n---\n"
	mode := func(name, spec string) string {
		return `{apiVersion: heddle.dev/v1alpha1, kind: PeerAuthentication, metadata: {namespace: shop, name: ` + name + `, creationTimestamp: "2020-01-01T00:00:00Z"}, spec: ` + spec + "}\n---\n"
	}
	const allow = "{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: a}, spec: {rules: [{from: [{namespaces: [shop]}]}]}}\n---\n"
	second := strings.NewReplacer("web-1", "web-2", "abc", "def", "8443", "9443", "10.244.1.5", "10.244.1.6").Replace(shop[strings.Index(shop, "apiVersion: v1\nkind: Pod"):strings.Index(shop, "apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: db-1")])
	for _, tc := range []struct {
		name, objects string
		mended, open  int
	}{
		{"nothing holds", mode("mine", "{mode: STRICT}"), 1, 0},
		{"a mode of the same pods holds for other ports", mode("mine", "{selector: {matchLabels: {app: web}}, mode: STRICT}"), 1, 0},
		{"an older one of the port holds", mode("mine", "{selector: {matchLabels: {app: web}}, portModes: [{port: 8443, mode: STRICT}]}"), 0, 1},
		{"it holds, and a policy has what mends it", mode("mine", "{selector: {matchLabels: {app: web}}, portModes: [{port: 8443, mode: STRICT}]}") + allow, 1, 1},
		{"it holds for one port of two", second + mode("mine", "{selector: {matchLabels: {app: web}}, portModes: [{port: 9443, mode: STRICT}]}"), 1, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := read(t, shop, hook, tc.objects)
			all, err := o.Analyze("")
			if err != nil {
				t.Fatal(err)
			}
			mended, open := 0, 0
			for _, f := range all {
				if f.Fix != "" {
					mended++
					continue
				}
				open++
				if !strings.Contains(f.Remedy, "PeerAuthentication shop/mine says STRICT") {
					t.Errorf("%q does not name what holds", f.Remedy)
				}
			}
			if mended != tc.mended || open != tc.open {
				t.Errorf("got %+v", all)
			}
			if len(o.modes) != 1 {
				t.Errorf("what was tried is left: %d PeerAuthentications", len(o.modes))
			}
		})
	}
}
