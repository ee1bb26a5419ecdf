package testenv

import (
	"encoding/xml"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// H2Spec runs the conformance suite of HTTP/2, its strict cases too, against a server on a port of loopback. A case that
// the suite skips is one that fails: it looks at nothing. Dir is that of the module which pins the suite. It waits long
// for what is to come: a busy machine is no fault. Sections are those of the suite to run, all without any.
func H2Spec(t testing.TB, dir, port string, sections ...string) {
	t.Helper()
	to := t.TempDir()
	Build(t, dir, to+"/h2spec", "github.com/summerwind/h2spec/cmd/h2spec")
	report := filepath.Join(to, "report.xml")
	said, err := exec.CommandContext(t.Context(), to+"/h2spec", append([]string{"--strict", "-o", "8", "-p", port, "-j", report}, sections...)...).CombinedOutput()
	if err != nil {
		t.Errorf("h2spec: %v: %s", err, said)
	}
	var suites struct {
		Suites []struct {
			Cases []struct {
				Package string    `xml:"package,attr"`
				Name    string    `xml:"classname,attr"`
				Failure *struct{} `xml:"failure"`
				Error   *struct{} `xml:"error"`
				Skipped *struct{} `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	data, err := os.ReadFile(report)
	if err == nil {
		err = xml.Unmarshal(data, &suites)
	}
	if err != nil {
		t.Fatalf("read the suite's report: %v", err)
	}
	passed := 0
	for _, s := range suites.Suites {
		for _, c := range s.Cases {
			switch {
			case c.Failure != nil, c.Error != nil:
				t.Errorf("%s %s: failed", c.Package, c.Name)
			case c.Skipped != nil:
				t.Errorf("%s %s: skipped by the suite", c.Package, c.Name)
			default:
				passed++
			}
		}
	}
	t.Logf("%d cases have passed", passed)
	if passed < 140 {
		t.Errorf("%d cases have passed, of more than 140: %q", passed, said)
	}
}
