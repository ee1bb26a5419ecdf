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

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/operator/rotation"
)

const (
	askMost = time.Minute // SPIRE is asked again after a failure, at most
	// behindMost is how long the Workload API's bundle may be behind the server's.
	behindMost = 5 * time.Minute
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
	// their root goes, and how long a root is trusted at least before a CA below it signs
	// without those that do not trust it; 15 s when zero: five of a replica's polls.
	Settle time.Duration
	// Leave is how long a root that SPIRE gave up is trusted for nodes whose agents are not
	// connected, when nobody else needs it; 1 h when zero.
	Leave time.Duration
	// Retry is how long after a failure SPIRE is asked again, doubled with each; 5 s when
	// zero. Twice as long it is not asked for an intermediate that lasts longer than the one
	// there is, when it did not give one.
	Retry  time.Duration
	Logger *slog.Logger
}

// Follower keeps the authority what SPIRE says. One replica runs it.
type Follower struct {
	cfg FollowerConfig

	// Of Run's goroutine.
	client   *Client
	pending  *CA             // asked for, and not in use yet
	known    time.Time       // since when its root is trusted; zero when it is not
	listed   bool            // SPIRE's bundle has had its root
	waiting  []rotation.Wait // who holds up
	what     string          // what they hold up
	askAt    time.Time       // not before
	failures int             // of asking, in a row
	failure  error           // the last of them
	quiet    time.Time       // since when everybody has certificates of the present issuer
	absent   time.Time       // since when all do whose agents are connected
	// ahead is the root of the CA that was taken at a time, while the bundle has not had it.
	ahead *x509.Certificate
	taken time.Time

	state struct {
		sync.Mutex
		err  error           // why SPIRE, or what it says, cannot be followed
		held []rotation.Wait // who holds what up
		what string
	}
}

// NewFollower checks the configuration. It asks nobody.
func NewFollower(cfg FollowerConfig) (*Follower, error) {
	if cfg.Live == nil || cfg.Fleet == nil || cfg.Logger == nil {
		return nil, errors.New("follow SPIRE: Live, Fleet and Logger are needed")
	}
	cfg.Interval = cmp.Or(cfg.Interval, 2*time.Second)
	cfg.Settle = cmp.Or(cfg.Settle, 15*time.Second)
	cfg.Leave = cmp.Or(cfg.Leave, time.Hour)
	cfg.Retry = cmp.Or(cfg.Retry, 5*time.Second)
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
		f.cfg.Logger.Error("SPIRE is not followed in all: the CA there is signs on", "error", text, "until", f.cfg.Live.Keyring().Signing.Signing().NotAfter)
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
	f.client, f.pending, f.waiting, f.failures, f.failure, f.ahead = nil, nil, nil, 0, nil, nil
	f.askAt, f.quiet, f.absent = time.Time{}, time.Time{}, time.Time{}
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
	f.compare(spires, now)
	switch {
	case f.pending != nil:
	case !f.due(k, spires, now):
		f.failure, f.failures = nil, 0 // nothing is wanted any more
	case !now.Before(f.askAt):
		f.ask(ctx, k, spires, now)
	}
	if k.AtEnd(now) {
		return f.revive(ctx, k, spires, now)
	}
	if f.pending != nil && contains(k.Signing.Roots(), f.pending.Root) {
		// Before other roots: one that is not usable holds no renewal up.
		if err := f.take(ctx, k, now); err != nil || f.pending == nil {
			return cmp.Or(err, f.failure)
		}
	}
	return f.follow(ctx, k, spires, now)
}

// compare drops a pending CA that is of no use any more.
func (f *Follower) compare(spires []*x509.Certificate, now time.Time) {
	if f.ahead != nil && contains(spires, f.ahead) {
		f.ahead = nil
	}
	if f.pending == nil {
		return
	}
	has := contains(spires, f.pending.Root)
	if f.listed && !has || past(f.pending.Cert, now) { // SPIRE gave its root up, or it was held up for so long
		f.pending = nil
	}
	f.listed = f.listed || has
}

