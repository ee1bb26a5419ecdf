package discovery

import (
	"testing"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

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
		return o.syncing.Begun("n1") == maxSyncingOfNode
	})
	startAgent(t, o, "n2", nil).awaitEpoch(t, 1)
}
