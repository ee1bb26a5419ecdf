package bpf

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/e2e/kernelstate"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// flowsID is which map a pod's flows are in.
func flowsID(t *testing.T, p *Pod) uint32 {
	t.Helper()
	info, err := p.maps[gateMapFlows].Info()
	if err != nil {
		t.Fatal(err)
	}
	id, known := info.ID()
	if !known {
		t.Fatal("the kernel does not say a map's number")
	}
	return uint32(id)
}

func (n *Node) spareNow() *Pod {
	n.spare.mu.Lock()
	defer n.spare.mu.Unlock()
	if len(n.spare.pods) == 0 {
		return nil
	}
	return n.spare.pods[0]
}

// TestSpare: a pod that gets what was loaded ahead differs in nothing from one that does
// not, the next has its own, and nothing is left of one that nobody took.
func TestSpare(t *testing.T) {
	w := newTopology(t)
	w.bpf = newNode(t)
	other := newTopology(t)
	other.bpf, other.config.Name, other.config.ID = w.bpf, "other", 8
	w.bpf.spare.hasty = true
	w.enroll(t) // nothing is ready yet
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.bpf.KeepSpare(ctx) }()
	ready := func() bool { return w.bpf.spareNow() != nil }
	testenv.Eventually(t, 10*time.Second, "a spare is ready", ready)
	spare := w.bpf.spareNow()
	other.enroll(t)
	if other.p != spare || other.p.dir != w.bpf.podDir("other") {
		t.Errorf("a new pod did not take what was ready: it is in %q", other.p.dir)
	}
	names := func(pod string) (pins []string) {
		objects, err := kernelstate.Pinned(w.bpf.podDir(pod))
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			pins = append(pins, o.Kind+" "+o.Pin)
		}
		return pins
	}
	if with, without := names("other"), names("pod"); !slices.Equal(with, without) || len(with) == 0 {
		t.Errorf("pinned with a spare: %v\nwithout: %v", with, without)
	}
	// It is behind its gate, and its flows are its own.
	other.attachGate(t)
	if c, err := other.dial(t, other.pod, 0, netip.AddrPortFrom(netip.MustParseAddr(peer4), 7000).String(), time.Second); err == nil {
		c.Close()
		t.Error("a pod behind its gate connects in plaintext")
	}
	if c := other.counters(t); len(c.Dropped) == 0 {
		t.Errorf("the gate dropped nothing: %+v", c)
	}

	testenv.Eventually(t, 60*time.Second, "as many as there should be are ready", func() bool { return w.bpf.spares() == Spares })
	var size int
	for _, m := range w.bpf.spareNow().maps {
		size += memory(t, m)
	}
	t.Logf("the maps of one take %d KiB", size>>10)
	next := flowsID(t, w.bpf.spareNow())
	if next == flowsID(t, other.p) || next == flowsID(t, w.p) {
		t.Error("two pods share a flow table")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if w.bpf.spareNow() != nil {
		t.Error("a spare is left")
	}
	testenv.Eventually(t, 10*time.Second, "the kernel has let go of it", func() bool {
		alive, err := kernelstate.Alive([]kernelstate.Object{{Kind: "map", ID: next}})
		return err == nil && len(alive) == 0
	})
}