// follow trusts what SPIRE trusts, and no longer what it does not.
func (f *Follower) follow(ctx context.Context, k *rotation.Keyring, spires []*x509.Certificate, now time.Time) error {
	wanted := spires
	if f.pending != nil {
		wanted = union([]*x509.Certificate{f.pending.Root}, spires...)
	}
	has := own(k)
	limit := identity.MaxBundle - (len(k.Signing.Roots()) - len(has))
	missing := minus(wanted, k.Signing.Roots())
	roots, refused := usable(has, missing, limit, func(with []*x509.Certificate) error {
		_, err := k.Replaced(nil, with)
		return err
	})
	if f.pending != nil && !contains(k.Signing.Roots(), f.pending.Root) && !contains(roots, f.pending.Root) {
		f.asked(refused, now)
		f.pending = nil
	}
	var err error
	switch {
	case len(roots) > len(has):
		err = f.replace(ctx, "SPIRE's root is trusted", k, nil, roots)
	case f.pending == nil:
		err = f.retire(ctx, k, spires, now)
	}
	return cmp.Or(err, refused, f.failure)
}

// asked says how asking went: after a failure, SPIRE is asked again later and later.
func (f *Follower) asked(err error, now time.Time) {
	f.failure = err
	if err == nil {
		f.failures = 0
		return
	}
	f.askAt = now.Add(min(f.cfg.Retry<<min(f.failures, 8), askMost))
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
	if f.has(k, spires, now) && ca.Cert.NotAfter.Sub(signing.NotAfter) < left/10 {
		f.askAt = now.Add(max(left/10, 2*f.cfg.Retry))
		return
	}
	f.pending, f.askAt, f.known, f.listed = ca, now.Add(f.cfg.Retry), time.Time{}, contains(spires, ca.Root)
}

// due says whether it is time for a new CA.
func (f *Follower) due(k *rotation.Keyring, spires []*x509.Certificate, now time.Time) bool {
	return !f.has(k, spires, now) || past(k.Signing.Signing(), now)
}

// has says whether SPIRE has the root of the CA that signs; for some time, that it came with
// that CA is enough.
func (f *Follower) has(k *rotation.Keyring, spires []*x509.Certificate, now time.Time) bool {
	root := k.Signing.Root()
	return contains(spires, root) || f.ahead != nil && f.ahead.Equal(root) && now.Sub(f.taken) < behindMost
}

// past says whether half of a certificate's life is over.
func past(cert *x509.Certificate, now time.Time) bool {
	return now.After(cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) / 2))
}

// holding are those of who is waited for that a new CA still waits for: since waiting for
// everybody would end everybody's connections, agents that are not connected are left behind
// when a tenth of the present CA's life is left, a day at most, and everybody at a fiftieth,
// two hours at most. Until replicas and agents could have learned of the root, all hold.
func (f *Follower) holding(k *rotation.Keyring, waiting []rotation.Wait, now time.Time) []rotation.Wait {
	signing := k.Signing.Signing()
	left, life := signing.NotAfter.Sub(now), signing.NotAfter.Sub(signing.NotBefore)
	switch {
	case now.Sub(f.known) < f.cfg.Settle || left > min(life/10, 24*time.Hour):
		return waiting
	case left > min(life/50, 2*time.Hour):
		return slices.DeleteFunc(slices.Clone(waiting), func(w rotation.Wait) bool { return w.Forcible })
	}
	return nil
}

// take has the new CA sign, when its root is no news to anybody.
func (f *Follower) take(ctx context.Context, k *rotation.Keyring, now time.Time) error {
	if f.known.IsZero() {
		f.known = now
	}
	if !f.pending.Root.Equal(k.Signing.Root()) {
		waiting := k.Trusting(f.cfg.Fleet(ctx)).Waiting
		f.waiting, f.what = f.holding(k, waiting, now), "SPIRE's new CA"
		if len(f.waiting) > 0 {
			return nil
		}
		for _, w := range waiting {
			f.cfg.Logger.Error("SPIRE's new CA signs before everybody trusts its root, since the one before ends", "part", w.Part, "name", w.Name, "reason", w.Reason)
		}
	}
	return f.sign(ctx, k, union(own(k), k.Signing.Root(), f.pending.Root), now)
}

// sign has the pending CA sign, and roots be trusted.
func (f *Follower) sign(ctx context.Context, k *rotation.Keyring, roots []*x509.Certificate, now time.Time) error {
	f.quiet, f.absent = time.Time{}, time.Time{}
	err := f.replace(ctx, "SPIRE's new CA signs", k, f.pending.Texts, roots)
	if errors.Is(err, rotation.ErrConflict) {
		return err
	}
	f.asked(err, now) // one that is refused is asked for again
	if f.taken, f.ahead = now, nil; err == nil && !f.listed {
		f.ahead = f.pending.Root
	}
	f.pending, f.waiting = nil, nil
	return err
}

