// Package strict decodes YAML nodes into Go values by their JSON names, and says
// everything that is wrong with them in one go: unknown fields, wrong types, keys
// given twice, and the parts of YAML in which readers differ (anchors, aliases,
// tags, merges, bare words that are booleans to some). It knows lines and field
// paths, not kinds of objects. Its functions are pure.
package strict

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxNesting bounds how deep values may be nested. The API's own types need ten.
const maxNesting = 64

// maxFindings bounds the findings that are kept; the rest is counted.
const maxFindings = 100

// Finding is one thing that is wrong.
type Finding struct {
	// Line is the line in the file, from 1; 0 when not known.
	Line int
	// Field is the path of the field, "spec.addresses[0]"; "" for the whole.
	Field string
	// Text says what is wrong, Remedy what to do about it (may be empty).
	Text, Remedy string
}

// Result is what Decode found out.
type Result struct {
	// Lines has the line of every field, by path.
	Lines map[string]int
	// Findings are what is wrong; when there are none, the value was decoded.
	Findings []Finding
	// Untold is how many more findings there would be.
	Untold int
}

// Decode decodes a node into a pointer to a struct, as an API server would, in
// two steps: the nodes are checked against the Go type, which finds every
// problem and knows every line, and what passed is decoded by way of JSON.
func Decode(node *yaml.Node, into any) Result {
	c := checker{Result{Lines: map[string]int{}}}
	c.value(node, reflect.TypeOf(into).Elem(), "", 0)
	if len(c.Findings) > 0 {
		return c.Result
	}
	encoded, err := json.Marshal(Plain(node))
	if err == nil {
		err = json.Unmarshal(encoded, into)
	}
	if err != nil {
		c.report(node, "", "", "cannot be decoded: %v", err)
	}
	return c.Result
}

// checker compares nodes with a Go type and its JSON names.
type checker struct{ Result }

func (c *checker) report(n *yaml.Node, field, remedy, format string, args ...any) {
	if len(c.Findings) >= maxFindings {
		c.Untold++
		return
	}
	c.Findings = append(c.Findings, Finding{Line: n.Line, Field: field, Text: fmt.Sprintf(format, args...), Remedy: remedy})
}

func (c *checker) value(n *yaml.Node, t reflect.Type, field string, depth int) {
	if _, noted := c.Lines[field]; !noted {
		c.Lines[field] = n.Line
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case depth > maxNesting:
		c.report(n, field, "", "is nested more than %d deep", maxNesting)
		return
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		c.report(n, field, "write the value out", "anchors and aliases are not read")
		return
	case n.Style&yaml.TaggedStyle != 0:
		c.report(n, field, "take the tag out", "the tag %s is not read", n.Tag)
		return
	case reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()):
		c.custom(n, t, field, depth)
		return
	case IsNull(n):
		c.report(n, field, "write a value, or leave the field out", "has no value")
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		c.structure(n, t, field, depth)
	case reflect.Map:
		c.mapping(n, t, field, depth)
	case reflect.Slice:
		c.list(n, t, field, depth)
	default:
		c.scalar(n, t, field)
	}
}

func (c *checker) structure(n *yaml.Node, t reflect.Type, field string, depth int) {
	if n.Kind != yaml.MappingNode {
		c.report(n, field, "indent its fields below it", "want fields, have %s", describe(n))
		return
	}
	fields := map[string]reflect.Type{}
	jsonFields(t, fields)
	c.eachKey(n, field, func(key string, keyNode, value *yaml.Node) {
		path := join(field, key)
		ft, ok := fields[key]
		if !ok {
			if strings.HasPrefix(path, "spec.rules[") && c.aboutRequests(keyNode, path, key) {
				return
			}
			c.report(keyNode, path, unknownRemedy(key, fields), "unknown field")
			return
		}
		c.Lines[path] = keyNode.Line
		c.value(value, ft, path, depth+1)
	})
}

