//go:build conformance

package product

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/cluster/pki"
	"github.com/heddle-mesh/heddle/e2e/scenario/kubernetes"
	"github.com/heddle-mesh/heddle/internal/image"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// How often in a row each request has to be answered as it should: as the suite has it,
// for its report; and so often that no chance makes it so, which is what passes here. Of
// two servers, one is picked three times in a row by one request in eight.
const (
	successesReported = 3
	successesNeeded   = 20
)

// suiteNamespaces are those that the suite makes, and the labels that it is told to give
// them.
var suiteNamespaces = []string{"gateway-conformance-mesh", "gateway-conformance-mesh-consumer"}

const suiteLabels = "heddle.dev/mesh=enabled,heddle.dev/waypoint=waypoint"

// suite is the Gateway API's conformance suite (e2e/gatewayapi), and what its tests of
// meshes need.
type suite struct {
	folder                  string
	Tests, Features, Images []string
}

// TestGatewayAPI runs all tests of meshes that the Gateway API has, through waypoints of
// the suite's namespaces, while what its pods send is captured. With HEDDLE_CONFORMANCE,
// the report for the Gateway API's project is written to that folder first. `make
// gateway-conformance` runs it.
func TestGatewayAPI(t *testing.T) {
	w := newWorld(t)
	s := &suite{folder: t.TempDir()}
	s.build(t, filepath.Join(w.root, "e2e/gatewayapi"))
	s.load(t, w)
	w.kubectl(t, "label", "nodes", "--all", "--overwrite", kubernetes.NodeLabel+"="+kubernetes.NodeLabelValue)
	w.install(t, "--gateway-api")
	w.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {heddle.dev/mesh: enabled}}\n"+podYAML("client", "n1", "", "wait"))
	w.waitReady(t, "client")
	defer func() {
		if t.Failed() {
			w.explain(t, "heddle-system")
			w.explain(t, suiteNamespaces[0])
		}
	}()
	for _, namespace := range suiteNamespaces {
		w.apply(t, fmt.Sprintf(`apiVersion: v1
kind: Namespace
metadata: {name: %s, labels: {heddle.dev/mesh: enabled, heddle.dev/waypoint: waypoint}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: %[1]s}
spec: {gatewayClassName: heddle-waypoint, listeners: [{name: mesh, port: 15009, protocol: heddle.dev/mesh}]}
`, namespace))
	}
	for _, namespace := range suiteNamespaces {
		w.kubectl(t, "-n", namespace, "wait", "--for=condition=Programmed", "gateway/waypoint", "--timeout="+patience.String())
	}
	if folder := os.Getenv("HEDDLE_CONFORMANCE"); folder != "" {
		s.report(t, w, folder)
	}
	c := w.capture(t)
	s.run(t, w, fmt.Sprintf("RequiredConsecutiveSuccesses:%d;MaxTimeToConsistency:120", successesNeeded))
	onlyInTheTunnel(t, "between nodes", c.Stop(t, "", among(strings.Fields(w.kubectl(t, "get", "pods", "-A", "-l", "app=echo", "-o", "jsonpath={.items[*].status.podIP}")))))
	t.Run("locations", func(t *testing.T) { w.testLocations(t) })
}