// revive puts CA and roots in at once when what signs has ended: nobody has a connection
// by it that could end.
func (f *Follower) revive(ctx context.Context, k *rotation.Keyring, spires []*x509.Certificate, now time.Time) error {
	if f.pending == nil {
		return f.failure
	}
	base := []*x509.Certificate{f.pending.Root}
	limit := identity.MaxBundle - len(minus(k.Further(), base))
	roots, refused := usable(base, minus(spires, base), limit, func(with []*x509.Certificate) error {
		_, err := k.Replaced(f.pending.Texts, with)
		return err
	})
	return cmp.Or(f.sign(ctx, k, roots, now), refused)
}

// retire ends the trust in what SPIRE trusts no more: at once where it has ended, else when
// everybody has certificates of the present issuer. Agents that are not connected are waited
// for as long as Leave says.
func (f *Follower) retire(ctx context.Context, k *rotation.Keyring, spires []*x509.Certificate, now time.Time) error {
	gone := minus(minus(own(k), spires), []*x509.Certificate{k.Signing.Root()})
	if len(gone) == 0 {
		f.quiet, f.absent = time.Time{}, time.Time{}
		return nil
	}
	ended := slices.DeleteFunc(slices.Clone(gone), func(root *x509.Certificate) bool { return now.Before(root.NotAfter) })
	valid, waiting := minus(gone, ended), k.Reissued(f.cfg.Fleet(ctx)).Waiting
	switch complete := f.complete(waiting, now); {
	case len(valid) == 0:
	case !complete:
		gone = ended
		f.waiting, f.what = waiting, fmt.Sprintf("the end of root %s, which SPIRE gave up,", valid[0].SerialNumber.Text(16))
	case len(waiting) > 0:
		f.cfg.Logger.Warn("roots that SPIRE gave up go before every node has certificates of the present issuer", "roots", serials(valid), "nodes", len(waiting), "such_as", waiting[0].Name)
	}
	if len(gone) == 0 {
		return nil
	}
	return f.replace(ctx, "a root that SPIRE does not have is no longer trusted", k, nil, union(minus(own(k), gone), k.Signing.Root()))
}

// complete says whether nobody has been waited for since Settle, or nobody but agents that
// are not connected since Leave.
func (f *Follower) complete(waiting []rotation.Wait, now time.Time) bool {
	if slices.ContainsFunc(waiting, func(w rotation.Wait) bool { return !w.Forcible }) {
		f.quiet, f.absent = time.Time{}, time.Time{}
		return false
	}
	if f.absent.IsZero() {
		f.absent = now
	}
	if len(waiting) > 0 {
		f.quiet = time.Time{}
		return now.Sub(f.absent) >= f.cfg.Leave
	}
	if f.quiet.IsZero() {
		f.quiet = now
	}
	return now.Sub(f.quiet) >= f.cfg.Settle
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
	f.cfg.Logger.Info(what, "issuer", now.Signing().SerialNumber.Text(16), "not_after", now.Signing().NotAfter, "roots", len(now.Roots()),
		"added", serials(minus(now.Roots(), seen.Signing.Roots())), "removed", serials(minus(seen.Signing.Roots(), now.Roots())))
	return nil
}

func (f *Follower) say(err error, held []rotation.Wait) {
	f.state.Lock()
	defer f.state.Unlock()
	f.state.err, f.state.held, f.state.what = err, held, f.what
}

// Problem is why SPIRE is not followed, or who holds its new CA, or the end of a root, up;
// nil when nothing is so, and where Run does not run.
func (f *Follower) Problem() error {
	f.state.Lock()
	defer f.state.Unlock()
	if f.state.err != nil {
		return f.state.err
	}
	if held := f.state.held; len(held) > 0 {
		return fmt.Errorf("%s is held by %d, such as %s %s: %s", f.state.what, len(held), held[0].Part, held[0].Name, held[0].Reason)
	}
	return nil
}

// Collector returns the metrics:
//
//	heddle_spire_failing   1 while SPIRE, or what it says, cannot be followed
//	heddle_spire_held      nodes and replicas that hold a new CA, or the end of a root, up
func (f *Follower) Collector() prometheus.Collector {
	return &collector{follower: f,
		failing: prometheus.NewDesc("heddle_spire_failing", "1 while SPIRE, or what it says, cannot be followed; the CA there is signs on.", nil, nil),
		held:    prometheus.NewDesc("heddle_spire_held", "Nodes and replicas that hold SPIRE's new CA up, or the end of a root that it gave up.", nil, nil),
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
