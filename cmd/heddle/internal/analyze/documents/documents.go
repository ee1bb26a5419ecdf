// Package documents reads objects of Kubernetes from files and folders of YAML and JSON, in
// documents and Lists, within bounds, and holds each to the schema of its kind. What they
// mean is the caller's.
package documents

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/folders"
)

// The bounds of what is read.
const (
	maxFileSize  = 16 << 20 // bytes
	maxFiles     = 10_000
	maxDocuments = 10_000 // of one file
)

// Reader reads objects. It belongs to one goroutine.
type Reader struct {
	read    int // objects of any kind
	schemas folders.Schemas
}

// Add takes an object.
type Add func(*unstructured.Unstructured) error

// Files reads files of YAML or JSON, and those of folders and the folders
// below them; and in, where folders.Stdin is named. Objects without a namespace are in namespace. An error of what was read
// says in which file.
func (d *Reader) Files(in io.Reader, paths []string, namespace string, add Add) error {
	if err := folders.Once(paths...); err != nil {
		return err
	}
	var files []string
	for _, path := range paths {
		if path == folders.Stdin {
			files = append(files, path)
			continue
		}
		err := filepath.WalkDir(path, func(file string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			named := slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(file)) && !strings.HasPrefix(entry.Name(), ".")
			if !entry.IsDir() && (file == path || named) {
				files = append(files, file)
			}
			if len(files) > maxFiles {
				return fmt.Errorf("%s: more than %d files", path, maxFiles)
			}
			return nil
		})
		if err != nil {
			return folders.Invalid(fmt.Errorf("read objects: %w", err))
		}
	}
	for _, file := range files {
		read := d.file
		if file == folders.Stdin {
			read = func(_, namespace string, add Add) error { return d.Read(in, namespace, add) }
		}
		if err := read(file, namespace, add); err != nil {
			return folders.Invalid(placed(folders.NameOf(file), err))
		}
	}
	if d.read == 0 { // of nothing it is not known that nothing is cut off
		return folders.Invalid(fmt.Errorf("there is no object in %s; remedy: name files of YAML or JSON, or folders with such", folders.NameOf(strings.Join(paths, ", "))))
	}
	return nil
}

func (d *Reader) file(file, namespace string, add Add) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	return errors.Join(d.Read(f, namespace, add), f.Close())
}

// Read reads documents of YAML or JSON, also Lists of objects. What is no object
// of Kubernetes is an error, which says which document it is, from 1.
func (d *Reader) Read(r io.Reader, namespace string, add Add) error {
	limited := &io.LimitedReader{R: r, N: maxFileSize + 1}
	decoder := yaml.NewYAMLOrJSONDecoder(limited, 4096)
	for number := 1; ; number++ {
		var object map[string]any
		err := decoder.Decode(&object)
		switch {
		case limited.N == 0:
			return fmt.Errorf("larger than %d bytes: split it into several files", maxFileSize)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("document %d: %w", number, err)
		case number > maxDocuments:
			return fmt.Errorf("more than %d documents: split it into several files", maxDocuments)
		case len(object) == 0:
			continue // nothing but comments
		}
		if err := d.document(&unstructured.Unstructured{Object: object}, namespace, add); err != nil {
			return placed(fmt.Sprintf("document %d", number), err)
		}
	}
}

func (d *Reader) document(u *unstructured.Unstructured, namespace string, add Add) error {
	if u.GetKind() == "" || u.GetAPIVersion() == "" {
		return errors.New("it is no object of Kubernetes: apiVersion or kind is missing")
	}
	items, isList := u.Object["items"].([]any)
	if !isList {
		if u.GetNamespace() == "" && u.GetKind() != "Namespace" && u.GetKind() != "Mesh" {
			u.SetNamespace(namespace)
		}
		d.read++
		return errors.Join(add(u), d.schemas.Unfit(u))
	}
	for i, item := range items {
		object, ok := item.(map[string]any)
		if !ok {
			return fmt.Errorf("items[%d] is no object", i)
		}
		if _, nested := object["items"]; nested {
			return fmt.Errorf("items[%d] is a list in a list", i)
		}
		if err := d.document(&unstructured.Unstructured{Object: object}, namespace, add); err != nil {
			return placed(fmt.Sprintf("items[%d]", i), err)
		}
	}
	return nil
}

// placed has an error say where it is, and of joined ones each: a line is all that is read of some.
func placed(where string, err error) error {
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) || errors.Join(joined.Unwrap()...).Error() != err.Error() {
		return fmt.Errorf("%s: %w", where, err)
	}
	parts := slices.Clone(joined.Unwrap())
	for i, part := range parts {
		parts[i] = placed(where, part)
	}
	return errors.Join(parts...)
}
