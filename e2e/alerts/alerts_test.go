package alerts

import (
	"crypto/tls"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/e2e/testbed"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const meshYAML = `apiVersion: heddle.dev/v1alpha1
kind: Mesh
metadata: {name: default}
spec: {trustDomain: alerts.heddle.dev, clusterRanges: ["10.244.0.0/16"]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: client}
spec: {node: n1, addresses: ["10.244.1.10"], networkNamespace: /run/netns/heddle-alerts-client}
---
apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: server}
spec: {node: n2, addresses: ["10.244.2.10"], networkNamespace: /run/netns/heddle-alerts-server}
`

// firing is what makes an alert fire.
type firing struct {
	// of is the metric, bad what its series have then, as promtool writes values at
	// an interval of a minute.
	of, bad string
	// early is when it does not fire yet, late when it does.
	early, late time.Duration
}

const lasts = 500 // minutes that every series has values for

func constant(value float64) string { return fmt.Sprintf("%.0f+0x%d", value, lasts) }

// firings are all alerts there are.
func firings() map[string]firing {
	rising := fmt.Sprintf("0+1x%d", lasts)
	return map[string]firing{
		"HeddleSVIDNotRenewed":         {"heddle_certificate_expiry_seconds", constant(5 * 3600), 8 * time.Minute, 12 * time.Minute},
		"HeddleAuthorityExpires":       {"heddle_authority_certificate_expiry_seconds", constant(30*86400 + 3600), 30 * time.Minute, 2 * time.Hour},
		"HeddleRotationHeld":           {"heddle_rotation_stage", constant(1), 5 * time.Hour, 7 * time.Hour},
		"HeddleAuthorityRefused":       {"heddle_authority_refused", constant(1), 0, 3 * time.Minute},
		"HeddleJWTKeyNotReplaced":      {"heddle_authority_jwt_key_due_seconds", constant(-86400 + 3600), 30 * time.Minute, 2 * time.Hour},
		"HeddleFederationNotRefreshed": {"heddle_federation_failing", constant(1), 13 * time.Minute, 17 * time.Minute},
		"HeddleFederatedRootsExpire":   {"heddle_federation_roots_expiry_seconds", constant(7 * 3600), 30 * time.Minute, 2 * time.Hour},
		"HeddleEnrolmentFails":         {"heddle_enrolment_failures_total", rising, 3 * time.Minute, 20 * time.Minute},
		"HeddleOperatorUnreachable":    {"heddle_operator_connected", constant(0), 8 * time.Minute, 12 * time.Minute},
		"HeddleNodesBehind":            {"heddle_operator_longest_behind_seconds", fmt.Sprintf("0+60x%d", lasts), time.Minute, 3 * time.Minute},
		"HeddleAPIServerSilent":        {"heddle_operator_api_server_silent_seconds", fmt.Sprintf("0+60x%d", lasts), time.Minute, 3 * time.Minute},
		"HeddleGateTried":              {"heddle_kernel_drops_total", rising, 10 * time.Minute, 25 * time.Minute},
		// An attack of four minutes.
		"HeddleGateAttacked":  {"heddle_kernel_drops_total", fmt.Sprintf("0x5 60+60x3 240x%d", lasts), 5 * time.Minute, 12 * time.Minute},
		"HeddleGateDrifts":    {"heddle_gate_drift_total", rising, 0, 5 * time.Minute},
		"HeddleGateNotMended": {"heddle_gate_unmended", constant(1), 0, 5 * time.Minute},
	}
}

// series is one that is served, with its value.
type series struct {
	name   string
	labels map[string]string
	value  float64
}

func (s series) String() string {
	var labels []string
	for name, value := range s.labels {
		labels = append(labels, fmt.Sprintf("%s=%q", name, value))
	}
	slices.Sort(labels)
	return s.name + "{" + strings.Join(labels, ",") + "}"
}

var (
	line  = regexp.MustCompile(`(?m)^(heddle_\w+)(?:\{(.*)\})? (\S+)$`)
	label = regexp.MustCompile(`(\w+)="((?:[^"\\]|\\.)*)"`)
)

