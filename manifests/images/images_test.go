package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// small is an image that is built quickly; it has what the others have.
func small() []spec { return []spec{{"probe", "65532:65532", []string{"heddle-cni"}}} }

// copyOfCheckout is the checkout's source elsewhere, without its history.
func copyOfCheckout(t *testing.T) string {
	t.Helper()
	to := t.TempDir()
	err := filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel("../..", path)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if slices.Contains([]string{".git", ".cache", "bin"}, rel) {
				return filepath.SkipDir
			}
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		if !slices.Contains([]string{".go", ".o", ".mod", ".sum"}, filepath.Ext(path)) {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), data, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

func buildIn(t *testing.T, root, version string) (folder, said string) {
	t.Helper()
	var out bytes.Buffer
	b := builder{root: root, folder: t.TempDir(), registry: "localhost/heddle", version: version, architectures: []string{"amd64", "arm64"}, out: &out}
	if err := b.run(t.Context(), small()); err != nil {
		t.Fatal(err)
	}
	return b.folder, out.String()
}

// Two checkouts, of which one has no history, give the same bytes; another
// version gives others.
func TestSameSourceSameImage(t *testing.T) {
	here, said := buildIn(t, "../..", "v1")
	there, saidThere := buildIn(t, copyOfCheckout(t), "v1")
	if said != saidThere || !strings.HasPrefix(said, "localhost/heddle/probe:v1@sha256:") {
		t.Errorf("%s is not %s", said, saidThere)
	}
	files, err := filepath.Glob(here + "/*")
	if err != nil || len(files) != 3 {
		t.Fatalf("wrote %v, %v: want the image, and an SBOM for each architecture", files, err)
	}
	for _, file := range files {
		a, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(there, filepath.Base(file)))
		if err != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs: %v", filepath.Base(file), err)
		}
	}
	if _, other := buildIn(t, "../..", "v2"); other[strings.Index(other, "@"):] == said[strings.Index(said, "@"):] {
		t.Error("another version has the same digest")
	}
}

// The SBOM names every module that the program says it is made of, once.
func TestSBOM(t *testing.T) {
	own, err := os.Executable() // this test: it has modules linked in
	if err != nil {
		t.Fatal(err)
	}
	text, err := sbom("heddle-x", "v1", "amd64", own)
	if err != nil {
		t.Fatal(err)
	}
	var doc document
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	info, err := buildinfo.ReadFile(own)
	if err != nil || len(info.Deps) == 0 {
		t.Fatalf("this test has no modules: %v", err)
	}
	ids, purls := map[string]bool{}, map[string]bool{}
	for _, p := range doc.Packages {
		if ids[p.SPDXID] {
			t.Errorf("%s twice", p.SPDXID)
		}
		ids[p.SPDXID] = true
		purls[p.ExternalRefs[0].Locator] = true
	}
	for _, m := range info.Deps {
		if !purls["pkg:golang/"+m.Path+"@"+m.Version] {
			t.Errorf("%s is not in it", m.Path)
		}
	}
	if len(purls) != len(info.Deps)+2 || doc.Packages[0].Checksums[0].Algorithm != "SHA256" {
		t.Errorf("%d packages for %d modules, the program and Go", len(purls), len(info.Deps))
	}
	for _, r := range doc.Relationships {
		if r.Element != "SPDXRef-DOCUMENT" && !ids[r.Element] || !ids[r.Related] {
			t.Errorf("a relationship of what is not there: %+v", r)
		}
	}
	if _, err := sbom("x", "v1", "amd64", "main.go"); err == nil || !strings.Contains(err.Error(), "built of") {
		t.Errorf("a file that is no program: %v", err)
	}
}

func TestBuildErrorsNameTheProgram(t *testing.T) {
	b := builder{root: "../..", folder: t.TempDir(), registry: "localhost", version: "v1", architectures: []string{"amd64"}, out: &bytes.Buffer{}}
	if err := b.run(t.Context(), []spec{{"x", "0", []string{"nothing"}}}); err == nil || !strings.Contains(err.Error(), "build nothing for amd64") {
		t.Error(err)
	}
}

func TestOneImageIsChosen(t *testing.T) {
	if one, err := choose(images(), "heddle-waypoint"); err != nil || len(one) != 1 || one[0].name != "heddle-waypoint" {
		t.Errorf("by its name: %v, %v", one, err)
	}
	if all, err := choose(images(), ""); err != nil || len(all) != len(images()) {
		t.Errorf("without a name: %v, %v", all, err)
	}
	if _, err := choose(images(), "waypoint"); err == nil || !strings.Contains(err.Error(), "heddle-waypoint") {
		t.Errorf("a name that none has: %v", err)
	}
}

// TestPush: what is pushed has the digest that is printed, for every architecture.
func TestPush(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(t.Output(), "", 0))))
	defer server.Close()
	at := strings.TrimPrefix(server.URL, "http://") + "/heddle"
	var out bytes.Buffer
	b := builder{root: "../..", folder: t.TempDir(), registry: at, version: "v1", architectures: []string{"amd64", "arm64"}, push: true, out: &out}
	if err := b.run(t.Context(), small()); err != nil {
		t.Fatal(err)
	}
	reference, err := name.ParseReference(at + "/probe:v1")
	if err != nil {
		t.Fatal(err)
	}
	pushed, err := remote.Index(reference)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := pushed.Digest()
	if err != nil || strings.TrimSpace(out.String()) != at+"/probe:v1@"+digest.String() {
		t.Errorf("at the registry %s, %v; printed %q", digest, err, out.String())
	}
	list, err := pushed.IndexManifest()
	if err != nil || len(list.Manifests) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	for _, m := range list.Manifests {
		img, err := pushed.Image(m.Digest)
		if err != nil {
			t.Fatal(err)
		}
		if layers, err := img.Layers(); err != nil || len(layers) != 1 {
			t.Errorf("%s: %v, %v", m.Platform, layers, err)
		} else if content, err := layers[0].Compressed(); err != nil {
			t.Error(err)
		} else if _, err := io.Copy(io.Discard, content); err != nil { // whose digest is looked at
			t.Errorf("%s: %v", m.Platform, err)
		}
	}
	server.Close()
	if err := b.run(t.Context(), small()); err == nil || !strings.Contains(err.Error(), at+"/probe:v1") {
		t.Errorf("a registry that is gone: %v", err)
	}
}
