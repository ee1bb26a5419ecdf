package install

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/health"
	"github.com/heddle-mesh/heddle/manifests"
)

// TestGatewayDefinitionsAreTheirOwn: what the program carries is what the module whose
// types are compiled in releases, octet by octet.
func TestGatewayDefinitionsAreTheirOwn(t *testing.T) {
	folder, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	if err != nil {
		t.Fatal(err)
	}
	entries, err := manifests.GatewayAPI.ReadDir("gateway-api")
	if err != nil || len(entries) != 7 {
		t.Fatalf("%v, %v", entries, err)
	}
	for _, entry := range entries {
		ours, err := manifests.GatewayAPI.ReadFile("gateway-api/" + entry.Name())
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(folder)), "config/crd/standard", entry.Name()))
		if err != nil || !bytes.Equal(ours, theirs) {
			t.Errorf("%s is not the module's: %v; remedy: copy it from config/crd/standard there", entry.Name(), err)
		}
	}
}

// TestGatewayAPI: the definitions come when they are asked for, not in place of newer ones
// or of another channel's; they stay; and it is said when they are missing or too old where
// a waypoint is named.
func TestGatewayAPI(t *testing.T) {
	const name = "httproutes.gateway.networking.k8s.io"
	crd := schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"}
	w := newWorld(t)
	w.put(`{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24]}}`)
	finding := func() (ok bool, text string) {
		t.Helper()
		r := health.New()
		if err := w.checkGatewayAPI(t.Context(), "", r); err != nil || len(r.Findings) != 1 {
			t.Fatalf("%+v, %v", r.Findings, err)
		}
		return r.OK, r.Findings[0].Detail + " → " + r.Findings[0].Remedy
	}
	annotate := func(release, of string) {
		t.Helper()
		client, err := w.resource(t.Context(), crd, "")
		if err != nil {
			t.Fatal(err)
		}
		patch := `{"metadata":{"annotations":{"gateway.networking.k8s.io/bundle-version":"` + release + `","gateway.networking.k8s.io/channel":"` + of + `"}}}`
		if _, err := client.Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{FieldManager: "somebody"}); err != nil {
			t.Fatal(err)
		}
	}
	_, log := w.must("install", "--wait", "0")
	if strings.Contains(log, name) {
		t.Errorf("unasked:\n%s", log)
	}
	if ok, text := finding(); !ok || !strings.Contains(text, "which nothing names") {
		t.Errorf("not there, and not needed: %v %s", ok, text)
	}
	w.put(`{apiVersion: v1, kind: Service, metadata: {name: web, namespace: default, labels: {heddle.dev/waypoint: waypoint}}, spec: {ports: [{port: 80}]}}`)
	if ok, text := finding(); ok || !strings.Contains(text, "Service default/web") || !strings.Contains(text, "heddle install --gateway-api") {
		t.Errorf("not there, and needed: %v %s", ok, text)
	}
	if out, _ := w.must("install", "--gateway-api", "--dry-run"); !strings.Contains(out, name) {
		t.Error("a dry run does not print it")
	}
	if out, _ := w.must("install", "--gateway-api", "--dry-run=server"); !strings.Contains(out, "+++ CustomResourceDefinition "+name) {
		t.Errorf("a dry run by the server leaves it out:\n%s", out)
	}
	if _, log = w.must("install", "--gateway-api", "--wait", "0"); !strings.Contains(log, name+": created") {
		t.Errorf("asked for:\n%s", log)
	}
	if ok, text := finding(); !ok || !strings.Contains(text, "v1.6.") {
		t.Errorf("there: %v %s", ok, text)
	}
	annotate("v1.0.0", "standard")
	if ok, text := finding(); ok || !strings.Contains(text, "httproutes v1.0.0: too old") {
		t.Errorf("old: %v %s", ok, text)
	}
	if _, log = w.must("upgrade", "--gateway-api", "--wait", "0"); !strings.Contains(log, name+": changed") || strings.Count(log, "left as it is") != 6 {
		t.Errorf("an old one:\n%s", log)
	}
	for release, of := range map[string]string{"v1.99.0": "standard", "v1.4.0": "experimental", "main": "standard"} {
		annotate(release, of)
		if _, log = w.must("upgrade", "--gateway-api", "--wait", "0"); !strings.Contains(log, name+": left as it is, "+release+" of channel "+of) {
			t.Errorf("%s of %s:\n%s", release, of, log)
		}
	}
	w.must("uninstall", "--wait", "0", "--crds")
	if o, err := w.get(t.Context(), crd, "", name); o == nil || err != nil {
		t.Errorf("it went with Heddle: %v", err)
	}
}
