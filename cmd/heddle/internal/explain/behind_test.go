package explain

import (
	"strings"
	"testing"
)

// TestExplainBehindWaypoint: what the waypoint refuses whatever is asked for is refused, with the policy and the workload
// that say so; what only some of its workloads refuse is mixed; and where the request decides, the connection is allowed.
func TestExplainBehindWaypoint(t *testing.T) {
	const (
		nobody = `---
{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: nobody}, spec: {selector: {matchLabels: {app: db}}}}
`
		never = `---
{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: never}, spec: {action: DENY, selector: {matchLabels: {app: db}}, rules: [{}]}}
`
		others = `---
{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: others}, spec: {action: DENY, selector: {matchLabels: {app: db}}, rules: [{to: [{ports: [3307]}]}]}}
`
		readers = `---
{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: readers}, spec: {selector: {matchLabels: {app: db}}, rules: [{to: [{methods: [GET]}]}]}}
`
		web = `---
{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: only-web}, spec: {selector: {matchLabels: {app: db}}, rules: [{from: [{serviceAccounts: [web]}]}]}}
`
		second = `---
{apiVersion: heddle.dev/v1alpha1, kind: Workload, metadata: {namespace: shop, name: db2, labels: {app: db, second: "true"}}, spec: {node: n1, serviceAccount: db, addresses: ["10.1.0.5"], networkNamespace: /run/netns/db2}}
---
{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: not-second}, spec: {action: DENY, selector: {matchLabels: {second: "true"}}, rules: [{}]}}
`
		isolated = `---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: db}, spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: waypoint}}}]}]}}
`
		routed = `---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: canary}, spec: {selector: {app: web}, clusterIPs: ["10.96.0.3"], ports: [{port: 80}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {namespace: shop, name: db}, spec: {parentRefs: [{group: "", kind: Service, name: db}], rules: [RULES{matches: [{path: {value: /new}}], backendRefs: [{name: canary, port: 80}]}]}}
`
		toDB     = `{backendRefs: [{name: db, port: 3306}]}, `
		redirect = `{filters: [{type: RequestRedirect, requestRedirect: {hostname: else.where, statusCode: 301}}]}, `
	)
	tcp := func(s string) string {
		return strings.Replace(s, "ports: [{port: 3306}]", "ports: [{name: tcp, port: 3306}, {name: http, port: 81, targetPort: 3306}]", 1)
	}
	for name, c := range map[string]struct {
		edit                    func(string) string
		more                    string
		verdict, reason, behind string
		says                    string
	}{
		"no policy":                        {nil, "", "allow", "Waypoint", "allow NoPolicy", "behind waypoint shop/waypoint"},
		"a rule for the client":            {nil, web, "allow", "Waypoint", "allow PolicyAllow", "PolicyAllow shop/only-web[0]"},
		"a default deny":                   {nil, nobody, "deny", "PolicyNoMatch", "deny PolicyNoMatch", "no rule of shop/nobody admits it: add one that names the source and the port: it is refused at the waypoint, for shop/db port 3306"},
		"a DENY":                           {nil, never, "deny", "PolicyDeny", "deny PolicyDeny", "AuthorizationPolicy shop/never is to DENY it: it is refused at the waypoint"},
		"a DENY of another port":           {nil, others, "allow", "Waypoint", "allow NoPolicy", "shop/others"},
		"one of two workloads":             {nil, second, "mixed", "PolicyDeny", "mixed PolicyDeny", "for shop/db2 port 3306"},
		"the request decides":              {nil, readers, "allow", "Waypoint", "request RequestUnseen", "what becomes of a request depends on the request"},
		"a rule that needs no request":     {nil, readers + web, "allow", "Waypoint", "allow PolicyAllow", "PolicyAllow shop/only-web[0]"},
		"a DENY beside one about requests": {nil, readers + never, "deny", "PolicyDeny", "deny PolicyDeny", "shop/never"},
		"no HTTP":                          {tcp, readers, "deny", "RequestUnseen", "deny RequestUnseen", "is about requests, which the waypoint does not see"},
		"no HTTP by its name, but routed":  {tcp, readers + strings.Replace(routed, "RULES", toDB, 1), "allow", "Waypoint", "request RequestUnseen", "what becomes of a request depends on the request"},
		"a NetworkPolicy for the waypoint": {nil, isolated, "allow", "Waypoint", "allow NoPolicy", "behind waypoint"},
		"routed elsewhere":                 {nil, nobody + strings.Replace(routed, "RULES", "", 1), "allow", "Waypoint", "allow NoPolicy", "shop/web port 80"},
		"routed there as well":             {nil, nobody + strings.Replace(routed, "RULES", toDB, 1), "allow", "Waypoint", "request PolicyNoMatch", "routes say to which workloads it goes"},
		"redirected, or refused":           {nil, nobody + strings.Replace(strings.Replace(routed, "RULES", redirect, 1), "canary, port: 80", "db, port: 3306", 1), "allow", "Waypoint", "request PolicyNoMatch", "routes say"},
		"nobody is ready": {func(s string) string {
			return strings.Replace(s, "serviceAccount: db,", "serviceAccount: db, ready: false,", 1)
		}, nobody, "deny", "NoEndpoint", "deny NoEndpoint", "no pod of the service is ready"},
	} {
		m := requestModel(t, c.edit, c.more)
		a, _ := explained(t, m, "shop/web", "shop/db:3306", "GET", "/new")
		if !a.Request.Seen && name != "no HTTP" {
			t.Errorf("%s: the request is not seen: %+v", name, a.Request)
		}
		if (a.Request.Verdict == "deny") != (c.verdict == "deny") && c.behind != "request PolicyNoMatch" {
			t.Errorf("%s: the request is %s, the connection %s", name, a.Request.Verdict, c.verdict)
		}
		a, err := Explain(m, "shop/web", "shop/db:3306")
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if err := Print(&b, false, a); err != nil {
			t.Fatal(err)
		}
		text := b.String()
		if a.Verdict != c.verdict || a.Reason != c.reason || a.Behind == nil || a.Behind.Verdict+" "+a.Behind.Reason != c.behind || !strings.Contains(text, c.says) || a.Denied() != (c.verdict != "allow") {
			t.Errorf("%s: %s %s, behind %+v\n%s", name, a.Verdict, a.Reason, a.Behind, text)
		}
	}
}
