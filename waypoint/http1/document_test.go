package http1_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/waypoint/reason"
)

// TestDocument: each case and test that docs/http.md names is there, and each reason.
func TestDocument(t *testing.T) {
	page, err := os.ReadFile("../../docs/http.md")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	requests, responses := cases(t)
	for _, c := range slices.Concat(requests, responses) {
		known[c.Name] = true
	}
	reasons := map[string]bool{}
	for _, r := range reason.HTTP1() {
		reasons[r.String()] = true
	}
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)`).FindAllStringSubmatch(string(text), -1) {
			known[m[1]] = true
		}
	}
	quoted, rows := regexp.MustCompile("`([^`]+)`"), 0
	before, _, _ := strings.Cut(string(page), "## What is written")
	for line := range strings.Lines(before) {
		columns := strings.Split(strings.ReplaceAll(strings.TrimSpace(line), `\|`, ""), "|")
		if len(columns) != 6 || !strings.Contains(columns[4], "`") {
			continue
		}
		rows++
		for _, m := range quoted.FindAllStringSubmatch(columns[4], -1) {
			if !known[m[1]] {
				t.Errorf("docs/http.md names %s, which is neither a case nor a test", m[1])
			}
		}
		for _, m := range quoted.FindAllStringSubmatch(columns[3], -1) {
			if strings.Contains(m[1], "_") && !reasons[m[1]] {
				t.Errorf("docs/http.md names the reason %s, which is none", m[1])
			}
		}
	}
	if rows < 45 {
		t.Errorf("docs/http.md has %d rows", rows)
	}
}
