package folders

import (
	"errors"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/schemas"
)

// Schemas are what single objects are held to, of any kind and from anywhere. The zero value
// has read none yet.
type Schemas struct{ read *schemas.Schemas }

// Unfit says what an API server would refuse of an object, by the schema of its kind: it could
// not be where it is looked for. Nil is nothing. It belongs to one goroutine.
func (s *Schemas) Unfit(u *unstructured.Unstructured) error {
	if s.read == nil {
		s.read = schemas.New()
	}
	found, err := s.read.Refusals(u.Object)
	if err != nil {
		return err
	}
	var all []error
	for _, r := range found {
		field := ""
		if r.Field != "" {
			field = r.Field + ": "
		}
		name := strings.TrimPrefix(u.GetNamespace()+"/"+u.GetName(), "/")
		all = append(all, fmt.Errorf("%s %s: %s%s; %s", u.GetKind(), name, field, r.Text, r.Remedy))
	}
	return errors.Join(all...)
}
