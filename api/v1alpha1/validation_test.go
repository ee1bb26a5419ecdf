package v1alpha1_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/api/v1alpha1/corpus"
	"github.com/heddle-mesh/heddle/internal/kube"
)

// definition is a committed CustomResourceDefinition, as an API server holds it.
type definition struct {
	crd        apiextensions.CustomResourceDefinition
	schema     validation.SchemaValidator
	structural *schema.Structural
	rules      *cel.Validator
}

// definitions reads the committed files and makes of each what an API server does,
// which includes its limits on what CEL rules may cost.
func definitions(t *testing.T) map[string]*definition {
	t.Helper()
	files, err := filepath.Glob("../../manifests/heddle/crds/*.yaml")
	if err != nil || len(files) != len(kinds()) {
		t.Fatalf("definitions: %v, %v", files, err)
	}
	all := map[string]*definition{}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var v1 apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict(content, &v1); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		apiextensionsv1.SetDefaults_CustomResourceDefinition(&v1)
		apiextensionsv1.SetDefaults_CustomResourceDefinitionSpec(&v1.Spec)
		d := &definition{}
		if err := apiextensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(&v1, &d.crd, nil); err != nil {
			t.Fatal(err)
		}
		d.crd.Status.StoredVersions = []string{v1.Spec.Versions[0].Name}
		for _, err := range crdvalidation.ValidateCustomResourceDefinition(context.Background(), &d.crd) {
			t.Errorf("%s: an API server refuses it: %v", filepath.Base(file), err)
		}
		props := d.crd.Spec.Validation
		if props == nil {
			props = d.crd.Spec.Versions[0].Schema
		}
		if d.schema, _, err = validation.NewSchemaValidator(props.OpenAPIV3Schema); err != nil {
			t.Fatal(err)
		}
		if d.structural, err = schema.NewStructural(props.OpenAPIV3Schema); err != nil {
			t.Fatal(err)
		}
		d.rules = cel.NewValidator(d.structural, true, celconfig.PerCallLimit)
		all[d.crd.Spec.Names.Kind] = d
	}
	return all
}

// refuse returns what an API server would refuse about an object, or nothing.
func (d *definition) refuse(object, old map[string]any) field.ErrorList {
	pruning.Prune(object, d.structural, true)
	defaulting.PruneNonNullableNullsWithoutDefaults(object, d.structural)
	defaulting.Default(object, d.structural)
	errs := validation.ValidateCustomResource(nil, object, d.schema)
	if len(errs) > 0 {
		return errs // as an API server, which runs no rules on what has not the right shape
	}
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, d.structural, object)...)
	var before any
	if old != nil {
		before = old
	}
	ruled, _ := d.rules.Validate(context.Background(), nil, d.structural, object, before, celconfig.RuntimeCELCostBudget)
	return append(errs, ruled...)
}

func parse(t *testing.T, text string) map[string]any {
	t.Helper()
	object := map[string]any{}
	if err := utilyaml.Unmarshal([]byte(text), &object); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return object
}

// compile says what internal/kube refuses about the object, without an API server.
func compile(t *testing.T, kind, spec string) []*kube.Problem {
	t.Helper()
	folder := fstest.MapFS{"ns.yaml": {Data: []byte(corpus.Enrolled)}, "it.yaml": {Data: []byte(corpus.Object(kind, spec))}}
	if kind != "Mesh" {
		folder["mesh.yaml"] = &fstest.MapFile{Data: []byte(corpus.Object("Mesh", corpus.GoodMesh))}
	}
	objects, err := kube.LoadFolder(folder)
	if err == nil {
		objects.UDPByIdentity = true
		_, err = kube.Compile(objects)
	}
	if problems := kube.Problems(err); err == nil || len(problems) > 0 {
		return problems
	}
	t.Fatalf("%s %s: %v", kind, spec, err)
	return nil
}

func TestAccepted(t *testing.T) {
	all := definitions(t)
	for kind, specs := range corpus.Accepted() {
		for _, spec := range specs {
			if errs := all[kind].refuse(parse(t, corpus.Object(kind, spec)), nil); len(errs) > 0 {
				t.Errorf("%s %s: an API server refuses %v", kind, spec, errs)
			}
			if problems := compile(t, kind, spec); len(problems) > 0 {
				t.Errorf("%s %s: internal/kube refuses %v", kind, spec, problems)
			}
		}
	}
}

// What internal/kube refuses, an API server refuses as well, about the same
// field: a mistake is said to whoever makes it, when they make it.
func TestRefusedByBoth(t *testing.T) {
	all := definitions(t)
	for _, c := range corpus.Refused() {
		var said []string
		for _, err := range all[c.Kind].refuse(parse(t, corpus.Object(c.Kind, c.Spec)), nil) {
			said = append(said, err.Error())
		}
		if len(said) == 0 || !strings.Contains(strings.Join(said, "\n"), c.Field) {
			t.Errorf("%s %s: an API server says %q, want a refusal of %s", c.Kind, c.Spec, said, c.Field)
		}
		if problems := compile(t, c.Kind, c.Spec); len(problems) == 0 {
			t.Errorf("%s %s: internal/kube takes it", c.Kind, c.Spec)
		}
	}
}

