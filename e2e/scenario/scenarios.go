package scenario

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/heddle-mesh/heddle/e2e/scenario/script"
)

//go:embed testdata/*.txtar
var texts embed.FS

// Scenarios are those of the repository, in order of their names.
func Scenarios() ([]*script.Script, error) {
	names, err := fs.Glob(texts, "testdata/*.txtar")
	if err != nil {
		return nil, err
	}
	var all []*script.Script
	var errs []error
	for _, name := range names {
		text, err := texts.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read scenario: %w", err)
		}
		one, err := script.Parse("e2e/scenario/"+name, text)
		errs, all = append(errs, err), append(all, one)
	}
	return all, errors.Join(errs...)
}
