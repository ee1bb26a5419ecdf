package flow

import (
	"strings"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// MaxNames bounds Names, as each connection that is open has its own.
const MaxNames = 8

// Names are a few objects, each NAMESPACE/NAME, separated by commas, which are in no name of
// Kubernetes' objects. They are a text so that a Record can be compared, and be a map's key.
type Names string

// NamesOf returns the names of objects: of the first MaxNames.
func NamesOf(keys []mesh.Key) Names {
	keys = keys[:min(len(keys), MaxNames)]
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = k.String()
	}
	return Names(strings.Join(names, ","))
}

// List returns each of the names, nil without any.
func (n Names) List() []string {
	if n == "" {
		return nil
	}
	return strings.Split(string(n), ",")
}

// NamesIn is the inverse of Names.List.
func NamesIn(list []string) Names { return Names(strings.Join(list, ",")) }
