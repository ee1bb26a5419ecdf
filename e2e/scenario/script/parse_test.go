package script

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestProblems: what is wrong is said with its file, its line and what to do.
func TestProblems(t *testing.T) {
	const two = "deploy a on n1\ndeploy b on n2\n"
	const check = "connect a b:7000 echo\n"
	const strict = "-- s.yaml --\napiVersion: heddle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: s}\nspec: {mode: STRICT}\n"
	for _, test := range []struct{ text, want string }{
		{"", `x.txtar:1: the scenario expects nothing, and could not fail; write at least one connect, alive, ended, flow or wire`},
		{two, `x.txtar:1: the scenario expects nothing`},
		{"connet a b:7000 echo\n", `x.txtar:1: "connet" is no step; begin the line with deploy, `},
		{"\n# words\ndeploy a\n", `x.txtar:3: deploy takes a name and a node; write "deploy NAME on NODE"`},
		{"deploy a at n1\n", `x.txtar:1: "at" stands where on should`},
		{"deploy a on n3\n", `x.txtar:1: there is no node "n3"; write n1 or n2`},
		{"deploy A on n1\n", `x.txtar:1: "A" cannot be a workload; write 1 to 20 lower-case letters`},
		{"deploy operator on n1\n", `x.txtar:1: "operator" cannot be a workload`},
		{two + "deploy a on n1\n", `x.txtar:3: workload "a" is deployed twice; give it another name`},
		{"enroll a\n", `x.txtar:1: there is no workload "a"; write "deploy a on n1" above`},
		{two + "enroll a a\n", `x.txtar:3: workload "a" is named twice`},
		{"apply s.yaml\n", `x.txtar:1: there is no file "s.yaml"; write it below, after a line "-- s.yaml --"`},
		{"apply\n", `x.txtar:1: want one file`},
		{two + check + "delete s.yaml\n" + strict, `x.txtar:4: file "s.yaml" is not applied here; apply it above`},
		{two + check + strict, `x.txtar:4: file "s.yaml" is never applied; apply it, or take it out`},
		{two + "connect a\n", `x.txtar:3: who connects to whom is missing; write CLIENT SERVER:PORT`},
		{two + "connect a b echo\n", `x.txtar:3: "b" names no port from 1 to 65535; write SERVER:PORT`},
		{two + "connect a b:0 echo\n", `x.txtar:3: "b:0" names no port`},
		{two + "connect a c:7000 echo\n", `x.txtar:3: there is no workload "c"`},
		{two + "connect a b:7000\n", `x.txtar:3: what to expect is ""; write "echo", "refused"`},
		{two + "connect a b:7000 refused Because\n", `x.txtar:3: unknown reason "Because"; write a reason of docs/cli.md`},
		{two + "connect a b:7000 echo within soon\n", `x.txtar:3: "soon" is not a time to wait; write one such as 500ms or 10s`},
		{two + "connect a b:7000 echo within 3h\n", `x.txtar:3: "3h" is not a time to wait`},
		{two + "hold a b:7000\n", `x.txtar:3: want a name for the connection`},
		{two + "hold h a b:7000\nhold h a b:7000\n", `x.txtar:4: a connection "h" is held already`},
		{two + "alive h\n", `x.txtar:3: no connection "h" is held; write "hold h CLIENT SERVER:PORT" above`},
		{two + "hold h a b:7000\nalive h within 3s\n", `x.txtar:4: alive takes no within; write "for"`},
		{two + "hold h a b:7000\nended h for 3s\n", `x.txtar:4: ended takes no for; write "within"`},
		{two + "flow a b:7000\n", `x.txtar:3: the flow is not described; write at least one such as verdict=deny`},
		{two + "flow a b:7000 colour=red\n", `x.txtar:3: a flow has no "colour"; write one of verdict, reason, `},
		{two + "flow a b:7000 verdict=perhaps\n", `x.txtar:3: verdict: `},
		{two + "flow a b:7000 source=c\n", `x.txtar:3: there is no workload "c"`},
		{two + "flow a b:7000 verdict=deny verdict=allow\n", `x.txtar:3: verdict is given twice`},
		{two + "flow a b:7000 verdict=deny for 3s\n", `x.txtar:3: flow takes no for`},
		{two + check + "capture\n", `x.txtar:4: the capture is never judged; write "wire VERDICT WORKLOAD" below`},
		{two + "capture\ncapture\n", `x.txtar:4: the capture of line 3 goes on`},
		{two + "wire encrypted b\n", `x.txtar:3: nothing is captured; write "capture" above`},
		{two + "capture\nwire green b\n", `x.txtar:4: want a verdict and a workload`},
		{two + "kill agent on n1\n" + check, `x.txtar:3: the agent of n1 stays away; write "start agent on n1" below`},
		{two + "start agent on n1\n", `x.txtar:3: the agent of n1 runs; write "kill agent on n1" above`},
		{two + "kill n1\n", `x.txtar:3: want an agent and its node`},
		{"kill agent on n1\ndeploy a on n2\n", `x.txtar:2: an agent is killed: nothing can be deployed`},
		{two + "apply s.yaml\n-- s.yaml --\nkind: [\n", `x.txtar:5: s.yaml: is not YAML: `},
		{two + "apply s.yaml\n-- s.yaml --\n- a list\n", `x.txtar:5: s.yaml: is not an object`},
		{two + "apply s.yaml\n-- s.yaml --\n", `x.txtar:5: s.yaml: has no object`},
		{two + "apply s.yaml\n-- s.yaml --\n# words\napiVersion: v1\nkind: Pod\n", `x.txtar:6: s.yaml: kind "Pod" of "v1" does not go into every world; write PeerAuthentication of heddle.dev/v1alpha1, `},
		{two + "apply s.yaml\n" + strings.Replace(strict, "name: s", "name: s, namespace: t", 1), `x.txtar:5: s.yaml: PeerAuthentication s: metadata.namespace is set; leave it out`},
		{two + "apply s.yaml\n" + strict + strict, `file "s.yaml" is there twice`},
		{two + check + "apply s\n-- s --\n" + strict[len("-- s.yaml --\n"):], `x.txtar:5: file "s" is not a YAML file of one word`},
	} {
		_, err := Parse("x.txtar", []byte(test.text))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q:\n got %v\nwant %s", test.text, err, test.want)
		}
	}
	if _, err := Parse("kube-system.txtar", []byte(two+check)); err == nil || !strings.Contains(err.Error(), "rename the file") {
		t.Errorf("a scenario in the namespace kube-system: %v", err)
	}
	if _, err := Parse("x.txtar", make([]byte, maxText+1)); err == nil || !strings.Contains(err.Error(), "more than 65536") {
		t.Errorf("a text without end: %v", err)
	}
	if _, err := Parse("x.txtar", []byte(two+strings.Repeat(check, maxSteps))); err == nil || !strings.Contains(err.Error(), "x.txtar:201: there are more than 200 steps") {
		t.Errorf("a text of very many steps: %v", err)
	}
}

