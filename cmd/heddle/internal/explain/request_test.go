package explain

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/explain/asked"
)

const requestPolicies = `
---
{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: read}, spec: {selector: {matchLabels: {app: db}}, rules: [{from: [{serviceAccounts: [web]}], to: [{methods: [GET], notPaths: [/admin*]}, {headers: [{name: x-role, values: [admin]}]}]}]}}
---
{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: never}, spec: {action: DENY, selector: {matchLabels: {app: db}}, rules: [{to: [{ports: [3307]}]}, {to: [{paths: [/secret*]}]}]}}
`

const requestRoute = `
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {namespace: shop, name: db}
spec:
  parentRefs: [{group: "", kind: Service, name: db}]
  rules:
  - matches: [{path: {value: /old}}]
    filters: [{type: URLRewrite, urlRewrite: {hostname: new.shop, path: {type: ReplacePrefixMatch, replacePrefixMatch: /secret}}}]
    backendRefs: [{name: db, port: 3306}]
  - matches: [{path: {value: /split}}]
    backendRefs: [{name: db, port: 3306, weight: 9}, {name: gone, port: 80, weight: 1}, {name: db, port: 3306, weight: 0}]
  - matches: [{path: {value: /away}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: else.where, statusCode: 301}}]
  - matches: [{path: {value: /items}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-role, value: admin}]}}]
    backendRefs: [{name: db, port: 3306}]
`

func requestModel(t *testing.T, edit func(string) string, more ...string) *Model {
	t.Helper()
	dir := t.TempDir()
	text := strings.Replace(behind, "READY", "true", 1)
	text = text[:strings.LastIndex(text, "---")] + strings.Join(more, "")
	if edit != nil {
		text = edit(text)
	}
	if err := os.WriteFile(filepath.Join(dir, "mesh.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := fromFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func explained(t *testing.T, m *Model, from, to, method, path string, headers ...string) (*Answer, string) {
	t.Helper()
	r, err := asked.Parse(method, "", path, headers)
	if err != nil {
		t.Fatal(err)
	}
	a, err := ExplainRequest(m, from, to, r)
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := Print(&text, false, a); err != nil {
		t.Fatal(err)
	}
	if _, err := json.Marshal(a); err != nil {
		t.Fatal(err)
	}
	return a, text.String()
}

// TestExplainOneRequest: which route, backends, policy and rule decide about it at the waypoint, as that decides.
func TestExplainOneRequest(t *testing.T) {
	bare, routed := requestModel(t, nil, requestPolicies), requestModel(t, nil, requestPolicies, requestRoute)
	for _, c := range []struct {
		m                     *Model
		method, path, header  string
		verdict, reason       string
		status                int
		route, policy, sentAs string
	}{
		{bare, "GET", "/x", "", "allow", "PolicyAllow", 0, "", "shop/read[0]", "db.shop:3306 /x"},
		{bare, "POST", "/x", "", "deny", "PolicyNoMatch", 0, "", "", "db.shop:3306 /x"},
		{bare, "POST", "/x", "x-role=admin", "allow", "PolicyAllow", 0, "", "shop/read[0]", "db.shop:3306 /x"},
		{bare, "GET", "/a/..%2Fadmin", "", "deny", "PolicyDeny", 0, "", "shop/never[1]", ""},
		{bare, "GET", "//secret", "", "deny", "PolicyDeny", 0, "", "shop/never[1]", "db.shop:3306 //secret"},
		{bare, "GET", "/%73ecret", "", "deny", "PolicyDeny", 0, "", "shop/never[1]", "db.shop:3306 /secret"},
		{bare, "GET", "/a%5Cb", "", "deny", "BadPath", 400, "", "", ""},
		{bare, "CONNECT", "", "", "deny", "ConnectRefused", 405, "", "", ""},
		{routed, "GET", "/old/x", "", "deny", "PolicyDeny", 0, "HTTPRoute shop/db ", "shop/never[1]", "new.shop /secret/x"},
		{routed, "GET", "/away", "", "allow", "", 301, "HTTPRoute shop/db ", "", ""},
		{routed, "GET", "/split", "", "mixed", "BackendBroken", 0, "HTTPRoute shop/db ", "shop/read[0]", "db.shop:3306 /split"},
		{routed, "POST", "/items", "", "allow", "PolicyAllow", 0, "HTTPRoute shop/db ", "shop/read[0]", "db.shop:3306 /items"},
		{routed, "GET", "/nowhere", "", "deny", "NoRoute", 404, "", "", ""},
	} {
		var headers []string
		if c.header != "" {
			headers = []string{c.header}
		}
		a, text := explained(t, c.m, "shop/web", "shop/db", c.method, c.path, headers...)
		r := a.Request
		if !r.Seen || r.Verdict != c.verdict || r.Reason != c.reason || r.Status != c.status || !strings.HasPrefix(r.Route, c.route) || (r.Route == "") != (c.route == "") || a.Denied() != (c.verdict != "allow") {
			t.Errorf("%s %s: %+v", c.method, c.path, r)
		}
		for _, want := range []string{c.policy, c.sentAs, c.reason, r.Route} {
			if !strings.Contains(text, want) {
				t.Errorf("%s %s: no %q in\n%s", c.method, c.path, want, text)
			}
		}
		if a.Verdict != "allow" {
			t.Errorf("%s %s: the connection is %s", c.method, c.path, a.Verdict)
		}
	}
	a, _ := explained(t, routed, "shop/web", "shop/db", "GET", "/split")
	if b := a.Request.Backends; len(b) != 3 || b[0].Weight != 9 || len(b[0].Endpoints) != 1 || b[1].Status != 500 || b[2].Weight != 0 || b[2].Endpoints != nil {
		t.Errorf("shares: %+v", b)
	}
}

// TestExplainUnseenRequest: where no waypoint sees it, what follows is said.
func TestExplainUnseenRequest(t *testing.T) {
	m := requestModel(t, nil, requestPolicies)
	opaque := requestModel(t, func(s string) string {
		return strings.Replace(s, "ports: [{port: 3306}]", "ports: [{name: tcp, port: 3306}, {name: http, port: 81, targetPort: 3306}]", 1)
	}, requestPolicies)
	free := requestModel(t, nil)
	for _, c := range []struct {
		m                              *Model
		from, to, verdict, reason, why string
	}{
		{m, "shop/web", "10.1.0.2:3306", "deny", "RequestUnseen", "no address of a Service that is behind a waypoint; who would have to be known"},
		{m, "plain/old", "shop/db", "deny", "StrictPlaintext", "the source is not in the mesh"},
		{opaque, "shop/web", "shop/db:3306", "deny", "RequestUnseen", "is no HTTP: the waypoint passes"},
		{free, "shop/web", "10.1.0.2:3306", "allow", "NoPolicy", "any request of it is let in"},
	} {
		a, text := explained(t, c.m, c.from, c.to, "GET", "/")
		if r := a.Request; r.Seen || r.Verdict != c.verdict || r.Reason != c.reason || !strings.Contains(text, c.why) || !strings.Contains(text, "not seen by a waypoint") || a.Denied() != (c.verdict == "deny") {
			t.Errorf("%s to %s: %+v\n%s", c.from, c.to, r, text)
		}
	}
	a, err := Explain(m, "shop/web", "shop/db")
	if err != nil || a.Request != nil {
		t.Errorf("without a request: %v, %+v", err, a.Request)
	}
}
