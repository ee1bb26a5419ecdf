package folders

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/api/v1alpha1/corpus"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/schemas"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// fatal is what tests and rapid's properties have in common.
type fatal interface{ Fatal(...any) }

// judged returns what is said of a folder with an object in it, and what of that only schemas
// find.
func judged(t fatal, by *schemas.Schemas, dir, kind, object string) (all, unfit []*kube.Problem) {
	files := map[string]string{"ns.yaml": corpus.Enrolled, "it.yaml": object, "mesh.yaml": corpus.Object("Mesh", corpus.GoodMesh)}
	if kind == "Mesh" {
		files["mesh.yaml"] = ""
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	objects, refused, err := load(dir, by)
	if err != nil {
		return kube.Problems(err), nil
	}
	objects.UDPByIdentity = true
	_, err = kube.Compile(objects)
	own := kube.Problems(err)
	all = kube.Problems(refused.Beyond(err))
	return all, slices.DeleteFunc(slices.Clone(all), func(p *kube.Problem) bool { return slices.Contains(own, p) })
}

// TestAsAnAPIServer: what an API server takes and what it refuses, a folder does, about the
// same field, by file and line, with what to do, and once.
func TestAsAnAPIServer(t *testing.T) {
	by, dir := schemas.New(), t.TempDir()
	for kind, specs := range corpus.Accepted() {
		for _, spec := range specs {
			if all, _ := judged(t, by, dir, kind, corpus.Object(kind, spec)); len(all) > 0 {
				t.Errorf("%s %s: %v", kind, spec, all)
			}
		}
	}
	for _, c := range corpus.Bounded() {
		all, _ := judged(t, by, dir, c.Kind, corpus.Object(c.Kind, c.Spec))
		if len(all) != 1 || all[0].Field != c.Field || all[0].Origin.File != "it.yaml" || all[0].Origin.Line != 4 || all[0].Ref.Kind != c.Kind || all[0].Text == "" || all[0].Remedy == "" {
			t.Errorf("%s %.80s: %v, want one problem of %s, with what to do", c.Kind, c.Spec, all, c.Field)
		}
	}
	for _, c := range corpus.Refused() {
		all, unfit := judged(t, by, dir, c.Kind, corpus.Object(c.Kind, c.Spec))
		if len(all) == 0 {
			t.Errorf("%s %s: nothing is wrong with it", c.Kind, c.Spec)
		}
		if len(unfit) > 0 { // everyone refuses these: what operators say says more
			t.Errorf("%s %s: said twice: %v beside %v", c.Kind, c.Spec, unfit, all)
		}
	}
}

// TestNothingIsLost: whatever becomes of an object, when an API server would refuse it the
// folder is refused, and about that object.
func TestNothingIsLost(t *testing.T) {
	dir := t.TempDir()
	accepted := corpus.Accepted()
	kinds := []string{"AuthorizationPolicy", "Mesh", "PeerAuthentication", "Workload"}
	server := schemas.New()
	refused, taken := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom(kinds).Draw(t, "kind")
		var object map[string]any
		if err := yaml.Unmarshal([]byte(corpus.Object(kind, rapid.SampledFrom(accepted[kind]).Draw(t, "spec"))), &object); err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 3).Draw(t, "changes") {
			object["spec"] = changed(t, object["spec"])
		}
		found, err := server.Refusals(object)
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		all, _ := judged(t, server, dir, kind, string(text))
		about := slices.ContainsFunc(all, func(p *kube.Problem) bool { return p.Ref.Kind == kind })
		if len(found) > 0 && !about {
			t.Fatalf("%s: an API server refuses %v, the folder %v", text, found, all)
		}
		if len(found) > 0 {
			refused++
		} else {
			taken++
		}
	})
	if refused == 0 || taken == 0 {
		t.Errorf("%d were refused, and %d taken: this shows nothing", refused, taken)
	}
}

// changed returns a value with one thing in it that is another, or gone, or there more often.
func changed(t *rapid.T, value any) any {
	switch v := value.(type) {
	case map[string]any:
		if len(v) == 0 || rapid.IntRange(0, 9).Draw(t, "here") == 0 {
			v["other"] = "x"
			return v
		}
		keys := make([]string, 0, len(v))
		for key := range v {
			keys = append(keys, key)
		}
		slices.Sort(keys)
		key := rapid.SampledFrom(keys).Draw(t, "key")
		if rapid.IntRange(0, 4).Draw(t, "gone") == 0 {
			delete(v, key)
		} else {
			v[key] = changed(t, v[key])
		}
		return v
	case []any:
		if len(v) == 0 {
			return v
		}
		at := rapid.IntRange(0, len(v)-1).Draw(t, "at")
		switch rapid.IntRange(0, 4).Draw(t, "list") {
		case 0:
			return slices.Delete(v, at, at+1)
		case 1:
			return slices.Concat(v, slices.Repeat([]any{v[at]}, rapid.SampledFrom([]int{1, 20, 70, 300}).Draw(t, "more")))
		default:
			v[at] = changed(t, v[at])
			return v
		}
	case string:
		return rapid.SampledFrom([]any{"", "x", "*", "A b", strings.Repeat("x", 300), 7}).Draw(t, "text")
	default:
		return rapid.SampledFrom([]any{0, 80, 70000, -1, "80", true}).Draw(t, "number")
	}
}

