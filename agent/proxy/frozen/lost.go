package frozen

import (
	"fmt"
	"time"

	"github.com/heddle-mesh/heddle/agent/relay"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone"
	tunnels "github.com/heddle-mesh/heddle/internal/hbone/fast/frozen"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// LostInMove is the Detail of a connection that did not go on after a move.
const LostInMove = "lost: the hand-over failed"

// Lost returns the records, as of now, of the connections in a frozen pair, or in
// a tunnel, that were not made again: all but the first made, in the order in
// which they are adopted. Each says why. What cannot be read has none.
func Lost(f *hbone.Frozen, pair bool, made int, why error) (records []flow.Record) {
	for _, state := range owners(f, pair)[made:] {
		c, err := Decode(state)
		if err != nil {
			continue
		}
		r := c.Record
		r.Reason, r.Detail = mesh.ReasonDraining, fmt.Sprintf("%s: %v", LostInMove, why)
		r.Duration = time.Since(r.Start)
		r.BytesSent, r.BytesReceived = c.Sent, c.Received
		if r.Direction == flow.DirectionInbound {
			r.BytesSent, r.BytesReceived = c.Received, c.Sent
		}
		records = append(records, r)
	}
	return records
}

func owners(f *hbone.Frozen, pair bool) (all [][]byte) {
	if pair {
		if owner, err := relay.Check(f); err == nil {
			all = append(all, owner)
		}
		return all
	}
	tunnel, err := tunnels.Decode(f.State, f.Data, len(f.Files))
	if err != nil {
		return nil
	}
	for i := range tunnel.Streams {
		all = append(all, tunnel.Streams[i].Owner)
	}
	return all
}
