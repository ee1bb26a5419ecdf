package heddle

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// conformanceReport is what is read of a report of the Gateway API's conformance suite.
type conformanceReport struct {
	Kind, Mode        string
	GatewayAPIVersion string `json:"gatewayAPIVersion"`
	GatewayAPIChannel string `json:"gatewayAPIChannel"`
	Implementation    struct{ Version string }
	Profiles          []struct {
		Name           string
		Core, Extended struct {
			Result              string
			FailedTests         []string `json:"failedTests"`
			SkippedTests        []string `json:"skippedTests"`
			UnsupportedFeatures []string `json:"unsupportedFeatures"`
			Statistics          struct{ Failed, Passed, Skipped int }
		}
	}
}

// TestConformanceReports: the reports in docs/conformance are of the version of the
// Gateway API that is compiled in, say that everything passes, and are listed in the form
// that the Gateway API's project wants (conformance/reports/README.md there).
func TestConformanceReports(t *testing.T) {
	readme, err := os.ReadFile("docs/conformance/README.md")
	if err != nil {
		t.Fatal(err)
	}
	module, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	api := regexp.MustCompile(`(?m)^\tsigs.k8s.io/gateway-api (\S+)$`).FindStringSubmatch(string(module))
	files, err := filepath.Glob("docs/conformance/*.yaml")
	if err != nil || len(files) == 0 || api == nil {
		t.Fatalf("reports %v of gateway-api %v, %v: `make gateway-conformance` writes one", files, api, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var r conformanceReport
		if err := yaml.Unmarshal(data, &r); err != nil {
			t.Fatal(err)
		}
		version, name := r.Implementation.Version, filepath.Base(file)
		if r.Kind != "ConformanceReport" || r.GatewayAPIVersion != api[1] || name != fmt.Sprintf("%s-%s-%s-report.yaml", r.GatewayAPIChannel, version, r.Mode) {
			t.Errorf("%s: kind %q, Gateway API %q %q, version %q, mode %q; want one of gateway-api %s, under its name", name, r.Kind, r.GatewayAPIVersion, r.GatewayAPIChannel, version, r.Mode, api[1])
		}
		row := fmt.Sprintf("| %s | [%s](https://github.com/heddle-mesh/heddle/tree/%[2]s) | %s | [%[2]s report](./%[4]s) |", r.GatewayAPIChannel, version, r.Mode, name)
		if !strings.Contains(string(readme), row+"\n") {
			t.Errorf("docs/conformance/README.md: there is no row %q", row)
		}
		var profiles []string
		for _, p := range r.Profiles {
			profiles = append(profiles, p.Name)
			if p.Core.Result != "success" || p.Core.Statistics.Passed == 0 || slices.Contains([]string{"failure", "partial"}, p.Extended.Result) || len(p.Extended.UnsupportedFeatures) > 0 ||
				len(p.Core.FailedTests)+len(p.Core.SkippedTests)+len(p.Extended.FailedTests)+len(p.Extended.SkippedTests) > 0 {
				t.Errorf("%s: %+v, want all features, and that all their tests pass", name, p)
			}
		}
		slices.Sort(profiles)
		if !slices.Equal(profiles, []string{"MESH-GRPC", "MESH-HTTP"}) {
			t.Errorf("%s: profiles %v", name, profiles)
		}
	}
	if rows := strings.Count(string(readme), "-report.yaml)"); rows != len(files) {
		t.Errorf("docs/conformance/README.md has %d rows of reports, and there are %d", rows, len(files))
	}
}
