package controlplane

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/api/v1alpha1/corpus"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// kubectlAlone returns a shell that has kubectl, and nothing of Heddle's.
func kubectlAlone(t *testing.T) *shell {
	t.Helper()
	s := &shell{t: t, dir: t.TempDir(), bin: t.TempDir()}
	if err := os.Symlink(filepath.Join(filepath.Dir(kubeProgram(t)), "kubectl"), filepath.Join(s.bin, "kubectl")); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestManifests applies the plain manifests as docs/install.md says, again on top of
// themselves, and posts policies to the API server that has them.
func TestManifests(t *testing.T) {
	page, err := os.ReadFile("../../docs/install.md")
	if err != nil {
		t.Fatal(err)
	}
	_, commands, _ := strings.Cut(string(page), "```text\nkubectl apply --server-side ")
	commands, _, _ = strings.Cut("kubectl apply --server-side "+commands, "```")
	if strings.Count(commands, "\n") != 3 || !strings.HasSuffix(commands, " -k manifests\n") {
		t.Fatalf("install.md has not the three commands: %q", commands)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	s, k := startServer(t), kubectlAlone(t)
	k.on(s, "cd "+root+"\n"+commands)
	k.on(s, "cd "+root+"\nkubectl apply --server-side --dry-run=server -k manifests")
	t.Run("foreign policies", func(t *testing.T) { foreignPolicies(t, s) })
	t.Run("the corpus", func(t *testing.T) { asFolders(t, s) })
}

// asFolders has an API server and `heddle validate` judge the same objects: what one takes and
// what one refuses, the other does. The program is asked about some of what everyone refuses;
// its own tests ask about all of it.
func asFolders(t *testing.T, s *server) {
	bin, folder := t.TempDir(), t.TempDir()
	testenv.Build(t, ".", bin, "../../cmd/heddle")
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("ns.yaml", corpus.Enrolled)
	judge := func(kind, spec string, refused, byFolder bool) {
		text := corpus.Object(kind, spec)
		write("it.yaml", text)
		if write("mesh.yaml", corpus.Object("Mesh", corpus.GoodMesh)); kind == "Mesh" {
			write("mesh.yaml", "")
		}
		if byFolder {
			out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "heddle"), "validate", folder, "--udp-by-identity").CombinedOutput()
			if (err != nil) != refused || refused && !strings.Contains(string(out), "error: "+filepath.Join(folder, "it.yaml")+":") {
				t.Errorf("%s %.200s: a folder: %v, want a refusal: %v\n%.500s", kind, spec, err, refused, out)
			}
		}
		object, err := yaml.YAMLToJSON([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		code, answer := s.do(http.MethodPost, "/apis/heddle.dev/v1alpha1/"+place(kind)+"?dryRun=All&fieldValidation=Ignore", object)
		exists := kind == "Mesh" && code == http.StatusConflict // the schema is asked first
		if taken := code == http.StatusCreated || exists; taken == refused || refused && code != http.StatusUnprocessableEntity && code != http.StatusBadRequest {
			t.Errorf("%s %.200s: an API server: %d %v, want a refusal: %v", kind, spec, code, answer["message"], refused)
		}
	}
	if code, answer := s.do(http.MethodPost, "/api/v1/namespaces", []byte(`{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}`)); code != http.StatusCreated {
		t.Fatalf("%d %v", code, answer)
	}
	for kind, specs := range corpus.Accepted() {
		for _, spec := range specs {
			judge(kind, spec, false, true)
		}
	}
	for _, c := range corpus.Bounded() {
		judge(c.Kind, c.Spec, true, true)
	}
	for i, c := range corpus.Refused() {
		judge(c.Kind, c.Spec, true, i%8 == 0)
	}
}

// place is the path of a kind's resource in namespace shop, or of the Mesh.
func place(kind string) string {
	return map[string]string{"AuthorizationPolicy": "namespaces/shop/authorizationpolicies", "PeerAuthentication": "namespaces/shop/peerauthentications",
		"Mesh": "meshes", "Workload": "namespaces/shop/workloads"}[kind]
}

// foreignPolicies posts what other meshes' users write, as clients do that do not ask the
// API server about fields that it does not know: it must refuse the object, and not take
// the field out, which would leave a policy that lets in more than was meant.
func foreignPolicies(t *testing.T, s *server) {
	for what, c := range map[string]struct{ kind, spec, want string }{
		"conditions":      {"AuthorizationPolicy", `{rules: [{when: [{key: "request.headers[x]", values: [a]}]}]}`, "no waypoint judges"},
		"methods":         {"AuthorizationPolicy", `{rules: [{to: [{ports: [80], methods: [GET]}]}]}`, ""},
		"misplaced":       {"AuthorizationPolicy", `{rules: [{from: [{namespaces: [a]}], methods: [GET]}]}`, "belong into an entry of to"},
		"no methods":      {"AuthorizationPolicy", `{rules: [{to: [{ports: [80], methods: []}]}]}`, "methods"},
		"a value's slip":  {"AuthorizationPolicy", `{rules: [{to: [{headers: [{name: x-role, value: admin}]}]}]}`, "no other fields"},
		"another type":    {"AuthorizationPolicy", `{rules: [{when: {a: b}}]}`, "when"},
		"operation":       {"AuthorizationPolicy", `{rules: [{to: [{operation: {methods: [GET]}}]}]}`, "operation"},
		"target":          {"AuthorizationPolicy", `{targetRefs: [{kind: Service, name: web}], rules: [{from: [{namespaces: [a]}]}]}`, "targetRefs"},
		"indentation":     {"AuthorizationPolicy", `{rules: [{from: [{namespaces: [a], to: [{ports: [80]}]}]}]}`, "side by side"},
		"action":          {"AuthorizationPolicy", `{rules: [{from: [{namespaces: [a]}], action: DENY}]}`, "indentation"},
		"expressions":     {"AuthorizationPolicy", `{selector: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: Exists}]}, rules: [{}]}`, "matchExpressions"},
		"ports of mTLS":   {"PeerAuthentication", `{mode: PERMISSIVE, portLevelMtls: {"80": {mode: STRICT}}}`, "portLevelMtls"},
		"mTLS by another": {"PeerAuthentication", `{mode: PERMISSIVE, mtls: {mode: STRICT}}`, "mtls"},
		"a slip":          {"AuthorizationPolicy", `{rules: [{form: [{namespaces: [a]}]}]}`, "no other fields"},
		"a slip in spec":  {"AuthorizationPolicy", `{acton: DENY, rules: [{from: [{namespaces: [a]}]}]}`, "no other fields"},
		"nobody":          {"AuthorizationPolicy", `{rules: [{from: null}]}`, "no other fields"},
		"no block":        {"AuthorizationPolicy", `{rules: [{from: [{namespaces: [a], ipBlocks: null}]}]}`, "no other fields"},
		"a mode's slip":   {"PeerAuthentication", `{mode: PERMISSIVE, portMode: [{port: 80, mode: STRICT}]}`, "no other fields"},
		"a port's slip":   {"PeerAuthentication", `{portModes: [{port: 80, mode: PERMISSIVE, form: [a]}]}`, "no other fields"},
		"a mesh's slip":   {"Mesh", `{trustDomain: example.org, clusterRanges: [10.0.0.0/8], revokedIdentites: [a]}`, "no other fields"},
		"an egress' slip": {"Mesh", `{trustDomain: example.org, clusterRanges: [10.0.0.0/8], egress: {mod: DENY}}`, "no other fields"},
		"a name's slip":   {"Mesh", `{trustDomain: example.org, clusterRanges: [10.0.0.0/8], dns: {namespaces: [{namespace: a, mode: DIRECT, x: 1}]}}`, "no other fields"},
		"a probe's slip":  {"Workload", `{node: n1, addresses: [10.1.0.1], probePort: 80}`, "no other fields"},
		"a workload":      {"Workload", `{node: n1, addresses: [10.1.0.1], probePorts: [80]}`, ""},
		"everyone":        {"AuthorizationPolicy", `{rules: [{}]}`, ""},
		"strict":          {"PeerAuthentication", `{selector: {matchLabels: {a: b}}, portModes: [{port: 80, mode: STRICT}]}`, ""},
		"good":            {"AuthorizationPolicy", `{rules: [{from: [{namespaces: [a]}], to: [{ports: [80]}]}]}`, ""},
	} {
		for _, validation := range []string{"Ignore", "Warn", "Strict"} {
			name, path := "generateName: x-", "namespaces/default/"
			if c.kind == "Mesh" { // which is there already: the schema is asked first
				name, path = "name: default", ""
			}
			text, err := yaml.YAMLToJSON(fmt.Appendf(nil, "apiVersion: heddle.dev/v1alpha1\nkind: %s\nmetadata: {%s}\nspec: %s\n", c.kind, name, c.spec))
			if err != nil {
				t.Fatal(err)
			}
			resource := map[string]string{"AuthorizationPolicy": "authorizationpolicies", "PeerAuthentication": "peerauthentications", "Mesh": "meshes", "Workload": "workloads"}[c.kind]
			code, answer := s.do(http.MethodPost, "/apis/heddle.dev/v1alpha1/"+path+resource+"?fieldValidation="+validation, text)
			message, _ := answer["message"].(string)
			switch {
			case c.want == "" && code != http.StatusCreated:
				t.Errorf("%s, %s: %d %s", what, validation, code, message)
			case c.want != "" && validation == "Strict" && code == http.StatusBadRequest: // unknown fields below one that is there to be refused
			case c.want != "" && (code != http.StatusUnprocessableEntity || !strings.Contains(message, c.want)):
				t.Errorf("%s, %s: %d %q, want a refusal that says %q; the object is %v", what, validation, code, message, c.want, answer["spec"])
			}
		}
	}
}
