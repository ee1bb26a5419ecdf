package controlplane

import (
	"errors"
	"io"
	"os"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/heddle-mesh/heddle/operator/routing"
)

// chartRights are those that the plain manifests, which are the chart rendered
// with its defaults, give the operator.
func chartRights(t *testing.T) map[right]bool {
	t.Helper()
	file, err := os.Open("../../manifests/plain/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	all := map[right]bool{}
	for documents := yaml.NewYAMLOrJSONDecoder(file, 4<<10); ; {
		var role struct {
			Kind     string
			Metadata struct{ Name, Namespace string }
			Rules    []rbacv1.PolicyRule
		}
		if err := documents.Decode(&role); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		if role.Kind != "Role" && role.Kind != "ClusterRole" {
			continue
		}
		if role.Metadata.Name != "heddle-operator" {
			t.Errorf("a %s %s: only the operator has rights", role.Kind, role.Metadata.Name)
		}
		for _, rule := range role.Rules {
			spread(t, rule, role.Kind == "Role", all)
		}
	}
}

// spread adds the single rights of a rule.
func spread(t *testing.T, rule rbacv1.PolicyRule, here bool, all map[right]bool) {
	t.Helper()
	if len(rule.NonResourceURLs) > 0 {
		t.Errorf("rights on URLs: %v", rule.NonResourceURLs)
	}
	names := rule.ResourceNames
	if len(names) == 0 {
		names = []string{""}
	}
	for _, group := range rule.APIGroups {
		for _, resource := range rule.Resources {
			for _, verb := range rule.Verbs {
				for _, name := range names {
					all[right{verb, group, resource, name, here}] = true
				}
			}
		}
	}
}

// TestTheChartsRightsAreThoseThatAreNeeded keeps the two lists one: a right that
// TestEachRightIsNeeded proves and the chart lacks is an outage, one that the
// chart has beside them is too much.
func TestTheChartsRightsAreThoseThatAreNeeded(t *testing.T) {
	given, needed := chartRights(t), map[right]bool{}
	for _, step := range steps() {
		for _, r := range step {
			needed[r] = true
		}
	}
	// What is kept is written by the same code under each name: one stands for all.
	one := right{"update", "", "configmaps", routing.Names()[shard], true}
	for _, name := range append(routing.Names(), routing.ThroughName) {
		if also := one; needed[one] {
			also.name = name
			needed[also] = true
		}
	}
	if len(given) < 20 {
		t.Fatalf("the chart gives %d rights: this would hold of nothing", len(given))
	}
	for r := range needed {
		if !given[r] {
			t.Errorf("needed, and not in the chart: %+v", r)
		}
	}
	for r := range given {
		if !needed[r] {
			t.Errorf("in the chart, and not proved to be needed: %+v", r)
		}
	}
}
