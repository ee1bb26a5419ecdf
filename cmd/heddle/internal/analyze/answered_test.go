package analyze

import (
	"fmt"
	"strings"
	"testing"
)

// TestWebhooksByURL: a host that a webhook is given by is found where it is somebody's here.
func TestWebhooksByURL(t *testing.T) {
	const (
		guard      = "{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, metadata: {name: guard}, webhooks: [{name: g.x, failurePolicy: Fail, clientConfig: {url: '%s'}}]}\n---\n"
		conversion = "{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: things.x}, spec: {conversion: {strategy: Webhook, webhook: {clientConfig: {url: '%s'}}}}}\n---\n"
		headless   = "{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: peers}, spec: {clusterIP: None, selector: {app: web}, ports: [{port: 443, targetPort: https}]}}\n---\n"
	)
	cluster := strings.Replace(shop, "spec: {selector: {app: web}", "spec: {clusterIP: 10.96.0.7, selector: {app: web}", 1) + headless
	for url, says := range map[string]string{
		"https://web.shop.svc:443/x":       "at port 8443 of pods app=web, which is STRICT",
		"https://web.shop.svc":             "at port 8443 of pods app=web",
		"https://web.shop.svc.example/x":   "at port 8443 of pods app=web",
		"https://10.96.0.7:443":            "at port 8443 of pods app=web",
		"https://10.244.2.5:9000/validate": "at port 9000 of pods app=db",
		"https://[::ffff:10.244.2.5]:9000": "at port 9000 of pods app=db",
		"https://peers.shop.svc:8443":      "at port 8443 of pods app=web",
		"https://hooks.example.com":        "",
		"https://192.168.0.9:8443":         "",
		"https://web.other.svc":            "",
		"::":                               "",
	} {
		for kind, text := range map[string]string{"ValidatingWebhookConfiguration guard": guard, "CustomResourceDefinition things.x": conversion} {
			var want []string
			if says != "" {
				want = []string{"webhook " + kind}
			}
			all := findings(t, read(t, cluster, fmt.Sprintf(text, url)), want...)
			if len(all) == 1 && (!strings.Contains(all[0].Detail, says) || all[0].Fix == "" || all[0].Namespace != "shop") {
				t.Errorf("%s: got %+v, want %q", url, all[0], says)
			}
		}
	}
}
