package agent

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/agent/handover"
	"github.com/heddle-mesh/heddle/agent/kernel"
	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/agent/proxy/frozen"
	"github.com/heddle-mesh/heddle/agent/relay"
	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/flow"
	tunnels "github.com/heddle-mesh/heddle/internal/hbone/fast/frozen"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// taker takes connections for the proxy, and counts them.
type taker struct {
	p                            *parts
	connections, failed, tunnels uint32
	// thawing is told before each connection goes on.
	thawing func(point string)
}

// Check implements handover.Taker.
func (t *taker) Check(all []*handover.Connection) error {
	for _, c := range all {
		if err := t.check(c); err != nil {
			return err
		}
	}
	return nil
}

// check decodes what another version may have encoded.
func (t *taker) check(c *handover.Connection) error {
	switch {
	case len(c.Files) == 0:
		return errors.New("it came without descriptors")
	case proxy.Kind(c.Kind) == proxy.KindPair:
		owner, err := relay.Check(&relay.Frozen{State: c.State, Data: c.Data, Files: c.Files})
		if err == nil {
			_, err = frozen.Decode(owner)
		}
		return err
	case proxy.Kind(c.Kind) != proxy.KindTunnel:
		return fmt.Errorf("it is a %q, which this version does not know", c.Kind)
	case !t.p.succession.pods[kernel.Name(keyOf(c))]:
		return fmt.Errorf("it is of pod %q, which is not enrolled here", c.Pod)
	}
	tunnel, err := tunnels.Decode(c.State, c.Data, len(c.Files))
	if err != nil {
		return err
	}
	for i := range tunnel.Streams {
		if _, err := frozen.Decode(tunnel.Streams[i].Owner); err != nil {
			return err
		}
	}
	return nil
}

// keyOf names the pod of a tunnel; a pair has none.
func keyOf(c *handover.Connection) (key mesh.Key) {
	key.Namespace, key.Name, _ = strings.Cut(c.Pod, "/")
	return key
}

// Thaw implements handover.Taker.
func (t *taker) Thaw(c *handover.Connection) error {
	t.thawing("thaw")
	f := &proxy.Frozen{Kind: proxy.Kind(c.Kind), Pod: keyOf(c), State: c.State, Data: c.Data, Files: c.Files}
	carried := uint32(1)
	if f.Kind == proxy.KindTunnel {
		carried = uint32(len(c.Files) - 1) // its streams: the first is the tunnel's own
	}
	if err := t.p.proxy.Thaw(f); err != nil {
		t.failed += carried
		return err
	}
	t.connections += carried
	if f.Kind == proxy.KindTunnel {
		t.tunnels++
	}
	return nil
}

// Records implements handover.Taker.
func (t *taker) Records(all [][]byte) { restore(t.p.ring, all) }

// restore adds another agent's flow records to the ring. One that this version
// cannot read is left out.
func restore(ring *flow.Ring, records [][]byte) {
	for _, b := range records {
		var message meshpb.Flow
		if proto.Unmarshal(b, &message) != nil {
			continue
		}
		if r, err := flow.FromProto(&message); err == nil {
			ring.Add(r)
		}
	}
}
