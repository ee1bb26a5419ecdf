package kube

import (
	"io"
	"io/fs"
	"path/filepath"

	"github.com/heddle-mesh/heddle/internal/kube/folder"
)

// Look is shown each document that became an object.
type Look func(*folder.Document)

// LoadDir reads a folder of the file system, as LoadFolder does. Symbolic links
// that lead out of it are refused.
func LoadDir(dir string, looks ...Look) (*Objects, error) {
	return loadBy(looks, func(kinds []folder.Kind) (string, error) {
		return folder.LoadDir(dir, ".", kinds, folder.MaxFiles)
	})
}

// LoadFile reads one file, as LoadDir reads a folder of one: a name that it would pass
// over has nothing.
func LoadFile(path string, looks ...Look) (*Objects, error) {
	return loadBy(looks, func(kinds []folder.Kind) (string, error) {
		return folder.LoadDir(filepath.Dir(path), filepath.Base(path), kinds, 1)
	})
}

// LoadReader reads what r has, as LoadFile does a file that problems call name.
func LoadReader(r io.Reader, name string, looks ...Look) (*Objects, error) {
	return loadBy(looks, func(kinds []folder.Kind) (string, error) { return folder.Read(r, name, kinds) })
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
	return loadBy(looks, func(kinds []folder.Kind) (string, error) {
		return folder.Load(fsys, from, kinds, maxFiles, maxTotal)
	})
}

func loadBy(looks []Look, load func([]folder.Kind) (digest string, err error)) (*Objects, error) {
	objs := &Objects{}
	digest, err := load(kinds(objs, looks))
	if err != nil {
		return nil, err
	}
	objs.Digest = digest
	return objs, nil
}
