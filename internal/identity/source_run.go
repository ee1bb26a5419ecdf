package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/heddle-mesh/heddle/internal/hbone/skew"
	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

const (
	// recheck bounds how long the loop sleeps: timers run on the monotonic
	// clock, and the wall clock may be set meanwhile.
	recheck = time.Minute
	// minRenewal is the least time between an issue and its renewal, so that a
	// root at its end does not make a busy loop.
	minRenewal = 10 * time.Second

	backoffFirst   = 500 * time.Millisecond
	backoffFresh   = 30 * time.Second // at most, without a valid certificate
	backoffRenewal = 5 * time.Minute  // at most, with one
)

// sourceStats are counters since the process began.
type sourceStats struct {
	issued, failed, refused atomic.Uint64
	// pruned is set once the key store was pruned.
	pruned atomic.Bool
}

// issued is the outcome of one request to the Signer.
type issued struct {
	entry  keystore.Entry
	bundle *x509bundle.Bundle
	err    error
}

// Run issues and renews until ctx is done; then it waits for the requests under
// way and returns nil. It must be called once.
func (s *Source) Run(ctx context.Context) error {
	q := newQueue()
	inFlight := map[spiffeid.ID]bool{}
	results := make(chan issued)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		s.plan(q, inFlight)
		for len(inFlight) < s.cfg.Parallel {
			id, ok := q.pop(time.Now())
			if !ok {
				break
			}
			inFlight[id] = true
			go func() { results <- s.issue(ctx, id) }()
		}
		wait := recheck
		if len(inFlight) < s.cfg.Parallel {
			wait = sleep(q, time.Now())
		} // else a result comes first
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			for range inFlight {
				<-results // requests end with ctx
			}
			return nil
		case <-s.wake:
		case <-timer.C:
		case r := <-results:
			delete(inFlight, r.entry.ID)
			if ctx.Err() == nil {
				s.apply(r)
			}
		}
	}
}

// sleep says how long until something is due.
func sleep(q *queue, now time.Time) time.Duration {
	due, ok := q.next()
	if !ok {
		return recheck
	}
	return min(max(due.Sub(now), 0), recheck)
}

// plan brings queue and certificates in line with what is wanted.
func (s *Source) plan(q *queue, inFlight map[spiffeid.ID]bool) {
	s.state.Lock()
	wanted := s.state.wanted
	if wanted == nil {
		s.state.Unlock()
		return
	}
	now := time.Now()
	for id := range wanted {
		h := s.state.held[id]
		if h == nil {
			h = &held{renewAt: now}
			s.state.held[id] = h
		}
		if !inFlight[id] && (h.due || !q.has(id)) {
			q.set(id, h.urgency(now), h.renewAt)
			h.due = false
		}
	}
	dropped := false
	for id := range s.state.held {
		if _, ok := wanted[id]; !ok {
			delete(s.state.held, id)
			q.remove(id)
			dropped = true
		}
	}
	if dropped {
		s.notify()
	}
	s.state.Unlock()
	s.prune(wanted, dropped)
}

// prune deletes the keys of identities that are no longer wanted, the first
// time in any case: an earlier process may have left some, readable or not.
func (s *Source) prune(wanted map[spiffeid.ID]struct{}, dropped bool) {
	if s.cfg.Keys == nil || !dropped && s.stats.pruned.Load() {
		return
	}
	if err := s.cfg.Keys.Prune(wanted); err != nil {
		s.cfg.Logger.Warn("prune keys", "error", err)
		return
	}
	s.stats.pruned.Store(true)
}

func (h *held) urgency(now time.Time) urgency {
	if h.certificate == nil || now.After(h.certificate.Leaf.NotAfter) {
		return urgencyFresh
	}
	return urgencyRenewal
}

// issue makes a key and has it signed.
func (s *Source) issue(ctx context.Context, id spiffeid.ID) issued {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	r := issued{entry: keystore.Entry{ID: id}}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.err = fmt.Errorf("generate key: %w", err)
		return r
	}
	csr, err := NewCSR(key, id)
	if err != nil {
		r.err = err
		return r
	}
	chain, roots, err := s.cfg.Signer.Sign(ctx, id, csr)
	if err != nil {
		r.err = err
		return r
	}
	r.entry = keystore.Entry{ID: id, Key: key, Chain: chain, Received: time.Now().Round(0)}
	r.bundle = x509bundle.FromX509Authorities(s.cfg.TrustDomain, roots)
	r.err = s.checkFollowed(r.entry, r.bundle)
	return r
}