// parse reads the text format of Prometheus. Labels that need escapes are not Heddle's.
func parse(t *testing.T, instance, text string) (all []series) {
	t.Helper()
	for _, m := range line.FindAllStringSubmatch(text, -1) {
		value, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			t.Fatalf("%s: %v", m[0], err)
		}
		// As Prometheus does when it reads several.
		s := series{m[1], map[string]string{"instance": instance}, value}
		for _, l := range label.FindAllStringSubmatch(m[2], -1) {
			s.labels[l[1]] = l[2]
		}
		all = append(all, s)
	}
	if len(all) < 10 {
		t.Fatalf("%s serves %d series:\n%s", instance, len(all), text)
	}
	return all
}

// served is what a mesh serves: the agents of its nodes, and its operator.
func served(t *testing.T, b *testbed.Bed) (all []series) {
	t.Helper()
	for _, part := range []string{"n1", "n2", "operator"} {
		all = append(all, parse(t, part, b.Metrics(t, part))...)
	}
	return all
}

func has(all []series, name string, value string) bool {
	return slices.ContainsFunc(all, func(s series) bool {
		return s.name == name && (value == "" || slices.Contains(slices.Collect(maps.Values(s.labels)), value))
	})
}

// rule is an alert of the rule file.
type rule struct {
	Alert, Expr         string
	Labels, Annotations map[string]string
}

const ruleFile = "../../manifests/heddle/rules/heddle.yaml"

func rules(t *testing.T) (all []rule) {
	t.Helper()
	text, err := os.ReadFile(ruleFile)
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Groups []struct{ Rules []rule } }
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	return all
}

// federate has the mesh follow another trust domain, whose endpoint is go-spiffe's.
func federate(t *testing.T, b *testbed.Bed) {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString("other.heddle.dev")
	authority, err := identity.NewAuthority(identity.AuthorityConfig{TrustDomain: td})
	if err != nil {
		t.Fatal(err)
	}
	bundle := spiffebundle.FromX509Bundle(authority.Bundle())
	document, err := bundle.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	handler, err := federation.NewHandler(td, bundle)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := authority.Own(identity.OperatorID(td))()
	if err != nil {
		t.Fatal(err)
	}
	listener := b.ListenOutside(t, "127.0.0.1:0")
	server := &http.Server{Handler: handler, TLSConfig: &tls.Config{Certificates: []tls.Certificate{*cert}}}
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(listener, "", "") }()
	t.Cleanup(func() { server.Close(); <-served })
	entry := fmt.Sprintf(`{trustDomain: alerts.heddle.dev, federation: [{trustDomain: %s, endpoint: "https://%s/", profile: https_spiffe, endpointSPIFFEID: %q, bundle: '%s'}], `,
		td.Name(), listener.Addr(), identity.OperatorID(td), document)
	b.Write(t, "mesh.yaml", strings.Replace(meshYAML, "{trustDomain: alerts.heddle.dev, ", entry, 1))
}

// TestAlerts: with what a well mesh serves no alert fires, and each does when the
// values of its metric are bad. One that is served under another name, or without a
// label that the alert's text speaks of, does not.
func TestAlerts(t *testing.T) {
	testenv.NeedRoot(t)
	b := testbed.Up(t, "../..", "alerts", meshYAML)
	rotate := func(how string) {
		t.Helper()
		if out, err := b.Heddle("certs", "rotate", how, "--name", b.Mesh.Plan.Name); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	federate(t, b)
	rotate("--root") // which has a metric only while it is under way
	var all []series
	testenv.Eventually(t, 20*time.Second, "the mesh serves what alerts are about", func() bool {
		all = served(t, b)
		return has(all, "heddle_rotation_stage", "") && has(all, "heddle_kernel_drops_total", "KernelUnstamped") && has(all, "heddle_federation_refreshed_seconds", "")
	})
	rotate("--abort")
	all = append(all, onKubernetes(t)...)
	cases := firings()
	for _, r := range rules(t) {
		c, known := cases[r.Alert]
		if !known {
			t.Errorf("no test makes the alert %s fire", r.Alert)
			continue
		}
		delete(cases, r.Alert)
		t.Run(r.Alert, func(t *testing.T) { judge(t, r, c, all) })
	}
	for name := range cases {
		t.Errorf("there is no alert %s", name)
	}
}

// onKubernetes are the metrics of alerts that only an operator on Kubernetes serves:
// they are in its source.
func onKubernetes(t *testing.T) []series {
	t.Helper()
	const name, source = "heddle_operator_api_server_silent_seconds", "../../operator/kubernetes.go"
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), strconv.Quote(name)) {
		t.Errorf("%s does not serve %s", source, name)
	}
	return []series{{name: name, labels: map[string]string{"instance": "operator"}}}
}

