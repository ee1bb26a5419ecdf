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

// TestServicesWithoutSelector: who is behind such a service is what its EndpointSlices say, in
// the pods' own namespaces.
func TestServicesWithoutSelector(t *testing.T) {
	const written = `
apiVersion: v1
kind: Service
metadata: {namespace: ops, name: hand, annotations: {%s}, labels: {team: a}}
spec: {%sports: [{name: https, port: 443}, {name: other, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: ops, name: hand-1, labels: {kubernetes.io/service-name: hand}}
addressType: IPv4
ports: [{name: https, port: 8443}]
endpoints: [{addresses: [10.244.1.5]}, {addresses: [10.244.2.5]}, {addresses: [192.168.0.9]}]
---
`
	const (
		hook   = "{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, metadata: {name: guard}, webhooks: [{name: g.x, failurePolicy: Fail, clientConfig: %s}]}\n---\n"
		guard  = "webhook ValidatingWebhookConfiguration guard"
		api    = "{apiVersion: apiregistration.k8s.io/v1, kind: APIService, metadata: {name: v1.x}, spec: {service: {namespace: ops, name: %s, port: 443}}}\n---\n"
		served = "api-service APIService v1.x"
		alias  = "{apiVersion: v1, kind: Service, metadata: {namespace: ops, name: alias}, spec: {type: ExternalName, externalName: hand.ops.svc.cluster.local}}\n---\n"
	)
	plain := fmt.Sprintf(written, "", "")
	for name, tc := range map[string]struct {
		objects string
		want    []string
		at      string
	}{
		"a webhook":                   {plain + fmt.Sprintf(hook, "{service: {namespace: ops, name: hand}}"), []string{guard, guard}, "at port 8443 of pods"},
		"a webhook's port that is no": {plain + fmt.Sprintf(hook, "{service: {namespace: ops, name: hand, port: 80}}"), nil, ""},
		"a webhook by its name":       {plain + fmt.Sprintf(hook, "{url: 'https://hand.ops.svc'}"), []string{guard, guard}, "at port 8443 of pods"},
		"an API":                      {plain + fmt.Sprintf(api, "hand"), []string{served, served}, "at port 8443 of pods"},
		"an API by another name":      {plain + alias + fmt.Sprintf(api, "alias"), []string{served, served}, "at port 8443 of pods"},
		"clients outside":             {fmt.Sprintf(written, "", "type: NodePort, "), []string{"outside-client Service ops/hand", "outside-client Service ops/hand"}, "at port 8443 of pods"},
		"a scrape":                    {fmt.Sprintf(written, `prometheus.io/scrape: "true", prometheus.io/port: "9102"`, ""), []string{"scrape Service ops/hand", "scrape Service ops/hand"}, "at port 9102 of pods"},
		"a monitor": {plain + "{apiVersion: monitoring.coreos.com/v1, kind: ServiceMonitor, metadata: {namespace: ops, name: m}, spec: {selector: {matchLabels: {team: a}}, endpoints: [{targetPort: 9103}]}}",
			[]string{"scrape ServiceMonitor ops/m", "scrape ServiceMonitor ops/m"}, "at port 9103 of pods"},
		"nobody calls": {plain, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			all := findings(t, read(t, shop, tc.objects), tc.want...)
			for i, f := range all {
				who := []string{"app=web", "app=db"}
				if f.Namespace != "shop" || !strings.Contains(f.Detail, tc.at+" "+who[i]) || !strings.Contains(f.Fix, strings.ReplaceAll(who[i], "=", ": ")) {
					t.Errorf("got %+v, want it %s %s", f, tc.at, who[i])
				}
			}
		})
	}
}

