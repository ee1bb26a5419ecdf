package history

import (
	"cmp"

	"github.com/heddle-mesh/heddle/api/meshpb"
)

// Totals sums up what differs in nothing but the hour. It belongs to one goroutine.
type Totals struct {
	yield func(*meshpb.FlowSummary) error
	found map[alike]*meshpb.FlowSummary
}

// alike is what summaries have in common that are one in a Totals.
type alike struct {
	node, direction, service, verdict, reason, policy, transport string
	source, destination                                          alikeEnd
	port, protocol                                               uint32
	rule                                                         int32
}

type alikeEnd struct{ workload, identity, address string }

// NewTotals returns a Totals that holds 16,384 summaries at most: it calls yield with
// them when there would be more, and begins anew.
func NewTotals(yield func(*meshpb.FlowSummary) error) *Totals {
	return &Totals{yield: yield, found: map[alike]*meshpb.FlowSummary{}}
}

// Add takes s over. It returns yield's error.
func (t *Totals) Add(s *meshpb.FlowSummary) error {
	end := func(e *meshpb.SummaryEndpoint) alikeEnd {
		return alikeEnd{e.GetWorkload(), e.GetIdentity(), e.GetAddress()}
	}
	k := alike{
		node: s.GetNode(), direction: s.GetDirection(), service: s.GetService(), verdict: s.GetVerdict(), reason: s.GetReason(), policy: s.GetPolicy(),
		transport: s.GetTransport(), source: end(s.GetSource()), destination: end(s.GetDestination()), port: s.GetPort(), protocol: s.GetProtocol(), rule: -1,
	}
	if s.Rule != nil {
		k.rule = s.GetRule()
	}
	have, ok := t.found[k]
	if !ok {
		if len(t.found) >= maxSummaries {
			if err := t.Flush(); err != nil {
				return err
			}
		}
		t.found[k] = s
		return nil
	}
	have.HourNs, have.LastNs = max(have.GetHourNs(), s.GetHourNs()), max(have.GetLastNs(), s.GetLastNs())
	have.FirstNs = min(cmp.Or(have.GetFirstNs(), s.GetFirstNs()), cmp.Or(s.GetFirstNs(), have.GetFirstNs()))
	have.Count += s.GetCount()
	have.BytesSent += s.GetBytesSent()
	have.BytesReceived += s.GetBytesReceived()
	return nil
}

// Flush calls yield with what there is, and forgets it.
func (t *Totals) Flush() error {
	for k, s := range t.found {
		delete(t.found, k)
		if err := t.yield(s); err != nil {
			return err
		}
	}
	return nil
}
