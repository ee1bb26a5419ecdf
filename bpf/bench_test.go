package bpf

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// BenchmarkGate times one packet through a program. What is dropped here is recorded
// now and then only: TestGateCost has drops that all are.
func BenchmarkGate(b *testing.B) {
	p := lonePod(b)
	seed(b, p, gateMapFlows, hostPort(pod4, 15008), hostPort(peer4, 1000), gateFlow{Kind: uint8(FlowTunnel)})
	seed(b, p, gateMapFlows, hostPort(pod6, 15008), hostPort(peer6, 1000), gateFlow{Kind: uint8(FlowTunnel)})
	setDatagrams(b, p, ruleOut(peer4, 443), ruleIn(peer4, 8443), toOutside(123), toOutside(443))
	segment := make([]byte, 1400)
	for _, c := range []struct {
		name, program string
		frame         []byte
	}{
		{"in/flow/v4", gateProgHostInbound, ip(peer4, pod4, protoTCP, tcp(1000, 15008, ack, segment...))},
		{"in/flow/v6", gateProgHostInbound, ip(peer6, pod6, protoTCP, tcp(1000, 15008, ack, segment...))},
		{"in/syn/v4", gateProgHostInbound, ip(peer4, pod4, protoTCP, tcp(1001, 15008, syn))},
		{"in/drop/v4", gateProgHostInbound, ip(peer4, pod4, protoTCP, tcp(1002, 80, syn))},
		{"out/drop/v4", gateProgHostOutbound, ip(pod4, peer4, protoTCP, tcp(1, 80, ack))},
		{"in/datagram/v4", gateProgHostInbound, ip(peer4, pod4, protoUDP, udp(1000, 8443, segment...))},
		{"out/datagram/v4", gateProgHostOutbound, ip(pod4, peer4, protoUDP, udp(1000, 443, segment...))},
		{"out/outside/v4", gateProgHostOutbound, ip(pod4, strange4, protoUDP, udp(1000, 123, segment...))},
		{"out/outside/v6", gateProgHostOutbound, ip(pod6, strange6, protoUDP, udp(1000, 123, segment...))},
		{"lo/data/v4", redirectProgRefuse, ip(pod4, peer4, protoTCP, tcp(1, 80, ack, segment...))},
		{"lo/ack/v4", redirectProgRefuse, ip(pod4, peer4, protoTCP, tcp(1, 80, ack))},
		{"lo/syn/v4", redirectProgRefuse, ip(pod4, peer4, protoTCP, tcp(1, 80, syn))},
		{"out/arp", gateProgHostOutbound, arp(1, pod4, node4)},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				b.ReportMetric(float64(passing(b, p.program(c.program), c.frame).median), "median-ns/packet")
			}
		})
	}
}

// BenchmarkGateStamped times the outbound programs under the agent's own
// traffic, which BPF_PROG_RUN cannot make: the kernel's run time per packet,
// its own two readings of the clock included.
func BenchmarkGateStamped(b *testing.B) {
	w := newWorld(b)
	echo(b, w.listen(b, w.peer, 0, hostPort(peer4, 7000)), "peer")
	w.attachGate(b)
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		b.Fatal(err)
	}
	defer stats.Close()
	c, err := w.dial(b, w.pod, ClassTunnel, hostPort(peer4, 7000), 3*time.Second)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := c.Write([]byte("x")); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 64)); err != nil {
			b.Fatal(err)
		}
	}
	for _, name := range []string{gateProgHostOutbound, gateProgHostInbound} {
		s, err := w.p.program(name).Stats()
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(s.Runtime)/float64(s.RunCount), name+"-ns/packet")
	}
}

// BenchmarkDatagramRules times what an agent does to a pod's table of rules, beside which
// are so many others: it fills it, changes one, and reads all back.
func BenchmarkDatagramRules(b *testing.B) {
	for _, n := range []int{10_000, MaxDatagramRules} {
		rules := many(n)
		for _, c := range []struct {
			name string
			do   func(p *Pod) error
		}{
			{"fill", func(p *Pod) error {
				_, err := p.SetDatagrams(nil, nil)
				if err == nil {
					_, err = p.SetDatagrams(rules, nil)
				}
				return err
			}},
			{"change", func(p *Pod) error {
				_, err := p.ChangeDatagrams(rules[:1], []DatagramRule{ruleOut(peer4, 443)})
				if err == nil {
					_, err = p.ChangeDatagrams([]DatagramRule{ruleOut(peer4, 443)}, rules[:1])
				}
				return err
			}},
			{"look", func(p *Pod) error {
				found, looked, err := p.Reconcile(true)
				if err == nil && (len(found) > 0 || looked != Looked{n, true}) {
					b.Fatalf("found %q, looked at %+v", found, looked)
				}
				return err
			}},
		} {
			b.Run(fmt.Sprintf("%s/%d", c.name, n), func(b *testing.B) {
				p := lonePod(b)
				setDatagrams(b, p, rules...)
				began := processor(b)
				for b.Loop() {
					if err := c.do(p); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64((processor(b)-began).Nanoseconds())/1000/float64(b.N), "cpu-us/op")
				b.ReportMetric(float64(memory(b, p.datagrams.table))/(1<<20), "MiB")
			})
		}
	}
}

// memory is what the kernel has for a map, in bytes.
func memory(b testing.TB, m *ebpf.Map) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", m.FD()))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if name, value, _ := strings.Cut(line, ":"); name == "memlock" {
			n, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatal("no memlock")
	return 0
}

// processor is what the process has had of it: what a busy machine does not change much.
func processor(b testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
