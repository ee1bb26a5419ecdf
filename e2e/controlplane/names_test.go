package controlplane

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// accounts are the two that the chart makes, as an API server calls them.
const (
	operatorAccount = "system:serviceaccount:heddle-system:heddle-operator"
	agentAccount    = "system:serviceaccount:heddle-system:heddle-agent"
)

// may asks the API server what somebody may do (authorization.k8s.io, SubjectAccessReview).
func (s *server) may(t testing.TB, user, namespace string, r right) bool {
	t.Helper()
	resource, sub, _ := strings.Cut(r.resource, "/")
	text, err := json.Marshal(map[string]any{"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": map[string]any{
		"user": user, "groups": []string{"system:serviceaccounts", "system:serviceaccounts:heddle-system", "system:authenticated"},
		"resourceAttributes": map[string]any{"verb": r.verb, "group": r.group, "resource": resource, "subresource": sub, "namespace": namespace, "name": r.name}}})
	if err != nil {
		t.Fatal(err)
	}
	o := s.must(t, http.MethodPost, "/apis/authorization.k8s.io/v1/subjectaccessreviews", string(text))
	allowed, _ := o["status"].(map[string]any)["allowed"].(bool)
	return allowed
}

// installChartsRoles makes the roles, bindings and accounts of the plain manifests.
func (s *server) installChartsRoles(t testing.TB) {
	t.Helper()
	s.must(t, http.MethodPost, "/api/v1/namespaces", `{apiVersion: v1, kind: Namespace, metadata: {name: heddle-system}}`)
	s.must(t, http.MethodPost, "/api/v1/namespaces", `{apiVersion: v1, kind: Namespace, metadata: {name: shop}}`)
	text, err := os.ReadFile("../../manifests/plain/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	const roles = "/apis/rbac.authorization.k8s.io/v1"
	paths := map[string]string{"ServiceAccount": "/api/v1/namespaces/heddle-system/serviceaccounts", "ClusterRole": roles + "/clusterroles", "ClusterRoleBinding": roles + "/clusterrolebindings",
		"Role": roles + "/namespaces/heddle-system/roles", "RoleBinding": roles + "/namespaces/heddle-system/rolebindings"}
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		var o struct{ Kind string }
		if err := yaml.Unmarshal([]byte(document), &o); err != nil || paths[o.Kind] == "" {
			t.Fatalf("a %s: %v", o.Kind, err)
		}
		s.must(t, http.MethodPost, paths[o.Kind], document)
	}
}

// TestRightsEndAtTheirNames has an API server say what the chart's rules come to: what they
// name is the operator's, and nothing else of that kind is, under another name, in another
// namespace, or as a whole. The agent may do nothing.
func TestRightsEndAtTheirNames(t *testing.T) {
	s := startServer(t)
	s.installChartsRoles(t)
	named := 0
	for r := range chartRights(t) {
		namespace, elsewhere := "heddle-system", "shop"
		if !r.here {
			namespace, elsewhere = "", ""
		}
		if !r.here && r.name == "" {
			namespace, elsewhere = "shop", "shop" // where the kind is in namespaces: in all of them
		}
		if !s.may(t, operatorAccount, namespace, r) {
			t.Errorf("the operator may not: %+v", r)
		}
		if s.may(t, agentAccount, namespace, r) {
			t.Errorf("the agent may: %+v", r)
		}
		if r.here && s.may(t, operatorAccount, elsewhere, r) {
			t.Errorf("the operator may in another namespace, too: %+v", r)
		}
		if r.name == "" {
			continue
		}
		named++
		for _, name := range []string{r.name + "-2", "other", ""} {
			other := r
			other.name = name
			if s.may(t, operatorAccount, namespace, other) {
				t.Errorf("the operator may, under the name %q: %+v", name, r)
			}
		}
	}
	if named < 20 {
		t.Errorf("%d rights have names", named)
	}
	// What no rule is about, in the operator's own namespace, too.
	for _, r := range []right{{verb: "list", resource: "secrets"}, {verb: "watch", resource: "configmaps"}, {verb: "delete", resource: "secrets", name: "heddle-ca"}, {verb: "patch", resource: "secrets", name: "heddle-ca"},
		{verb: "update", group: "heddle.dev", resource: "meshes", name: "default"}, {verb: "patch", resource: "nodes", name: "n1"}, {verb: "create", resource: "pods/exec", name: "x"},
		{verb: "delete", group: "coordination.k8s.io", resource: "leases", name: "heddle-operator"}, {verb: "escalate", group: "rbac.authorization.k8s.io", resource: "clusterroles", name: "heddle-operator"}} {
		if s.may(t, operatorAccount, "heddle-system", r) {
			t.Errorf("the operator may, and nothing says so: %+v", r)
		}
	}
	s.refusesOtherSecrets(t)
}

// refusesOtherSecrets asks in fact, as the operator's account.
func (s *server) refusesOtherSecrets(t testing.TB) {
	t.Helper()
	const secrets = "/api/v1/namespaces/heddle-system/secrets"
	for _, name := range []string{"heddle-ca", "somebodys"} {
		s.must(t, http.MethodPost, secrets, fmt.Sprintf(`{apiVersion: v1, kind: Secret, metadata: {name: %s}}`, name))
	}
	token := s.token(t, "heddle-operator", "", "")
	for path, want := range map[string]int{secrets + "/heddle-ca": http.StatusOK, secrets + "/somebodys": http.StatusForbidden, secrets: http.StatusForbidden} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+s.address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token) // which the administrator's transport leaves as it is
		resp, err := s.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil {
			t.Error(err)
		}
		if resp.StatusCode != want {
			t.Errorf("get %s as the operator: %d, want %d", path, resp.StatusCode, want)
		}
	}
}
