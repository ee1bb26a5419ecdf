// Package image builds container images from static binaries, without a
// container engine, a base image or a registry: the files given, and nothing
// else. The same input gives the same digest on every machine.
//
// It knows files and the OCI image format, not what is in the files: an SBOM or
// a licence is one more File. Nothing here is pushed anywhere; an archive is
// what podman, skopeo, docker and `ctr images import` read. All functions may be
// called concurrently.
package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// File is one regular file, or symbolic link, of an image.
type File struct {
	// Path is where it is in the image: absolute and clean.
	Path string
	// Source is the file on disk that it is a copy of; "" takes Content.
	Source  string
	Content []byte
	// Link makes it a symbolic link to this target, in place of a file.
	Link string
	// Mode holds the permission bits; 0 means 0755, as for a program.
	Mode fs.FileMode
}

// Platform is the image of one architecture.
type Platform struct {
	// Architecture is Go's name for it: amd64, arm64.
	Architecture string
	Files        []File
}

// Spec says all that an image is made of.
type Spec struct {
	// Reference is the name under which it is stored: "localhost/probe:dev".
	Reference string
	// Platforms has one entry for each architecture.
	Platforms []Platform
	// Entrypoint, Args and Env start the container, as in a Dockerfile.
	Entrypoint, Args, Env []string
	// User is "uid" or "uid:gid"; "" is root.
	User string
	// Labels say where the image comes from (org.opencontainers.image.*).
	Labels map[string]string
	// Created is written into the image; the zero time means 1970, so that the
	// digest depends on nothing but the content.
	Created time.Time
}

// Image is a built image of one or more architectures, in memory.
type Image struct {
	reference name.Tag
	index     v1.ImageIndex
}

// Build makes the image. The error names the field that is wrong, or the file
// that cannot be read.
func Build(spec Spec) (*Image, error) {
	// Neither Docker Hub nor "latest" is meant by leaving something out.
	reference, err := name.NewTag(spec.Reference, name.StrictValidation)
	if err != nil {
		return nil, fmt.Errorf("image: Reference: %w: write it whole, as localhost/name:tag", err)
	}
	if len(spec.Platforms) == 0 {
		return nil, fmt.Errorf("image %s: Platforms is empty: name an architecture and its files", reference)
	}
	var index v1.ImageIndex = empty.Index
	index = mutate.IndexMediaType(index, types.OCIImageIndex)
	seen := map[string]bool{}
	for _, platform := range spec.Platforms {
		if platform.Architecture == "" || seen[platform.Architecture] {
			return nil, fmt.Errorf("image %s: Platforms: architecture %q is empty or twice", reference, platform.Architecture)
		}
		seen[platform.Architecture] = true
		img, err := buildPlatform(spec, platform)
		if err != nil {
			return nil, fmt.Errorf("image %s: %s: %w", reference, platform.Architecture, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: "linux", Architecture: platform.Architecture},
		}})
	}
	return &Image{reference, index}, nil
}

// Reference is the name under which the image is stored.
func (i *Image) Reference() string { return i.reference.String() }

// Digest is the digest of the index over all architectures: "sha256:...".
func (i *Image) Digest() (string, error) {
	digest, err := i.index.Digest()
	if err != nil {
		return "", fmt.Errorf("digest of image %s: %w", i.reference, err)
	}
	return digest.String(), nil
}

func buildPlatform(spec Spec, platform Platform) (v1.Image, error) {
	content, err := layerContent(platform.Files, spec.Created)
	if err != nil {
		return nil, err
	}
	// Not compressed: what a compressor writes changes with its version, and the
	// digest with it.
	img, err := mutate.Append(mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1),
		mutate.Addendum{Layer: static.NewLayer(content, types.OCIUncompressedLayer)})
	if err != nil {
		return nil, fmt.Errorf("add layer: %w", err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", platform.Architecture
	config.Created = v1.Time{Time: epochIfZero(spec.Created)}
	config.History = nil
	config.Config = v1.Config{
		Entrypoint: spec.Entrypoint, Cmd: spec.Args, User: spec.User, Labels: spec.Labels,
		Env: append([]string{"PATH=/usr/local/bin:/usr/bin:/bin:/"}, spec.Env...),
	}
	return mutate.ConfigFile(img, config)
}

func epochIfZero(t time.Time) time.Time {
	if t.IsZero() {
		return time.Unix(0, 0).UTC()
	}
	return t.UTC()
}

// layerContent is the tar archive of the files, sorted, with the folders that
// lead to them. /etc and /tmp are there for the runtime to write into.
func layerContent(files []File, created time.Time) ([]byte, error) {
	sorted := slices.SortedFunc(slices.Values(files), func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	dirs := map[string]bool{"/": true}
	modified := epochIfZero(created)
	for _, dir := range []string{"/etc", "/tmp"} {
		if err := writeDirs(w, dirs, dir, modified); err != nil {
			return nil, err
		}
	}
	previous := ""
	for _, file := range sorted {
		if !path.IsAbs(file.Path) || path.Clean(file.Path) != file.Path || file.Path == previous {
			return nil, fmt.Errorf("file %q: Path must be absolute, clean and there once", file.Path)
		}
		previous = file.Path
		if err := writeDirs(w, dirs, path.Dir(file.Path), modified); err != nil {
			return nil, err
		}
		if err := writeFile(w, file, modified); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("close layer: %w", err)
	}
	return out.Bytes(), nil
}

// writeDirs writes a folder and those above it that are not there yet.
func writeDirs(w *tar.Writer, written map[string]bool, dir string, modified time.Time) error {
	if written[dir] {
		return nil
	}
	if err := writeDirs(w, written, path.Dir(dir), modified); err != nil {
		return err
	}
	written[dir] = true
	mode := int64(0o755)
	if dir == "/tmp" {
		mode = 0o1777
	}
	header := &tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimPrefix(dir, "/") + "/", Mode: mode, ModTime: modified, Format: tar.FormatPAX}
	if err := w.WriteHeader(header); err != nil {
		return fmt.Errorf("write folder %s: %w", dir, err)
	}
	return nil
}

func writeFile(w *tar.Writer, file File, modified time.Time) error {
	header := &tar.Header{Name: strings.TrimPrefix(file.Path, "/"), ModTime: modified, Format: tar.FormatPAX}
	content := file.Content
	switch {
	case file.Link != "":
		header.Typeflag, header.Linkname, header.Mode, content = tar.TypeSymlink, file.Link, 0o777, nil
	default:
		header.Typeflag, header.Mode = tar.TypeReg, 0o755
		if file.Mode != 0 {
			header.Mode = int64(file.Mode.Perm())
		}
		if file.Source != "" {
			data, err := os.ReadFile(file.Source)
			if err != nil {
				return fmt.Errorf("file %s: %w", file.Path, err)
			}
			content = data
		}
		header.Size = int64(len(content))
	}
	if err := w.WriteHeader(header); err != nil {
		return fmt.Errorf("file %s: %w", file.Path, err)
	}
	if _, err := io.Copy(w, bytes.NewReader(content)); err != nil {
		return fmt.Errorf("file %s: %w", file.Path, err)
	}
	return nil
}
