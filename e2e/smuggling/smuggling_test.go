package smuggling

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
	"github.com/heddle-mesh/heddle/waypoint/corpus"
	reasons "github.com/heddle-mesh/heddle/waypoint/reason"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const (
	document   = "../../docs/http.md"
	begin, end = "<!-- compared: written by make http-differences -->\n", "<!-- end of compared -->\n"
)

var write = flag.Bool("write", false, "write the table of differences into docs/http.md")

// statusOf is what a client is answered for a reason. Those of responses are 502.
func statusOf(reason string) string {
	for _, r := range reasons.All() {
		if r.String() == reason {
			return fmt.Sprint(r.Status())
		}
	}
	return "no such reason"
}

// side is one half of the corpus.
type side struct {
	name     string
	two      bool // it is HTTP/2
	cases    func() ([]corpus.Case, error)
	run      func(*lane, corpus.Case) (string, error)
	expected func(corpus.Case) string
}

func sides() []side {
	return []side{
		{"request", false, corpus.Requests, (*lane).request, expected},
		{"http2", true, corpus.Downgrades, (*lane).downgraded, expectedDowngrade},
		{"response", false, corpus.Responses, (*lane).response, func(c corpus.Case) string {
			if strings.HasPrefix(c.Want[0], "refused ") {
				return "502"
			}
			return strings.Join(c.Want, "; ")
		}},
	}
}

// TestDifferences runs the corpus through the engine behind sockets, which must read it as it is to be read, and through
// nginx and Envoy, and prints what they read differently. Nothing is asserted about them,
// but that what is plain reaches the backend: without that the table would say nothing.
func TestDifferences(t *testing.T) {
	var table strings.Builder
	fmt.Fprintf(&table, "%s.\n\n| case | heddle | nginx | Envoy |\n|---|---|---|---|\n", versions(t))
	differ := 0
	for _, s := range sides() {
		cases, err := s.cases()
		if err != nil {
			t.Fatal(err)
		}
		var readings []map[string]string
		for _, p := range proxies() {
			readings = append(readings, p.readings(t, s, cases))
		}
		for _, c := range cases {
			want := s.expected(c)
			for i, p := range proxies() {
				if got := readings[i][c.Name]; p.mustRead(c) && got != want {
					t.Errorf("%s %s: %s reads %q, want %q", s.name, c.Name, p.name, got, want)
				}
			}
			nginx, envoy := s.cell(readings[1][c.Name], want), s.cell(readings[2][c.Name], want)
			if nginx != "=" || envoy != "=" {
				differ++
				fmt.Fprintf(&table, "| %s %s | %s | %s | %s |\n", s.name, c.Name, cell(want), nginx, envoy)
			}
		}
	}
	t.Logf("%d cases are read differently:\n%s", differ, table.String())
	if *write {
		writeTable(t, table.String())
	}
}

// cell is another's reading in the table; one that is ours is left out.
func (s *side) cell(reading, ours string) string {
	if reading == ours || s.two && alike(reading, ours) {
		return "="
	}
	return cell(reading)
}

func cell(reading string) string {
	return "`" + strings.NewReplacer("|", `\|`, "`", "'").Replace(reading) + "`"
}

func parts(t *testing.T) (before, table, after string) {
	t.Helper()
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	table, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", document)
	}
	return before, table, after
}

func writeTable(t *testing.T, table string) {
	t.Helper()
	before, _, after := parts(t)
	if err := os.WriteFile(document, []byte(before+begin+table+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestTableIsOurs: the table in the document has the engine's reading of each case
// as the corpus has it.
func TestTableIsOurs(t *testing.T) {
	_, table, _ := parts(t)
	want := map[string]string{}
	for _, s := range sides() {
		cases, err := s.cases()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cases {
			want[s.name+" "+c.Name] = cell(s.expected(c))
		}
	}
	rows := 0
	for line := range strings.Lines(table) {
		columns := strings.Split(line, " | ")
		name, ok := strings.CutPrefix(columns[0], "| ")
		if !ok || name == "case" {
			continue
		}
		if rows++; len(columns) < 4 || want[name] == "" || columns[1] != want[name] {
			t.Errorf("%q: the corpus has %q: run make http-differences", line, want[name])
		}
	}
	if rows < 20 {
		t.Errorf("%d rows", rows)
	}
}
