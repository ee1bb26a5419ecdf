package spire

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heddle-mesh/heddle/operator/rotation"
)

const (
	askFirst = 5 * time.Second // before SPIRE is asked again, doubled with each failure
	askMost  = time.Minute     // at most
	// askBetter bounds how often SPIRE is asked for an intermediate that lasts longer than
	// the one there is, when it did not give one.
	askBetter = 10 * time.Second
)

// FollowerConfig says what a Follower needs. Live, Fleet and Logger are needed.
type FollowerConfig struct {
	SPIRE Config
	// Live is the authority that SPIRE's CA is put into.
	Live *rotation.Live
	// Fleet returns everybody who matters, as they are now.
	Fleet func(context.Context) rotation.Fleet
	// Interval is how often it looks; 2 s when zero.
	Interval time.Duration
	// Settle is how long nobody must have reported certificates of another issuer before
	// their root goes; 15 s when zero. See rotation.RotatorConfig.
	Settle time.Duration
	Logger *slog.Logger
}

// Follower keeps the authority what SPIRE says. One replica runs it.
type Follower struct {
	cfg FollowerConfig

	// Of Run's goroutine.
	client   *Client
	pending  *CA             // asked for, and not in use yet
	waiting  []rotation.Wait // who holds it up
	askAt    time.Time       // not before
	failures int             // of asking, in a row
	failure  error           // the last of them
	quiet    time.Time       // since when everybody has certificates of the present issuer

	state struct {
		sync.Mutex
		err  error           // why SPIRE, or what it says, cannot be followed
		held []rotation.Wait // who holds a new CA up
	}
}

// NewFollower checks the configuration. It asks nobody.
func NewFollower(cfg FollowerConfig) (*Follower, error) {
	if cfg.Live == nil || cfg.Fleet == nil || cfg.Logger == nil {
		return nil, errors.New("follow SPIRE: Live, Fleet and Logger are needed")
	}
	cfg.Interval = cmp.Or(cfg.Interval, 2*time.Second)
	cfg.Settle = cmp.Or(cfg.Settle, 15*time.Second)
	return &Follower{cfg: cfg}, nil
}