// TestAllProblemsAreSaid, not only the first.
func TestAllProblemsAreSaid(t *testing.T) {
	_, err := Parse("x.txtar", []byte("deploy A on n1\nnonsense\n"))
	if err == nil || strings.Count(err.Error(), "x.txtar:") != 2 {
		t.Errorf("of two problems are said: %v", err)
	}
}

// TestDocumentedLanguage: docs/scenarios.md has every step and every field, an example
// that parses, and a drawing as it is drawn.
func TestDocumentedLanguage(t *testing.T) {
	page, err := os.ReadFile("../../../docs/scenarios.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range strings.FieldsFunc(verbs, func(r rune) bool { return r == ',' || r == ' ' }) {
		if verb != "or" && !strings.Contains(string(page), "`"+verb) {
			t.Errorf("docs/scenarios.md says nothing of %q", verb)
		}
	}
	for _, field := range flowFields() {
		if !strings.Contains(string(page), "`"+field) {
			t.Errorf("docs/scenarios.md says nothing of a flow's %q", field)
		}
	}
	drawing, err := os.ReadFile("../testdata/failed.golden")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(page), string(drawing)) {
		t.Error("docs/scenarios.md does not show testdata/failed.golden")
	}
	_, rest, _ := strings.Cut(string(page), "```text\n")
	example, _, found := strings.Cut(rest, "```")
	if !found {
		t.Fatal("docs/scenarios.md has no example")
	}
	if _, err := Parse("example.txtar", []byte(example)); err != nil {
		t.Errorf("the example of docs/scenarios.md: %v", err)
	}
}

// FuzzParse: no text stops the parser, what it takes reads as it prints, and what it
// refuses is said with a line of the file.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("../testdata/*.txtar")
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := Parse("x.txtar", text)
		if err != nil {
			var line int
			if n, _ := fmt.Sscanf(err.Error(), "x.txtar:%d:", &line); n != 1 || line < 1 || line > strings.Count(string(text), "\n")+2 {
				t.Fatalf("the error names no line of the text: %v", err)
			}
			return
		}
		var files strings.Builder
		for i, l := range s.Lines {
			if l.Number < 1 || i > 0 && l.Number <= s.Lines[i-1].Number {
				t.Fatalf("line %d follows line %d", l.Number, s.Lines[i-1].Number)
			}
		}
		if at := markers(text); len(at) > 0 {
			all := strings.SplitAfter(string(text), "\n")
			files.WriteString(strings.Join(all[at[0].line-1:], ""))
		}
		again, err := Parse("x.txtar", []byte(s.String()+files.String()))
		if err != nil {
			t.Fatalf("what was printed does not parse: %v\n%s", err, s)
		}
		if again.String() != s.String() {
			t.Fatalf("printed\n%s\nparsed and printed\n%s", s, again)
		}
	})
}

// TestKillsAgents: it is told apart who may run beside others.
func TestKillsAgents(t *testing.T) {
	for steps, want := range map[string]bool{"": false, "kill agent on n1\nstart agent on n1\n": true} {
		s, err := Parse("x.txtar", []byte("deploy a on n1\n"+steps+"connect a a:7000 echo\n"))
		if err != nil || s.KillsAgents() != want {
			t.Errorf("%q kills agents: %v, %v", steps, s != nil && s.KillsAgents(), err)
		}
	}
}

// TestPrints: a script prints as it is written.
func TestPrints(t *testing.T) {
	s, err := Parse("x.txtar", []byte("deploy a on n1\nconnect a a:7000 echo within 1500ms\nconnect a a:7000 refused PolicyDeny for 2s\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := "deploy a on n1\nconnect a a:7000 echo within 1.5s\nconnect a a:7000 refused PolicyDeny for 2s\n"
	if s.String() != want {
		t.Errorf("got %s", s)
	}
}
