package pattern_test

import (
	"regexp"
	"regexp/syntax"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh/route/pattern"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// FuzzPattern: it matches what package regexp matches as a whole, also when literals say
// in advance that it cannot, and has no more instructions than were counted.
func FuzzPattern(f *testing.F) {
	for _, seed := range [][2]string{
		{"/a|/b", "/a"}, {"/api/v[0-9]+/r1", "/api/v2/r1"}, {".*user=beta.*", "x; user=beta; y"}, {"(?i)/A[b]c", "/abc"}, {"(?m)^/a$", "/a"},
		{`\Qa.b`, "a.b"}, {`\Qa)`, "a)"}, {"\uFFFDa", "\xffa"}, {"a\uFFFD[x]b", "a\xffxb"}, {"(a{3}){4}", "aaaaaaaaaaaa"}, {"a?b*?c+", "bc"}, {`\pL{2}\b`, "éé"}, {"(?:)", ""},
		{"(?:a{0,3}|b{2,}){5}", "abb"}, {"(?i)k", "\u212a"}, {"[^a]", "\xff"}, {"()|a", "a"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, text, value string) {
		size, err := pattern.Measure(text)
		p, err2 := pattern.Compile(text)
		if (err == nil) != (err2 == nil) {
			t.Fatalf("%q: Measure says %v, Compile %v", text, err, err2)
		}
		if err != nil {
			return
		}
		tree, err := syntax.Parse(text, syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		program, err := syntax.Compile(tree.Simplify())
		if err != nil {
			t.Fatal(err)
		}
		if len(program.Inst) > size.Steps+10 {
			t.Fatalf("%q has %d instructions, counted were %d", text, len(program.Inst), size.Steps)
		}
		whole := regexp.MustCompile(text)
		whole.Longest()
		// The longest match from the beginning is the whole one, if there is a whole one.
		at := whole.FindStringIndex(value)
		if at != nil && at[0] == 0 && at[1] == len(value) && (p.Excludes(value) || !p.Match(value)) {
			t.Fatalf("%q does not match %q: excluded %v", text, value, p.Excludes(value))
		}
		if p.Match(value) && p.Excludes(value) {
			t.Fatalf("%q excludes %q, which it matches", text, value)
		}
		if p.Match(value) && at == nil {
			t.Fatalf("%q matches %q, which package regexp does not", text, value)
		}
	})
}

func TestLiteralsExclude(t *testing.T) {
	for _, test := range []struct {
		text, value string
		excluded    bool
	}{
		{"/api/v[0-9]+/r1", "/api/v1/r2", true}, {"/api/v[0-9]+/r1", "/app/v1/r1", true}, {"/api/v[0-9]+/r1", "/api/v1/r1", false},
		{".*user=beta.*", "user=alpha", true}, {".*user=beta.*", "a; user=beta", false}, {"(?i)/a[b]", "/Ab", false}, {"(/a)", "/b", true},
	} {
		p, err := pattern.Compile(test.text)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Excludes(test.value); got != test.excluded {
			t.Errorf("%s excludes %s: %v, want %v", test.text, test.value, got, test.excluded)
		}
	}
}

// TestLargeOnesAreRefusedCheaply: by their syntax tree, not after they were compiled.
func TestLargeOnesAreRefusedCheaply(t *testing.T) {
	for _, text := range []string{"(?:" + strings.Repeat("a", 1010) + "){1000}", strings.Repeat(`\PL`, 330), `\pL{20}`, "(?:a{30}){30}b{200}", strings.Repeat(`\PL`, 16)} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		_, err := pattern.Compile(text)
		took := time.Since(start)
		runtime.ReadMemStats(&after)
		if err == nil || !strings.Contains(err.Error(), "is too large") {
			t.Errorf("%.20q: %v, want that it is too large", text, err)
		}
		got := after.TotalAlloc - before.TotalAlloc
		t.Logf("%.20q: %v, %d KiB", text, took, got>>10)
		if got > 4<<20 {
			t.Errorf("%.20q is refused after %d KiB, want less than 4 MiB", text, got>>10)
		}
	}
}
