package agent

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/agent/cni"
	"github.com/heddle-mesh/heddle/agent/handover"
	"github.com/heddle-mesh/heddle/agent/kernel"
	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/internal/mesh"
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

// enrolls is a Datapath that remembers what it enrolled.
type enrolls struct {
	last    *mesh.Workload
	revoked bool
}

func (e *enrolls) Enroll(_ context.Context, w *mesh.Workload, revoked bool) (proxy.Pod, error) {
	e.last, e.revoked = w, revoked
	return proxy.Pod{Key: w.Key}, nil
}
func (e *enrolls) Unenroll(context.Context, mesh.Key) error { return nil }
func (e *enrolls) Prune(context.Context, []mesh.Key) error  { return nil }

// TestSuccessorOnARuntimesNode: where pods run, only the runtime knows. A successor
// enrolls them there, by the operator's newest word; not a pod that has only the
// name; and waits for pods until the runtime has answered.
func TestSuccessorOnARuntimesNode(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("example.test")
	said := mesh.Workload{
		Key: mesh.Key{Namespace: "shop", Name: "web"}, ServiceAccount: "web", Node: "n1", UID: "one", Enrolled: true, Ready: true,
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Mode: mesh.ModePermissive,
	}
	var err error
	if said.Identity, err = mesh.IdentityFor(td, "shop", "web"); err != nil {
		t.Fatal(err)
	}
	view, err := mesh.NewView("r", mesh.Settings{TrustDomain: td}, []mesh.Workload{said}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	close(done)
	below := &enrolls{}
	c := cautious{Datapath: below, store: mesh.NewStore(), succession: &succession{
		pods: map[string]bool{kernel.Name(said.Key): true}, confirmed: done, mine: done,
	}}
	c.store.Replace(view)
	placed := said
	placed.NetNS, placed.Addresses, placed.Mode = "/run/netns/a", []netip.Addr{netip.MustParseAddr("10.0.0.9")}, mesh.ModeStrict
	if _, err := c.Enroll(t.Context(), &placed, false); err != nil {
		t.Fatal(err)
	}
	if w := below.last; w.NetNS != placed.NetNS || w.Addresses[0] != placed.Addresses[0] || w.Mode != mesh.ModePermissive {
		t.Errorf("enrolled in %q at %v as %s", w.NetNS, w.Addresses, w.Mode)
	}
	settings := mesh.Settings{TrustDomain: td, RevokedIdentities: []spiffeid.ID{said.Identity}}
	if view, err = mesh.NewView("r2", settings, []mesh.Workload{said}, nil, nil); err != nil {
		t.Fatal(err)
	}
	c.store.Replace(view)
	if _, err := c.Enroll(t.Context(), &placed, false); err != nil || !below.revoked {
		t.Errorf("enrolled as one whose identity is not revoked, by an older word than the operator's: %v", err)
	}
	placed.UID = "another"
	if _, err := c.Enroll(t.Context(), &placed, false); err == nil {
		t.Error("a pod of the same name was taken for the donor's")
	}

	places := cni.NewPlaces()
	n := &newPods{places: places}
	if !n.mayRun(&said) {
		t.Error("before the runtime has answered, a pod counts as gone")
	}
	places.Update(nil)
	if n.mayRun(&said) {
		t.Error("a pod that the runtime does not have counts as running")
	}
	if alone := (*newPods)(nil); alone.mayRun(&said) || !alone.mayRun(&placed) {
		t.Error("without a runtime, a pod runs where the configuration says, or not at all")
	}
}
