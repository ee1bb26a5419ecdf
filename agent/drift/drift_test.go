package drift

import (
	"testing"

	"github.com/heddle-mesh/heddle/bpf"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestInTurn: of more rules than are read at once, all pods' have their turn.
func TestInTurn(t *testing.T) {
	unread := map[string]int{"a": 0, "b": 3 * rules, "c": 10, "d": rules}
	left, next := map[string]int{"a": 0, "b": 3 * rules, "c": 10, "d": rules}, ""
	rounds := map[string]int{}
	for range 15 { // three rounds of 4 times what is read at once, and a bit
		read := 0
		next = inTurn([]string{"a", "b", "c", "d"}, next, func(name string, most int) bpf.Looked {
			n := max(0, min(left[name], most))
			read += n
			if left[name] -= n; left[name] > 0 || most <= 0 && unread[name] > 0 {
				return bpf.Looked{Rules: n}
			}
			left[name] = unread[name]
			rounds[name]++
			return bpf.Looked{Rules: n, All: true}
		})
		if read > rules {
			t.Errorf("%d rules were read at once", read)
		}
	}
	for name, n := range rounds {
		if n < 3 {
			t.Errorf("%s was read %d times", name, n)
		}
	}
	if len(rounds) != 4 {
		t.Errorf("%v were read", rounds)
	}
}
