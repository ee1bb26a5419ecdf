package main

import (
	"os/exec"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const ginkgoReport = `[{"SuiteDescription":"Kubernetes e2e suite","SpecReports":[
 {"ContainerHierarchyTexts":null,"LeafNodeType":"SynchronizedBeforeSuite","LeafNodeText":"","State":"passed","RunTime":5},
 {"ContainerHierarchyTexts":["[sig-network] DNS"],"LeafNodeType":"It","LeafNodeText":"should provide DNS [Conformance]","State":"passed","RunTime":2000000000},
 {"ContainerHierarchyTexts":["[sig-network]","Proxy","version v1"],"LeafNodeType":"It","LeafNodeText":"should proxy","State":"failed","RunTime":1,"Failure":{"Message":"no answer"}},
 {"ContainerHierarchyTexts":["[sig-network] DNS"],"LeafNodeType":"It","LeafNodeText":"needs a cloud","State":"skipped","Failure":{"Message":"only for gce"}},
 {"ContainerHierarchyTexts":["[sig-network] DNS"],"LeafNodeType":"It","LeafNodeText":"not in focus","State":"skipped"}]}]`

func TestReport(t *testing.T) {
	found, err := parseReport([]byte(ginkgoReport))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]outcome{
		"[sig-network] DNS should provide DNS [Conformance]": {"passed", "", 2e9},
		"[sig-network] Proxy version v1 should proxy":        {"failed", "no answer", 1},
		"[sig-network] DNS needs a cloud":                    {"skipped", "only for gce", 0},
	}
	if !reflect.DeepEqual(found, want) {
		t.Errorf("read %v, want %v", found, want)
	}
	// A suite that did not come to its tests is not one that had none.
	broken := strings.Replace(ginkgoReport, `"LeafNodeText":"","State":"passed"`, `"LeafNodeText":"","State":"failed","Failure":{"Message":"no node is ready"}`, 1)
	if _, err := parseReport([]byte(broken)); err == nil || !strings.Contains(err.Error(), "no node is ready") {
		t.Errorf("a suite whose setup failed: %v", err)
	}
	if _, err := parseReport([]byte("[{")); err == nil {
		t.Error("half a report is read without an error")
	}
}

func TestVerdict(t *testing.T) {
	const a, b, c = "[sig-network] Services should a [Conformance]", "[sig-network] DNS should b", "[sig-network] Netpol [LinuxOnly] should c"
	all := comparison{
		outside: map[string]outcome{a: {state: "passed"}, b: {state: "passed"}, c: {state: "failed", message: "reached\nsecond line"}},
		inside:  map[string]outcome{a: {state: "passed"}, b: {state: "failed", message: "refused"}, c: {state: "passed"}},
	}
	if got := all.onlyOutside(); !slices.Equal(got, []string{b}) {
		t.Errorf("only outside: %v", got)
	}
	if err := all.verdict(nil); err == nil || !strings.Contains(err.Error(), b) {
		t.Errorf("a test that passes outside only: %v", err)
	}
	if err := all.verdict([]difference{{"DNS should b", "because"}}); err != nil {
		t.Errorf("the same, listed: %v", err)
	}
	if err := all.verdict([]difference{{"DNS should b", "because"}, {"Services should a", "no longer"}}); err == nil || !strings.Contains(err.Error(), a) {
		t.Errorf("one listed that passes on both sides: %v", err)
	}
	// One that was not run inside has not passed.
	delete(all.inside, a)
	if got := all.onlyOutside(); !slices.Equal(got, []string{b, a}) {
		t.Errorf("not run inside: %v", got)
	}
	page := all.markdown()
	for _, want := range []string{"| DNS | 1 | 1 | 0 |", "| Netpol | 1 | 0 | 1 |", "| all | 3 | 2 | 1 |", "- " + b + " (failed: refused)", "- " + c + " (failed: reached)\n", "(not run: )"} {
		if !strings.Contains(page, want) {
			t.Errorf("the table lacks %q:\n%s", want, page)
		}
	}
}

func TestFocus(t *testing.T) {
	pattern, err := focusOf("telling")
	if err != nil {
		t.Fatal(err)
	}
	focus := regexp.MustCompile(pattern)
	for name, want := range map[string]bool{
		"[sig-network] Services should have session affinity work for service with type clusterIP [LinuxOnly] [Conformance]":               true,
		"[sig-network] Networking Granular Checks: Pods should function for intra-pod communication: http [NodeConformance] [Conformance]": true,
		"[sig-network] Netpol NetworkPolicy between server and client should enforce policy based on Ports [Feature:NetworkPolicy]":        true,
		"[sig-network] KubeProxy should update metric for tracking accepted packets destined for localhost nodeports":                      false,
	} {
		if focus.MatchString(name) != want {
			t.Errorf("%s: in focus %v, want %v", name, !want, want)
		}
	}
	if _, err := focusOf("some"); err == nil {
		t.Error("an unknown set is taken")
	}
	left := regexp.MustCompile(notHere)
	for name, want := range map[string]bool{
		"[sig-network] Networking should provide Internet connection for containers [Feature:Networking-IPv4]":                                true,
		"[sig-network] LoadBalancers ESIPP should work from pods":                                                                             true,
		"[sig-network] Services should serve a basic endpoint from pods [Conformance]":                                                        false,
		"[sig-network] Netpol NetworkPolicy between server and client should support a 'default-deny-ingress' policy [Feature:NetworkPolicy]": false,
	} {
		if left.MatchString(name) != want {
			t.Errorf("%s: left out %v, want %v", name, !want, want)
		}
	}
}

func TestLibraries(t *testing.T) {
	got := libraries("\tlinux-vdso.so.1 (0x00007ffc0a9f2000)\n\tlibcap.so.2 => /lib/x86_64-linux-gnu/libcap.so.2 (0x00007f5e)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f6f)\n")
	if want := []string{"/lib/x86_64-linux-gnu/libcap.so.2", "/lib64/ld-linux-x86-64.so.2"}; !slices.Equal(got, want) {
		t.Errorf("libraries %v, want %v", got, want)
	}
	// Of a program that is on every machine.
	shell, err := exec.LookPath("bash")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ldd", shell).Output()
	if err != nil {
		t.Fatal(err)
	}
	if found := libraries(string(out)); !slices.ContainsFunc(found, func(l string) bool { return strings.Contains(l, "libc.so") }) {
		t.Errorf("ldd of bash names no libc: %v from %s", found, out)
	}
}
