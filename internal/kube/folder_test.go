package kube

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/heddle-mesh/heddle/internal/kube/folder"
)

const namespaceYAML = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A ConfigMap's volume: the files are links into a hidden folder, itself behind
// a link.
func TestLoadDirFollowsLinksInside(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "..2026", "ns.yaml"), namespaceYAML)
	for link, to := range map[string]string{"..data": "..2026", "ns.yaml": "..data/ns.yaml", "loop": "."} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	objs, err := LoadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(objs.Namespaces) != 1 || objs.Namespaces[0].Origin.File != "ns.yaml" {
		t.Errorf("namespaces: %+v", objs.Namespaces)
	}
}

func TestLoadDirRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(t *testing.T, dir string)
		want    string
	}{
		"link that leads out": {func(t *testing.T, dir string) {
			outside := filepath.Join(t.TempDir(), "ns.yaml")
			write(t, outside, namespaceYAML)
			if err := os.Symlink(outside, filepath.Join(dir, "ns.yaml")); err != nil {
				t.Fatal(err)
			}
		}, "ns.yaml: cannot be read"},
		"link that leads nowhere": {func(t *testing.T, dir string) {
			if err := os.Symlink("gone.yaml", filepath.Join(dir, "ns.yaml")); err != nil {
				t.Fatal(err)
			}
		}, "ns.yaml: cannot be read"},
		"link to itself": {func(t *testing.T, dir string) {
			if err := os.Symlink("ns.yaml", filepath.Join(dir, "ns.yaml")); err != nil {
				t.Fatal(err)
			}
		}, "ns.yaml: cannot be read"},
		"pipe": {func(t *testing.T, dir string) {
			if err := syscall.Mkfifo(filepath.Join(dir, "ns.yaml"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "ns.yaml: is not a regular file"},
		"large file": {func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "ns.yaml"), namespaceYAML)
			if err := os.Truncate(filepath.Join(dir, "ns.yaml"), folder.MaxFileSize+1); err != nil {
				t.Fatal(err)
			}
		}, "ns.yaml: is larger than"},
		"deep folders": {func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, strings.Repeat("d/", folder.MaxDepth+1), "ns.yaml"), namespaceYAML)
		}, "folders deep"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			test.prepare(t, dir)
			objs, err := LoadDir(dir)
			if err == nil || objs != nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("objects %v, error %v, want one that says %q", objs, err, test.want)
			}
			if len(Problems(err)) != 1 {
				t.Errorf("problems: %v", Problems(err))
			}
		})
	}
	if _, err := LoadDir(filepath.Join(t.TempDir(), "gone")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
	if _, err := LoadFolder(os.DirFS(filepath.Join(t.TempDir(), "gone"))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
}

func TestLoadFolderBounds(t *testing.T) {
	fsys := fstest.MapFS{"a.yaml": {Data: []byte("# nothing\n")}, "b.yaml": {Data: []byte("# nothing\n")}}
	if _, err := loadBounded(fsys, ".", 2, 20, nil); err != nil {
		t.Errorf("at the bounds: %v", err)
	}
	if _, err := loadBounded(fsys, ".", 1, 20, nil); err == nil || !strings.Contains(err.Error(), "b.yaml: is more than 1 files") {
		t.Errorf("too many files: %v", err)
	}
	if _, err := loadBounded(fsys, ".", 2, 19, nil); err == nil || !strings.Contains(err.Error(), "b.yaml: makes the folder larger than 19 bytes") {
		t.Errorf("too many bytes: %v", err)
	}
	many := fstest.MapFS{"a.yaml": {Data: []byte(strings.Repeat("---\n# nothing\n", folder.MaxDocuments+1) + "x\n")}}
	if _, err := LoadFolder(many); err == nil || !strings.Contains(err.Error(), "documents") {
		t.Errorf("too many documents: %v", err)
	}
	deep := "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: b, managedFields: [{fieldsV1: " + strings.Repeat("{a: ", 100) + "b" + strings.Repeat("}", 100) + "}]}\n"
	if _, err := LoadFolder(fstest.MapFS{"a.yaml": {Data: []byte(deep)}}); err == nil || !strings.Contains(err.Error(), "nested more than") {
		t.Errorf("too deep: %v", err)
	}
}

func TestDigest(t *testing.T) {
	digest := func(files ...string) string {
		fsys := fstest.MapFS{}
		for i := 0; i < len(files); i += 2 {
			fsys[files[i]] = &fstest.MapFile{Data: []byte(files[i+1])}
		}
		objs, err := LoadFolder(fsys)
		if err != nil {
			t.Fatal(err)
		}
		return objs.Digest
	}
	one := digest("a.yaml", namespaceYAML, "notes.txt", "x")
	if len(one) != 64 || one != digest("a.yaml", namespaceYAML, "notes.txt", "y") {
		t.Errorf("digest %q depends on what is not read", one)
	}
	if one == digest("b.yaml", namespaceYAML) || one == digest("a.yaml", namespaceYAML+"# x\n") || one == digest("a.yaml", namespaceYAML, "b.yaml", "") {
		t.Error("different folders have one digest")
	}
}

// A reader's error is not a problem of the configuration, and is not hidden.
func TestProblemsOfOtherErrors(t *testing.T) {
	p := &Problem{Text: "x"}
	if got := Problems(errors.Join(fs.ErrPermission, fmt.Errorf("a: %w", errors.Join(p, fs.ErrExist)))); len(got) != 1 || got[0] != p {
		t.Errorf("problems: %v", got)
	}
	if got := Problems(nil); got != nil {
		t.Errorf("problems of nothing: %v", got)
	}
}

// However wrong a folder is, what is said about it stays within bounds.
func TestProblemsAreBounded(t *testing.T) {
	var fields strings.Builder
	for i := range 300 {
		fmt.Fprintf(&fields, "x%d: 1\n", i)
	}
	fsys := fstest.MapFS{}
	for i := range 2 * folder.MaxProblems / 100 {
		fsys[fmt.Sprintf("%02d.yaml", i)] = &fstest.MapFile{Data: []byte(namespaceYAML + fields.String())}
	}
	_, err := LoadFolder(fsys)
	problems := Problems(err)
	if n := len(problems); n < folder.MaxProblems || n > folder.MaxProblems+200 {
		t.Errorf("%d problems", n)
	}
	for _, want := range []string{"has 200 more problems", "is the last file that was read"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q", want)
		}
	}
}

