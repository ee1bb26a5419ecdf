package flow

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	// dropsWindow is how long drops are collected before they become records.
	dropsWindow = time.Second
	// dropsPerPod bounds the records that one pod's drops become in one
	// window: what is beyond becomes one record per reason without a peer.
	dropsPerPod = 8
	// dropsPerWindow bounds the records with a peer of one window, over all
	// pods.
	dropsPerWindow = 128
)

// Drops coalesces what the gate reports, also of datagrams that it let pass (AddDatagrams), and queries (AddQuery). AddEnded alone is of one connection each. Equal drops within a second become one
// record with a count of packets, and what a pod's drops become in a second is
// bounded, so that a pod that floods, even from changing ports to changing
// addresses, cannot push other flows out of the Ring.
type Drops struct {
	sink Sink

	mu      sync.Mutex
	pending map[dropKey]*Record
	order   []dropKey        // as first seen, so that records come in order
	perPod  map[mesh.Key]int // distinct drops with a peer, by pod

	exchanges map[datagramKey]*exchange
}

// dropKey says which drops are equal. The ephemeral port of the source is not
// in it: a client that tries again is the same drop.
type dropKey struct {
	pod, from   mesh.Key
	reason      mesh.Reason
	protocol    uint8
	source      netip.Addr
	destination netip.AddrPort
	detail      string // of a query
}

// NewDrops returns Drops that hand their records to sink.
func NewDrops(sink Sink) *Drops {
	return &Drops{sink: sink, pending: map[dropKey]*Record{}, perPod: map[mesh.Key]int{}, exchanges: map[datagramKey]*exchange{}}
}

// Add takes one drop. pod is the workload whose gate dropped it, one of r's
// ends. r.Packets of 0 counts as 1; Direction and Verdict are set here. It
// does not wait for the sink.
func (d *Drops) Add(pod mesh.Key, r Record) {
	r.Direction, r.Verdict = DirectionKernel, mesh.VerdictDeny
	d.add(pod, r, nil)
}

// AddExplained is Add; explain adds to the first of equal drops what it takes time to find
// out, and is given the record that they become. It must not call d.
func (d *Drops) AddExplained(pod mesh.Key, r Record, explain func(*Record)) {
	r.Direction, r.Verdict = DirectionKernel, mesh.VerdictDeny
	d.add(pod, r, explain)
}

// AddRefusal takes a connection of a pod that the kernel refused in the agent's stead:
// equal ones become one record as drops do. Direction and Verdict are set here. It
// does not wait for the sink.
func (d *Drops) AddRefusal(pod mesh.Key, r Record) {
	r.Direction, r.Verdict = DirectionOutbound, mesh.VerdictDeny
	d.add(pod, r, nil)
}

// AddQuery takes a name query of a pod that was not answered as it should be: equal
// ones, of the same name, become one record as drops do. Verdict, Reason and Detail,
// which names the name, are the caller's. It does not wait for the sink.
func (d *Drops) AddQuery(pod mesh.Key, r Record) {
	r.Direction = DirectionDNS
	d.add(pod, r, nil)
}

// AddEnded takes a connection that the gate had let pass, and ended. It becomes a record
// at once, and on its own: there are no more of them than the pod had open.
func (d *Drops) AddEnded(r Record) { d.sink.Add(r) }

func (d *Drops) add(pod mesh.Key, r Record, explain func(*Record)) {
	r.Packets = max(r.Packets, 1)
	key := dropKey{pod: pod, from: r.Source.Workload, reason: r.Reason, protocol: r.Protocol,
		source: r.Source.Addr.Addr(), destination: r.Destination.Addr, detail: r.Detail}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.merge(key, &r) {
		return
	}
	if d.perPod[pod] < dropsPerPod && len(d.order) < dropsPerWindow {
		d.perPod[pod]++
		if explain != nil {
			explain(&r)
		}
		d.put(key, r)
		return
	}
	if r.Direction == DirectionDNS {
		key, r = withoutName(pod, r)
	} else {
		key, r = withoutPeer(pod, r)
	}
	if d.merge(key, &r) {
		return
	}
	d.put(key, r)
}

// merge adds r to an equal pending record, if there is one.
func (d *Drops) merge(key dropKey, r *Record) bool {
	had, ok := d.pending[key]
	if !ok {
		return false
	}
	had.Packets += r.Packets
	if last := r.Start.Add(r.Duration); last.Sub(had.Start) > had.Duration {
		had.Duration = last.Sub(had.Start)
	}
	return true
}

func (d *Drops) put(key dropKey, r Record) {
	d.pending[key] = &r
	d.order = append(d.order, key)
}

// withoutPeer keeps of a drop the pod, on its side, and the reason.
func withoutPeer(pod mesh.Key, r Record) (dropKey, Record) {
	key := dropKey{pod: pod, reason: r.Reason}
	r.Protocol, r.Detail, r.Service = 0, "several peers", mesh.Key{}
	if r.Destination.Workload == pod {
		r.Source, r.Destination.Addr = Endpoint{}, netip.AddrPort{}
		return key, r
	}
	key.from = pod
	r.Source = Endpoint{Workload: pod, Identity: r.Source.Identity}
	r.Destination = Endpoint{}
	return key, r
}

// withoutName keeps of a query the pod and the reason.
func withoutName(pod mesh.Key, r Record) (dropKey, Record) {
	r.Protocol, r.Detail, r.Destination, r.Service = 0, "several names", Endpoint{}, mesh.Key{}
	return dropKey{pod: pod, reason: r.Reason, detail: r.Detail}, r
}

// Flush turns what is pending into records.
func (d *Drops) Flush() {
	d.flushDatagrams(time.Now(), false)
	d.mu.Lock()
	order, pending := d.order, d.pending
	d.order, d.pending, d.perPod = nil, map[dropKey]*Record{}, map[mesh.Key]int{}
	d.mu.Unlock()
	for _, key := range order {
		d.sink.Add(*pending[key])
	}
}

// Run flushes every second until ctx is done, and once more then.
func (d *Drops) Run(ctx context.Context) {
	tick := time.NewTicker(dropsWindow)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			d.Flush()
		case <-ctx.Done():
			d.Flush()
			d.flushDatagrams(time.Now(), true)
			return
		}
	}
}
