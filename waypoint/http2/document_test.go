package http2_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/waypoint/http2"
	"github.com/heddle-mesh/heddle/waypoint/reason"
)

// TestDocument: each case, test and reason that the HTTP/2 part of docs/http.md names is there, each reason of HTTP/2 is
// named or told by its test, and the rates are those of Defaults.
func TestDocument(t *testing.T) {
	page, err := os.ReadFile("../../docs/http.md")
	if err != nil {
		t.Fatal(err)
	}
	_, part, found := strings.Cut(string(page), "\n# HTTP/2\n")
	if !found {
		t.Fatal("docs/http.md has no part about HTTP/2")
	}
	tests := map[string]bool{}
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	through, err := filepath.Glob("through/*_test.go")
	if err != nil || len(through) == 0 {
		t.Fatal(through, err)
	}
	served, err := filepath.Glob("../serve/two*_test.go")
	if err != nil || len(served) == 0 {
		t.Fatal(served, err)
	}
	files = append(append(append(files, through...), served...), "../serve/interop_test.go", "../serve/autobahn_test.go")
	all := ""
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all += string(text)
		for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)`).FindAllStringSubmatch(string(text), -1) {
			tests[m[1]] = true
		}
	}
	names := map[string]bool{}
	for _, r := range reason.All() {
		names[r.String()] = true
	}
	for _, m := range regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(part, -1) {
		if !tests[m[1]] {
			t.Errorf("docs/http.md names %s, which is no test", m[1])
		}
	}
	for _, m := range regexp.MustCompile("`([a-z0-9]+(?:_[a-z0-9]+)+)`").FindAllStringSubmatch(part, -1) {
		if !names[m[1]] {
			t.Errorf("docs/http.md names the reason %s, which is none", m[1])
		}
	}
	for _, c := range corpusCases(t) {
		tests[c.Name] = true
	}
	rows := 0
	for line := range strings.Lines(part) {
		columns := strings.Split(strings.Trim(strings.TrimSpace(line), "| "), " | ")
		if last := columns[len(columns)-1]; len(columns) > 2 && strings.HasPrefix(last, "`") {
			rows++
			for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(last, -1) {
				if !tests[m[1]] && !names[m[1]] {
					t.Errorf("docs/http.md names %s, which is neither a case, nor a test or a reason", m[1])
				}
			}
		}
	}
	if rows < 45 {
		t.Errorf("docs/http.md has %d rows about HTTP/2", rows)
	}
	rate := regexp.MustCompile("\\| ([\\d,]+), (\\d+) \\| `(\\w+)` \\|")
	rates := 0
	for _, m := range rate.FindAllStringSubmatch(part, -1) {
		i := slices.IndexFunc(reason.All(), func(r reason.Reason) bool { return r.String() == m[3] })
		r := http2.Defaults().Rates[reason.All()[i]-reason.RapidReset]
		if strings.ReplaceAll(m[1], ",", "") != fmt.Sprint(r.Burst) || m[2] != fmt.Sprint(r.PerSecond) {
			t.Errorf("docs/http.md says %s, %s of %s, Defaults %v", m[1], m[2], m[3], r)
		}
		rates++
	}
	if rates != http2.Floods {
		t.Errorf("docs/http.md has the rates of %d floods, of %d", rates, http2.Floods)
	}
	for _, r := range reason.All() {
		if r > reason.Unsolicited && !strings.Contains(part, "`"+r.String()+"`") && !strings.Contains(all, r.String()) && !strings.Contains(all, "reason."+goName(r)) {
			t.Errorf("%v is in no document and in no test", r)
		}
	}
}

// goName is the constant of a reason, as far as letters go.
func goName(r reason.Reason) string {
	name := ""
	for part := range strings.SplitSeq(r.String(), "_") {
		name += strings.ToUpper(part[:1]) + part[1:]
	}
	return name
}
