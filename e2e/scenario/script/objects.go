package script

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Kinds are what every world takes: each API version and kind.
func Kinds() [][2]string {
	return [][2]string{
		{"heddle.dev/v1alpha1", "PeerAuthentication"}, {"heddle.dev/v1alpha1", "AuthorizationPolicy"},
		{"networking.k8s.io/v1", "NetworkPolicy"}, {"v1", "Service"},
	}
}

// maxObjects bounds the objects of one file.
const maxObjects = 32

// fault is something wrong in a file, at a line of that file from 1.
type fault struct {
	line         int
	text, remedy string
}

// readObjects reads the objects of a file and puts them into a namespace.
func readObjects(namespace string, data []byte) ([]Object, *fault) {
	var objects []Object
	for dec := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var node yaml.Node
		err := dec.Decode(&node)
		switch {
		case errors.Is(err, io.EOF) && len(objects) == 0:
			return nil, &fault{1, "has no object", "write one, or take the file out"}
		case errors.Is(err, io.EOF):
			return objects, nil
		case err != nil:
			return nil, &fault{yamlLine(err), "is not YAML: " + strings.TrimPrefix(err.Error(), "yaml: "), "check indentation, colons and quotes"}
		case len(objects) == maxObjects:
			return nil, &fault{node.Line, fmt.Sprintf("has more than %d objects", maxObjects), "write several files"}
		}
		object, wrong := readObject(namespace, &node)
		if wrong != nil {
			return nil, wrong
		}
		objects = append(objects, object)
	}
}

// yamlLine finds the line in a message such as "yaml: line 3: ...".
func yamlLine(err error) int {
	line := 1
	_, _ = fmt.Sscanf(err.Error(), "yaml: line %d:", &line) // without one it is the first
	return max(line, 1)
}

func readObject(namespace string, node *yaml.Node) (Object, *fault) {
	at := max(node.Line, 1)
	if len(node.Content) > 0 {
		at = max(node.Content[0].Line, 1)
	}
	var fields map[string]any
	if err := node.Decode(&fields); err != nil || fields == nil {
		return Object{}, &fault{at, "is not an object", "write apiVersion, kind, metadata and spec"}
	}
	if !plain(fields, 0) {
		return Object{}, &fault{at, "says what JSON cannot: a key that is not text, a number that is none, or twenty levels", "write plain keys and values"}
	}
	version, kind := fmt.Sprint(fields["apiVersion"]), fmt.Sprint(fields["kind"])
	if !slices.Contains(Kinds(), [2]string{version, kind}) {
		var known []string
		for _, k := range Kinds() {
			known = append(known, k[1]+" of "+k[0])
		}
		return Object{}, &fault{at, fmt.Sprintf("kind %q of %q does not go into every world", kind, version), "write " + strings.Join(known, ", ")}
	}
	metadata, _ := fields["metadata"].(map[string]any)
	name, _ := metadata["name"].(string)
	switch {
	case !nameForm.MatchString(name):
		return Object{}, &fault{at, fmt.Sprintf("%s: metadata.name %q", kind, name), nameRemedy}
	case metadata["namespace"] != nil:
		return Object{}, &fault{at, fmt.Sprintf("%s %s: metadata.namespace is set", kind, name), "leave it out: it is the scenario's"}
	}
	metadata["namespace"] = namespace
	return Object{Kind: kind, Name: name, Fields: fields}, nil
}

// plain reports whether a value is what JSON can say.
func plain(value any, depth int) bool {
	if depth > 20 {
		return false
	}
	switch v := value.(type) {
	case map[string]any:
		for _, each := range v {
			if !plain(each, depth+1) {
				return false
			}
		}
	case []any:
		for _, each := range v {
			if !plain(each, depth+1) {
				return false
			}
		}
	case float64:
		return !math.IsNaN(v) && !math.IsInf(v, 0)
	case map[any]any:
		return false
	}
	return true
}