// CheckIssued verifies an SVID that this side is going to present: it is of the
// identity and the key that were asked for, peers will trust it, and by this
// clock it is valid.
func CheckIssued(e keystore.Entry, bundle *x509bundle.Bundle) error {
	if len(e.Chain) == 0 || len(e.Chain) > MaxChain {
		return fmt.Errorf("issued chain has %d certificates", len(e.Chain))
	}
	leaf, now := e.Chain[0], time.Now()
	moment := skew.Moment(leaf, now)
	switch {
	case moment.Before(leaf.NotBefore):
		return fmt.Errorf("issued certificate is valid from %s, and here it is %s: the clocks differ", leaf.NotBefore.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case now.After(leaf.NotAfter):
		return fmt.Errorf("%w: issued certificate ended at %s, and here it is %s", ErrCertificateExpired, leaf.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	id, _, err := x509svid.Verify(e.Chain, bundle, x509svid.WithTime(moment))
	switch {
	case err != nil:
		return fmt.Errorf("issued certificate: %w", err)
	case id != e.ID:
		return fmt.Errorf("issued certificate is of %s, not of %s", id, e.ID)
	case !e.Key.PublicKey.Equal(leaf.PublicKey):
		return errors.New("issued certificate is for another key")
	}
	return nil
}

// apply takes a result in. A failure keeps the certificate that there is.
func (s *Source) apply(r issued) {
	id := r.entry.ID
	s.state.Lock()
	h := s.state.held[id]
	if h == nil {
		s.state.Unlock()
		return // no longer wanted
	}
	if r.err != nil {
		h.failures++
		h.lastErr = r.err
		delay := backoff(h.failures, h.urgency(time.Now()))
		h.renewAt = time.Now().Add(delay)
		failures := h.failures
		s.state.Unlock()
		s.stats.failed.Add(1)
		s.cfg.Logger.Warn("issue SVID", "identity", id.String(), "error", r.err, "failures", failures, "retry", delay)
		return
	}
	s.state.Unlock()
	s.stats.issued.Add(1)
	s.keep(r.entry)
	if err := s.takeBundle(r.bundle); err != nil {
		s.cfg.Logger.Error("keep bundle", "error", err)
	}
	s.state.Lock()
	if h := s.state.held[id]; h != nil {
		if by := s.state.issuer; by != nil && !issuedBy(r.entry.Chain, by) {
			// The issuer changed since the answer was checked, and others may have
			// been told meanwhile that nothing of the one before is held.
			h.lastErr, h.renewAt = errOtherIssuer, time.Now()
			s.state.Unlock()
			return
		}
		h.take(r.entry)
		s.notify()
	}
	s.state.Unlock()
	s.cfg.Logger.Info("issue SVID", "identity", id.String(), "serial", r.entry.Chain[0].SerialNumber.Text(16), "not_after", r.entry.Chain[0].NotAfter)
}

// keep stores the entry for the next process. This process goes on without.
func (s *Source) keep(e keystore.Entry) {
	if s.cfg.Keys == nil {
		return
	}
	if err := s.cfg.Keys.Put(e); err != nil {
		s.cfg.Logger.Error("keep key", "identity", e.ID.String(), "error", err)
	}
}

// take needs the lock.
func (h *held) take(e keystore.Entry) {
	*h = held{entry: e, certificate: e.TLS(), renewAt: renewAt(e.Received, e.Chain[0])}
}

// renewAt is half life, give or take a tenth of it, counted from when the
// certificate came: agents that started together do not renew together. It is sooner
// in a short life, so that peers whose clocks are ahead see no expired certificate, with
// the same spread: a tenth more of nine tenths is still of use.
// received is wall-clock time: a machine that slept renews when it wakes.
func renewAt(received time.Time, leaf *x509.Certificate) time.Time {
	life, useful := leaf.NotAfter.Sub(received), skew.Useful(received, leaf.NotAfter)
	at := received.Add(time.Duration(float64(min(life/2, useful/10*9)) * (0.9 + 0.2*mathrand.Float64())))
	if soonest := received.Add(minRenewal); at.Before(soonest) {
		return soonest
	}
	return at
}

// backoff doubles with every failure, up to a bound, less a random fifth.
func backoff(failures int, u urgency) time.Duration {
	limit := backoffRenewal
	if u == urgencyFresh {
		limit = backoffFresh
	}
	delay := min(backoffFirst<<min(failures-1, 16), limit)
	return delay - time.Duration(mathrand.Int64N(int64(delay)/5+1))
}

// adopt takes over what an earlier process left in the key store, as far as it
// is still good.
func (s *Source) adopt() error {
	entries, refused, err := s.cfg.Keys.Load()
	if err != nil {
		return err
	}
	for _, r := range refused {
		s.refuse(r)
	}
	if err := s.adoptBundle(); err != nil {
		s.refuse(keystore.Refusal{Path: s.cfg.Keys.Dir(), Err: err})
	}
	now := time.Now()
	for _, e := range entries {
		if err := s.adoptEntry(e, now); err != nil {
			s.state.held[e.ID] = &held{lastErr: fmt.Errorf("stored one refused: %w", err)}
			s.refuse(keystore.Refusal{Path: e.ID.String(), Err: err})
		}
	}
	return nil
}

// adoptBundle prefers the store's bundle, which is newer than the one the node
// was given when it joined, unless they have nothing in common: then the store
// is of an earlier mesh, and so are its certificates.
func (s *Source) adoptBundle() error {
	stored, err := s.cfg.Keys.Bundle(s.cfg.TrustDomain)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // nothing was ever stored
		}
		return err
	}
	if given := s.state.bundle; given != nil && !shareRoot(given, stored) {
		return errors.New("stored bundle is of another authority")
	}
	s.state.bundle = stored
	return nil
}

func shareRoot(a, b *x509bundle.Bundle) bool {
	for _, root := range a.X509Authorities() {
		if b.HasX509Authority(root) {
			return true
		}
	}
	return false
}

func (s *Source) adoptEntry(e keystore.Entry, now time.Time) error {
	if s.state.bundle == nil {
		return errors.New("no bundle to verify it with")
	}
	if err := CheckIssued(e, s.state.bundle); err != nil {
		return err
	}
	// A clock that was ahead when the certificate came must not put its
	// renewal off.
	if e.Received.After(now) {
		e.Received = now
	}
	h := &held{}
	h.take(e)
	s.state.held[e.ID] = h
	return nil
}

func (s *Source) refuse(r keystore.Refusal) {
	s.stats.refused.Add(1)
	s.cfg.Logger.Warn("refuse stored key", "path", r.Path, "reason", r.Err)
}
