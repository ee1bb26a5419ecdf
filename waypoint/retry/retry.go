// Package retry says whether a request is tried once more, and when: by what its route says, within
// a budget, so that retries do not make a storm of an outage. It sends nothing, and has no clock.
//
// Nothing here is safe for concurrent use: a Budget belongs to one event loop.
package retry

import (
	"math/rand/v2"
	"time"

	"github.com/heddle-mesh/heddle/internal/mesh/route"
)

const (
	// defaultAttempts is how often a request is tried again where a route says that it is to be, and
	// not how often; defaultBackoff is the first pause, mostBackoff the longest one, times that.
	defaultAttempts = 1
	defaultBackoff  = 25 * time.Millisecond
	mostBackoff     = 10
)

// Left reports whether a route has a request tried once more that was tried a number of times.
func Left(r *route.Retry, tries int) bool {
	switch {
	case r == nil:
		return false
	case r.Attempts < 0:
		return tries <= defaultAttempts
	}
	return tries <= r.Attempts
}

// Names reports whether a route has responses of a status tried again.
func Names(r *route.Retry, status int) bool {
	if r != nil {
		for _, code := range r.Codes {
			if int(code) == status {
				return true
			}
		}
	}
	return false
}

// Pause is how long to wait after a number of tries: twice as long each time, of which a random part
// is taken, so that those that failed together do not come back together.
func Pause(r *route.Retry, tries int) time.Duration {
	base := r.Backoff
	if base == 0 {
		base = defaultBackoff
	}
	pause := min(base<<min(max(tries-1, 0), 8), mostBackoff*base)
	return pause/2 + rand.N(pause/2+1)
}

// The budget of one backend, at one loop: retries may be a fifth of its requests, and two a
// second for those that have few.
const (
	budgetShare     = 0.2
	budgetPerSecond = 2.0
	budgetFirst     = 10.0
	budgetMost      = 100.0
)

// Budget keeps retries from becoming a storm: what fails for all is not asked for again
// by all.
type Budget struct {
	tokens float64
	at     time.Time
}

// NewBudget has room for a few.
func NewBudget() *Budget { return &Budget{tokens: budgetFirst} }

// Asked counts a request, not a retry.
func (b *Budget) Asked() { b.tokens = min(budgetMost, b.tokens+budgetShare) }

// Take reports whether there may be one more retry, and counts it.
func (b *Budget) Take(now time.Time) bool {
	if !b.at.IsZero() {
		b.tokens = min(budgetMost, max(b.tokens, min(budgetFirst, b.tokens+budgetPerSecond*now.Sub(b.at).Seconds())))
	}
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
