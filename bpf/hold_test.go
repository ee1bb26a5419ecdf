package bpf

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

// filtered lists the gate's places that have a clsact filter of its own, and the interfaces
// that have a clsact.
func (w *world) filtered(t *testing.T) (filters, qdiscs []string) {
	t.Helper()
	for ns, name := range map[*testenv.NetNS]string{w.node: "vpod", w.pod: "eth0"} {
		ns.Must(t, func() error {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			all, err := netlink.QdiscList(l)
			if err != nil {
				return err
			}
			for _, q := range all {
				if q.Type() == "clsact" {
					qdiscs = append(qdiscs, name)
				}
			}
			for _, pl := range places() {
				if pl.inPod != (ns == w.pod) {
					continue
				}
				ours, _, err := ourFilter(pl, l.Attrs().Index)
				if err != nil {
					return err
				}
				if ours != nil {
					filters = append(filters, pl.name)
				}
			}
			return nil
		})
	}
	slices.Sort(filters)
	return filters, qdiscs
}

// wantWhole wants the gate where it stays, and nothing left of what held it before.
func (w *world) wantWhole(t *testing.T) {
	t.Helper()
	if err := w.node.Do(w.p.CheckGate); err != nil {
		t.Errorf("check: %v", err)
	}
	if !haveTCX(t) {
		return // before Linux 6.6 filters are what stays
	}
	for _, pl := range places() {
		if w.p.links[pl.name] == nil {
			t.Errorf("%s is not attached", pl.name)
		}
	}
	if filters, _ := w.filtered(t); len(filters) > 0 {
		t.Errorf("filters %v are left", filters)
	}
}

func (w *world) wantClosed(t *testing.T) {
	t.Helper()
	for from, to := range map[*testenv.NetNS]string{w.pod: hostPort(peer4, 7000), w.peer: hostPort(pod4, 8080)} {
		if _, err := w.dial(t, from, 0, to, 100*time.Millisecond); err == nil {
			t.Errorf("connected to %s", to)
		}
	}
}

// haveTCX reports whether the gate stays in tcx, as from Linux 6.6 on.
func haveTCX(t *testing.T) bool {
	t.Helper()
	_, err := link.QueryPrograms(link.QueryOptions{Target: loopbackIfindex, Attach: ebpf.AttachTCXIngress})
	if err != nil && !errors.Is(err, unix.EINVAL) {
		t.Fatal(err)
	}
	return err == nil
}

// passAll is a tcx program that leaves everything to the next (TCX_NEXT).
func passAll() asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}
}

// TestHoldGate: a gate that is held by filters is as closed as one that is attached, at each
// step on its way to where it stays, also for an agent that takes over there; it can be taken
// away at each, and leaves nothing.
func TestHoldGate(t *testing.T) {
	w := newTopology(t)
	w.bpf = newNode(t)
	echo(t, w.listen(t, w.peer, 0, hostPort(peer4, 7000)), "peer")
	echo(t, w.listen(t, w.pod, 0, hostPort(pod4, 8080)), "app")
	for moved := range len(places()) + 1 {
		for _, then := range []string{"removed", "adopted", "adopted to be removed", "gone"} {
			w.enroll(t)
			w.node.Must(t, w.p.HoldGate)
			if filters, qdiscs := w.filtered(t); len(filters) != len(places()) || len(qdiscs) != 2 {
				t.Fatalf("filters %v, clsact on %v", filters, qdiscs)
			}
			for i := range moved {
				w.node.Must(t, func() error {
					left, err := w.p.AttachNext()
					if left != (i < len(places())-1) {
						t.Errorf("after %d steps others are left: %v", i+1, left)
					}
					return err
				})
			}
			if moved == len(places()) {
				w.wantWhole(t)
			} else if err := w.node.Do(w.p.CheckGate); err != nil {
				t.Errorf("check after %d steps: %v", moved, err)
			}
			w.wantClosed(t)
			if then != "removed" { // its agent ends
				if err := w.p.Close(); err != nil {
					t.Fatal(err)
				}
			}
			switch then {
			case "adopted":
				w.enroll(t)
				w.wantClosed(t)
				w.attachGate(t)
				w.wantWhole(t)
				w.wantClosed(t)
			case "adopted to be removed":
				w.enroll(t)
			case "gone":
				w.pod.Must(t, func() error { return w.bpf.RemoveFilters("pod", w.config.PodIfindex) })
				w.node.Must(t, func() error { return w.bpf.RemovePod("pod") })
			}
			if then != "gone" {
				w.node.Must(t, w.p.Remove)
			}
			if filters, qdiscs := w.filtered(t); len(filters)+len(qdiscs) > 0 {
				t.Fatalf("%s after %d steps: filters %v are left, clsact on %v", then, moved, filters, qdiscs)
			}
		}
	}
}

// TestHoldGateGivesWay: where something may come before a filter, or its qdisc is somebody
// else's, the gate is not held, and can be attached.
func TestHoldGateGivesWay(t *testing.T) {
	w := newWorld(t)
	w.node.Must(t, func() error { return addClsact(w.config.HostIfindex) })
	if err := w.node.Do(w.p.HoldGate); !errors.Is(err, unix.EEXIST) {
		t.Errorf("with a clsact on the host side: %v", err)
	}
	w.attachGate(t)
	if err := w.node.Do(w.p.CheckGate); err != nil {
		t.Error(err)
	}
	w.node.Must(t, func() error {
		if err := w.p.DetachGate(); err != nil {
			return err
		}
		err := netlink.QdiscDel(clsact(w.config.HostIfindex))
		if !haveTCX(t) {
			return nil // before Linux 6.6 it goes with its last filter
		}
		return err // it was another's, and stays
	})

	foreign, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: passAll()})
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	var l link.Link
	err = w.pod.Do(func() (err error) {
		l, err = link.AttachTCX(link.TCXOptions{Interface: w.config.PodIfindex, Program: foreign, Attach: ebpf.AttachTCXIngress})
		return err
	})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := w.node.Do(w.p.HoldGate); !errors.Is(err, errForeign) {
		t.Errorf("with a program on the pod's side: %v", err)
	}
	w.attachGate(t)
	w.wantWhole(t)
}

// TestHeldGateIsOvertaken: that another program comes before a gate that is held is seen.
func TestHeldGateIsOvertaken(t *testing.T) {
	w := newWorld(t)
	w.node.Must(t, w.p.HoldGate)
	foreign, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: passAll()})
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	w.node.Must(t, func() error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: w.config.HostIfindex, Program: foreign, Attach: ebpf.AttachTCXIngress})
		if errors.Is(err, ebpf.ErrNotSupported) {
			return nil
		}
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		if err := w.p.CheckGate(); !errors.Is(err, errForeign) {
			t.Errorf("check: %v", err)
		}
		for left := true; left; {
			if left, err = w.p.AttachNext(); err != nil {
				return err
			}
		}
		return nil
	})
	w.wantWhole(t)
}