// testLocations applies the routes of all of the suite's tests of redirects. Those tests
// say where each leads, and look at the status of the answer only.
func (w *world) testLocations(t *testing.T) {
	list := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api/conformance")
	list.Dir = filepath.Join(w.root, "e2e/gatewayapi")
	folder, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(folder)), "tests/mesh/*redirect*.yaml"))
	if err != nil || len(files) != 7 {
		t.Fatalf("routes of redirects %v, %v", files, err)
	}
	for _, file := range files {
		w.kubectl(t, "apply", "-f", file)
	}
	for _, condition := range []string{"Accepted", "ResolvedRefs"} {
		w.kubectl(t, "-n", suiteNamespaces[0], "wait", "httproutes", "--all", "--timeout=20s",
			fmt.Sprintf(`--for=jsonpath={.status.parents[?(@.controllerName=="heddle.dev/operator")].conditions[?(@.type=="%s")].status}=True`, condition))
	}
	const host = "echo.gateway-conformance-mesh"
	for _, one := range []struct {
		path     string
		status   int
		location string
	}{
		{"/hostname-redirect", 302, "http://example.org/hostname-redirect"},
		{"/host-and-status", 301, "http://example.org/host-and-status"},
		{"/original-prefix/lemon", 302, "http://" + host + "/replacement-prefix/lemon"},
		{"/full/path/original", 302, "http://" + host + "/full-path-replacement"},
		{"/path-and-host", 302, "http://example.org/replacement-prefix"},
		{"/path-and-status", 301, "http://" + host + "/replacement-prefix"},
		{"/full-path-and-host", 302, "http://example.org/replacement-full"},
		{"/full-path-and-status", 301, "http://" + host + "/replacement-full"},
		{"/port", 302, "http://" + host + ":8083/port"},
		{"/port-and-host", 302, "http://example.org:8083/port-and-host"},
		{"/port-and-status", 301, "http://" + host + ":8083/port-and-status"},
		{"/port-and-host-and-status", 302, "http://example.org:8083/port-and-host-and-status"},
		{"/scheme", 302, "https://" + host + "/scheme"},
		{"/scheme-and-host", 302, "https://example.org/scheme-and-host"},
		{"/scheme-and-status", 301, "https://" + host + "/scheme-and-status"},
		{"/scheme-and-host-and-status", 302, "https://example.org/scheme-and-host-and-status"},
		{"/redirect", 303, "http://" + host + "/redirect"},
		{"/temporary", 307, "http://" + host + "/temporary"},
		{"/permanent", 308, "http://" + host + "/permanent"},
	} {
		eventually(t, 20*time.Second, fmt.Sprintf("%s leads to %s by %d", one.path, one.location, one.status), func() error {
			all, err := w.fetch(t, "client", 1, "http://"+host+one.path)
			if err == nil && (len(all) != 1 || all[0].Status != one.status || all[0].Location != one.location) {
				err = fmt.Errorf("%+v", all)
			}
			return err
		})
	}
}

// program is the suite.
func (s *suite) program() string { return filepath.Join(s.folder, "suite") }

// build builds the suite and what its pods run.
func (s *suite) build(t *testing.T, module string) {
	t.Helper()
	testenv.Go(t, module, "test", "-c", "-vet=off", "-trimpath", "-ldflags=-s -w", "-o", s.program(), ".")
	const echo = "istio.io/istio/pkg/test/echo/cmd/"
	testenv.Build(t, module, s.folder+"/", echo+"server", echo+"client")
}

