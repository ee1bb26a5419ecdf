package folder

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/internal/kube/problem"
	"github.com/heddle-mesh/heddle/internal/kube/strict"
)

// The bounds of what one file may say, and of what is said about it.
const (
	MaxDocuments = 10_000 // of one file
	MaxProblems  = 1_000  // after which no more is read
)

// Document is one YAML document.
type Document struct {
	origin   problem.Origin
	root     *yaml.Node
	object   string // kind and name, for problems
	ref      problem.Ref
	problems []*problem.Problem
}

func (l *loader) decodeFile(name string, content []byte) {
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	for number := 1; ; number++ {
		origin := problem.Origin{Folder: l.dir, File: name, Document: number}
		if number > MaxDocuments {
			l.problems = append(l.problems, &problem.Problem{Origin: origin, Text: fmt.Sprintf("the file has more than %d documents", MaxDocuments), Remedy: "split it into several files",
				Reason: problem.Unreadable})
			return
		}
		var node yaml.Node
		err := decoder.Decode(&node)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			// The rest of the file cannot be understood either.
			l.problems = append(l.problems, syntaxProblem(origin, err))
			return
		}
		if node.Kind != yaml.DocumentNode || len(node.Content) == 0 || strict.IsNull(node.Content[0]) {
			continue // nothing but comments
		}
		doc := &Document{origin: origin, root: node.Content[0]}
		doc.origin.Line = doc.root.Line
		l.decodeDocument(doc)
		l.problems = append(l.problems, doc.problems...)
		if len(l.problems) >= MaxProblems {
			return
		}
	}
}

// syntaxProblem takes the line out of the parser's message, where it has one.
func syntaxProblem(origin problem.Origin, err error) *problem.Problem {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if m := regexp.MustCompile(`^line (\d+): (.*)$`).FindStringSubmatch(text); m != nil {
		if line, err := strconv.Atoi(m[1]); err == nil {
			origin.Line, text = line, m[2]
		}
	}
	return &problem.Problem{Origin: origin, Text: "is not YAML: " + text, Remedy: "check indentation, colons and quotes near this line", Reason: problem.Syntax}
}

func (l *loader) decodeDocument(doc *Document) {
	if doc.root.Kind != yaml.MappingNode {
		doc.report("", "write apiVersion, kind, metadata and spec", "is not an object")
		return
	}
	doc.origin.Lines = map[string]int{}
	for i := 0; i+1 < len(doc.root.Content); i += 2 {
		doc.origin.Lines[doc.root.Content[i].Value] = doc.root.Content[i].Line
	}
	apiVersion, kindName := doc.scalarAt("apiVersion"), doc.scalarAt("kind")
	namespace, name := doc.scalarAt("metadata", "namespace"), doc.scalarAt("metadata", "name")
	if apiVersion == "" || kindName == "" {
		doc.report("", "write both, such as apiVersion: heddle.dev/v1alpha1 and kind: Workload", "apiVersion or kind is missing")
		return
	}
	doc.object, doc.ref = problem.ObjectName(kindName, namespace, name), problem.Ref{Kind: kindName, Namespace: namespace, Name: name}
	var known []string
	for _, k := range l.kinds {
		if k.APIVersion == apiVersion && k.Name == kindName {
			l.addObject(doc, k)
			return
		}
		known = append(known, k.APIVersion+" "+k.Name)
	}
	doc.report("kind", "take it out of the folder; a folder may hold "+strings.Join(known, ", "),
		"%s %s is not a kind that a folder may hold", apiVersion, kindName)
}

func (l *loader) addObject(doc *Document, k Kind) {
	object := k.Read(doc)
	if object == nil {
		return
	}
	doc.checkName(k, object)
	if _, given := doc.origin.Lines["spec"]; k.Spec && !given {
		doc.report("", "write it, if need be as spec: {}", "has no spec")
	}
	key := k.Name + " " + object.GetNamespace() + "/" + object.GetName()
	if first, twice := l.seen[key]; twice {
		doc.report("metadata.name", "rename one of them or take it out", "the same object is also at %s", first)
		doc.problems[len(doc.problems)-1].Reason = problem.Conflict
		return
	}
	l.seen[key] = doc.origin
}

func (d *Document) checkName(k Kind, object metav1.Object) {
	if object.GetName() == "" {
		d.report("metadata", "write metadata.name", "has no name")
	}
	switch {
	case k.Namespaced && object.GetNamespace() == "":
		d.report("metadata", "write metadata.namespace", "has no namespace")
	case !k.Namespaced && object.GetNamespace() != "":
		d.report("metadata.namespace", "take it out", "a %s belongs to no namespace", k.Name)
	}
}

// scalarAt returns the scalar at a path of keys, or "".
func (d *Document) scalarAt(keys ...string) string {
	node := d.root
	for _, key := range keys {
		var next *yaml.Node
		if node.Kind == yaml.MappingNode {
			for i := 0; i+1 < len(node.Content); i += 2 {
				if node.Content[i].Value == key {
					next = node.Content[i+1]
				}
			}
		}
		if next == nil {
			return ""
		}
		node = next
	}
	if node.Kind != yaml.ScalarNode {
		return ""
	}
	return node.Value
}

func (d *Document) report(field, remedy, format string, args ...any) {
	d.problems = append(d.problems, &problem.Problem{
		Origin: d.origin.At(field), Ref: d.ref, Object: d.object, Field: field,
		Text: fmt.Sprintf(format, args...), Remedy: remedy, Reason: problem.Syntax,
	})
}

// Origin returns where the document was read, and, once it is decoded, each of
// its fields.
func (d *Document) Origin() problem.Origin { return d.origin }

// Plain returns a document that was decoded as the values that encoding/json takes.
func (d *Document) Plain() map[string]any { return strict.Plain(d.root).(map[string]any) }

// Invalid returns a problem about a field of the document.
func (d *Document) Invalid(field, text, remedy string) *problem.Problem {
	return &problem.Problem{Origin: d.origin.At(field), Ref: d.ref, Object: d.object, Field: field, Text: text, Remedy: remedy, Reason: problem.Invalid}
}

// Decode decodes the document into a pointer to a struct, or reports why not.
func (d *Document) Decode(into any) bool {
	result := strict.Decode(d.root, into)
	d.origin.Lines = result.Lines
	for _, f := range result.Findings {
		origin := d.origin
		origin.Line = f.Line
		d.problems = append(d.problems, &problem.Problem{Origin: origin, Ref: d.ref, Object: d.object, Field: f.Field, Text: f.Text, Remedy: f.Remedy, Reason: problem.Syntax})
	}
	if result.Untold > 0 {
		d.report("", "", "has %d more problems", result.Untold)
	}
	return len(result.Findings) == 0
}