// Run follows SPIRE until ctx is done, and returns nil.
func (f *Follower) Run(ctx context.Context) error {
	defer f.end()
	told := ""
	for {
		err := f.step(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, rotation.ErrConflict) {
			err = nil // somebody else was first: looked at again
		}
		f.say(err, f.waiting)
		told = f.tell(told)
		timer := time.NewTimer(f.cfg.Interval)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// tell logs what has changed since told, and returns what is so now.
func (f *Follower) tell(told string) string {
	text := ""
	if problem := f.Problem(); problem != nil {
		text = problem.Error()
	}
	switch {
	case text == told:
	case text == "":
		f.cfg.Logger.Info("SPIRE is followed")
	default:
		f.cfg.Logger.Error("SPIRE is not followed: the CA there is signs on", "error", text, "until", f.cfg.Live.Keyring().Signing.Signing().NotAfter)
	}
	return text
}

// end leaves nothing to the next Run.
func (f *Follower) end() {
	if f.client != nil {
		if err := f.client.Close(); err != nil {
			f.cfg.Logger.Debug("close the connection to the Workload API", "error", err)
		}
	}
	f.client, f.pending, f.waiting, f.failures, f.failure, f.askAt, f.quiet = nil, nil, nil, 0, nil, time.Time{}, time.Time{}
	f.say(nil, nil)
}

// step does what is due first.
func (f *Follower) step(ctx context.Context) error {
	k, now := f.cfg.Live.Keyring(), time.Now()
	f.waiting = nil
	if f.client == nil && !now.Before(f.askAt) {
		client, err := Open(ctx, f.cfg.SPIRE)
		f.asked(err, now)
		f.client = client
	}
	if f.client == nil {
		return f.failure
	}
	spires, err := f.client.Roots()
	if err != nil {
		return err
	}
	if f.pending != nil && past(f.pending.Cert, now) {
		f.pending = nil // it was held up for so long
	}
	if f.pending == nil && due(k, spires, now) && !now.Before(f.askAt) {
		f.ask(ctx, k, spires, now)
	}
	trusted, wanted := k.Signing.Roots(), spires
	if f.pending != nil {
		wanted = union(spires, f.pending.Root)
	}
	switch missing := minus(wanted, trusted); {
	case len(missing) > 0:
		err = f.replace(ctx, "SPIRE's root is trusted", k, nil, union(own(k), missing...))
	case f.pending != nil:
		err = f.take(ctx, k, now)
	default:
		err = f.retire(ctx, k, spires, now)
	}
	return cmp.Or(err, f.failure)
}

// asked says how asking went: after a failure, SPIRE is asked again later and later.
func (f *Follower) asked(err error, now time.Time) {
	f.failure = err
	if err == nil {
		f.failures = 0
		return
	}
	f.askAt = now.Add(min(askFirst<<min(f.failures, 8), askMost))
	f.failures++
}

// ask asks for a new CA, which may be no better than the present one: it ends with SPIRE's
// own, and SPIRE makes the next of those late.
func (f *Follower) ask(ctx context.Context, k *rotation.Keyring, spires []*x509.Certificate, now time.Time) {
	ca, err := f.client.NewCA(ctx)
	f.asked(err, now)
	if err != nil {
		return
	}
	signing := k.Signing.Signing()
	left := signing.NotAfter.Sub(now)
	if contains(spires, k.Signing.Root()) && ca.Cert.NotAfter.Sub(signing.NotAfter) < left/10 {
		f.askAt = now.Add(max(left/10, askBetter))
		return
	}
	f.pending, f.askAt = ca, now.Add(askFirst)
}

// due says whether it is time for a new CA.
func due(k *rotation.Keyring, spires []*x509.Certificate, now time.Time) bool {
	return !contains(spires, k.Signing.Root()) || past(k.Signing.Signing(), now)
}

// past says whether half of a certificate's life is over.
func past(cert *x509.Certificate, now time.Time) bool {
	return now.After(cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) / 2))
}

// urgent says whether waiting for everybody would soon end everybody's connections.
func urgent(k *rotation.Keyring, now time.Time) bool {
	signing := k.Signing.Signing()
	return signing.NotAfter.Sub(now) < signing.NotAfter.Sub(signing.NotBefore)/4
}

// take has the new CA sign, when its root is no news to anybody.
func (f *Follower) take(ctx context.Context, k *rotation.Keyring, now time.Time) error {
	if !f.pending.Root.Equal(k.Signing.Root()) {
		f.waiting = k.Trusting(f.cfg.Fleet(ctx)).Waiting
		if len(f.waiting) > 0 && !urgent(k, now) {
			return nil
		}
		for _, w := range f.waiting {
			f.cfg.Logger.Error("SPIRE's new CA signs before everybody trusts its root, since the one before ends", "part", w.Part, "name", w.Name, "reason", w.Reason)
		}
	}
	f.quiet = time.Time{}
	err := f.replace(ctx, "SPIRE's new CA signs", k, f.pending.Texts, union(own(k), k.Signing.Root(), f.pending.Root))
	if !errors.Is(err, rotation.ErrConflict) {
		f.asked(err, now) // one that is refused is asked for again
		f.pending, f.waiting = nil, nil
	}
	return err
}

