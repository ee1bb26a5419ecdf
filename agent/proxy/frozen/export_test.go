package frozen

import (
	"cmp"
	"reflect"
	"strings"
)

// Fields are the names in JSON of all that a state has.
func Fields() (names []string) {
	for _, f := range reflect.VisibleFields(reflect.TypeFor[state]()) {
		if !f.Anonymous {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			names = append(names, cmp.Or(name, f.Name))
		}
	}
	return names
}
