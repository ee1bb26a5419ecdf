package v1alpha1_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func kinds() []string {
	return []string{"Mesh", "Workload", "PeerAuthentication", "AuthorizationPolicy"}
}

func TestAddToScheme(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	for _, kind := range kinds() {
		for _, name := range []string{kind, kind + "List"} {
			object, err := scheme.New(v1alpha1.GroupVersion().WithKind(name))
			if err != nil {
				t.Error(err)
				continue
			}
			if copied := object.DeepCopyObject(); copied == object {
				t.Errorf("%s: the copy is the object", name)
			}
		}
	}
}

// Every kind has its committed definition, with a status, and with every field
// described: descriptions are what kubectl explain shows.
func TestDefinitions(t *testing.T) {
	files, err := filepath.Glob("../../manifests/heddle/crds/*.yaml")
	if err != nil || len(files) != len(kinds()) {
		t.Fatalf("definitions: %v, %v", files, err)
	}
	found := map[string]bool{}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var crd unstructured.Unstructured
		if err := yaml.Unmarshal(content, &crd.Object); err != nil {
			t.Fatal(err)
		}
		kind, _, err := unstructured.NestedString(crd.Object, "spec", "names", "kind")
		if err != nil {
			t.Fatal(err)
		}
		found[kind] = true
		versions, _, err := unstructured.NestedSlice(crd.Object, "spec", "versions")
		if err != nil || len(versions) != 1 {
			t.Fatalf("%s: versions %v, %v", kind, versions, err)
		}
		version := versions[0].(map[string]any)
		if _, ok, err := unstructured.NestedMap(version, "subresources", "status"); !ok || err != nil {
			t.Errorf("%s has no status subresource: %v", kind, err)
		}
		schema, _, err := unstructured.NestedMap(version, "schema", "openAPIV3Schema")
		if err != nil {
			t.Fatal(err)
		}
		described(t, kind, schema)
	}
	for _, kind := range kinds() {
		if !found[kind] {
			t.Errorf("%s has no definition", kind)
		}
	}
}

func described(t *testing.T, path string, schema map[string]any) {
	if text, ok := schema["description"].(string); (!ok || len(text) < 10) && !strings.HasSuffix(path, ".metadata") && !strings.HasSuffix(path, "[]") {
		t.Errorf("%s is not described", path)
	}
	properties, ok := schema["properties"].(map[string]any)
	if !ok {
		if items, ok := schema["items"].(map[string]any); ok {
			described(t, path+"[]", items)
		}
		return
	}
	for name, property := range properties {
		described(t, path+"."+name, property.(map[string]any))
	}
}
