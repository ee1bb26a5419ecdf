package heddle

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

const module = "github.com/heddle-mesh/heddle"

// goPackage is what `go list -json` says of one package.
type goPackage struct {
	ImportPath, Dir                             string
	GoFiles, TestGoFiles, XTestGoFiles, Imports []string
	Deps                                        []string
}

func (p goPackage) path() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
}

// sources are the package's own Go files without tests and generated code.
func (p goPackage) sources() []string {
	var files []string
	for _, name := range p.GoFiles {
		if !generated(name) {
			files = append(files, filepath.Join(p.Dir, name))
		}
	}
	return files
}

func generated(name string) bool {
	return strings.HasSuffix(name, ".pb.go") || strings.HasPrefix(filepath.Base(name), "zz_generated") ||
		strings.HasSuffix(name, "_bpfel.go") || strings.HasSuffix(name, "_bpfeb.go")
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,TestGoFiles,XTestGoFiles,Imports,Deps", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p goPackage
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 10 {
		t.Fatalf("go list found %d packages: these rules would hold of nothing", len(all))
	}
	return all
}

// under reports whether a package path is root or below it.
func under(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

func underAny(path string, roots []string) bool {
	return slices.ContainsFunc(roots, func(root string) bool { return under(path, root) })
}

// importRule keeps some packages from importing others. Paths are relative to
// the module for ours, whole for others'.
type importRule struct {
	from   func(path string) bool
	banned func(imported string) bool
	reason string
}

func ours(imported string) (string, bool) {
	rest, ok := strings.CutPrefix(imported, module+"/")
	return rest, ok
}

func importRules() []importRule {
	in := func(roots ...string) func(string) bool {
		return func(path string) bool { return underAny(path, roots) }
	}
	notIn := func(roots ...string) func(string) bool {
		return func(path string) bool { return !underAny(path, roots) }
	}
	importsOurs := func(except ...string) func(string) bool {
		return func(imported string) bool {
			path, ok := ours(imported)
			return ok && !underAny(path, except)
		}
	}
	foreign := func(roots ...string) func(string) bool {
		return func(imported string) bool { return underAny(imported, roots) }
	}
	programs := []string{"agent", "operator", "waypoint"}
	rules := []importRule{
		{in("bpf", "internal/eventloop"), importsOurs(),
			"the kernel's handle and the loop are leaves: they must be readable, testable and reusable alone"},
		{in("internal/mesh"), importsOurs("internal/mesh"),
			"the model is a leaf: it must be readable, testable and reusable alone"},
		{in("internal/hbone"), importsOurs("internal/eventloop", "internal/hbone"),
			"the tunnel knows addresses, TLS and SPIFFE IDs, not workloads or policies"},
		{in("internal", "api"), importsOurs("internal", "api"),
			"shared code serves the programs, it does not know them"},
		{in("waypoint/reason"), importsOurs(),
			"why HTTP is refused is said by everything that reads it: it needs nobody"},
		{in("waypoint/http1"), importsOurs("waypoint/http1", "waypoint/reason"),
			"the HTTP engine is bytes in, events and bytes out: it must be fuzzed, measured and understood alone"},
		{in("waypoint/http2"), importsOurs("waypoint/http1", "waypoint/http2", "waypoint/reason"),
			"HTTP/2 is read as HTTP/1.1 is, from bytes to messages of one form, and knows nothing above them"},
		{in("waypoint"), importsOurs("internal", "api", "waypoint"),
			"the waypoint is built on what the programs share"},
		{notIn("bpf", "e2e"), foreign("github.com/cilium/ebpf"),
			"one typed handle is the only way to the kernel's maps and programs"},
		{notIn("agent", "cmd", "e2e"), importsBPF,
			"only the agent (and what proves it) touches the kernel's maps"},
		{notIn("agent", "bpf", "internal/local", "internal/testenv", "internal/attack", "cmd/heddle", "e2e"), foreign("github.com/vishvananda"),
			"links, rules and routes change in one place, beside what takes them back"},
		{notIn("internal/kube", "operator", "cmd/heddle", "e2e"), foreign("k8s.io/client-go", "sigs.k8s.io/controller-runtime"),
			"the data path must run without Kubernetes"},
	}
	for _, program := range programs {
		others := slices.DeleteFunc(slices.Clone(programs), func(p string) bool { return p == program })
		rules = append(rules, importRule{in(program), func(imported string) bool {
			path, ok := ours(imported)
			return ok && underAny(path, others)
		}, "programs meet over the wire, never by import"})
	}
	return rules
}

func importsBPF(imported string) bool {
	path, ok := ours(imported)
	return ok && path == "bpf"
}

func TestImports(t *testing.T) {
	used := map[string]bool{}
	for _, p := range packages(t) {
		for _, rule := range importRules() {
			if !rule.from(p.path()) {
				continue
			}
			used[rule.reason] = true
			for _, imported := range p.Imports {
				if rule.banned(imported) {
					t.Errorf("%s imports %s: %s", p.path(), imported, rule.reason)
				}
			}
		}
	}
	for _, rule := range importRules() {
		if !used[rule.reason] && !strings.HasPrefix(rule.reason, "programs meet") {
			t.Errorf("the rule %q applies to no package: take it out or mend it", rule.reason)
		}
	}
}

// TestNothingIsDecompressed: a program that links gRPC's gzip unpacks every message that says it
// is packed, on whichever stream: a small one may come to much more than the bound on what is read.
func TestNothingIsDecompressed(t *testing.T) {
	const gzip = "google.golang.org/grpc/encoding/gzip"
	programs := 0
	for _, p := range packages(t) {
		if !under(p.path(), "cmd") || strings.Contains(p.path(), "/internal/") {
			continue
		}
		programs++
		if slices.Contains(p.Deps, gzip) {
			t.Errorf("%s links %s", p.path(), gzip)
		}
	}
	if programs < 5 {
		t.Errorf("%d programs under cmd: this would hold of few", programs)
	}
}

func TestPackageDocs(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) == 0 {
			continue
		}
		var documented []string
		for _, file := range p.sources() {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc != nil && len(f.Doc.Text()) > 40 {
				documented = append(documented, filepath.Base(file))
			}
		}
		if len(documented) != 1 {
			t.Errorf("%s: want one package doc that says what it is and is not, found %d %v", p.path(), len(documented), documented)
		}
	}
}

