package kube

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/heddle-mesh/heddle/internal/kube/folder"
)

// Look is shown each document that became an object.
type Look func(*folder.Document)

// LoadDir reads a folder of the file system, as LoadFolder does. Symbolic links
// that lead out of it are refused.
func LoadDir(dir string, looks ...Look) (*Objects, error) {
	return loadFrom(dir, ".", folder.MaxFiles, looks)
}

// LoadFile reads one file, as LoadDir reads a folder of one: a name that it would pass
// over has nothing.
func LoadFile(path string, looks ...Look) (*Objects, error) {
	return loadFrom(filepath.Dir(path), filepath.Base(path), 1, looks)
}

func loadFrom(dir, name string, maxFiles int, looks []Look) (*Objects, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		if info, statErr := os.Stat(dir); statErr == nil && !info.IsDir() {
			return nil, fmt.Errorf("open configuration folder: %s is a file; remedy: name the folder that it is in", dir)
		}
		return nil, fmt.Errorf("open configuration folder: %w", err)
	}
	objs, err := loadBounded(root.FS(), name, maxFiles, folder.MaxTotalSize, looks)
	return objs, errors.Join(err, root.Close())
}

// LoadFolder reads every .yaml, .yml and .json file of a folder and of the
// folders below it, as package folder does, and decodes every document in them
// strictly: unknown fields, wrong types, keys or objects given twice, aliases and
// tags are errors.
//
// It returns every problem that it finds, joined, and then no objects.
func LoadFolder(fsys fs.FS, looks ...Look) (*Objects, error) {
	return loadBounded(fsys, ".", folder.MaxFiles, folder.MaxTotalSize, looks)
}

func loadBounded(fsys fs.FS, from string, maxFiles int, maxTotal int64, looks []Look) (*Objects, error) {
	objs := &Objects{}
	digest, err := folder.Load(fsys, from, kinds(objs, looks), maxFiles, maxTotal)
	if err != nil {
		return nil, err
	}
	objs.Digest = digest
	return objs, nil
}
