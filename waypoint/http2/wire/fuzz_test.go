package wire

import (
	"strings"
	"testing"
)

// FuzzField: what is appended, x/net reads as it was, its name in lower case.
func FuzzField(f *testing.F) {
	f.Add("Content-Type", "text/plain")
	f.Add(strings.Repeat("n", 200), strings.Repeat("v", 20_000))
	f.Fuzz(func(t *testing.T, name, value string) {
		lower := []byte(name)
		for i, c := range lower {
			if c >= 'A' && c <= 'Z' {
				lower[i] += 'a' - 'A'
			}
		}
		lines := decode(t, AppendField(nil, name, value))
		if want := string(lower) + "=" + value; len(lines) != 1 || strings.TrimSuffix(lines[0], " never indexed") != strings.TrimSuffix(want, " never indexed") {
			t.Errorf("%q, want %q", lines, want)
		}
	})
}