// TestFormat holds every Go file to gofmt's form, which neither vet nor staticcheck looks at.
func TestFormat(t *testing.T) {
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && path != "." {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		formatted, err := format.Source(source)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if !bytes.Equal(source, formatted) {
			t.Errorf("%s: not as gofmt writes it: run gofmt -w %s", path, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestNames(t *testing.T) {
	banned := regexp.MustCompile(`(?i)^(manager|handler|utils?|common|helpers?)$|manager$|utils$|helper$`)
	for _, p := range packages(t) {
		for part := range strings.SplitSeq(p.path(), "/") {
			if banned.MatchString(part) {
				t.Errorf("package %s: %q says nothing of what is in it", p.path(), part)
			}
		}
		for _, file := range p.sources() {
			for _, decl := range parse(t, file).Decls {
				for _, name := range declaredNames(decl) {
					if banned.MatchString(name) && name != "Handler" {
						t.Errorf("%s: %q is a banned name: say what it does", rel(t, file), name)
					}
				}
			}
		}
	}
}

func TestEnvironmentIsReadInPrograms(t *testing.T) {
	for _, p := range packages(t) {
		// testenv is of tests only, which the makefile tells by the environment.
		if under(p.path(), "cmd") || under(p.path(), "e2e") || p.path() == "internal/testenv" {
			continue
		}
		for _, file := range p.sources() {
			ast.Inspect(parse(t, file), func(n ast.Node) bool {
				if sel, ok := n.(*ast.SelectorExpr); ok {
					if x, ok := sel.X.(*ast.Ident); ok && x.Name == "os" && slices.Contains([]string{"Getenv", "LookupEnv", "Environ", "ExpandEnv"}, sel.Sel.Name) {
						t.Errorf("%s reads the environment: flags and environment become a Config in cmd/, and nowhere else", rel(t, file))
					}
				}
				return true
			})
		}
	}
}

// Sizes beyond which a thing is more than one thing. Each exception has a reason.
const (
	maxFileLines     = 500
	maxFunctionLines = 70
	maxStructFields  = 20
	maxPackageLines  = 1500 // without comments and blank lines
	maxOurImports    = 8
)

func sizeExceptions() map[string]string {
	return map[string]string{
		"bpf":                        "one typed handle over every map and link, so that nothing else imports cilium/ebpf",
		"operator imports":           "its parts meet in its wiring, and nowhere else",
		"internal/discovery imports": "both ends of the stream between operators and those who follow them stand in it, so that they are changed together",
		"agent imports":              "its parts meet in its wiring, and nowhere else",
		"agent/kernel imports":       "it fits the kernel's part to what enrolment, connections and names each ask for",
		"cmd/heddle imports":         "its commands meet in its root, and nowhere else",
		"waypoint imports":           "its parts meet in its wiring, and nowhere else",
		"waypoint/serve":             "HTTP/1.1 and what is relayed raw are still in it; HTTP/2 has a package of its own, and so should they",
		"waypoint/serve imports":     "the parts of a connection meet on its loop, and nowhere else: each of them knows few of the others",
		"waypoint/serve/h2 imports":  "as in waypoint/serve, for the version of HTTP that has many requests on a connection",
		"internal/hbone/enginetest":  "a conformance suite: tests, in a package that each engine's tests can import",
	}
}

func TestSizes(t *testing.T) {
	exceptions := sizeExceptions()
	met := map[string]bool{}
	report := func(key, format string, args ...any) {
		if _, ok := exceptions[key]; ok {
			met[key] = true
			return
		}
		t.Errorf("%s: %s", key, fmt.Sprintf(format, args...))
	}
	for _, p := range packages(t) {
		lines := 0
		for _, file := range p.sources() {
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, file, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			n := fset.File(f.Pos()).LineCount()
			lines += codeLines(t, file)
			if n > maxFileLines {
				report(rel(t, file), "%d lines, more than %d", n, maxFileLines)
			}
			checkDeclarations(t, fset, f, func(name, format string, args ...any) {
				report(rel(t, file)+":"+name, format, args...)
			})
		}
		if lines > maxPackageLines {
			report(p.path(), "%d lines, more than %d", lines, maxPackageLines)
		}
		if n := len(ourImports(p)); n > maxOurImports {
			report(p.path()+" imports", "%d of our packages, more than %d", n, maxOurImports)
		}
	}
	for key := range exceptions {
		if !met[key] {
			t.Errorf("the exception for %s is no longer needed: take it out", key)
		}
	}
}

// codeLines counts the lines of a file that are neither blank nor comment.
func codeLines(t *testing.T, file string) int {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "//") {
			n++
		}
	}
	return n
}

func checkDeclarations(t *testing.T, fset *token.FileSet, f *ast.File, report func(name, format string, args ...any)) {
	t.Helper()
	lines := func(n ast.Node) int { return fset.Position(n.End()).Line - fset.Position(n.Pos()).Line + 1 }
	for _, decl := range f.Decls {
		if fn, ok := decl.(*ast.FuncDecl); ok && lines(fn) > maxFunctionLines {
			report(fn.Name.Name, "%d lines, more than %d", lines(fn), maxFunctionLines)
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		if st, ok := spec.Type.(*ast.StructType); ok && st.Fields.NumFields() > maxStructFields {
			report(spec.Name.Name, "%d fields, more than %d", st.Fields.NumFields(), maxStructFields)
		}
		return true
	})
}

func ourImports(p goPackage) []string {
	return slices.DeleteFunc(slices.Clone(p.Imports), func(i string) bool { _, ok := ours(i); return !ok })
}

// TestNoMutableGlobals allows package-level errors, embedded files, compiled
// patterns, interface assertions, tables indexed by constants and what
// generators write; anything else is state that two meshes in one process share.
func TestNoMutableGlobals(t *testing.T) {
	for _, p := range packages(t) {
		for _, file := range p.sources() {
			for _, decl := range parse(t, file).Decls {
				gen, ok := decl.(*ast.GenDecl)
				if !ok || gen.Tok != token.VAR || embeds(gen) {
					continue
				}
				for _, spec := range gen.Specs {
					value := spec.(*ast.ValueSpec)
					if !constantLike(value) {
						t.Errorf("%s: package-level variable %s", rel(t, file), value.Names[0].Name)
					}
				}
			}
		}
	}
}

func embeds(gen *ast.GenDecl) bool {
	return gen.Doc != nil && slices.ContainsFunc(gen.Doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed") })
}

func constantLike(v *ast.ValueSpec) bool {
	if v.Names[0].Name == "_" || v.Names[0].Name == "version" {
		return true // an interface assertion; what the linker sets
	}
	if len(v.Values) == 0 {
		return false
	}
	switch value := v.Values[0].(type) {
	case *ast.CompositeLit:
		_, isArray := value.Type.(*ast.ArrayType)
		_, isStruct := value.Type.(*ast.SelectorExpr) // GroupVersion{...}
		return isArray || isStruct
	case *ast.UnaryExpr: // &scheme.Builder{...}
		return true
	case *ast.SelectorExpr: // Builder.AddToScheme
		return true
	case *ast.CallExpr:
		called := types(value.Fun)
		return slices.Contains([]string{"errors.New", "fmt.Errorf", "status.Error", "regexp.MustCompile", "netip.MustParsePrefix", "netip.MustParseAddr",
			"runtime.NewSchemeBuilder"}, called)
	default:
		return false
	}
}

func types(e ast.Expr) string {
	if sel, ok := e.(*ast.SelectorExpr); ok {
		if x, ok := sel.X.(*ast.Ident); ok {
			return x.Name + "." + sel.Sel.Name
		}
	}
	return ""
}

func TestEveryPackageChecksLeaks(t *testing.T) {
	for _, p := range packages(t) {
		tests := slices.Concat(p.TestGoFiles, p.XTestGoFiles)
		if len(tests) == 0 || p.path() == "" {
			continue
		}
		found := slices.ContainsFunc(tests, func(name string) bool {
			data, err := os.ReadFile(filepath.Join(p.Dir, name))
			return err == nil && strings.Contains(string(data), "testenv.Main(")
		})
		if !found {
			t.Errorf("%s: no TestMain that calls testenv.Main: goroutines and descriptors may leak unseen", p.path())
		}
	}
}

func TestNoSkips(t *testing.T) {
	skip := regexp.MustCompile(`\b[tb]\.Skip(f|Now)?\(`)
	walk(t, func(path string, data []byte) {
		if strings.HasSuffix(path, ".go") && path != "internal/testenv/testenv.go" && path != "repo_test.go" && skip.Match(data) {
			t.Errorf("%s skips a test: a skipped test looks like one that passed; ask testenv.KernelOlderThan what an old kernel lacks, testenv.NeedProcessor for a processor", path)
		}
	})
}

func TestNoReplace(t *testing.T) {
	data, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if regexp.MustCompile(`(?m)^\s*replace\b`).Match(data) {
		t.Error("go.mod replaces a module: nobody else's build would see it")
	}
}

// TestNoMachinePaths keeps what is true of one machine only out of the tree:
// where this checkout and the module cache are, and the hosts that this machine
// has its modules and packages from. It asks the machine, so that it names none.
func TestNoMachinePaths(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("go", "env", "GOMODCACHE", "GOPROXY").Output()
	if err != nil {
		t.Fatalf("go env: %v", err)
	}
	cache, proxies, _ := strings.Cut(string(out), "\n")
	sources, err := filepath.Glob("/etc/apt/sources.list.d/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(sources, "/etc/apt/sources.list") {
		if data, err := os.ReadFile(path); err == nil { // other distributions have none
			proxies += string(data)
		}
	}
	banned := []string{wd + "/", cache}
	for _, url := range regexp.MustCompile(`https?://(?:[^/@\s]*@)?([^/:,\s]+)`).FindAllStringSubmatch(proxies, -1) {
		banned = append(banned, url[1])
	}
	walk(t, func(path string, data []byte) {
		for _, name := range banned {
			if path != "go.sum" && strings.Contains(string(data), name) {
				t.Errorf("%s names %q: it holds on one machine only", path, name)
			}
		}
	})
}

// walk shows every tracked or new text file of the tree.
func walk(t *testing.T, show func(path string, data []byte)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if slices.Contains([]string{".git", ".cache", "bin"}, d.Name()) {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || strings.HasSuffix(path, ".o") {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		show(path, data)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func parse(t *testing.T, file string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution|parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func rel(t *testing.T, file string) string {
	t.Helper()
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	path, err := filepath.Rel(wd, file)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func declaredNames(decl ast.Decl) []string {
	switch d := decl.(type) {
	case *ast.FuncDecl:
		return []string{d.Name.Name}
	case *ast.GenDecl:
		var names []string
		for _, spec := range d.Specs {
			if s, ok := spec.(*ast.TypeSpec); ok {
				names = append(names, s.Name.Name)
			}
		}
		return names
	}
	return nil
}

// TestArchitectureIsShort: what a newcomer reads first is three pages of 60 lines of 100 columns, or it is not read.
func TestArchitectureIsShort(t *testing.T) {
	page, err := os.ReadFile("docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for line := range strings.Lines(string(page)) {
		lines += max(1, (utf8.RuneCountInString(strings.TrimSpace(line))+99)/100)
	}
	if lines > 180 {
		t.Errorf("docs/architecture.md has %d lines of 100 columns, 180 are three pages: move what is detail to a page of its own", lines)
	}
}
