package health

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestRootExpires: the remedy promises what the page that it names says, no more.
func TestRootExpires(t *testing.T) {
	page, err := os.ReadFile("../../../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(page), "## Certificates") || !strings.Contains(string(page), "There is no command to rotate it yet") {
		t.Error("docs/operations.md says otherwise: change the remedy with it")
	}
	for _, tc := range []struct {
		left time.Duration
		ok   bool
	}{{-time.Hour, false}, {29 * 24 * time.Hour, false}, {31 * 24 * time.Hour, true}} {
		r := New()
		r.authority("operator", &meshpb.OperatorAuthority{TrustDomain: "m", RootNotAfterNs: time.Now().Add(tc.left).UnixNano()})
		f := r.Findings[0]
		if r.OK != tc.ok || f.OK != tc.ok || !tc.ok && !strings.Contains(f.Remedy, "no command to rotate the root yet") {
			t.Errorf("%v left: %+v", tc.left, f)
		}
	}
}