func (c *checker) mapping(n *yaml.Node, t reflect.Type, field string, depth int) {
	if n.Kind != yaml.MappingNode {
		c.report(n, field, "write one key: value per line below it", "want keys and values, have %s", describe(n))
		return
	}
	c.eachKey(n, field, func(key string, keyNode, value *yaml.Node) {
		path := field + "[" + key + "]"
		c.Lines[path] = keyNode.Line
		c.value(value, t.Elem(), path, depth+1)
	})
}

// eachKey calls f for every key of a mapping, and reports keys that are given
// twice or are no plain words.
func (c *checker) eachKey(n *yaml.Node, field string, f func(key string, keyNode, value *yaml.Node)) {
	first := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.Anchor != "" || key.Style&yaml.TaggedStyle != 0 || key.ShortTag() == "!!merge" {
			c.report(key, field, "write plain keys", "a key is %s", describe(key))
			continue
		}
		if before, twice := first[key.Value]; twice {
			c.report(key, join(field, key.Value), "keep one of them", "is given twice, first on line %d", before.Line)
			continue
		}
		first[key.Value] = key
		f(key.Value, key, value)
	}
}

func (c *checker) list(n *yaml.Node, t reflect.Type, field string, depth int) {
	if n.Kind != yaml.SequenceNode {
		c.report(n, field, `write it as a list: one "- value" per line, or [value]`, "want a list, have %s", describe(n))
		return
	}
	for i, item := range n.Content {
		c.value(item, t.Elem(), fmt.Sprintf("%s[%d]", field, i), depth+1)
	}
}

func (c *checker) scalar(n *yaml.Node, t reflect.Type, field string) {
	if n.Kind != yaml.ScalarNode {
		c.report(n, field, "", "want %s, have %s", typeName(t), describe(n))
		return
	}
	switch tag := n.ShortTag(); t.Kind() {
	case reflect.String:
		// Kubernetes reads YAML 1.1, where yes, no, on and off are booleans.
		switch {
		case !isText(n):
			c.report(n, field, "put it in quotes", "want text, have %s", describe(n))
		case n.Style == 0 && oldBoolean(n.Value):
			c.report(n, field, "put it in quotes", "want text, have the word %s, which Kubernetes takes for a boolean", n.Value)
		}
	case reflect.Bool:
		if tag != "!!bool" || n.Value != "true" && n.Value != "false" {
			c.report(n, field, "write true or false, without quotes", "want true or false, have %s", describe(n))
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if tag != "!!int" || !isDecimal(n.Value) {
			c.report(n, field, "write a plain decimal number, without quotes", "want a whole number, have %s", describe(n))
		} else if _, err := strconv.ParseInt(n.Value, 10, t.Bits()); err != nil {
			c.report(n, field, "", "%s is out of range", n.Value)
		}
	default:
		c.report(n, field, "leave the field out", "fields of type %s are not read", t)
	}
}

// custom checks a value whose type decodes itself, such as a time.
func (c *checker) custom(n *yaml.Node, t reflect.Type, field string, depth int) {
	if !c.plainTree(n, field, depth) {
		return
	}
	encoded, err := json.Marshal(Plain(n))
	if err == nil {
		err = json.Unmarshal(encoded, reflect.New(t).Interface())
	}
	if err != nil {
		c.report(n, field, "", "have %s: %v", describe(n), err)
	}
}

// plainTree checks what value does, for a tree that has no Go type.
func (c *checker) plainTree(n *yaml.Node, field string, depth int) bool {
	switch {
	case depth > maxNesting:
		c.report(n, field, "", "is nested more than %d deep", maxNesting)
		return false
	case n.Kind == yaml.AliasNode || n.Anchor != "" || n.Style&yaml.TaggedStyle != 0:
		c.report(n, field, "write the value out", "anchors, aliases and tags are not read")
		return false
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!int" && !isDecimal(n.Value), n.ShortTag() == "!!float":
		c.report(n, field, "write a plain decimal number", "have %s", describe(n))
		return false
	}
	ok := true
	switch n.Kind {
	case yaml.MappingNode:
		c.eachKey(n, field, func(key string, _, value *yaml.Node) {
			ok = c.plainTree(value, join(field, key), depth+1) && ok
		})
	case yaml.SequenceNode:
		for i, item := range n.Content {
			ok = c.plainTree(item, fmt.Sprintf("%s[%d]", field, i), depth+1) && ok
		}
	}
	return ok
}

// jsonFields collects the JSON names of a struct's fields and their types.
func jsonFields(t reflect.Type, into map[string]reflect.Type) {
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported():
		case f.Anonymous && (name == "" || strings.Contains(options, "inline")):
			jsonFields(f.Type, into)
		case name == "":
			into[f.Name] = f.Type
		default:
			into[name] = f.Type
		}
	}
}

