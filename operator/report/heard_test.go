package report

import (
	"crypto/ed25519"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/operator/publish"
)

// TestSilentNodes: the last word of an agent counts for a minute after it was heard, and
// not for ever.
func TestSilentNodes(t *testing.T) {
	view, err := mesh.NewView("r7", mesh.Settings{TrustDomain: spiffeid.RequireTrustDomainFromString("mesh.test")}, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	snapshot, err := discovery.NewSnapshot(view, 7, key)
	if err != nil {
		t.Fatal(err)
	}
	const gone, mute = "n1 (its agent is not connected: what it has applied is in force, but nobody sees whether it stays so)", "n1 (its agent does not say how its pods are)"
	well := Node{Connected: true, Reports: true}
	for _, c := range []struct {
		name string
		// was is what was heard of the node in the past, by how long ago; now is what is.
		was  map[time.Duration]Node
		now  Node
		want string // "" where the policy is live
	}{
		{"heard", nil, well, ""},
		{"restarting", map[time.Duration]Node{30 * time.Second: well}, Node{}, ""},
		{"gone", map[time.Duration]Node{90 * time.Second: well, 30 * time.Second: {}}, Node{}, gone},
		{"gone before anybody looked", nil, Node{}, gone},
		{"back", map[time.Duration]Node{2 * time.Hour: well, 90 * time.Second: {}}, well, ""},
		{"just connected", nil, Node{Connected: true}, ""},
		{"connected, and mute since", map[time.Duration]Node{90 * time.Second: {Connected: true}, 30 * time.Second: {Connected: true}}, Node{Connected: true}, mute},
		{"mute after its agent came back", map[time.Duration]Node{2 * time.Hour: well}, Node{Connected: true}, mute},
	} {
		r := &Reporter{since: map[generation]uint64{}, heard: heard{}}
		at := time.Now()
		for _, ago := range []time.Duration{2 * time.Hour, 90 * time.Second, 30 * time.Second} {
			if n, ok := c.was[ago]; ok {
				n.Name = "n1"
				r.heard.listen([]Node{n}, at.Add(-ago))
			}
		}
		c.now.Name, c.now.Revision = "n1", "r7"
		now := []Node{c.now}
		r.heard.listen(now, at)
		status, count := r.live(&objectReport{}, map[string]bool{"n1": true}, map[string]Node{"n1": now[0]}, &publish.Outcome{Snapshot: snapshot})
		want := "on all of 1 nodes"
		if c.want != "" {
			want = "on 0 of 1 nodes; not on " + c.want
		}
		if status.Message != want || (count.Live == 1) != (c.want == "") {
			t.Errorf("%s: %q and %s, want %q", c.name, status.Message, count.Summary, want)
		}
	}
	h := heard{"n1": time.Now()}
	if h.listen(nil, time.Now()); len(h) != 0 {
		t.Errorf("a node that is no more is kept: %v", h)
	}
}
