package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func put(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLayOut(t *testing.T) {
	osv, out := t.TempDir(), filepath.Join(t.TempDir(), "db")
	one := `{"id":"GO-2020-0001","modified":"0001-01-01T00:00:00Z","published":"2021-04-14T20:04:52Z","aliases":["CVE-1"],"affected":[{"package":{"name":"stdlib"}},{"package":{"name":"stdlib"}},{"package":{"name":"a.test/b"}}]}`
	put(t, osv, "GO-2020-0001.json", one)
	put(t, osv, "GO-2021-0002.json", `{"id":"GO-2021-0002","modified":"2022-01-01T00:00:00Z","affected":[{"package":{"name":"a.test/b"}}]}`)
	put(t, osv, "README.md", "not one")
	if n, err := layOut(osv, out); n != 2 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	for name, want := range map[string]string{
		"ID/GO-2020-0001.json": one,
		"index/db.json":        `{"modified":"2022-01-01T00:00:00Z"}`,
		"index/vulns.json":     `[{"id":"GO-2020-0001","modified":"2021-04-14T20:04:52Z","aliases":["CVE-1"]},{"id":"GO-2021-0002","modified":"2022-01-01T00:00:00Z"}]`,
		"index/modules.json": `[{"path":"a.test/b","vulns":[{"id":"GO-2020-0001","modified":"2021-04-14T20:04:52Z"},{"id":"GO-2021-0002","modified":"2022-01-01T00:00:00Z"}]},` +
			`{"path":"stdlib","vulns":[{"id":"GO-2020-0001","modified":"2021-04-14T20:04:52Z"}]}]`,
	} {
		if got, err := os.ReadFile(filepath.Join(out, name)); err != nil || string(got) != want {
			t.Errorf("%s: %v\n%s\nwant %s", name, err, got, want)
		}
	}
}

// TestLayOutRefuses what would be a database that finds nothing, or another's entries.
func TestLayOutRefuses(t *testing.T) {
	for says, files := range map[string]map[string]string{
		"0 entries":            {},
		"no whole database":    {"GO-2021-0002.json": `{"id":"GO-2021-0002","affected":[{"package":{"name":"a.test/b"}}]}`},
		`is of "GO-2021-0003"`: {"GO-2021-0002.json": `{"id":"GO-2021-0003"}`},
		"invalid character":    {"GO-2021-0002.json": `x`},
		"more than":            {"GO-2021-0002.json": strings.Repeat(" ", maxEntry+1)},
	} {
		osv, out := t.TempDir(), t.TempDir()
		for name, text := range files {
			put(t, osv, name, text)
		}
		if _, err := layOut(osv, out); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
		if _, err := os.Stat(filepath.Join(out, "index", "db.json")); err == nil {
			t.Errorf("%s: a database was made", says)
		}
	}
}

func TestJudge(t *testing.T) {
	dir := t.TempDir()
	known := put(t, dir, "known", "# why\nGO-2026-0001 waits for a release\n\nGO-2026-0002  not called\n")
	both := "Vulnerability #1: GO-2026-0001\n    about it\nVulnerability #2: GO-2026-0002\n\nYour code is affected by 2 vulnerabilities.\n"
	for name, c := range map[string]struct{ known, report, says, fails string }{
		"nothing":       {known, "No vulnerabilities found.\n", "GO-2026-0001 is not found any more", ""},
		"what is known": {known, both, "nothing that is not known; 2 known", ""},
		"a new one":     {known, "Vulnerability #1: GO-2026-0003\n    of yesterday\n" + both, "of yesterday", "1 vulnerabilities are not known: GO-2026-0003; remedy"},
		"no scan":       {known, "creating client: unrecognized vulndb format\n", "", "did not come to its end"},
		"no output":     {known, "", "", "did not come to its end"},
		"no reason":     {put(t, dir, "bare", "GO-2026-0001\n"), both, "", "write GO-YYYY-NNNN and the reason"},
		"no list":       {filepath.Join(dir, "none"), both, "", "no such file"},
	} {
		var out bytes.Buffer
		err := judge(strings.NewReader(c.report), c.known, &out)
		if (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) || !strings.Contains(out.String(), c.says) {
			t.Errorf("%s: %v, said %q", name, err, out.String())
		}
	}
}

// TestKnown: the list of the repository can be read.
func TestKnown(t *testing.T) {
	text, err := os.ReadFile("known.txt")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseKnown(string(text)); err != nil {
		t.Error(err)
	}
}

// FuzzTake: an entry is copied as it is, or refused.
func FuzzTake(f *testing.F) {
	f.Add([]byte(`{"id":"GO-2020-0001","affected":[{"package":{"name":"stdlib"}}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		dir, out := t.TempDir(), t.TempDir()
		e, err := take(put(t, dir, "GO-2020-0001.json", string(text)), out)
		copied, missing := os.ReadFile(filepath.Join(out, "GO-2020-0001.json"))
		if (err == nil) != (missing == nil) || err == nil && (!bytes.Equal(copied, text) || !json.Valid(text) || len(e.modules()) > len(text)) {
			t.Errorf("%v, %v", err, missing)
		}
	})
}

// FuzzReport: whatever is read as a report has come to its end.
func FuzzReport(f *testing.F) {
	f.Add("Vulnerability #1: GO-2026-0001\nYour code is affected\n")
	f.Fuzz(func(t *testing.T, text string) {
		found, whole, err := parseReport(strings.NewReader(text))
		if err == nil && (!strings.Contains(whole, "No vulnerabilities found") && !strings.Contains(whole, "Your code ") || len(found) > len(text)) {
			t.Errorf("%v of %q", found, whole)
		}
	})
}
