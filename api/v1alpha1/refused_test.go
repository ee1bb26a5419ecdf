package v1alpha1_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"

	"github.com/heddle-mesh/heddle/api/v1alpha1/corpus"
)

// TestEveryLevelKeepsItsFields: whatever an object of ours has fields at, is refused with
// one too many, and a rule speaks of each that it has.
func TestEveryLevelKeepsItsFields(t *testing.T) {
	for kind, d := range definitions(t) {
		spec := d.structural.Properties["spec"]
		visit(&spec, func(s *schema.Structural) {
			if len(s.Properties) == 0 {
				return
			}
			rules := ""
			for _, rule := range s.XValidations {
				rules += rule.Rule + "\n"
			}
			if !s.XPreserveUnknownFields || !strings.Contains(rules, "size(dyn(self)) == ") {
				t.Errorf("%s: what is unknown is taken out, and nobody told, beside %v", kind, slices.Sorted(maps.Keys(s.Properties)))
			}
			for name := range s.Properties {
				if !strings.Contains(rules, "has(self."+name+")") {
					t.Errorf("%s: no rule counts %s, or refuses it", kind, name)
				}
			}
		})
	}
}

// Both give the same reason for what is about requests, and not judged, or judged elsewhere.
func TestRequestsAreRefusedForTheSameReason(t *testing.T) {
	all, misplaced := definitions(t), corpus.RequestWords()
	words := corpus.TokenWords()
	maps.Copy(words, misplaced)
	for name, value := range words {
		for level, spec := range corpus.Levels() {
			if level == "spec" || misplaced[name] != "" && level == "to" {
				continue // strict knows the names in rules
			}
			spec = fmt.Sprintf(spec, ", "+name+": "+value)
			problems := compile(t, "AuthorizationPolicy", spec)
			if len(problems) != 1 {
				t.Errorf("%s: internal/kube says %v", spec, problems)
				continue
			}
			text := problems[0].Error()
			before, want := "in which ", "no waypoint judges these: write hosts, methods, paths"
			if misplaced[name] != "" {
				before, want = "could ", "let in more than you mean"
			}
			_, reason, cut := strings.Cut(text, before)
			var said []string
			for _, err := range all["AuthorizationPolicy"].refuse(parse(t, corpus.Object("AuthorizationPolicy", spec)), nil) {
				said = append(said, err.Error())
			}
			if !cut || !slices.ContainsFunc(said, func(s string) bool { return strings.Contains(s, want) }) || !strings.HasPrefix(reason, want) {
				t.Errorf("%s: internal/kube says %q, an API server %q", spec, text, said)
			}
		}
	}
}
