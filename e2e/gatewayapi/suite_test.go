// Package gatewayapi is the Gateway API's conformance suite as a program, unchanged. It
// adds one thing: -describe says what the tests of meshes are called and what they need.
package gatewayapi

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
	"sigs.k8s.io/gateway-api/conformance/tests"
	"sigs.k8s.io/gateway-api/pkg/features"
)

var describe = flag.Bool("describe", false, "print, as JSON, the names of the tests of meshes, the features that these are about and the images of their pods; run nothing")

func TestMain(m *testing.M) {
	flag.Parse()
	if *describe {
		if err := describeMeshes(os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "describe the tests of meshes:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// described is what -describe prints, each sorted.
type described struct {
	Tests    []string `json:"tests"`
	Features []string `json:"features"`
	Images   []string `json:"images"`
}

func describeMeshes(w io.Writer) error {
	names, about, images := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, test := range tests.ConformanceTests {
		if !slices.Contains(test.Features, features.SupportMesh) {
			continue
		}
		names[test.ShortName] = true
		for _, feature := range test.Features {
			about[string(feature)] = true
		}
	}
	pods, err := conformance.Manifests.ReadFile("mesh/manifests.yaml")
	if err != nil {
		return err
	}
	for _, found := range regexp.MustCompile(`(?m)^\s*image: (\S+)$`).FindAllSubmatch(pods, -1) {
		images[string(found[1])] = true
	}
	sorted := func(set map[string]bool) []string { return slices.Sorted(maps.Keys(set)) }
	return json.NewEncoder(w).Encode(described{sorted(names), sorted(about), sorted(images)})
}

func TestConformance(t *testing.T) { conformance.RunConformance(t) }
