package discovery

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// However many come, no more than the bound are sent much at a time, and one node
// that does not answer keeps no other waiting.
func TestPlacesForWholeSets(t *testing.T) {
	s, err := NewServer(ServerConfig{Authenticate: testCaller, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxSyncing {
		if s.beginSync(fmt.Sprintf("n%d", i/maxSyncingOfNode)) != nil {
			t.Fatalf("place %d is not given", i)
		}
	}
	busy := s.beginSync("late")
	if busy == nil {
		t.Fatal("one more than the bound")
	}
	s.endSync("n0")
	select {
	case <-busy:
	default:
		t.Error("nobody is told of a free place")
	}
	if s.beginSync("n1") == nil {
		t.Error("a node has more places than its own")
	}
	if s.beginSync("late") != nil {
		t.Error("the free place is not given")
	}
	s.endSync("late")
	for i := 1; i < maxSyncing; i++ {
		s.endSync(fmt.Sprintf("n%d", i/maxSyncingOfNode))
	}
	if s.syncing.total != 0 || len(s.syncing.byNode) != 0 {
		t.Errorf("%d places are taken, by %v", s.syncing.total, s.syncing.byNode)
	}
}

// Agents that are not answering take their node's places only: another node is
// served meanwhile.
func TestASlowNodeKeepsNoOtherWaiting(t *testing.T) {
	o := startOperator(t, nil)
	o.Publish(snapshotOf(t, viewOf(t, shape{workloads: 2 * muchChanges, nodes: twoNodes}), 1))
	for range maxSyncingOfNode + 3 {
		stream := raw(t, o, "n1")
		for _, req := range subscribeAll("n1") { // and never answers
			if err := stream.Send(req); err != nil {
				t.Fatal(err)
			}
		}
	}
	testenv.Eventually(t, 10e9, "the slow node's places are taken", func() bool {
		o.syncing.Lock()
		defer o.syncing.Unlock()
		return o.syncing.byNode["n1"] == maxSyncingOfNode
	})
	startAgent(t, o, "n2", nil).awaitEpoch(t, 1)
}
