package status

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/cmd/heddle/internal/reach"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// of sums up what two replicas say, of which one leads.
func of(policies ...*meshpb.OperatorPolicy) *Summary {
	s := &Summary{OK: true}
	s.operators([]reach.Answer[*meshpb.OperatorState]{{Value: &meshpb.OperatorState{}}, {Value: &meshpb.OperatorState{Policies: policies}}})
	return s
}

func text(t *testing.T, s *Summary, all bool) string {
	t.Helper()
	var out bytes.Buffer
	if err := s.Print(&out, false, all); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func row(text, of string) string {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, of+" ") {
			return strings.Join(strings.Fields(line), " ")
		}
	}
	return ""
}

func TestPolicies(t *testing.T) {
	s := of(
		&meshpb.OperatorPolicy{Kind: "Mesh", Name: "default", Accepted: true, Nodes: 2, Live: 2},
		&meshpb.OperatorPolicy{Kind: "NetworkPolicy", Namespace: "shop", Name: "slow", Accepted: true, Nodes: 3, Live: 1, Pending: []string{"n2", "n3"}},
		&meshpb.OperatorPolicy{Kind: "NetworkPolicy", Namespace: "shop", Name: "nobody", Accepted: true},
	)
	if !s.OK {
		t.Errorf("what is not live yet is a problem: %v", s.Problems)
	}
	out := text(t, s, false)
	for of, want := range map[string]string{
		"Mesh default":              "Mesh default accepted 2/2 -",
		"NetworkPolicy shop/slow":   "NetworkPolicy shop/slow accepted 1/3 not yet on n2, n3",
		"NetworkPolicy shop/nobody": "NetworkPolicy shop/nobody accepted 0/0 no enrolled workload is concerned",
	} {
		if got := row(out, of); got != want {
			t.Errorf("%s is shown as %q, want %q", of, got, want)
		}
	}
	s = of(&meshpb.OperatorPolicy{Kind: "NetworkPolicy", Namespace: "shop", Name: "bad", Message: "spec.ingress[0]: is wrong; mend it", Nodes: 1, Live: 1})
	if out := text(t, s, false); s.OK || row(out, "NetworkPolicy shop/bad") != "NetworkPolicy shop/bad refused 1/1 -" ||
		!strings.Contains(out, "not well: NetworkPolicy shop/bad is refused: spec.ingress[0]: is wrong; mend it") {
		t.Errorf("of one that is refused it says\n%s", out)
	}
}

// TestManyPolicies: those that are well are shown when they are asked for.
func TestManyPolicies(t *testing.T) {
	var all []*meshpb.OperatorPolicy
	for i := range 100 {
		all = append(all, &meshpb.OperatorPolicy{Kind: "NetworkPolicy", Namespace: "shop", Name: fmt.Sprintf("np-%d", i), Accepted: true, Nodes: 1, Live: uint32(min(i, 1))})
	}
	short, long := text(t, of(all...), false), text(t, of(all...), true)
	if strings.Count(short, "NetworkPolicy") != 1 || row(short, "NetworkPolicy shop/np-0") == "" || !strings.Contains(short, "and 99 more") {
		t.Errorf("in short:\n%s", short)
	}
	if strings.Count(long, "NetworkPolicy") != 100 || strings.Contains(long, "more") {
		t.Errorf("in full:\n%s", long)
	}
}
