package keys

import (
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestEpochBase(t *testing.T) {
	for text, want := range map[string]uint64{"": 0, "0": 0, "1764000000000000": 1764000000000000, " 7\n": 7} {
		if got, err := epochBase([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for text, says := range map[string]string{"-1": "invalid", "soon": "invalid", "1e6": "invalid", " ": "invalid", "9223372036854775807": "larger", "99999999999999999999": "range"} {
		if _, err := epochBase([]byte(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
}
