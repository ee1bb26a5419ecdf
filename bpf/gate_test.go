package bpf

import (
	"fmt"
	"testing"
	"time"
)

// dropped is how often the reason was given so far.
func dropped(c Counters, r DropReason) uint64 {
	return c.Dropped[r].Out.Packets + c.Dropped[r].In.Packets
}

func TestGateStampedPasses(t *testing.T) {
	w := newWorld(t)
	for _, host := range []string{peer4, peer6} {
		echo(t, w.listen(t, w.peer, 0, hostPort(host, 7000)), "peer")
	}
	w.attachGate(t)
	for _, host := range []string{peer4, peer6} {
		for class, traffic := range map[Class]func(Counters) Traffic{
			ClassTunnel:    func(c Counters) Traffic { return c.Tunnel },
			ClassPlaintext: func(c Counters) Traffic { return c.Egress },
			ClassAgent:     func(c Counters) Traffic { return c.Egress },
		} {
			before := traffic(w.counters(t))
			c, err := w.dial(t, w.pod, class, hostPort(host, 7000), 3*time.Second)
			if err != nil {
				t.Fatalf("class %d to %s: %v", class, host, err)
			}
			if _, err := ask(c); err != nil {
				t.Fatalf("class %d to %s: %v", class, host, err)
			}
			after := traffic(w.counters(t))
			if out, in := after.Out.Bytes-before.Out.Bytes, after.In.Bytes-before.In.Bytes; out < 100_000 || in < 100_000 {
				t.Errorf("class %d to %s: counted %d bytes out, %d in", class, host, out, in)
			}
		}
		for _, class := range []Class{0, ClassLocal, ClassInbound} {
			before := w.counters(t)
			if c, err := w.dial(t, w.pod, class, hostPort(host, 7000), 300*time.Millisecond); err == nil {
				c.Close()
				t.Errorf("class %d to %s connected", class, host)
			}
			if after := w.counters(t); dropped(after, DropUnstamped) == dropped(before, DropUnstamped) {
				t.Errorf("class %d to %s: no drop counted: %+v", class, host, after)
			}
		}
	}
	if t.Failed() {
		fmt.Printf("%+v\n", w.counters(t))
	}
}
