package explain

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// fromFolder compiles a folder, as the operator does.
func fromFolder(folder string) (*Model, error) {
	written, err := ReadFolder(folder, true)
	if err != nil {
		return nil, err
	}
	return written.Model()
}

const folder = `
apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec:
  trustDomain: m
  clusterRanges: ["10.0.0.0/8", "fd00::/16"]
  egress: {namespaces: [{namespace: bank, mode: DENY}]}
  dns: {mode: CAPTURE, namespaces: [{namespace: bank, mode: DIRECT}]}
  revokedIdentities: ["spiffe://m/ns/shop/sa/stolen", "spiffe://other/stolen"]
  federation:
  - {trustDomain: other, endpoint: "https://other/", profile: https_web, workloads: [{identity: "spiffe://other/billing", addresses: [10.200.0.1, "fd00::200"]}, {identity: "spiffe://other/stolen", addresses: [10.200.0.2]}]}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: bank, labels: {heddle.dev/mesh: enabled}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: plain}}
---
%s
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: db}, spec: {selector: {app: db}, clusterIPs: ["10.96.0.1"], ports: [{port: 3306}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: two}, spec: {selector: {app: web}, clusterIPs: ["10.96.0.2"], ports: [{name: a, port: 80, targetPort: 8080}, {name: b, port: 81}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: nobody}, spec: {selector: {app: nobody}, clusterIPs: ["10.96.0.3"], ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: headless}, spec: {selector: {app: db}, clusterIP: None, ports: [{port: 3306}]}}
---
{apiVersion: heddle.dev/v1alpha1, kind: PeerAuthentication, metadata: {namespace: shop, name: web}, spec: {selector: {matchLabels: {app: web}}, portModes: [{port: 8080, mode: PERMISSIVE}]}}
---
{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: db-only-web}, spec: {selector: {matchLabels: {app: db}}, rules: [{from: [{identities: ["spiffe://m/ns/none/sa/x"]}]}, {from: [{identities: ["spiffe://m/ns/shop/sa/web"]}], to: [{ports: [3306]}]}, {from: [{identities: ["spiffe://other/front"]}]}]}}
---
{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: not-two}, spec: {selector: {matchLabels: {name: db-2}}, action: DENY, rules: [{from: [{namespaces: [shop]}], to: [{ports: [3306]}]}]}}
---
{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: seen}, spec: {selector: {matchLabels: {app: web}}, action: AUDIT, rules: [{}]}}
`