// judge has promtool try one rule.
func judge(t *testing.T, r rule, c firing, all []series) {
	var wanted []map[string]any
	var well, sick []map[string]string
	for _, s := range all {
		if !strings.Contains(r.Expr, s.name) {
			continue
		}
		value := s.value
		if strings.Contains(r.Expr, "time()") {
			value -= float64(time.Now().Unix()) // promtool's time begins at 0
		}
		well = append(well, map[string]string{"series": s.String(), "values": constant(value)})
		if s.name != c.of {
			continue
		}
		sick = append(sick, map[string]string{"series": s.String(), "values": c.bad})
		if selects(r.Expr, s) {
			wanted = append(wanted, expected(t, r, s))
		}
	}
	if len(wanted) == 0 {
		t.Fatalf("the mesh does not serve %s, of which %q speaks", c.of, r.Expr)
	}
	none := []map[string]any{}
	alert := func(at time.Duration, expected []map[string]any) map[string]any {
		return map[string]any{"eval_time": at.String(), "alertname": r.Alert, "exp_alerts": expected}
	}
	tests := []map[string]any{{"interval": "1m", "input_series": sick, "alert_rule_test": []any{alert(c.early, none), alert(c.late, wanted)}}}
	// What is so for a while only is a rotation that is under way: others are well as they are.
	if c.of != "heddle_rotation_stage" {
		tests = append(tests, map[string]any{"interval": "1m", "input_series": well, "alert_rule_test": []any{alert(lasts*time.Minute, none)}})
	}
	promtool(t, tests)
}

// selects reports whether a series has the one label that an expression asks for.
func selects(expr string, s series) bool {
	m := regexp.MustCompile(`\{(\w+)="([^"]*)"\}`).FindStringSubmatch(expr)
	return m == nil || s.labels[m[1]] == m[2]
}

// expected is the alert of one series: its labels and the rule's, and what it says.
func expected(t *testing.T, r rule, s series) map[string]any {
	t.Helper()
	labels, annotations := maps.Clone(s.labels), map[string]string{}
	maps.Copy(labels, r.Labels)
	for name, text := range r.Annotations {
		annotations[name] = regexp.MustCompile(`\{\{ \$labels\.(\w+) \}\}`).ReplaceAllStringFunc(text, func(ref string) string {
			key := strings.TrimSuffix(strings.TrimPrefix(ref, "{{ $labels."), " }}")
			if s.labels[key] == "" {
				t.Errorf("%s has no label %s, which the alert's %s shows", s, key, name)
			}
			return s.labels[key]
		})
	}
	return map[string]any{"exp_labels": labels, "exp_annotations": annotations}
}

// promtool runs Prometheus' own tests of rules.
func promtool(t *testing.T, tests []map[string]any) {
	t.Helper()
	at, err := filepath.Abs(ruleFile)
	if err != nil {
		t.Fatal(err)
	}
	text, err := yaml.Marshal(map[string]any{"rule_files": []string{at}, "evaluation_interval": "1m", "tests": tests})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "test.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "promtool", "test", "rules", file).CombinedOutput()
	if err != nil {
		t.Errorf("promtool: %v (`make deps` installs it)\n%s\n%s", err, out, text)
	}
}

// TestRulesAreValid has promtool read the file as Prometheus would.
func TestRulesAreValid(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "promtool", "check", "rules", ruleFile).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "SUCCESS") {
		t.Errorf("promtool: %v (`make deps` installs it)\n%s", err, out)
	}
}
