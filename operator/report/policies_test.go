package report

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestBounded: an answer has room for policies that are not well before others, and
// for no more than a message holds.
func TestBounded(t *testing.T) {
	var all []*meshpb.OperatorPolicy
	for i := range 40_000 {
		p := &meshpb.OperatorPolicy{Kind: "NetworkPolicy", Namespace: "shop", Name: fmt.Sprintf("np-%05d", i), Accepted: true, Nodes: 1, Live: 1, Message: strings.Repeat("x", 100)}
		switch i {
		case 7:
			p.Live = 0
		case 39_999:
			p.Accepted, p.Message = false, strings.Repeat("y", maxMessage)
		}
		all = append(all, p)
	}
	kept, leftOut := Bounded(all)
	size := proto.Size(&meshpb.OperatorState{Policies: kept})
	if size > maxAnswer || size < maxAnswer*9/10 || len(kept)+leftOut != len(all) {
		t.Errorf("kept %d, left out %d, %d bytes", len(kept), leftOut, size)
	}
	if last := kept[len(kept)-1]; last.GetAccepted() || kept[7].GetLive() != 0 {
		t.Errorf("what is not well was left out: the last is %v", last.GetName())
	}
	if kept, leftOut := Bounded(all[:10]); len(kept) != 10 || leftOut != 0 {
		t.Errorf("of 10, %d are kept and %d left out", len(kept), leftOut)
	}
}
