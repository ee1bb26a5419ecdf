package budget

import "time"

// Timeouts bound the steps of a connection's life. Zero fields take
// DefaultTimeouts.
type Timeouts struct {
	// Hold is how long a connection waits for discovery: one to an address in the
	// cluster's ranges that nobody owns yet, and one to or from who may be a waypoint that
	// the node does not know yet.
	Hold time.Duration
	// Connect bounds each try: dial, handshake and CONNECT together.
	Connect time.Duration
	// Drain is how long live connections may go on when the agent is going,
	// Unenroll when their pod leaves the mesh: no new ones get through
	// meanwhile, so it is shorter.
	Drain, Unenroll time.Duration
	// Grace is how long a workload lets in who was its services' waypoint.
	Grace time.Duration
}

// DefaultTimeouts returns 1 s, 10 s, 10 s, 5 s and 30 s.
func DefaultTimeouts() Timeouts {
	return Timeouts{Hold: time.Second, Connect: 10 * time.Second, Drain: 10 * time.Second, Unenroll: 5 * time.Second, Grace: 30 * time.Second}
}

// OrDefaults fills the zero fields.
func (t Timeouts) OrDefaults() Timeouts {
	d := DefaultTimeouts()
	for _, f := range []struct {
		field *time.Duration
		value time.Duration
	}{{&t.Hold, d.Hold}, {&t.Connect, d.Connect}, {&t.Drain, d.Drain}, {&t.Unenroll, d.Unenroll}, {&t.Grace, d.Grace}} {
		if *f.field <= 0 {
			*f.field = f.value
		}
	}
	return t
}