// TestPodsThatNothingSelects: what is printed selects pods by what stays, and where nothing
// does, this is said, and no object is printed that would be one for other pods.
func TestPodsThatNothingSelects(t *testing.T) {
	const pod = `{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: load-%[1]s, labels: {%[2]s}, annotations: {prometheus.io/scrape: "true"}},
spec: {nodeName: n1, containers: [{name: c, ports: [{containerPort: 9090}]}]}, status: {podIPs: [{ip: 10.244.1.2%[1]s}]}}` + "\n---\n"
	const job = `{apiVersion: batch/v1, kind: %s, metadata: {namespace: shop, name: load}, spec: %s}` + "\n---\n"
	const template = `template: {metadata: {annotations: {prometheus.io/scrape: "true"}%s}, spec: {containers: [{name: c, ports: [{containerPort: 9090}]}]}}`
	const uid = "batch.kubernetes.io/controller-uid: u, controller-uid: u, "
	const url = "{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, metadata: {name: guard}, webhooks: [{name: g.x, failurePolicy: Fail, clientConfig: {url: 'https://10.244.1.21:9090'}}]}\n---\n"
	scrapes := func(name string) []string { return []string{"scrape Pod shop/" + name} }
	for name, tc := range map[string]struct {
		objects  string
		want     []string
		selector string // of what is printed; "" for nothing
		says     string // of Detail
	}{
		"no labels":             {fmt.Sprintf(pod, "1", ""), scrapes("load-1"), "", "at port 9090 of pods of load-1,"},
		"the mesh's own":        {fmt.Sprintf(pod, "1", "heddle.dev/mesh: enabled"), scrapes("load-1"), "", "at port 9090 of pods of load-1,"},
		"generated ones":        {fmt.Sprintf(pod, "1", "pod-template-hash: x, controller-uid: u"), scrapes("load-1"), "", "of pods of load-1,"},
		"a Job's":               {fmt.Sprintf(pod, "1", uid+"batch.kubernetes.io/job-name: load, job-name: load"), scrapes("load-1"), "batch.kubernetes.io/job-name: load\n", "of pods batch.kubernetes.io/job-name=load,"},
		"one run of a CronJob":  {fmt.Sprintf(pod, "1", uid+"batch.kubernetes.io/job-name: load-29412345") + fmt.Sprintf(pod, "2", uid+"batch.kubernetes.io/job-name: load-29412345"), scrapes("load-1"), "", "of pods of load-29412345,"},
		"with one of its own":   {fmt.Sprintf(pod, "1", uid+"batch.kubernetes.io/job-name: load-29412345, app: load"), scrapes("load-1"), "app: load\n", "of pods app=load,"},
		"a Job as it is made":   {fmt.Sprintf(job, "Job", "{"+fmt.Sprintf(template, "")+"}"), scrapes("load"), "batch.kubernetes.io/job-name: load\n", "of pods batch.kubernetes.io/job-name=load,"},
		"which has a selector":  {fmt.Sprintf(job, "Job", "{manualSelector: true, selector: {matchLabels: {run: one}}, "+fmt.Sprintf(template, ", labels: {run: one}")+"}"), scrapes("load"), "run: one\n", "of pods run=one,"},
		"a CronJob":             {fmt.Sprintf(job, "CronJob", "{schedule: '* * * * *', jobTemplate: {spec: {"+fmt.Sprintf(template, "")+"}}}"), scrapes("load"), "", "of pods of load,"},
		"by a webhook":          {strings.Replace(fmt.Sprintf(pod, "1", ""), "scrape", "x", 1) + url, []string{"webhook ValidatingWebhookConfiguration guard"}, "", "of pods of load-1,"},
		"by a monitor, no more": {strings.Replace(fmt.Sprintf(pod, "1", ""), "scrape", "x", 1) + "{apiVersion: monitoring.coreos.com/v1, kind: PodMonitor, metadata: {namespace: shop, name: m}, spec: {selector: {matchExpressions: [{key: app, operator: DoesNotExist}]}, podMetricsEndpoints: [{portNumber: 9090}]}}", []string{"scrape PodMonitor shop/m"}, "", "of pods of load-1,"},
		"by a port of its node": {strings.NewReplacer("scrape", "x", "containerPort: 9090", "containerPort: 9090, hostPort: 90").Replace(fmt.Sprintf(pod, "1", "")), []string{"outside-client Pod shop/load-1"}, "", "of pods of load-1,"},
	} {
		t.Run(name, func(t *testing.T) {
			all := findings(t, read(t, shop, tc.objects), tc.want...)
			for _, f := range all {
				if !strings.Contains(f.Detail, tc.says) || (f.Fix != "") != (tc.selector != "") || !strings.HasSuffix(f.Fix, tc.selector) {
					t.Errorf("got %+v, want %q, by %q", f, tc.says, tc.selector)
				}
				if (f.Fix == "") != strings.Contains(f.Remedy, "no label that stays") || strings.Contains(tc.selector, "job-name") != strings.Contains(f.Remedy, "it is for Jobs of this name") {
					t.Errorf("to be done is %q", f.Remedy)
				}
			}
		})
	}
	// Of pods that cannot be enrolled it is said whose they are.
	all := findings(t, read(t, shop, strings.NewReplacer("scrape", "x", "nodeName: n1", "hostNetwork: true").Replace(fmt.Sprintf(pod, "1", ""))), "host-network Pod shop/load-1")
	if len(all) == 1 && !strings.Contains(all[0].Detail, "pods of load-1 are in their node's network") {
		t.Errorf("got %q", all[0].Detail)
	}
}
