package heddle

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestThreatModel checks that each test which docs/threat-model.md names exists, and that
// each claim names one: every row of the table of classes, and every paragraph about what a
// compromised part can do.
func TestThreatModel(t *testing.T) {
	text, err := os.ReadFile("docs/threat-model.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`([a-z0-9/]+)\\.((?:Test|Fuzz|test)[A-Za-z0-9]+)`")
	known := map[string]map[string]bool{}
	for _, m := range named.FindAllStringSubmatch(string(text), -1) {
		if known[m[1]] == nil {
			known[m[1]] = functions(t, m[1])
		}
		if !known[m[1]][m[2]] {
			t.Errorf("docs/threat-model.md: there is no %s in %s: name the test that is behind the claim now", m[2], m[1])
		}
	}
	claims := 0
	section := ""
	for _, block := range strings.Split(string(text), "\n\n") {
		if title, ok := strings.CutPrefix(block, "## "); ok {
			section, _, _ = strings.Cut(title, "\n")
			continue
		}
		var each []string
		switch {
		case section == "What each compromised part can do":
			each = []string{block}
		case strings.HasPrefix(section, "Classes") && strings.HasPrefix(block, "| "):
			each = strings.Split(strings.TrimSpace(block), "\n")[2:]
		}
		for _, claim := range each {
			claims++
			if !named.MatchString(claim) {
				t.Errorf("docs/threat-model.md: a claim names no test: %.80s", claim)
			}
		}
	}
	if claims < 25 {
		t.Errorf("docs/threat-model.md: %d claims were found: its sections have other names", claims)
	}
}

// functions are those that a package's files declare, its tests among them.
func functions(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range f.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil {
				all[fn.Name.Name] = true
			}
		}
	}
	return all
}
