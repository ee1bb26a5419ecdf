package issuing

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxLimiters bounds the callers that are told apart. Beyond it, those that are
// at rest are forgotten; when none is, new callers share one limiter.
const maxLimiters = 8192

// limiters is a token bucket per caller.
type limiters struct {
	limit rate.Limit
	burst int

	buckets struct {
		sync.Mutex
		byCaller map[string]*rate.Limiter
		rest     *rate.Limiter
		swept    time.Time
	}
}

func newLimiters(limit rate.Limit, burst int) *limiters {
	l := &limiters{limit: limit, burst: burst}
	l.buckets.byCaller = map[string]*rate.Limiter{}
	l.buckets.rest = rate.NewLimiter(limit, burst)
	return l
}

func (l *limiters) allow(caller string, now time.Time) bool {
	l.buckets.Lock()
	defer l.buckets.Unlock()
	b := l.buckets.byCaller[caller]
	if b == nil {
		b = l.add(caller, now)
	}
	return b.AllowN(now, 1)
}

// add needs the lock.
func (l *limiters) add(caller string, now time.Time) *rate.Limiter {
	// Not at every new caller: a flood of them must not make this the cost.
	if len(l.buckets.byCaller) >= maxLimiters && now.Sub(l.buckets.swept) >= time.Second {
		l.buckets.swept = now
		for name, b := range l.buckets.byCaller {
			if b.TokensAt(now) >= float64(l.burst) {
				delete(l.buckets.byCaller, name)
			}
		}
	}
	if len(l.buckets.byCaller) >= maxLimiters {
		return l.buckets.rest
	}
	b := rate.NewLimiter(l.limit, l.burst)
	l.buckets.byCaller[caller] = b
	return b
}

// LimitByAddress returns a function that reports whether the address that a call is from
// (IPv6: its /64) may make one more, and counts it: limit in a second, burst at once.
func LimitByAddress(limit rate.Limit, burst int) func(context.Context) bool {
	l := newLimiters(limit, burst)
	return func(ctx context.Context) bool { return l.allow(network(remoteAddress(ctx)), time.Now()) }
}
