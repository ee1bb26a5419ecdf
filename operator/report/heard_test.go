package report

import (
	"context"
	"crypto/ed25519"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/api/v1alpha1"
	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/kube"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/operator/publish"
)

// enrolled is a workload behind its gate.
func enrolled(name, node, address string) mesh.Workload {
	return mesh.Workload{Key: mesh.Key{Namespace: "shop", Name: name}, ServiceAccount: name, Node: node, Identity: spiffeid.RequireFromString("spiffe://mesh.test/ns/shop/sa/" + name),
		Addresses: []netip.Addr{netip.MustParseAddr(address)}, Labels: map[string]string{"app": name}, Enrolled: true, Gated: true, Ready: true}
}

// served is a Mesh that agents have as r7, and one workload of it on n1, with some more.
func served(t *testing.T, more ...mesh.Workload) publish.Outcome {
	settings := mesh.Settings{TrustDomain: spiffeid.RequireTrustDomainFromString("mesh.test"), ClusterRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	view, err := mesh.NewView("r7", settings, append(more, enrolled("web", "n1", "10.1.0.1")), nil, nil)
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
	return publish.Outcome{Snapshot: snapshot, Objects: &kube.Objects{Meshes: []kube.Sourced[v1alpha1.Mesh]{{Value: &v1alpha1.Mesh{}}}}}
}

// TestFolderListensUnasked: of a folder, too, an agent's last word counts for a minute, asked
// for before or not.
func TestFolderListensUnasked(t *testing.T) {
	outcome := served(t)
	synctest.Test(t, func(t *testing.T) {
		var away atomic.Bool
		f := NewFolder(func() publish.Outcome { return outcome }, func() []Node {
			return []Node{{Name: "n1", Revision: "r7", Connected: !away.Load(), Reports: !away.Load()}}
		})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- f.Run(ctx) }()
		time.Sleep(2 * time.Hour)
		away.Store(true)
		for _, c := range []struct {
			after time.Duration
			live  uint32
		}{{0, 1}, {grace / 2, 1}, {grace, 0}} {
			time.Sleep(c.after)
			if p := f.Policies(); len(p) != 1 || p[0].GetLive() != c.live || p[0].GetNodes() != 1 {
				t.Errorf("after another %v: %v, want live on %d", c.after, p, c.live)
			}
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestSilentNodes: the last word of an agent counts for a minute after it was heard, and
// not for ever.
func TestSilentNodes(t *testing.T) {
	outcome := served(t)
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
		status, count := r.live(&objectReport{}, map[string]bool{"n1": true}, map[string]Node{"n1": now[0]}, &outcome)
		want := "on all of 1 nodes"
		if c.want != "" {
			want = "on 0 of 1 nodes; not on " + c.want
		}
		if status.Message != want || (count.Live == 1) != (c.want == "") {
			t.Errorf("%s: %q and %s, want %q", c.name, status.Message, count.Summary, want)
		}
		// A folder's, of which nobody has asked before.
		var is []Node
		f := NewFolder(func() publish.Outcome { return outcome }, func() []Node { return slices.Clone(is) })
		for _, ago := range []time.Duration{2 * time.Hour, 90 * time.Second, 30 * time.Second} {
			if n, ok := c.was[ago]; ok {
				n.Name = "n1"
				is = []Node{n}
				f.listen(at.Add(-ago))
			}
		}
		is = []Node{c.now}
		if p := f.Policies(); len(p) != 1 || (p[0].GetLive() == 1) != (c.want == "") || p[0].GetNodes() != 1 {
			t.Errorf("%s: of a folder: %v", c.name, p)
		}
	}
	h := heard{"n1": time.Now()}
	if h.listen(nil, time.Now()); len(h) != 0 {
		t.Errorf("a node that is no more is kept: %v", h)
	}
}