// retire ends the trust in what SPIRE trusts no more.
func (f *Follower) retire(ctx context.Context, k *rotation.Keyring, spires []*x509.Certificate, now time.Time) error {
	gone := minus(minus(own(k), spires), []*x509.Certificate{k.Signing.Root()})
	if len(gone) == 0 {
		f.quiet = time.Time{}
		return nil
	}
	ended := slices.DeleteFunc(slices.Clone(gone), func(root *x509.Certificate) bool { return now.Before(root.NotAfter) })
	if len(k.Reissued(f.cfg.Fleet(ctx)).Waiting) > 0 {
		gone, f.quiet = ended, time.Time{}
	} else if f.quiet.IsZero() {
		gone, f.quiet = ended, now
	} else if now.Sub(f.quiet) < f.cfg.Settle {
		gone = ended
	}
	if len(gone) == 0 {
		return nil
	}
	return f.replace(ctx, "a root that SPIRE does not have is no longer trusted", k, nil, union(minus(own(k), gone), k.Signing.Root()))
}

// replace changes the authority, unless it has changed since it was looked at.
func (f *Follower) replace(ctx context.Context, what string, seen *rotation.Keyring, made map[string][]byte, roots []*x509.Certificate) error {
	err := f.cfg.Live.Change(ctx, func(k *rotation.Keyring) (rotation.Texts, error) {
		if k != seen {
			return nil, rotation.ErrConflict
		}
		return k.Replaced(made, roots)
	})
	if err != nil {
		return fmt.Errorf("put what SPIRE says into the authority: %w", err)
	}
	now := f.cfg.Live.Keyring().Signing
	f.cfg.Logger.Info(what, "issuer", now.Signing().SerialNumber.Text(16), "not_after", now.Signing().NotAfter, "roots", len(now.Roots()))
	return nil
}

func (f *Follower) say(err error, held []rotation.Wait) {
	f.state.Lock()
	defer f.state.Unlock()
	f.state.err, f.state.held = err, held
}

// Problem is why SPIRE is not followed, or who holds its new CA up; nil when neither is so,
// and where Run does not run.
func (f *Follower) Problem() error {
	f.state.Lock()
	defer f.state.Unlock()
	if f.state.err != nil {
		return f.state.err
	}
	if held := f.state.held; len(held) > 0 {
		return fmt.Errorf("SPIRE's new CA is held by %d, such as %s %s: %s", len(held), held[0].Part, held[0].Name, held[0].Reason)
	}
	return nil
}

// Collector returns the metrics:
//
//	heddle_spire_failing   1 while SPIRE, or what it says, cannot be followed
//	heddle_spire_held      nodes and replicas that hold a new CA up
func (f *Follower) Collector() prometheus.Collector {
	return &collector{follower: f,
		failing: prometheus.NewDesc("heddle_spire_failing", "1 while SPIRE, or what it says, cannot be followed; the CA there is signs on.", nil, nil),
		held:    prometheus.NewDesc("heddle_spire_held", "Nodes and replicas that do not trust the root of SPIRE's new CA yet.", nil, nil),
	}
}

type collector struct {
	follower      *Follower
	failing, held *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	out <- c.failing
	out <- c.held
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	state := &c.follower.state
	state.Lock()
	failing, held := 0.0, float64(len(state.held))
	if state.err != nil {
		failing = 1
	}
	state.Unlock()
	out <- prometheus.MustNewConstMetric(c.failing, prometheus.GaugeValue, failing)
	out <- prometheus.MustNewConstMetric(c.held, prometheus.GaugeValue, held)
}

// own are the roots that are trusted without roots.crt, which is people's.
func own(k *rotation.Keyring) []*x509.Certificate { return minus(k.Signing.Roots(), k.Further()) }

func contains(certs []*x509.Certificate, one *x509.Certificate) bool {
	return slices.ContainsFunc(certs, one.Equal)
}

func minus(certs, others []*x509.Certificate) []*x509.Certificate {
	return slices.DeleteFunc(slices.Clone(certs), func(c *x509.Certificate) bool { return contains(others, c) })
}

func union(certs []*x509.Certificate, others ...*x509.Certificate) []*x509.Certificate {
	all := slices.Clone(certs)
	for _, c := range others {
		if !contains(all, c) {
			all = append(all, c)
		}
	}
	return all
}
