package badinput

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// configuration puts files that are wrong into the folder that the operator
// watches. The folder is refused as a whole, by name of file, line and field;
// what was in force goes on.
func (w *world) configuration(t *testing.T) {
	const refusals = `heddle_operator_refusals_total{reason="%s"}`
	for _, test := range []struct {
		name, reason, yaml string
		says               []string
	}{
		{"unknown field", "Syntax", strings.Replace(workload("odd", "10.244.2.77"), "serviceAccount", "serviceAcount", 1), []string{"bad.yaml:4", "serviceAcount", "unknown field", "shop/odd"}},
		{"wrong type", "Syntax", strings.Replace(workload("odd", "10.244.2.77"), `["10.244.2.77"]`, `{a: 1}`, 1), []string{"bad.yaml:4", "spec.addresses", "shop/odd"}},
		{"wrong type of a number", "Syntax", "apiVersion: heddle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {namespace: shop, name: odd}\nspec:\n  portModes:\n  - {port: eighty, mode: STRICT}\n", []string{"bad.yaml:6", "port", "shop/odd"}},
		{"not YAML", "Syntax", "kind: [\n", []string{"bad.yaml:"}},
		{"unknown kind", "Syntax", "apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: odd}\n", []string{"bad.yaml:", "Pod"}},
		{"a Mesh beside the Mesh", "Conflict", "apiVersion: heddle.dev/v1alpha1\nkind: Mesh\nmetadata: {name: default}\nspec: {trustDomain: other.test}\n", []string{"bad.yaml:", "mesh.yaml:"}},
		{"two objects of one name", "Conflict", workload("server", "10.244.2.77"), []string{"bad.yaml:1", "mesh.yaml:", "shop/server"}},
		{"an address used twice", "Conflict", workload("odd", server), []string{server, "shop/odd", "shop/server"}},
		{"an address used twice, written otherwise", "Conflict", workload("odd", "fd00:244:0002:0::0010"), []string{"fd00:244:2::10", "shop/odd", "shop/server"}},
		{"a network namespace used twice", "Conflict", strings.Replace(workload("odd", "10.244.2.77"), "heddle-badinput-ghost", "heddle-badinput-server", 1), []string{"/run/netns/heddle-badinput-server", "shop/odd", "shop/server"}},
		{"one object's own address twice", "Conflict", strings.Replace(workload("odd", "10.244.2.77"), `["10.244.2.77"]`, `["10.244.2.77", "10.244.2.77"]`, 1), []string{"bad.yaml:4", "10.244.2.77", "shop/odd"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.counts(t, "operator", fmt.Sprintf(refusals, test.reason), func() { w.Write(t, "bad.yaml", test.yaml) })
			w.checkSays(t, "fail  operator", append(test.says, "folder")...)
			w.logSays(t, "operator", append(test.says, "configuration refused")...)
			if got := w.metric(t, "operator", "heddle_operator_folder_refused"); got != 1 {
				t.Errorf("heddle_operator_folder_refused is %v", got)
			}
			w.validateSays(t, test.says)
			w.served(t)
			w.Remove(t, "bad.yaml")
			w.healthy(t)
		})
	}
}

// validateSays asks before the operator would be asked.
func (w *world) validateSays(t *testing.T, words []string) {
	t.Helper()
	out, err := exec.Command(filepath.Join(w.Binaries, "heddle"), "validate", w.Folder).CombinedOutput()
	if exit := (&exec.ExitError{}); err == nil || !asExit(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("validate: %v, want exit status 1\n%s", err, out)
	}
	if !hasAll(string(out), words) {
		t.Errorf("validate does not say %q:\n%s", words, out)
	}
}

func workload(name, address string) string {
	return `apiVersion: heddle.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: ` + name + `}
spec: {node: n2, serviceAccount: odd, addresses: ["` + address + `"], networkNamespace: /run/netns/heddle-badinput-ghost}
`
}

