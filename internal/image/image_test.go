package image_test

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/heddle-mesh/heddle/internal/image"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func spec(t *testing.T) image.Spec {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("#!program"), 0o600); err != nil {
		t.Fatal(err)
	}
	files := []image.File{
		{Path: "/usr/bin/program", Source: program},
		{Path: "/bin/sh", Link: "/usr/bin/program"},
		{Path: "/etc/config.yaml", Content: []byte("a: 1\n"), Mode: 0o640},
	}
	return image.Spec{
		Reference: "localhost/program:v1", Entrypoint: []string{"/usr/bin/program"}, Args: []string{"--help"},
		Env: []string{"A=b"}, User: "65532", Labels: map[string]string{"org.opencontainers.image.version": "v1"},
		Platforms: []image.Platform{{Architecture: "amd64", Files: files}, {Architecture: "arm64", Files: files}},
	}
}

func archive(t *testing.T, s image.Spec) []byte {
	t.Helper()
	img, err := image.Build(s)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := image.WriteArchive(&out, img); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// unpack writes an archive out as the folder that other tools read.
func unpack(t *testing.T, archive []byte) layout.Path {
	t.Helper()
	dir := t.TempDir()
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		header, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, header.Name)
		if header.Typeflag == tar.TypeDir {
			err = os.MkdirAll(file, 0o755)
		} else {
			var data []byte
			if data, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(file, data, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	found, err := layout.FromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestArchiveIsAValidLayoutOfBothArchitectures(t *testing.T) {
	index, err := unpack(t, archive(t, spec(t))).ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if got := manifest.Manifests[0].Annotations["io.containerd.image.name"]; got != "localhost/program:v1" {
		t.Errorf("the archive names the image %q", got)
	}
	inner, err := index.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	images, err := inner.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var architectures []string
	for _, m := range images.Manifests {
		architectures = append(architectures, m.Platform.Architecture)
		img, err := inner.Image(m.Digest)
		if err != nil {
			t.Fatal(err)
		}
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if config.Architecture != m.Platform.Architecture || config.Config.User != "65532" ||
			!cmp.Equal(config.Config.Entrypoint, []string{"/usr/bin/program"}) || config.Config.Env[1] != "A=b" {
			t.Errorf("configuration of %s: %+v", m.Platform.Architecture, config)
		}
		checkDigests(t, img, config)
	}
	if diff := cmp.Diff([]string{"amd64", "arm64"}, architectures); diff != "" {
		t.Error(diff)
	}
}

// checkDigests recomputes what the manifest and the configuration say of the layer.
func checkDigests(t *testing.T, img v1.Image, config *v1.ConfigFile) {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if len(layers) != 1 || len(config.RootFS.DiffIDs) != 1 {
		t.Fatalf("%d layers, %d of them in the configuration", len(layers), len(config.RootFS.DiffIDs))
	}
	stored, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer stored.Close()
	real, _, err := v1.SHA256(stored)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	if real != digest || real != config.RootFS.DiffIDs[0] {
		t.Errorf("the layer is %s, the manifest says %s, the configuration %s", real, digest, config.RootFS.DiffIDs[0])
	}
}

func TestLayerHoldsTheFilesAndNothingElse(t *testing.T) {
	index, err := unpack(t, archive(t, spec(t))).ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	outer, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	inner, err := index.ImageIndex(outer.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	images, err := inner.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	img, err := inner.Image(images.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	content, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	var got []string
	for r := tar.NewReader(content); ; {
		header, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if !header.ModTime.Equal(time.Unix(0, 0)) || header.Uid != 0 || header.Uname != "" {
			t.Errorf("%s depends on who built it: %+v", header.Name, header)
		}
		got = append(got, header.FileInfo().Mode().String()+" "+header.Name+" "+header.Linkname)
	}
	want := []string{
		"drwxr-xr-x etc/ ", "dtrwxrwxrwx tmp/ ", "drwxr-xr-x bin/ ", "Lrwxrwxrwx bin/sh /usr/bin/program",
		"-rw-r----- etc/config.yaml ", "drwxr-xr-x usr/ ", "drwxr-xr-x usr/bin/ ", "-rwxr-xr-x usr/bin/program ",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// The digest is what releases are compared by: it depends on the content, not
// on when, where or in which order it was given.
func TestSameInputSameDigest(t *testing.T) {
	first := archive(t, spec(t))
	again := spec(t) // copies of the files, elsewhere and later
	files := again.Platforms[0].Files
	files[0], files[2] = files[2], files[0]
	if !bytes.Equal(first, archive(t, again)) {
		t.Error("the same files gave another archive")
	}
	changed := spec(t)
	changed.Platforms[1].Files[2].Mode = 0o600
	a, err := image.Build(spec(t))
	if err != nil {
		t.Fatal(err)
	}
	b, err := image.Build(changed)
	if err != nil {
		t.Fatal(err)
	}
	digestA, err := a.Digest()
	if err != nil {
		t.Fatal(err)
	}
	digestB, err := b.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if digestA == digestB || !strings.HasPrefix(digestA, "sha256:") {
		t.Errorf("digests %s and %s of images that differ", digestA, digestB)
	}
}

func TestSaveArchiveLeavesAllOrNothing(t *testing.T) {
	dir := t.TempDir()
	img, err := image.Build(spec(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := image.SaveArchive(filepath.Join(dir, "new", "a.tar"), img); err != nil {
		t.Fatal(err)
	}
	if err := image.SaveArchive(filepath.Join(dir, "empty.tar")); err == nil {
		t.Error("an archive of no images was written")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestErrorsNameTheField(t *testing.T) {
	for want, change := range map[string]func(*image.Spec){
		"Reference":              func(s *image.Spec) { s.Reference = "no-tag" },
		"Platforms is empty":     func(s *image.Spec) { s.Platforms = nil },
		"empty or twice":         func(s *image.Spec) { s.Platforms[1].Architecture = "amd64" },
		"absolute, clean":        func(s *image.Spec) { s.Platforms[0].Files[0].Path = "usr/../bin" },
		"there once":             func(s *image.Spec) { s.Platforms[0].Files[0].Path = "/bin/sh" },
		"/missing/program: no s": func(s *image.Spec) { s.Platforms[0].Files[0].Source = "/missing/program" },
	} {
		s := spec(t)
		change(&s)
		if _, err := image.Build(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error about %q, got %v", want, err)
		}
	}
}
