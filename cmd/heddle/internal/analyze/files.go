package analyze

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

// FromFiles reads files of YAML or JSON, and those of folders and the folders
// below them. Objects without a namespace are in namespace.
func FromFiles(paths []string, namespace string) (*Objects, error) {
	var files []string
	for _, path := range paths {
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
			return nil, folders.Invalid(fmt.Errorf("read objects: %w", err))
		}
	}
	o := &Objects{}
	for _, file := range files {
		if err := o.readFile(file, namespace); err != nil {
			return nil, folders.Invalid(fmt.Errorf("%s: %w", file, err))
		}
	}
	if o.read == 0 { // of nothing it is not known that nothing is cut off
		return nil, folders.Invalid(fmt.Errorf("there is no object in %s; remedy: name files of YAML or JSON, or folders with such", strings.Join(paths, ", ")))
	}
	return o, nil
}

func (o *Objects) readFile(file, namespace string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	return errors.Join(o.Read(f, namespace), f.Close())
}

// Read reads documents of YAML or JSON, also Lists of objects. What is no object
// of Kubernetes is an error, which says which document it is, from 1.
func (o *Objects) Read(r io.Reader, namespace string) error {
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
		if err := o.addDocument(&unstructured.Unstructured{Object: object}, namespace); err != nil {
			return fmt.Errorf("document %d: %w", number, err)
		}
	}
}

func (o *Objects) addDocument(u *unstructured.Unstructured, namespace string) error {
	if u.GetKind() == "" || u.GetAPIVersion() == "" {
		return errors.New("it is no object of Kubernetes: apiVersion or kind is missing")
	}
	items, isList := u.Object["items"].([]any)
	if !isList {
		if u.GetNamespace() == "" && u.GetKind() != "Namespace" && u.GetKind() != "Mesh" {
			u.SetNamespace(namespace)
		}
		o.read++
		return errors.Join(o.Add(u), o.schemas.Unfit(u))
	}
	for i, item := range items {
		object, ok := item.(map[string]any)
		if !ok {
			return fmt.Errorf("items[%d] is no object", i)
		}
		if _, nested := object["items"]; nested {
			return fmt.Errorf("items[%d] is a list in a list", i)
		}
		if err := o.addDocument(&unstructured.Unstructured{Object: object}, namespace); err != nil {
			return fmt.Errorf("items[%d]: %w", i, err)
		}
	}
	return nil
}
