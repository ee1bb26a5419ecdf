package http2

import (
	"time"

	"github.com/heddle-mesh/heddle/waypoint/reason"
)

// bucket is what was spent of a Rate, at some time.
type bucket struct {
	spent float64
	at    time.Time
}

// spend counts one of what there may be too much of, and says so when there is. The clock is
// looked at only when the burst is used up: most connections never get there.
func (c *Conn) spend(kind reason.Reason) reason.Reason {
	b, rate := &c.floods[kind-firstFlood], c.config.Rates[kind-firstFlood]
	if b.at.IsZero() {
		b.at = time.Now()
	}
	if b.spent++; b.spent <= rate.Burst {
		return 0
	}
	now := time.Now()
	b.spent = max(0, b.spent-rate.PerSecond*now.Sub(b.at).Seconds())
	if b.at = now; b.spent <= rate.Burst {
		return 0
	}
	return kind
}

// earn takes back what an event of ours justifies.
func (c *Conn) earn(kind reason.Reason, n float64) {
	b := &c.floods[kind-firstFlood]
	b.spent = max(0, b.spent-n)
}
