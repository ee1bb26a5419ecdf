package flow

import (
	"net/netip"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

const (
	// datagramsWindow is how long datagrams between the same two are collected, after
	// the first of them are a record, before the next become one.
	datagramsWindow = 10 * time.Second
	// datagramsKept bounds those that are collected; when there are more, all of them
	// become records at once.
	datagramsKept = 1024
)

// datagramKey says which datagrams become one record: not the port of who began.
type datagramKey struct {
	direction   Direction
	from, to    mesh.Key
	source      netip.Addr
	destination netip.AddrPort
	verdict     mesh.Verdict
	reason      mesh.Reason
	policy      mesh.Key
	rule        int
	audited     Names
}

// exchange is what datagrams between two have come to since the last record.
type exchange struct {
	Record
	due time.Time
}

// AddDatagrams takes datagrams that the gate let pass, since the last time that it was
// asked. Those between the same two become a record with the next Flush, and then every
// ten seconds while there are any, with the number of datagrams, both ways together. It
// does not wait for the sink.
func (d *Drops) AddDatagrams(r Record) {
	key := datagramKey{r.Direction, r.Source.Workload, r.Destination.Workload, r.Source.Addr.Addr(), r.Destination.Addr, r.Verdict, r.Reason, r.Policy, r.Rule, r.Audited}
	d.mu.Lock()
	had := d.exchanges[key]
	switch {
	case had == nil:
		d.exchanges[key] = &exchange{Record: r}
	case had.Packets == 0:
		had.Record = r
	default:
		had.Packets, had.BytesSent, had.BytesReceived = had.Packets+r.Packets, had.BytesSent+r.BytesSent, had.BytesReceived+r.BytesReceived
		had.Duration = max(had.Duration, r.Start.Add(r.Duration).Sub(had.Start))
	}
	full := len(d.exchanges) > datagramsKept
	d.mu.Unlock()
	if full {
		d.flushDatagrams(time.Now(), true)
	}
}

// flushDatagrams makes records of what is due, or of all.
func (d *Drops) flushDatagrams(now time.Time, all bool) {
	var due []Record
	d.mu.Lock()
	for key, x := range d.exchanges {
		switch {
		case now.Before(x.due) && !all:
			continue
		case x.Packets == 0 || all:
			delete(d.exchanges, key)
		}
		if x.Packets > 0 {
			due = append(due, x.Record)
			x.Record, x.due = Record{}, now.Add(datagramsWindow)
		}
	}
	d.mu.Unlock()
	for _, r := range due {
		d.sink.Add(r)
	}
}