// load asks the suite what it needs, and loads the image of its pods under the names that
// it has for it.
func (s *suite) load(t *testing.T, w *world) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), s.program(), "-describe").Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, s); err != nil || len(s.Tests) < 22 || len(s.Images) == 0 {
		t.Fatalf("the suite says of itself: %v: %s", err, out)
	}
	if _, err := pki.Folder(s.folder).NewAuthority("cert"); err != nil { // what the TLS server shows
		t.Fatal(err)
	}
	var images []*image.Image
	for _, reference := range s.Images {
		img, err := image.Build(image.Spec{Reference: reference, Entrypoint: []string{"/usr/local/bin/server"}, User: "1338", Platforms: []image.Platform{{
			Architecture: runtime.GOARCH, Files: []image.File{
				{Path: "/usr/local/bin/server", Source: filepath.Join(s.folder, "server")},
				{Path: "/usr/local/bin/client", Source: filepath.Join(s.folder, "client")},
				{Path: "/cert.crt", Source: filepath.Join(s.folder, "cert.crt"), Mode: 0o644},
				{Path: "/cert.key", Source: filepath.Join(s.folder, "cert.key"), Mode: 0o644},
			},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, img)
	}
	archive := filepath.Join(s.folder, "echo.tar")
	if err := image.SaveArchive(archive, images...); err != nil {
		t.Fatal(err)
	}
	if err := w.LoadImage(t.Context(), archive); err != nil {
		t.Fatal(err)
	}
}

// run runs all tests of meshes, and fails for each that does not pass. timeouts are in
// the form of the suite's flag for them.
func (s *suite) run(t *testing.T, w *world, timeouts string, more ...string) {
	t.Helper()
	started := time.Now()
	out, err := exec.CommandContext(t.Context(), s.program(), append([]string{"-test.run=^TestConformance$", "-test.v", "-test.timeout=20m",
		"-kubeconfig=" + w.Kubeconfig(), "-gateway-class=heddle-waypoint", "-conformance-profiles=MESH-HTTP,MESH-GRPC",
		"-supported-features=" + strings.Join(s.Features, ","), "-namespace-labels=" + suiteLabels,
		"-cleanup-base-resources=false", "-timeout-config-overrides=" + timeouts}, more...)...).CombinedOutput()
	passed, failed := 0, 0
	ended := map[string]string{}
	for _, found := range regexp.MustCompile(`(?m)^    --- (PASS|FAIL|SKIP): TestConformance/(\w+) `).FindAllStringSubmatch(string(out), -1) {
		ended[found[2]] = found[1]
	}
	for _, name := range s.Tests {
		if ended[name] == "PASS" {
			passed++
			continue
		}
		failed++
		t.Errorf("%s: %q, want PASS", name, ended[name])
	}
	t.Logf("%d of %d tests of meshes pass in %v", passed, len(s.Tests), time.Since(started).Round(time.Second))
	if err != nil || failed > 0 {
		lines := regexp.MustCompile(`(?m)^.*(not ready yet|timeout while|--- FAIL|Error:|distribution test failed|panic).*$`).FindAllString(string(out), -1)
		t.Errorf("the suite: %v; the last that it says of failures:\n%s", err, strings.Join(lines[max(0, len(lines)-40):], "\n"))
	}
}

// report runs the suite as the Gateway API's project wants it to be run for a report, and
// writes that to the folder, in place of the one before, under the name and with the row
// in the folder's list that the project wants.
func (s *suite) report(t *testing.T, w *world, folder string) {
	t.Helper()
	version := os.Getenv("HEDDLE_CONFORMANCE_VERSION")
	if version == "" {
		t.Fatal("HEDDLE_CONFORMANCE_VERSION does not say which version the report is of: run `make gateway-conformance`")
	}
	file := filepath.Join(s.folder, "report.yaml")
	s.run(t, w, fmt.Sprintf("RequiredConsecutiveSuccesses:%d", successesReported), "-report-output="+file, "-organization=heddle-mesh", "-project=heddle",
		"-url=https://github.com/heddle-mesh/heddle", "-contact=https://github.com/heddle-mesh/heddle/issues/new", "-version="+version)
	if t.Failed() {
		return
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", data)
	before, err := filepath.Glob(filepath.Join(folder, "*-report.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, old := range before {
		if err := os.Remove(old); err != nil {
			t.Fatal(err)
		}
	}
	name, list := fmt.Sprintf("standard-%s-default-report.yaml", version), filepath.Join(folder, "README.md")
	text, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	row := fmt.Sprintf("| standard | [%s](https://github.com/heddle-mesh/heddle/tree/%[1]s) | default | [%[1]s report](./%s) |", version, name)
	text = regexp.MustCompile(`(?m)^\| standard \|.*$`).ReplaceAllLiteral(text, []byte(row))
	if err := errors.Join(os.WriteFile(filepath.Join(folder, name), data, 0o644), os.WriteFile(list, text, 0o644)); err != nil {
		t.Fatal(err)
	}
}
