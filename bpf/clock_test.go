package bpf

import (
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// TestTimeOfPackets: on whatever CPU, and however long after the last one.
func TestTimeOfPackets(t *testing.T) {
	p := lonePod(t)
	local, remote := hostPort(pod4, 15008), hostPort(peer4, 1000)
	seed(t, p, gateMapFlows, local, remote, gateFlow{Kind: uint8(FlowTunnel)})
	frame := ip(peer4, pod4, protoTCP, tcp(1000, 15008, ack, 'x'))
	for _, pause := range []time.Duration{0, time.Millisecond, 30 * time.Millisecond, 300 * time.Millisecond, 0} {
		time.Sleep(pause)
		if _, err := p.program(gateProgHostInbound).Run(&ebpf.RunOptions{Data: frame}); err != nil {
			t.Fatal(err)
		}
		flow, ok, err := p.Flow(netip.MustParseAddrPort(local), netip.MustParseAddrPort(remote))
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		// Two ticks of 10 ms, and what else runs here.
		if flow.LastSeen > 150*time.Millisecond {
			t.Errorf("%v after the last packet, one was seen %v ago", pause, flow.LastSeen)
		}
	}
}
