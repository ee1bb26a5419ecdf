package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/rest"
)

// What counts as no answer, and as a slow one. A replica asks every two seconds or
// so, for the lease if for nothing else: silence is noticed.
const (
	silentAfter = 3 * time.Second
	// SlowAfter is from when an API server is called slow: changes take effect that
	// much later.
	SlowAfter = time.Second
	// lastAnswers are remembered, of which the median counts: one slow answer of an
	// API server that is busy says nothing.
	lastAnswers = 7
)

// Answers says how the API server has answered lately. Its methods may be called
// from any goroutine.
type Answers struct {
	log *slog.Logger

	state struct {
		sync.Mutex
		silent  time.Time // the first request of those that were not answered
		why     error
		pending map[*http.Request]time.Time
		took    []time.Duration
	}
}

// Health is how an API server does.
type Health struct {
	// Silent is since when it has not answered; zero when it does. Err says how.
	Silent time.Time
	Err    error
	// Took is how long it usually takes to answer; 0 when it is not known.
	Took time.Duration
}

// Watch makes what is asked by a configuration's clients count, those of watches
// by how they begin only.
func Watch(cfg *rest.Config, log *slog.Logger) (*rest.Config, *Answers) {
	a := &Answers{log: log}
	a.state.pending = map[*http.Request]time.Time{}
	cfg = rest.CopyConfig(cfg)
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper { return &counted{a, next} })
	return cfg, a
}

// Health returns how the API server does.
func (a *Answers) Health() Health { return a.at(time.Now()) }

func (a *Answers) at(now time.Time) Health {
	a.state.Lock()
	defer a.state.Unlock()
	h := Health{Silent: a.state.silent, Err: a.state.why}
	for _, began := range a.state.pending {
		if now.Sub(began) > silentAfter && (h.Silent.IsZero() || began.Before(h.Silent)) {
			h.Silent = began
		}
	}
	if h.Err == nil && !h.Silent.IsZero() {
		h.Err = errors.New("it takes requests, and does not answer them")
	}
	if now.Sub(h.Silent) <= silentAfter {
		h.Silent, h.Err = time.Time{}, nil // it may be nothing
	}
	if n := len(a.state.took); n > 0 {
		h.Took = slices.Sorted(slices.Values(a.state.took))[n/2]
	}
	return h
}

// Run logs when the API server stops to answer, and when it does again, until ctx
// ends.
func (a *Answers) Run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var silent, slow time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		h := a.Health()
		switch {
		case h.Err != nil && silent.IsZero():
			silent = h.Silent
			a.log.Error("the API server does not answer: what is known is served on, certificates are renewed, nothing new is seen",
				"since", h.Silent, "error", h.Err, "remedy", "look at the API server, and at the way to it from this pod; it is asked again and again")
		case h.Err == nil && !silent.IsZero():
			a.log.Info("the API server answers again", "silent_for", time.Since(silent).Round(time.Second))
			silent = time.Time{}
		}
		switch {
		case h.Took > SlowAfter && slow.IsZero():
			slow = time.Now()
			a.log.Warn("the API server is slow: what changes takes effect later", "takes", h.Took.Round(10*time.Millisecond),
				"remedy", "look at the load of the API server and of etcd")
		case h.Took <= SlowAfter && !slow.IsZero():
			a.log.Info("the API server is no longer slow", "takes", h.Took.Round(time.Millisecond), "slow_for", time.Since(slow).Round(time.Second))
			slow = time.Time{}
		}
	}
}

// counted tells Answers of each request.
type counted struct {
	answers *Answers
	next    http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (c *counted) RoundTrip(r *http.Request) (*http.Response, error) {
	began := time.Now()
	streams := r.URL.Query().Get("watch") != "" // it may begin with the first change
	c.answers.asked(r, began, streams)
	response, err := c.next.RoundTrip(r)
	why := err
	if err == nil && (response.StatusCode == http.StatusServiceUnavailable || response.StatusCode == http.StatusGatewayTimeout) {
		why = fmt.Errorf("it answers %s", response.Status)
	}
	if errors.Is(context.Cause(r.Context()), context.Canceled) {
		streams, why = true, nil // nobody waits for it any more: it says nothing
	}
	c.answers.answered(r, began, streams, why)
	return response, err
}

func (a *Answers) asked(r *http.Request, began time.Time, streams bool) {
	if streams {
		return
	}
	a.state.Lock()
	defer a.state.Unlock()
	a.state.pending[r] = began
}

func (a *Answers) answered(r *http.Request, began time.Time, streams bool, why error) {
	a.state.Lock()
	defer a.state.Unlock()
	delete(a.state.pending, r)
	switch {
	case why != nil && a.state.silent.IsZero():
		a.state.silent, a.state.why = began, why
	case why != nil:
		a.state.why = why
	case !streams:
		a.state.silent, a.state.why = time.Time{}, nil
		a.state.took = append(a.state.took, time.Since(began))
		if len(a.state.took) > lastAnswers {
			a.state.took = a.state.took[1:]
		}
	}
}

// WrappedRoundTripper lets client-go find the transport below, whose idle connections it closes.
func (c *counted) WrappedRoundTripper() http.RoundTripper { return c.next }