// view has web and a db on node n1, another db on n2, and others.
func view(t *testing.T) (string, *Model) {
	t.Helper()
	var workloads []string
	for i, w := range []struct{ namespace, name, app, node string }{
		{"shop", "web-1", "web", "n1"}, {"shop", "db-1", "db", "n1"}, {"shop", "db-2", "db", "n2"}, {"shop", "stolen", "stolen", "n1"},
		{"bank", "ledger", "ledger", "n2"}, {"plain", "old", "old", "n2"},
		{"bank", "api-1", "api", "n1"}, {"bank", "api-2", "api", "n2"},
	} {
		workloads = append(workloads, fmt.Sprintf("{apiVersion: heddle.dev/v1alpha1, kind: Workload, metadata: {namespace: %s, name: %s, labels: {app: %s, name: %s}}, spec: {node: %s, serviceAccount: %s, addresses: [\"10.1.0.%d\"], networkNamespace: /run/netns/%s}}",
			w.namespace, w.name, w.app, w.name, w.node, w.app, i+1, w.name))
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mesh.yaml"), fmt.Appendf(nil, folder, strings.Join(workloads, "\n---\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := fromFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir, v
}

func TestExplain(t *testing.T) {
	_, v := view(t)
	for _, tc := range []struct {
		source, destination string
		verdict             string
		endpoints           string // workload path mode verdict reason policy
		note                string
	}{
		{"shop/web-1", "shop/db-1:3306", "allow", "shop/db-1 splice STRICT allow PolicyAllow shop/db-only-web[1]", ""},
		{"shop/web-1", "shop/db", "mixed", "shop/db-1 splice STRICT allow PolicyAllow shop/db-only-web[1]; shop/db-2 refused STRICT deny PolicyDeny shop/not-two[0]", "AuthorizationPolicy shop/not-two is to DENY it"},
		{"shop/web", "db.shop.svc.cluster.local:3306", "mixed", "shop/db-1 splice STRICT allow PolicyAllow shop/db-only-web[1]; shop/db-2 refused STRICT deny PolicyDeny shop/not-two[0]", ""},
		{"shop/web-1", "shop/headless", "mixed", "shop/db-1 splice STRICT allow PolicyAllow shop/db-only-web[1]; shop/db-2 refused STRICT deny PolicyDeny shop/not-two[0]", ""},
		{"shop/web-1", "shop/db-1:3307", "deny", "shop/db-1 refused STRICT deny PolicyNoMatch", "no rule of shop/db-only-web admits it"},
		{"shop/web-1", "bank/api:80", "allow", "bank/api-1 splice STRICT allow NoPolicy", "the destination stands for 2 pods: bank/api-1 is taken"},
		{"shop/two", "bank/ledger:80", "allow", "bank/ledger tunnel STRICT allow NoPolicy", ""},
		{"bank/ledger", "10.96.0.2:80", "allow", "shop/web-1 tunnel PERMISSIVE allow NoPolicy audited shop/seen", ""},
		{"shop/stolen", "bank/ledger:80", "deny", "bank/ledger refused STRICT deny IdentityRevoked", "spec.revokedIdentities"},
		{"spiffe://other/front", "shop/db-1:3306", "allow", "shop/db-1 tunnel STRICT allow PolicyAllow shop/db-only-web[2]", "of another trust domain"},
		{"spiffe://other/front", "bank/ledger:80", "deny", "bank/ledger refused STRICT deny ForeignIdentity", "an ALLOW policy that names it"},
		{"spiffe://third/front", "shop/db-1:3306", "deny", "shop/db-1 refused STRICT deny NotFederated", "spec.federation"},
		{"spiffe://m/ns/shop/sa/web", "shop/db-1:3306", "allow", "shop/db-1 splice STRICT allow PolicyAllow shop/db-only-web[1]", "shop/web-1 is taken"},
		{"plain/old", "shop/db-1:3306", "deny", "shop/db-1 refused STRICT deny StrictPlaintext", "enroll the source"},
		{"plain/old", "shop/two:80", "allow", "shop/web-1 plaintext PERMISSIVE allow Permissive audited shop/seen", ""},
		{"192.0.2.7", "shop/two:80", "allow", "shop/web-1 plaintext PERMISSIVE allow Permissive audited shop/seen", "a client outside the mesh"},
		{"shop/web-1", "plain/old:80", "allow", "plain/old plaintext  allow EgressAllowed", ""},
		{"bank/ledger", "plain/old:80", "deny", "plain/old refused  deny EgressDenied", "spec.egress"},
		{"shop/stolen", "plain/old:80", "deny", "plain/old refused  deny IdentityRevoked", "spec.revokedIdentities"},
		{"shop/stolen", "192.0.2.7:443", "deny", "", "spec.revokedIdentities"},
		{"plain/old", "plain/old:80", "allow", "plain/old plaintext  allow ", ""},
		{"shop/web-1", "192.0.2.7:443", "allow", "", "outside the mesh"},
		{"bank/ledger", "192.0.2.7:443", "deny", "", "spec.egress"},
		{"plain/old", "[2001:db8::1]:443", "allow", "", "Heddle has no say"},
		{"shop/web-1", "10.9.9.9:80", "deny", "", "cluster ranges, and nobody's"},
		{"shop/web-1", "shop/nobody", "deny", "", "no pod of the service is ready"},
		{"shop/web-1", "shop/nobody", "deny", "", "refused at once, in the kernel"},
		{"shop/web-1", "shop/two:99", "deny", "", "no such port"},
		{"shop/web-1", "shop/db-1:15008", "deny", "", "agent's own"},
		{"shop/web-1", "10.200.0.1:443", "allow", "spiffe://other/billing tunnel  allow NoPolicy", "by the roots of other"},
		{"shop/web-1", "spiffe://other/billing:443", "allow", "spiffe://other/billing tunnel  allow NoPolicy", "what policies say there is not known here"},
		{"bank/ledger", "spiffe://other/billing:443", "allow", "spiffe://other/billing tunnel  allow NoPolicy", "by the roots of other"},
		{"shop/web-1", "10.200.0.2:443", "deny", "spiffe://other/stolen refused  deny IdentityRevoked", "spec.revokedIdentities"},
		{"shop/stolen", "10.200.0.1:443", "deny", "spiffe://other/billing refused  deny IdentityRevoked", "spec.revokedIdentities"},
		{"plain/old", "10.200.0.1:443", "allow", "spiffe://other/billing plaintext  allow ", "Heddle has no say"},
		{"spiffe://other/front", "10.200.0.1:443", "allow", "spiffe://other/billing plaintext  allow ", "Heddle has no say"},
		{"shop/web-1", "10.200.0.1:15008", "deny", "", "agent's own"},
		{"shop/web-1", "10.200.0.3:443", "deny", "", "cluster ranges, and nobody's"},
	} {
		a, err := Explain(v, tc.source, tc.destination)
		if err != nil {
			t.Errorf("%s to %s: %v", tc.source, tc.destination, err)
			continue
		}
		var got []string
		for _, e := range a.Endpoints {
			text := strings.Join([]string{cmp.Or(e.Workload, e.Identity), e.Path, e.Mode, e.Verdict, e.Reason}, " ")
			if e.Policy != "" {
				text += fmt.Sprintf(" %s[%d]", e.Policy, *e.Rule)
			}
			if len(e.Audited) > 0 {
				text += " audited " + strings.Join(e.Audited, ",")
			}
			got = append(got, text)
		}
		notes := strings.Join(a.Notes, "\n")
		if a.Verdict != tc.verdict || strings.Join(got, "; ") != tc.endpoints || !strings.Contains(notes, tc.note) || a.Denied() != (tc.verdict != "allow") {
			t.Errorf("%s to %s: %s, %q, %q\nwant %s, %q, %q", tc.source, tc.destination, a.Verdict, strings.Join(got, "; "), notes, tc.verdict, tc.endpoints, tc.note)
		}
		var out bytes.Buffer
		if err := Print(&out, false, a); err != nil || !strings.Contains(out.String(), tc.note) || strings.Contains(out.String(), "Unknown\n") {
			t.Errorf("%v\n%s", err, out.String())
		}
	}
}

// TestNames: who answers the source's name queries is said.
func TestNames(t *testing.T) {
	_, v := view(t)
	for source, want := range map[string]string{"shop/web-1": "DNS answered by the agent", "bank/ledger": "DNS left to its server", "plain/old": "not in the mesh)"} {
		a, err := Explain(v, source, "shop/db")
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := Print(&out, false, a); err != nil || !strings.Contains(strings.SplitN(out.String(), "\n", 2)[0], want) {
			t.Errorf("%s: %v, want %q in the first line of\n%s", source, err, want, out.String())
		}
	}
}

func TestQuestions(t *testing.T) {
	dir, v := view(t)
	for _, tc := range []struct{ source, destination, says string }{
		{"web", "shop/db", "write NAMESPACE/NAME"},
		{"shop/none", "shop/db", "there are shop/db, shop/headless, shop/nobody, shop/two"},
		{"none/x", "shop/db", `nothing in namespace "none"`},
		{"shop/web-1", "shop/none:1", "no Service, pod or Workload"},
		{"shop/web-1", "shop/db-1", "has no port: write shop/db-1:PORT"},
		{"shop/web-1", "shop/two", "(a=80, b=81)"},
		{"shop/web-1", "shop/db:x", "no port from 1 to 65535"},
		{"shop/web-1", "shop/db:0", "no port from 1 to 65535"},
		{"shop/web-1", "a:b:c", "[IPV6]:PORT"},
		{"shop/web-1", "a.b.c.d", "NAME.NAMESPACE.svc"},
		{"shop/web-1", "10.1.0.1", "has no port"},
		{"shop/web-1", "spiffe://other/billing", "has no port: write spiffe://other/billing:PORT"},
		{"shop/web-1", "spiffe://other/billing:0", "has no port"},
		{"shop/web-1", "spiffe://other/b*:80", "spiffe://other/b*"},
		{"shop/web-1", "spiffe://other/front:80", "no workload of a federated trust domain is declared with this identity"},
		{"shop/web-1", "spiffe://m/ns/shop/sa/db:80", "name one of this mesh as NAMESPACE/NAME"},
	} {
		if _, err := Explain(v, tc.source, tc.destination); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s to %s: %v, want %q", tc.source, tc.destination, err, tc.says)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "bad.yaml"), []byte("kind: x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := fromFolder(dir); err == nil {
		t.Error("a folder with a mistake was compiled")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := ReadCluster(ctx, &rest.Config{Host: "http://127.0.0.1:1"}); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "not read yet") {
		t.Errorf("a cluster that does not answer: %v", err)
	}
}

// FuzzExplain: whatever is asked, there is an answer or an error.
func FuzzExplain(f *testing.F) {
	f.Add("shop/web-1", "shop/db:3306")
	f.Add("10.0.0.1", "[fd00::1]:80")
	f.Add("shop/web-1", "spiffe://other/billing:443")
	if _, err := mesh.NewView("x", mesh.Settings{}, nil, nil, nil); err == nil {
		f.Fatal("a mesh without a trust domain")
	}
	m := &Model{View: mesh.NewStore().View()}
	f.Fuzz(func(t *testing.T, source, destination string) {
		if a, err := Explain(m, source, destination); (a == nil) == (err == nil) {
			t.Errorf("neither or both: %v, %v", a, err)
		}
	})
}
