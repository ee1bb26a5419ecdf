package reason

import (
	"regexp"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestNames: each reason has a name of its own, and a status or none.
func TestNames(t *testing.T) {
	form, seen := regexp.MustCompile(`^[a-z][a-z0-9_]+$`), map[string]bool{}
	for _, r := range All() {
		if name := r.String(); !form.MatchString(name) || seen[name] || name == Reason(250).String() {
			t.Errorf("%d is %q", r, name)
		} else {
			seen[name] = true
		}
		if s := r.Status(); s != 0 && (s < 400 || s > 505) {
			t.Errorf("%v has status %d", r, s)
		}
	}
	if len(seen) != int(last) {
		t.Errorf("%d names", len(seen))
	}
}
