package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/agent/engine"
	"github.com/heddle-mesh/heddle/agent/proxy"
	"github.com/heddle-mesh/heddle/agent/relay"
	"github.com/heddle-mesh/heddle/internal/flow"
	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/mesh"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

// restless is an engine whose tunnels never come to rest.
type restless struct{ hbone.Mover }

func (restless) Freeze(ctx context.Context, _ func([]*hbone.Frozen) error) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestPairsMoveWithoutTunnels: tunnels that stay keep nobody else here.
func TestPairsMoveWithoutTunnels(t *testing.T) {
	w := newWorld(t)
	w.workload("web", "a", "198.18.1.1")
	w.workload("legacy", "b", "198.18.3.1").Enrolled = false
	w.service("legacy", "198.18.9.3", 7000, 7001, "legacy")
	w.publish()
	application(t, "198.18.3.1:7001", echo)
	const to = "198.18.9.3:7000"
	old, renewed := w.node("a", func(c *proxy.Config) { c.Engine = restless{c.Engine.(hbone.Mover)} }), w.node("a")
	web := old.serve("web", "198.18.1.1", podOptions{outbound: []string{to}})
	k := talk(t, web.client(to))
	h, _ := old.takeOver(t, renewed, web)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	moved := 0
	err := old.proxy.Freeze(ctx, func(all []*proxy.Frozen) error {
		moved += len(all)
		for _, f := range all {
			if err := renewed.proxy.Thaw(send(t, f)); err != nil {
				t.Errorf("thaw %s of %s: %v", f.Kind, f.Pod, err)
			}
		}
		return nil
	})
	if moved != 1 || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%d moved: %v", moved, err)
	}
	h.gone()
	k.end(t)
}

// TestOnlyWhatCannotMoveStays: one pair and one tunnel cannot move. They go on
// here to their ends, and all others in the new proxy.
func TestOnlyWhatCannotMoveStays(t *testing.T) {
	m := newMoving(t, engine.Loop)
	talks := m.pairs(t)
	maps.Copy(talks, m.tunnels(t))
	h, _ := m.old.takeOver(t, m.renewed, m.web, m.near)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stays := func(f *proxy.Frozen) bool {
		if f.Kind == proxy.KindTunnel {
			return strings.Contains(string(f.State), `"Server":false`)
		}
		owner, err := relay.Check(&relay.Frozen{State: f.State, Data: f.Data, Files: f.Files})
		return err == nil && strings.Contains(string(owner), flow.TransportSplice.String())
	}
	err := m.old.proxy.Freeze(ctx, func(all []*proxy.Frozen) error {
		for _, f := range all {
			if stays(f) {
				return fmt.Errorf("%w: one of %d", hbone.ErrStays, len(all))
			}
		}
		for _, f := range all {
			h.kinds[f.Kind]++
			if err := m.renewed.proxy.Thaw(send(t, f)); err != nil {
				t.Errorf("thaw %s of %s: %v", f.Kind, f.Pod, err)
			}
		}
		return nil
	})
	if !errors.Is(err, hbone.ErrStays) || h.kinds[proxy.KindPair] != 2 || h.kinds[proxy.KindTunnel] != 1 {
		t.Fatalf("moved %v: %v", h.kinds, err)
	}
	for _, k := range talks {
		was := k.bytes.Load()
		testenv.Eventually(t, 5*time.Second, "it goes on", func() bool { return k.bytes.Load() > was })
		k.end(t)
	}
	for _, r := range m.renewed.flows.wait(t, 3) {
		if name := way(&r); name == "splice" || name == "outbound" {
			t.Errorf("%s moved", name)
		}
	}
	h.gone()
	for _, r := range m.old.flows.wait(t, 2) {
		if name := way(&r); name != "splice" && name != "outbound" {
			t.Errorf("%s stayed", name)
		}
	}
}

// TestThawThatFailsIsRecorded: a connection that was given away and could not be
// taken over leaves one record.
func TestThawThatFailsIsRecorded(t *testing.T) {
	m := newMoving(t, engine.Loop)
	greeting(t, m.web.client("198.18.9.2:7000"))
	greeting(t, m.web.client(vip))
	h, _ := m.old.takeOver(t, m.renewed, m.web, m.near)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err := m.old.proxy.Freeze(ctx, func(all []*proxy.Frozen) error {
		for _, f := range all {
			h.kinds[f.Kind]++
			f = send(t, f)
			defer unix.Close(f.Files[0])
			unix.Close(f.Files[1])
			f.Files[1] = f.Files[0] // no loop takes it twice
			if err := m.renewed.proxy.Thaw(f); err == nil {
				t.Errorf("%s thawed", f.Kind)
			}
		}
		return nil
	})
	if err != nil || h.kinds[proxy.KindPair] != 1 || h.kinds[proxy.KindTunnel] != 1 {
		t.Errorf("moved %v: %v", h.kinds, err)
	}
	h.gone()
	for _, r := range m.renewed.flows.wait(t, 2) {
		if r.Reason != mesh.ReasonDraining || !strings.Contains(r.Detail, "hand-over") || r.BytesReceived == 0 {
			t.Errorf("%+v", r)
		}
	}
	if left := m.old.flows.all(); len(left) > 0 {
		t.Errorf("the old proxy made records: %+v", left)
	}
	if c := m.renewed.proxy.Charges(); c != (proxy.Charges{}) || m.renewed.proxy.Open() != 0 {
		t.Errorf("charged %+v for what is lost", c)
	}
}

// TestThawBeforeAdoptionIsRecorded: so does one that fails before anything was
// made of it: its pod is not served here any more.
func TestThawBeforeAdoptionIsRecorded(t *testing.T) {
	m := newMoving(t, engine.Loop)
	greeting(t, m.web.client("198.18.9.2:7000"))
	greeting(t, m.web.client(vip))
	nobody := m.w.node("a")
	go m.web.stop(proxy.ErrMoving)
	go m.near.stop(proxy.ErrMoving)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	moved := 0
	err := m.old.proxy.Freeze(ctx, func(all []*proxy.Frozen) error {
		for _, f := range all {
			moved++
			f = send(t, f)
			if err := nobody.proxy.Thaw(f); err == nil {
				t.Errorf("%s thawed", f.Kind)
			}
			for _, fd := range f.Files {
				unix.Close(fd)
			}
		}
		return nil
	})
	if err != nil || moved != 2 {
		t.Errorf("%d moved: %v", moved, err)
	}
	for _, r := range nobody.flows.wait(t, 2) {
		if r.Reason != mesh.ReasonDraining || !strings.Contains(r.Detail, "hand-over") || r.BytesReceived == 0 || r.Duration <= 0 {
			t.Errorf("%+v", r)
		}
	}
}
