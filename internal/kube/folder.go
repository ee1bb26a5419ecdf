package kube

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/heddle-mesh/heddle/internal/kube/folder"
)

// LoadDir reads a folder of the file system, as LoadFolder does. Symbolic links
// that lead out of it are refused.
func LoadDir(dir string) (*Objects, error) { return loadFrom(dir, ".", folder.MaxFiles) }

// LoadFile reads one file, as LoadDir reads a folder of one: a name that it would pass
// over has nothing.
func LoadFile(path string) (*Objects, error) {
	return loadFrom(filepath.Dir(path), filepath.Base(path), 1)
}

func loadFrom(dir, name string, maxFiles int) (*Objects, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open configuration folder: %w", err)
	}
	objs, err := loadBounded(root.FS(), name, maxFiles, folder.MaxTotalSize)
	return objs, errors.Join(err, root.Close())
}

// LoadFolder reads every .yaml, .yml and .json file of a folder and of the
// folders below it, as package folder does, and decodes every document in them
// strictly: unknown fields, wrong types, keys or objects given twice, aliases and
// tags are errors.
//
// It returns every problem that it finds, joined, and then no objects.
func LoadFolder(fsys fs.FS) (*Objects, error) {
	return loadBounded(fsys, ".", folder.MaxFiles, folder.MaxTotalSize)
}

func loadBounded(fsys fs.FS, from string, maxFiles int, maxTotal int64) (*Objects, error) {
	objs := &Objects{}
	digest, err := folder.Load(fsys, from, kinds(objs), maxFiles, maxTotal)
	if err != nil {
		return nil, err
	}
	objs.Digest = digest
	return objs, nil
}
