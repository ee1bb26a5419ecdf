package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// WriteArchive writes images as one OCI archive: the OCI image layout
// (image-spec, image-layout.md) as a tar file. Each is found in it by its
// reference. The same images give the same bytes.
func WriteArchive(w io.Writer, images ...*Image) error {
	if len(images) == 0 {
		return errors.New("image: an archive of no images: give it one")
	}
	dir, err := os.MkdirTemp("", "image-layout-")
	if err != nil {
		return fmt.Errorf("write image archive: %w", err)
	}
	defer os.RemoveAll(dir) // a temporary folder; the archive is what counts
	if err := writeLayout(dir, images); err != nil {
		return fmt.Errorf("write image archive: %w", err)
	}
	if err := tarFolder(w, dir); err != nil {
		return fmt.Errorf("write image archive: %w", err)
	}
	return nil
}

// SaveArchive writes the archive to a file, all of it or none.
func SaveArchive(file string, images ...*Image) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("save image archive: %w", err)
	}
	out, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-")
	if err != nil {
		return fmt.Errorf("save image archive: %w", err)
	}
	defer os.Remove(out.Name()) // gone already when it was renamed
	if err := errors.Join(WriteArchive(out, images...), out.Chmod(0o644), out.Close()); err != nil {
		return fmt.Errorf("save image archive %s: %w", file, err)
	}
	if err := os.Rename(out.Name(), file); err != nil {
		return fmt.Errorf("save image archive: %w", err)
	}
	return nil
}

func writeLayout(dir string, images []*Image) error {
	base, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	for _, img := range images {
		err := base.AppendIndex(img.index, layout.WithAnnotations(map[string]string{
			"org.opencontainers.image.ref.name": img.reference.TagStr(),
			// The whole name, where containerd and docker look for it.
			"io.containerd.image.name": img.reference.String(),
		}))
		if err != nil {
			return fmt.Errorf("%s: %w", img.reference, err)
		}
	}
	return nil
}

// tarFolder archives a folder in the order of its names, without times or owners.
func tarFolder(w io.Writer, dir string) error {
	out := tar.NewWriter(w)
	err := filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || file == dir {
			return err
		}
		name, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: time.Unix(0, 0)})
		}
		return tarFile(out, file, name)
	})
	return errors.Join(err, out.Close())
}

func tarFile(out *tar.Writer, file, name string) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close() // only read
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: info.Size(), ModTime: time.Unix(0, 0)}); err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return err
}