// What only schemas refuse, internal/kube takes: the command line says it of a folder.
func TestBoundedBySchemas(t *testing.T) {
	all := definitions(t)
	for _, c := range corpus.Bounded() {
		var fields []string
		for _, err := range all[c.Kind].refuse(parse(t, corpus.Object(c.Kind, c.Spec)), nil) {
			fields = append(fields, err.Field)
		}
		if !slices.Equal(fields, []string{c.Field}) {
			t.Errorf("%s %.80s: an API server refuses %q, want %s", c.Kind, c.Spec, fields, c.Field)
		}
		if problems := compile(t, c.Kind, c.Spec); len(problems) > 0 {
			t.Errorf("%s %.80s: internal/kube says %v, so that it belongs to what everyone refuses", c.Kind, c.Spec, problems)
		}
	}
}

// Whether networkNamespace is needed is said by a label, which rules do not see, and whether
// a path is in the form in which paths are compared by no pattern; these are the only things
// about a single object that internal/kube refuses and schemas do not.
func TestBeyondSchemas(t *testing.T) {
	all := definitions(t)
	for _, path := range []string{"/a/../b", "/a/./b", "/%61", "*/../b", "/a%2Fb", "/a//b", "/a;b"} {
		spec := fmt.Sprintf(`{rules: [{to: [{paths: [%q]}]}]}`, path)
		if errs := all["AuthorizationPolicy"].refuse(parse(t, corpus.Object("AuthorizationPolicy", spec)), nil); len(errs) > 0 {
			t.Errorf("a schema can say it after all, so say it there: %v", errs)
		}
		problems := compile(t, "AuthorizationPolicy", spec)
		if len(problems) != 1 || problems[0].Field != "spec.rules[0].to[0].paths[0]" {
			t.Errorf("%s: internal/kube says %v", spec, problems)
		}
	}
	spec := `{node: n1, addresses: [10.1.0.1]}`
	if errs := all["Workload"].refuse(parse(t, corpus.Object("Workload", spec)), nil); len(errs) > 0 {
		t.Errorf("a schema can say it after all, so say it there: %v", errs)
	}
	problems := compile(t, "Workload", spec)
	if len(problems) != 1 || problems[0].Field != "spec.networkNamespace" {
		t.Errorf("internal/kube says %v", problems)
	}
}

func rulesOfMesh() []string {
	return []string{"there is one Mesh, and its name is default", "the trust domain cannot be changed"}
}

func TestRulesOfMesh(t *testing.T) {
	all := definitions(t)
	named := parse(t, corpus.Object("Mesh", corpus.GoodMesh))
	named["metadata"].(map[string]any)["name"] = "second"
	if errs := all["Mesh"].refuse(named, nil); len(errs) != 1 || !strings.Contains(errs[0].Error(), rulesOfMesh()[0]) {
		t.Errorf("a second mesh: %v", errs)
	}
	old, changed := parse(t, corpus.Object("Mesh", corpus.GoodMesh)), parse(t, corpus.Object("Mesh", strings.Replace(corpus.GoodMesh, "example.org", "example.net", 1)))
	if errs := all["Mesh"].refuse(changed, old); len(errs) != 1 || !strings.Contains(errs[0].Error(), rulesOfMesh()[1]) {
		t.Errorf("another trust domain: %v", errs)
	}
	if errs := all["Mesh"].refuse(old, parse(t, corpus.Object("Mesh", corpus.GoodMesh))); len(errs) > 0 {
		t.Errorf("the same mesh again: %v", errs)
	}
}

// Every rule and pattern of the schemas has a refusal above that it makes.
func TestEveryRuleRefuses(t *testing.T) {
	all := definitions(t)
	said := map[string]string{}
	for _, c := range corpus.Refused() {
		for _, err := range all[c.Kind].refuse(parse(t, corpus.Object(c.Kind, c.Spec)), nil) {
			said[c.Kind] += err.Error() + "\n"
		}
	}
	for kind, d := range all {
		visit(d.structural, func(s *schema.Structural) {
			for _, rule := range s.XValidations {
				if !strings.Contains(said[kind], rule.Message) && !slices.Contains(rulesOfMesh(), rule.Message) {
					t.Errorf("%s: nothing is refused by %s", kind, rule.Rule)
				}
			}
			if s.ValueValidation != nil && !strings.Contains(said[kind], s.ValueValidation.Pattern) {
				t.Errorf("%s: nothing is refused by the pattern %s", kind, s.ValueValidation.Pattern)
			}
		})
	}
}

func visit(s *schema.Structural, show func(*schema.Structural)) {
	show(s)
	if s.Items != nil {
		visit(s.Items, show)
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.Structural != nil {
		visit(s.AdditionalProperties.Structural, show)
	}
	for name := range s.Properties {
		if name == "status" {
			continue // written by the operator; its patterns are Kubernetes' own
		}
		property := s.Properties[name]
		visit(&property, show)
	}
}
