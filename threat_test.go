package heddle

import (
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// threatClasses are the classes of vulnerabilities that other meshes and proxies had, each by
// what a row of the table of classes says of it: their CVEs, or words where they have none.
var threatClasses = map[string][]string{
	"HTTP/2 rapid reset": {"CVE-2023-44487", "CVE-2025-8671"},
	"CONTINUATION flood": {"CVE-2023-45288"},
	"HPACK and cookie amplification, header-cache growth": {"CVE-2026-47774", "CVE-2022-41717"},
	"x/net/http2 panics on frame types":                   {"panics of a general HTTP/2 library"},
	"Expect: 100-continue desynchronisation":              {"CVE-2024-24791"},
	"request smuggling, PROXY TLV mismatch":               {"smuggling", "CVE-2026-47692"},
	"RBAC bypass by multi-value headers":                  {"CVE-2026-26308"},
	"RBAC bypass by unescaped dots":                       {"CVE-2026-39350"},
	"RBAC bypass by path normalisation":                   {"paths that are not normalised"},
	"SAN truncation by NUL":                               {"CVE-2026-47778"},
	"JWKS failure falls back to default keys":             {"CVE-2026-31837"},
	"SSRF by jwksUri or Wasm":                             {"jwksUri", "Wasm"},
	"debug endpoints across namespaces":                   {"CVE-2026-31838"},
	"unauthenticated reads of configuration":              {"configuration read without authentication"},
	"control plane stalled by a user's regex":             {"regular expression"},
	"tenant in the middle by claims of hosts":             {"tenant's claim of a host"},
	"L7 policy skipped in a datapath combination":         {"CVE-2026-33726"},
	"policy skipped intermittently":                       {"CVE-2024-28248"},
	"decompression and JSON bombs":                        {"CVE-2026-48044", "CVE-2026-48042"},
	"identity confusion by pooled connections":            {"pooled connections"},
	"identity confusion by netns reuse":                   {"network namespace that is used again"},
	"eBPF map races":                                      {"races of BPF maps"},
	"stale IP to identity after address reuse":            {"identity confusion by address reuse"},
}

// TestThreatModel checks that each test which docs/threat-model.md names exists, and is one
// that make test or CI runs, and that each claim names one: every boundary, every paragraph
// about what a compromised part can do, and every row of the table of classes, in which each
// of threatClasses is.
func TestThreatModel(t *testing.T) {
	text, err := os.ReadFile("docs/threat-model.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`([a-z0-9/]+)\\.((?:Test|Fuzz|test)[A-Za-z0-9]+)`")
	known := map[string]map[string]bool{}
	runs := packagesThatRun(t)
	for _, m := range named.FindAllStringSubmatch(string(text), -1) {
		if known[m[1]] == nil {
			known[m[1]] = functions(t, m[1])
			if !runs(m[1]) {
				t.Errorf("docs/threat-model.md: neither make test nor CI runs the tests of %s", m[1])
			}
		}
		if !known[m[1]][m[2]] {
			t.Errorf("docs/threat-model.md: there is no %s in %s that is run: name the test that is behind the claim now", m[2], m[1])
		}
	}
	claims := 0
	section := ""
	var classes []string
	for _, block := range strings.Split(string(text), "\n\n") {
		if title, ok := strings.CutPrefix(block, "## "); ok {
			section, _, _ = strings.Cut(title, "\n")
			continue
		}
		var each []string
		switch {
		case section == "What each compromised part can do":
			each = []string{block}
		case section == "Boundaries" && strings.HasPrefix(block, "| "):
			each = strings.Split(strings.TrimSpace(block), "\n")[2:]
		case strings.HasPrefix(section, "Classes") && strings.HasPrefix(block, "| "):
			each = strings.Split(strings.TrimSpace(block), "\n")[2:]
			for _, row := range each {
				classes = append(classes, strings.Split(row, "|")[1])
			}
		}
		for _, claim := range each {
			claims++
			if !named.MatchString(claim) {
				t.Errorf("docs/threat-model.md: a claim names no test: %.80s", claim)
			}
		}
	}
	if claims < 50 {
		t.Errorf("docs/threat-model.md: %d claims were found: its sections have other names", claims)
	}
	for class, words := range threatClasses {
		if !slices.ContainsFunc(classes, func(row string) bool {
			return !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(row, word) })
		}) {
			t.Errorf("docs/threat-model.md: no row is about %s, by %q: say what stops it here, and which test shows it", class, words)
		}
	}
}

// packagesThatRun tells by the Makefile's lists of packages which of them are tested.
func packagesThatRun(t *testing.T) func(string) bool {
	t.Helper()
	text, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	list := func(name string) (said string, without *regexp.Regexp) {
		t.Helper()
		said = regexp.MustCompile(`(?m)^` + name + ` :?= (.*)$`).FindStringSubmatch(string(text) + "\n" + name + " = \n")[1]
		without = regexp.MustCompile(`^$`)
		if m := regexp.MustCompile(`grep -vE '([^']*)'`).FindStringSubmatch(said); m != nil {
			without = regexp.MustCompile(strings.ReplaceAll(m[1], "$$", "$"))
		}
		if said == "" {
			t.Fatalf("Makefile: there is no list %s", name)
		}
		return said, without
	}
	cluster, _ := list("CLUSTER_PACKAGES")
	root, notRoot := list("ROOT_PACKAGES")
	unit, notUnit := list("UNIT_PACKAGES")
	return func(dir string) bool {
		path := "github.com/heddle-mesh/heddle/" + dir
		below := slices.ContainsFunc(regexp.MustCompile(`\./([a-z0-9/]+)/\.\.\.`).FindAllStringSubmatch(root, -1), func(m []string) bool {
			return strings.HasPrefix(dir+"/", m[1]+"/")
		})
		return slices.Contains(strings.Fields(cluster), "./"+dir) || slices.Contains(strings.Fields(unit), "./"+dir) ||
			below && !notRoot.MatchString(path) || !notUnit.MatchString(path)
	}
}

// functions are those that a package's files declare, and that a run of its tests with the
// race detector and without tags can come to: a test of the test binary, or what something
// else in the package names, as the suites of enginetest do.
func functions(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	all, used := map[string]bool{}, map[string]int{}
	context := build.Default
	context.GOOS, context.GOARCH, context.CgoEnabled = "linux", "amd64", true
	if dir != "internal/hbone/fast" { // which is run without, too
		context.BuildTags = []string{"race"}
	}
	for _, file := range files {
		if built, err := context.MatchFile(filepath.Split(file)); err != nil {
			t.Fatal(err)
		} else if !built {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range f.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil {
				all[fn.Name.Name] = strings.HasSuffix(file, "_test.go") && ast.IsExported(fn.Name.Name) && len(fn.Body.List) > 0
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok {
				used[id.Name]++
			}
			return true
		})
	}
	for name := range all {
		all[name] = all[name] || !ast.IsExported(name) && used[name] > 1
	}
	return all
}