// Input that is made to be slow is not: the largest file, in each of the forms
// that parsers are known to be slow with, is refused or read in a few seconds.
func TestHostileFiles(t *testing.T) {
	fill := func(unit string) string { return strings.Repeat(unit, folder.MaxFileSize/len(unit)) }
	head := "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: x\n"
	for name, content := range map[string]string{
		"open lists":    fill("["),
		"open maps":     fill("{a: "),
		"nested dashes": fill("- "),
		"keys":          fill("? "),
		"anchors":       fill("&a "),
		"aliases":       head + "spec: {finalizers: [" + fill("*a, ")[:folder.MaxFileSize/2] + "]}\n",
		"one word":      fill("x"),
		"one quote":     "\"" + fill("x")[1:],
		"newlines":      fill("\n"),
		"unknown fields": head + func() string {
			var b strings.Builder
			for i := 0; b.Len() < folder.MaxFileSize/2; i++ {
				fmt.Fprintf(&b, "speck%d: x\n", i)
			}
			return b.String()
		}(),
		"equal keys": head + strings.Repeat("spec: {}\n", folder.MaxFileSize/2/9),
		"documents":  strings.Repeat("--- a\n", 9_000),
	} {
		start := time.Now()
		objs, err := LoadFolder(fstest.MapFS{"a.yaml": {Data: []byte(content)}})
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("%s: took %v", name, took)
		} else {
			t.Logf("%s: %v", name, took)
		}
		if err != nil && len(err.Error()) > 1<<20 {
			t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
		}
		if err == nil && len(objs.Namespaces) > 0 {
			t.Errorf("%s: accepted", name)
		}
	}
}
