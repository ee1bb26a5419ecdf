package bpf

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// TestEndGrandfathered: exactly the connections that are picked end, which is told once, and
// the gate says who opened each: not by its ports, where a socket of the pod listens.
func TestEndGrandfathered(t *testing.T) {
	w := newWorld(t)
	l := w.listen(t, w.pod, 0, hostPort(pod4, 60999)) // a port higher than the client's
	accepted := func() (pod, peer net.Conn) {
		peer, err := w.dial(t, w.peer, 0, l.Addr().String(), 3*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if pod, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { pod.Close() })
		return pod, peer
	}
	in, inPeer := accepted()
	other, otherPeer := accepted()
	out, outPeer := w.connect(t, w.pod, w.peer, hostPort(peer4, 61000)) // one lower than the server's
	w.grandfather(t, 3)
	w.attachGate(t)
	for name, want := range map[net.Conn]Direction{in: Inbound, other: Inbound, out: Outbound} {
		e, ok, err := w.p.Flow(addrPort(name.LocalAddr()), addrPort(name.RemoteAddr()))
		if err != nil || !ok || e.Opened != want {
			t.Errorf("%v was opened %v, want %v: %v %v", name.LocalAddr(), e.Opened, want, ok, err)
		}
	}
	picked := []netip.AddrPort{addrPort(in.RemoteAddr()), addrPort(out.RemoteAddr())}
	pick := func(e FlowEntry) bool { return slices.Contains(picked, e.Remote) }
	ended, err := w.p.EndGrandfathered(pick)
	if err != nil || len(ended) != 2 || !pick(ended[0]) || !pick(ended[1]) || len(w.p.TakeEnded()) > 0 {
		t.Errorf("ended %+v, %v", ended, err)
	}
	if again, err := w.p.EndGrandfathered(pick); err != nil || len(again) > 0 {
		t.Errorf("ended again: %+v, %v", again, err)
	}
	w.grandfather(t, 0) // nor does another pass bring them back
	for _, c := range [][2]net.Conn{{in, inPeer}, {inPeer, in}, {out, outPeer}, {outPeer, out}} {
		if err := exchange(c[0], c[1], 200*time.Millisecond); err == nil {
			t.Errorf("%v goes on", c[0].LocalAddr())
		}
	}
	if err := exchange(other, otherPeer, 3*time.Second); err != nil {
		t.Errorf("one that was not picked: %v", err)
	}
}

// TestNoGrandfathered: a pod that is known to have none is not looked at, and one that may
// have some is.
func TestNoGrandfathered(t *testing.T) {
	p := lonePod(t)
	local, remote := hostPort(pod4, 80), hostPort(peer4, 999)
	asked := func() (n int) {
		if _, err := p.EndGrandfathered(func(FlowEntry) bool { n++; return false }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	expire := func() {
		t.Helper()
		if _, err := p.ExpireFlows(time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	seed(t, p, gateMapFlows, local, remote, gateFlow{Kind: uint8(FlowGrandfathered), Deadline: 1 << 62})
	expire()
	if asked() != 1 {
		t.Error("one that is there is not asked about")
	}
	if err := p.maps[gateMapFlows].Delete(toTuple(netip.MustParseAddrPort(local), netip.MustParseAddrPort(remote))); err != nil {
		t.Fatal(err)
	}
	seed(t, p, gateMapFlows, local, hostPort(peer4, 998), gateFlow{Kind: uint8(FlowTunnel), LastSeen: 1 << 62})
	expire()
	if !p.olds.known() || asked() != 0 {
		t.Error("it is not known that there are none")
	}
	made := p.olds.passes()
	p.olds.pass()
	p.olds.none(made) // of a walk that had begun before
	if p.olds.known() {
		t.Error("those are not looked for that a pass has made meanwhile")
	}
	for local, want := range map[uint16]Direction{80: Inbound, 1000: Outbound} { // as an earlier version left them
		e := flowEntry(gateTuple{LocalPort: local, RemotePort: 999}, gateFlow{Kind: uint8(FlowGrandfathered)}, 0)
		if e.Opened != want {
			t.Errorf("of ports %d and 999: %v, want %v", local, e.Opened, want)
		}
	}
}
