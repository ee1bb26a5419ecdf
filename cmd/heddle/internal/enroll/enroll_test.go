package enroll

import (
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/cmd/heddle/internal/analyze"
)

// TestRemedyOf: --fix is promised only for what has an object that it would apply.
func TestRemedyOf(t *testing.T) {
	with, without := analyze.Finding{Fix: "kind: x"}, analyze.Finding{}
	for _, tc := range []struct {
		open        []analyze.Finding
		does, leave bool
	}{
		{[]analyze.Finding{with}, true, false},
		{[]analyze.Finding{without}, false, true},
		{[]analyze.Finding{with, without}, true, true},
	} {
		got := remedyOf(tc.open)
		if strings.Contains(got, "--fix does it") != tc.does || strings.Contains(got, "--fix cannot") != tc.leave {
			t.Errorf("%+v: %q", tc.open, got)
		}
	}
}
