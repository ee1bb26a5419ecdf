package agent

import (
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/agent/handover"
	"github.com/heddle-mesh/heddle/agent/proxy"
)

// TestCheckReadsPairs: what a pair's thaw would fail for is said before the
// donor gives it away.
func TestCheckReadsPairs(t *testing.T) {
	for state, want := range map[string]string{
		`{"version":7}`:                "version 7",
		`no state`:                     "not the state of a frozen pair",
		`{"version":1,"owner":"e30="}`: "version 0", // the owner is {}
	} {
		c := &handover.Connection{Kind: string(proxy.KindPair), State: []byte(state), Files: []int{-1, -1}}
		if err := (&taker{}).Check([]*handover.Connection{c}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: want %q, got %v", state, want, err)
		}
	}
}