// TestRoutes: routes are judged by the Gateway API's definitions, and what their compiler says
// of several fields in one text is not said again.
func TestRoutes(t *testing.T) {
	const route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {namespace: shop, name: r}\nspec: "
	for spec, want := range map[string]string{
		`{parentRefs: [{group: "", kind: Service, name: web}], rules: [{matches: [{method: FOO}]}]}`: "spec.rules[0].matches[0].method",
		`{rules: [{filters: [{type: RequestMirror}]}]}`:                                              "spec.rules[0].filters[0]",
		`{rules: [{backendRefs: [{name: a}]}]}`:                                                      "spec.rules[0].backendRefs[0]",
	} {
		if all, _ := judged(t, schemas.New(), t.TempDir(), "HTTPRoute", route+spec); len(all) != 1 || all[0].Field != want || all[0].Origin.Line != 4 {
			t.Errorf("%s: %v, want %s", spec, all, want)
		}
	}
	dir := t.TempDir()
	judged(t, schemas.New(), dir, "HTTPRoute", route+`{rules: [{matches: [{method: FOO}]}]}`)
	_, refused, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	told := kube.Problems(refused.Beyond(nil))[0]
	other := &kube.Problem{Ref: told.Ref, Field: "spec.parentRefs", Text: "is odd. " + told.Field + `: "FOO" is no method`}
	if again := kube.Problems(refused.Beyond(other)); len(again) != 1 || again[0] != other {
		t.Errorf("said twice: %v", again)
	}
}

// TestFiles: a file is a folder of one, and what cannot be read is told from all else.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	judged(t, schemas.New(), dir, "Workload", corpus.Object("Workload", corpus.Accepted()["Workload"][0]))
	objects, refused, err := Load(filepath.Join(dir, "it.yaml"))
	if err != nil || len(objects.Workloads) != 1 || len(objects.Meshes) != 0 || len(refused) != 0 {
		t.Errorf("a file: %v, %v, %v", objects, refused, err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "notes.txt"), nil, 0o600), os.WriteFile(filepath.Join(dir, "bad.yaml"), []byte("a: [\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"none": "no such file", "notes.txt": "name it so", "bad.yaml": "bad.yaml:1: is not YAML", ".": "bad.yaml:1: is not YAML"} {
		_, _, err := Load(filepath.Join(dir, name))
		if !errors.Is(err, ErrInvalid) || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%s: %v, want ErrInvalid and %q", name, err, want)
		}
		if errors.Is(err, fs.ErrNotExist) != (name == "none") {
			t.Errorf("%s: the cause is lost: %v", name, err)
		}
	}
	if Invalid(nil) != nil || Refusals(nil).Beyond(nil) != nil {
		t.Error("of nothing an error is made")
	}
}

// TestPlaces: a problem names the folder that was read, or the file, as it was given: of several with
// files of the same names, that is all that tells them apart.
func TestPlaces(t *testing.T) {
	t.Chdir(t.TempDir())
	workload := func(spec string) string { return corpus.Object("Workload", spec) }
	good, lost, unfit := workload(corpus.Accepted()["Workload"][0]), workload("{nothing: 1}"), corpus.Object("AuthorizationPolicy", "{rules: [{to: [{ports: [80, 80]}]}]}")
	for name, text := range map[string]string{"unknown": lost, "unfit": unfit, "twice": good + "\n---\n" + good, "syntax": "a: [\n", "deep/er": lost} {
		if err := errors.Join(os.MkdirAll(name, 0o700), os.WriteFile(filepath.Join(name, "it.yaml"), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/nowhere", "deep/gone.yaml"); err != nil {
		t.Fatal(err)
	}
	for named, want := range map[string][]string{
		"unknown": {"unknown/it.yaml:"}, "./unknown": {"unknown/it.yaml:"}, "unknown/it.yaml": {"unknown/it.yaml:"},
		"unfit": {"unfit/it.yaml:"}, "unfit/it.yaml": {"unfit/it.yaml:"}, "twice": {"twice/it.yaml:", "also at twice/it.yaml:"},
		"syntax": {"syntax/it.yaml:"}, "deep": {"deep/er/it.yaml:", "deep/gone.yaml: "}, Stdin: {"standard input:"},
	} {
		_, refused, err := Named(strings.NewReader(lost), named)
		said := ""
		for _, p := range kube.Problems(refused.Beyond(err)) {
			said += "\n" + p.Error()
		}
		for _, place := range want {
			if !strings.Contains(said, "\n"+place) && !strings.Contains(said, " "+place) {
				t.Errorf("%s: %q is not among:%s", named, place, said)
			}
		}
	}
}

// TestAmong: of a cluster's own problems none is lost, and none said twice.
func TestAmong(t *testing.T) {
	dir := t.TempDir()
	judged(t, schemas.New(), dir, "AuthorizationPolicy", corpus.Object("AuthorizationPolicy", `{rules: [{to: [{methods: [get], ports: [80, 80]}]}]}`))
	_, refused, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	own := &kube.Problem{Ref: kube.Ref{Kind: "AuthorizationPolicy", Namespace: "shop", Name: "it"}, Field: "spec.rules[0].to[0].methods[0]", Text: "own"}
	another := &kube.Problem{Ref: kube.Ref{Kind: "AuthorizationPolicy", Namespace: "shop", Name: "other"}, Field: "spec.rules[0].to[0].ports[1]", Text: "another's"}
	var fields []string
	for _, p := range refused.Among([]*kube.Problem{own, another}) {
		fields = append(fields, p.Ref.Name+" "+p.Field)
	}
	slices.Sort(fields)
	if want := []string{"it spec.rules[0].to[0].methods[0]", "it spec.rules[0].to[0].ports[1]", "other spec.rules[0].to[0].ports[1]"}; !slices.Equal(fields, want) {
		t.Errorf("%q, want %q", fields, want)
	}
}