// namespace names network namespaces that are gone: before enrolment, and of a
// pod that is enrolled.
func (w *world) namespace(t *testing.T) {
	const failed = `heddle_pods{state="failed"}`
	t.Run("before enrolment", func(t *testing.T) {
		w.counts(t, "n2", "heddle_enrolment_failures_total", func() {
			w.counts(t, "n2", failed, func() { w.Write(t, "ghost.yaml", workload("ghost", "10.244.2.77")) })
		})
		w.checkSays(t, "fail  n2", "pod shop/ghost", "/run/netns/heddle-badinput-ghost", "no such file")
		w.logSays(t, "n2", "shop/ghost", "/run/netns/heddle-badinput-ghost")
		w.served(t)
		w.Remove(t, "ghost.yaml")
		w.healthy(t)
	})
	t.Run("not a network namespace", func(t *testing.T) {
		path := filepath.Join("/run/netns", "heddle-badinput-ghost")
		if err := os.WriteFile(path, []byte("not one"), 0o600); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(path)
		w.counts(t, "n2", failed, func() { w.Write(t, "ghost.yaml", workload("ghost", "10.244.2.77")) })
		w.checkSays(t, "fail  n2", "pod shop/ghost", path)
		w.served(t)
		w.Remove(t, "ghost.yaml")
		w.healthy(t)
	})
	t.Run("another pod's, by another name", func(t *testing.T) {
		path := "/run/netns/heddle-badinput-alias"
		if err := os.Symlink("/run/netns/heddle-badinput-server", path); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(path)
		// Its name comes before the owner's: the owner keeps it all the same.
		stolen := strings.Replace(workload("alias", "10.244.2.77"), "heddle-badinput-ghost", "heddle-badinput-alias", 1)
		w.counts(t, "n2", failed, func() { w.Write(t, "ghost.yaml", stolen) })
		w.checkSays(t, "fail  n2", "pod shop/alias", path)
		w.served(t)
		w.Remove(t, "ghost.yaml")
		w.healthy(t)
	})
	for name, change := range map[string][2]string{
		"of an enrolled pod, mistyped":            {"netns/heddle-badinput-busy", "netns/heddle-badinput-bussy"},
		"an address of an enrolled pod, mistyped": {`addresses: ["10.244.2.11"]`, `addresses: ["10.244.2.11", "10.244.2.111"]`},
	} {
		t.Run(name, func(t *testing.T) {
			w.counts(t, "n2", failed, func() { w.Write(t, "mesh.yaml", strings.Replace(meshYAML, change[0], change[1], 1)) })
			w.checkSays(t, "fail  n2", "pod shop/busy")
			// A mistake does not let the pod out of the mesh.
			if err := w.exchange("plain/talker", busy+":7000"); err == nil {
				t.Error("plaintext reaches a pod that was enrolled, and is labelled so")
			}
			w.served(t)
			w.Write(t, "mesh.yaml", meshYAML)
			w.healthy(t)
			if err := w.exchange("shop/client", busy+":7000"); err != nil {
				t.Errorf("the pod is not back in the mesh: %v", err)
			}
		})
	}
	t.Run("during life", func(t *testing.T) {
		// It lives on without its name, for the sake of this socket.
		go echo(w.Listen(t, "shop/doomed", ":7000"))
		w.counts(t, "n2", failed, func() {
			if out, err := exec.Command("ip", "netns", "delete", "heddle-badinput-doomed").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		})
		w.checkSays(t, "fail  n2", "pod shop/doomed", "/run/netns/heddle-badinput-doomed")
		w.logSays(t, "n2", "pod is gone or broken", "shop/doomed")
		for _, pod := range []string{"plain/talker", "shop/client"} {
			if err := w.exchange(pod, doomed+":7000"); err == nil {
				t.Errorf("a pod whose namespace has lost its name answers %s", pod)
			}
		}
		w.served(t)
		// Taken out of the configuration, it is forgotten.
		w.Write(t, "mesh.yaml", strings.Replace(meshYAML, "name: doomed}", "name: doomed, labels: {heddle.dev/mesh: disabled}}", 1))
		w.healthy(t)
	})
}
