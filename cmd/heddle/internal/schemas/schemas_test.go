package schemas

import (
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/api/v1alpha1/corpus"
	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/manifests"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func object(t *testing.T, text string) map[string]any {
	t.Helper()
	var o map[string]any
	if err := yaml.Unmarshal([]byte(text), &o); err != nil {
		t.Fatal(err)
	}
	return o
}

// TestEveryDefinition: a kind that is defined in the program is judged by its definition.
func TestEveryDefinition(t *testing.T) {
	s, seen := New(), 0
	for dir, files := range map[string]fs.FS{"heddle/crds": manifests.Chart, "gateway-api": manifests.GatewayAPI} {
		names, err := fs.Glob(files, path.Join(dir, "*.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			content, err := fs.ReadFile(files, name)
			if err != nil {
				t.Fatal(err)
			}
			var crd apiextensionsv1.CustomResourceDefinition
			if err := yaml.Unmarshal(content, &crd); err != nil {
				t.Fatal(err)
			}
			seen++
			for _, version := range []string{"v1alpha1", "v1"} {
				id := crd.Spec.Group + "/" + version
				if k, err := s.kind(id, crd.Spec.Names.Kind); err != nil {
					t.Errorf("%s %s: %v", id, crd.Spec.Names.Kind, err)
				} else if want := strings.HasPrefix(crd.Spec.Group, "heddle") == (version == "v1alpha1"); (k != nil) != want {
					t.Errorf("%s %s: known is %v, want %v", id, crd.Spec.Names.Kind, k != nil, want)
				}
			}
		}
	}
	if seen < 11 {
		t.Errorf("only %d definitions", seen)
	}
}

// TestWords: what Kubernetes finds is said as this program says things.
func TestWords(t *testing.T) {
	const policy, route = "{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {name: x}, spec: ", "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: x}, spec: "
	s := New()
	for text, want := range map[string]string{
		policy + `{rules: [{from: [{namespaces: [a, a]}]}]}}`:                                                  `spec.rules[0].from[0].namespaces[1]: "a" is given twice; keep one of them`,
		policy + `{rules: [{from: []}]}}`:                                                                      `spec.rules[0].from: has fewer than 1 entries; write at least 1, or leave the field out`,
		policy + `{rules: [{from: [{namespaces: [""]}]}]}}`:                                                    `spec.rules[0].from[0].namespaces[0]: "" is shorter than 1 characters; write at least 1, or leave the field out`,
		policy + `{rules: [{to: [{ports: [0]}]}]}}`:                                                            `spec.rules[0].to[0].ports[0]: 0 is less than 1; write at least 1`,
		policy + `{rules: [{to: [{ports: [65536]}]}]}}`:                                                        `spec.rules[0].to[0].ports[0]: 65536 is more than 65535; write at most 65535`,
		policy + `{rules: [{from: [{namespaces: [` + strings.Repeat("a", 64) + `]}]}]}}`:                       `spec.rules[0].from[0].namespaces[0]: is longer than 63 bytes; write less`,
		policy + `{rules: [{to: [{methods: [get]}]}]}}`:                                                        `spec.rules[0].to[0].methods[0]: "get" has not the form of this field; write what matches '^[A-Z_-]+$'`,
		policy + `{action: BLOCK, rules: [{}]}}`:                                                               `spec.action: "BLOCK" is not one of its values; write ALLOW, DENY or AUDIT`,
		policy + `{action: DENY}}`:                                                                             `spec: an API server refuses it; `,
		policy + `{rules: 5}}`:                                                                                 `spec.rules: an API server refuses it; `,
		policy + `{selector: {matchLabels: {"a.example/b": "?"}}}}`:                                            `spec.selector.matchLabels[a.example/b]: "?" has not the form of this field; write what matches `,
		policy + `{selector: {matchLabels: {}}}}`:                                                              `spec.selector.matchLabels: has fewer than 1 entries; write at least 1, or leave the field out`,
		`{apiVersion: heddle.dev/v1alpha1, kind: Mesh, metadata: {name: default}, spec: {}}`:                   `spec.trustDomain: is missing; write it`,
		`{apiVersion: heddle.dev/v1alpha1, kind: Mesh, metadata: {name: default}}`:                             `spec: is missing; write it`,
		route + `{hostnames: [` + strings.Join(strings.Fields(strings.Repeat("a.example ", 17)), ", ") + `]}}`: `spec.hostnames: has 17 entries, 16 are possible; take some out, or write a second object with them`,
		route + `{rules: [{filters: [{type: RequestMirror}]}]}}`:                                               `spec.rules[0].filters[0]: an API server refuses it; filter.requestMirror must be specified for RequestMirror filter.type`,
	} {
		found, err := s.Refusals(object(t, text))
		if err != nil {
			t.Fatal(err)
		}
		var said []string
		for _, r := range found {
			said = append(said, r.Field+": "+r.Text+"; "+r.Remedy)
		}
		if !strings.Contains("\n"+strings.Join(said, "\n"), "\n"+want) {
			t.Errorf("%s: want %s, have\n%s", text, want, strings.Join(said, "\n"))
		}
	}
}

// TestOthersAreNotJudged: of what has no definition here nothing is said, and what is asked
// about stays as it is.
func TestOthersAreNotJudged(t *testing.T) {
	s := New()
	for _, text := range []string{`{apiVersion: v1, kind: Service, spec: 5}`, `{apiVersion: heddle.dev/v1, kind: Mesh}`, `{kind: Mesh}`, `{}`} {
		if found, err := s.Refusals(object(t, text)); len(found) > 0 || err != nil {
			t.Errorf("%s: %v, %v", text, found, err)
		}
	}
	const route = `{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: x}, spec: {rules: [{matches: [{path: {value: /a}}]}], unknown: 1}}`
	asked := object(t, route)
	if found, err := s.Refusals(asked); len(found) > 0 || err != nil {
		t.Errorf("%v, %v", found, err)
	}
	if diff := cmp.Diff(object(t, route), asked); diff != "" {
		t.Errorf("it was changed: %s", diff)
	}
}

// TestMuchIsBounded: an object that is wrong all over is no page of thousands of lines.
func TestMuchIsBounded(t *testing.T) {
	text := `{apiVersion: heddle.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {name: x}, spec: {rules: [{to: [{ports: [` + strings.Repeat("0, ", 249) + `0]}]}]}}`
	found, err := New().Refusals(object(t, text))
	if err != nil || len(found) != maxRefusals+1 || !strings.HasPrefix(found[maxRefusals].Text, "has ") {
		t.Errorf("%d refusals, %v", len(found), err)
	}
}

// TestFitted: rules say the same of an object by the whole schema, and by what of it the
// object has.
func TestFitted(t *testing.T) {
	s, said := New(), 0
	all := append(corpus.Refused(), corpus.Bounded()...)
	for kind, specs := range corpus.Accepted() {
		for _, spec := range specs {
			all = append(all, corpus.Refusal{Kind: kind, Spec: spec})
		}
	}
	for _, c := range all {
		k, err := s.kind("heddle.dev/v1alpha1", c.Kind)
		if err != nil {
			t.Fatal(err)
		}
		o := object(t, corpus.Object(c.Kind, c.Spec))
		whole, _ := k.rules.Validate(t.Context(), nil, k.structural, o, nil, celconfig.RuntimeCELCostBudget)
		part, _ := fitted(k.rules, []any{o}).Validate(t.Context(), nil, k.structural, o, nil, celconfig.RuntimeCELCostBudget)
		said += len(whole)
		if !slices.Equal(sorted(whole), sorted(part)) {
			t.Errorf("%s %.200s:\n%v\n%v", c.Kind, c.Spec, whole, part)
		}
	}
	if said < 100 {
		t.Errorf("rules refused only %d", said)
	}
}

func sorted(errs field.ErrorList) (texts []string) {
	for _, err := range errs {
		texts = append(texts, err.Error())
	}
	slices.Sort(texts)
	return texts
}