// Plain returns a checked node as the values that encoding/json takes.
func Plain(n *yaml.Node) any {
	switch n.Kind {
	case yaml.MappingNode:
		m := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			m[n.Content[i].Value] = Plain(n.Content[i+1])
		}
		return m
	case yaml.SequenceNode:
		list := make([]any, len(n.Content))
		for i, item := range n.Content {
			list[i] = Plain(item)
		}
		return list
	}
	switch n.ShortTag() {
	case "!!null":
		return nil
	case "!!bool":
		return n.Value == "true" || n.Value == "True" || n.Value == "TRUE"
	case "!!int":
		return json.Number(n.Value)
	default:
		return n.Value
	}
}

// IsNull reports whether a node has no value.
func IsNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// isText reports whether a YAML 1.1 reader, too, takes the scalar for text.
// Times are text in JSON.
func isText(n *yaml.Node) bool {
	return n.ShortTag() == "!!str" || n.ShortTag() == "!!timestamp"
}

func oldBoolean(word string) bool {
	return slices.Contains([]string{"y", "n", "yes", "no", "on", "off"}, strings.ToLower(word))
}

func isDecimal(number string) bool {
	digits := strings.TrimPrefix(number, "-")
	if digits == "" || len(digits) > 1 && digits[0] == '0' {
		return false
	}
	return strings.Trim(digits, "0123456789") == ""
}

func join(field, key string) string {
	if field == "" {
		return key
	}
	return field + "." + key
}

func typeName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	default:
		return "a whole number"
	}
}

// describe names a node's content, shortly.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys and values"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	shown := n.Value
	if len(shown) > 40 {
		shown = shown[:40] + "..."
	}
	switch n.ShortTag() {
	case "!!null":
		return "no value"
	case "!!bool", "!!int", "!!float", "!!merge":
		return strconv.Quote(shown) + " (" + strings.TrimPrefix(n.ShortTag(), "!!") + ")"
	}
	return "text " + strconv.Quote(shown)
}

// aboutRequests reports a field by which policies, here or in other meshes, look into
// requests, where it cannot stand. A rule without it would mean something else, so that it is
// refused with the reason, and not as a slip of the pen.
func (c *checker) aboutRequests(n *yaml.Node, path, key string) bool {
	switch key {
	case "hosts", "notHosts", "methods", "notMethods", "paths", "notPaths", "headers":
		c.report(n, path, "write it there", "belongs into an entry of to: what would be left without it could let in more than you mean")
	case "notHeaders", "requestPrincipals", "notRequestPrincipals", "jwt", "claims", "when":
		c.report(n, path, "take the field out: what is left must not let in more than you mean",
			"is about requests in a way in which no waypoint judges these: write hosts, methods, paths and headers into an entry of to")
	default:
		return false
	}
	return true
}

// unknownRemedy proposes the known field that is nearest to an unknown one.
func unknownRemedy(key string, known map[string]reflect.Type) string {
	names := make([]string, 0, len(known))
	for name := range known {
		names = append(names, name)
	}
	slices.Sort(names)
	best, distance := "", 3
	for _, name := range names {
		if d := editDistance(strings.ToLower(key), strings.ToLower(name)); d < distance {
			best, distance = name, d
		}
	}
	if best != "" {
		return "did you mean " + best + "?"
	}
	if len(names) > 12 {
		return "take it out"
	}
	return "take it out; there are " + strings.Join(names, ", ")
}

// editDistance is the Levenshtein distance; 99 for words too long to be typos.
func editDistance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 99
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitute := diagonal
			if a[i] != b[j] {
				substitute++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitute, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
