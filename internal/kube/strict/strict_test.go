package strict_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/heddle-mesh/heddle/internal/kube/strict"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

type Base struct {
	Inlined string `json:"inlined"`
}

type target struct {
	Base     `json:",inline"`
	Embedded *Base             `json:"embedded,omitempty"`
	Text     string            `json:"text"`
	Number   int8              `json:"number"`
	Flag     *bool             `json:"flag"`
	List     []target          `json:"list"`
	Map      map[string]string `json:"map"`
	Float    float64           `json:"float"`
	Ignored  string            `json:"-"`
	Plain    string
}

func decode(t testing.TB, text string) (target, strict.Result, bool) {
	t.Helper()
	var node yaml.Node
	if err := yaml.Unmarshal([]byte(text), &node); err != nil || len(node.Content) == 0 {
		return target{}, strict.Result{}, false
	}
	var into target
	result := strict.Decode(node.Content[0], &into)
	return into, result, true
}

func TestDecode(t *testing.T) {
	got, result, _ := decode(t, "inlined: a\nembedded: {inlined: b}\ntext: 2026-01-01\nnumber: -128\nflag: false\nmap: {80: \"1\"}\nPlain: x\nlist:\n- text: |\n    two\n    lines\n- {}\n")
	if len(result.Findings) > 0 {
		t.Fatal(result.Findings)
	}
	flag := false
	want := target{Base: Base{"a"}, Embedded: &Base{"b"}, Text: "2026-01-01", Number: -128, Flag: &flag, Map: map[string]string{"80": "1"}, Plain: "x", List: []target{{Text: "two\nlines\n"}, {}}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(target{})); diff != "" {
		t.Error(diff)
	}
	for path, line := range map[string]int{"text": 3, "map[80]": 6, "list": 8, "list[0].text": 9, "list[1]": 12} {
		if result.Lines[path] != line {
			t.Errorf("%s is on line %d, want %d", path, result.Lines[path], line)
		}
	}
}

func TestFindings(t *testing.T) {
	for text, want := range map[string]string{
		"txet: x":                    "txet: unknown field; did you mean text?",
		"Ignored: x":                 "Ignored: unknown field; take it out",
		"TEXT: x":                    "TEXT: unknown field; did you mean text?",
		"embedded: {inlined: [a]}":   "embedded.inlined: want text, have a list",
		"embedded: x":                "embedded: want fields, have text \"x\"",
		"text: 1":                    "text: want text, have \"1\" (int); put it in quotes",
		"text: yes":                  "have the word yes",
		"text: ~":                    "text: has no value",
		"text:":                      "text: has no value",
		"number: 128":                "number: 128 is out of range",
		"number: 0x1":                "number: want a whole number",
		"number: 01":                 "number: want a whole number",
		"number: 1_0":                "number: want a whole number",
		"number: +1":                 "number: want a whole number",
		"number: 1e1":                "number: want a whole number",
		"number: '1'":                "without quotes",
		"flag: yes":                  "flag: want true or false, have text \"yes\"",
		"flag: True":                 "flag: want true or false, have \"True\" (bool)",
		"list: {}":                   "list: want a list, have keys and values",
		"list: [{text: a, text: b}]": "list[0].text: is given twice, first on line 1",
		"map: [a]":                   "map: want keys and values, have a list",
		"map: {a: 1}":                "map[a]: want text",
		"map: {? [a] : b}":           "map: a key is a list",
		"map: {<<: {a: b}}":          "map: a key is \"<<\" (merge)",
		"text: &a x":                 "anchors and aliases are not read",
		"list: [&a {}, *a]":          "list[1]: anchors and aliases",
		"text: !!str x":              "the tag !!str is not read",
		"float: 1.5":                 "fields of type float64 are not read",
		"- a":                        "want fields, have a list",
	} {
		_, result, ok := decode(t, text)
		var said strings.Builder
		for _, f := range result.Findings {
			said.WriteString(f.Field + ": " + f.Text + "; " + f.Remedy + "\n")
		}
		if !ok || !strings.Contains(said.String(), want) {
			t.Errorf("%q: found %q, want %q", text, said.String(), want)
		}
	}
}

// FuzzDecode: whatever the document is, it is decoded or something is found.
func FuzzDecode(f *testing.F) {
	f.Add("text: x\nlist: [{number: 1}]\n")
	f.Add("map: {a: b, a: c}\nflag: yes\n")
	f.Fuzz(func(t *testing.T, text string) {
		_, result, _ := decode(t, text)
		for _, finding := range result.Findings {
			if finding.Text == "" || finding.Line < 1 || strings.HasPrefix(finding.Text, "cannot be decoded") {
				t.Fatalf("%+v", finding)
			}
		}
	})
}
