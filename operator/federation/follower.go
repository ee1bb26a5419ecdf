package federation

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity/federated"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// How often endpoints are asked. A refresh hint is when a bundle should be asked for again
// at the latest; endpoints are asked four times as often, so that one failure does no harm.
const (
	defaultHint = 5 * time.Minute
	mostOften   = 5 * time.Second
	leastOften  = time.Hour
	backoffMost = time.Minute
)

// Config says whom a Follower asks. All fields but Often are needed.
type Config struct {
	// Wanted returns a View whose settings say with whom the mesh is federated.
	Wanted func() (*mesh.View, <-chan struct{})
	// Own verifies endpoints of the mesh's own trust domain.
	Own x509bundle.Source
	// Store keeps what endpoints gave.
	Store  Store
	Logger *slog.Logger
	// Often is the least time between two questions to one endpoint; 5 s when zero.
	Often time.Duration
}

// Known is what is known of one trust domain.
type Known struct {
	Domain mesh.FederatedDomain
	// Bundle is the last good one; nil while there is none.
	Bundle *federated.Domain
	// Fetched is when the endpoint gave one last, Next when it is asked again; zero for
	// never, and for not.
	Fetched, Next time.Time
	// Err is why the last attempt failed; nil when it did not.
	Err error
	// bootstrap is the digest of the Mesh's bundle that was believed last.
	bootstrap string
}

// Sequence is the bundle's spiffe_sequence; 0 for none.
func (k *Known) Sequence() uint64 {
	if k.Bundle == nil {
		return 0
	}
	n, _ := k.Bundle.Bundle.SequenceNumber()
	return n
}

// Follower asks bundle endpoints. Its methods may be called from any goroutine.
type Follower struct {
	cfg Config

	state struct {
		sync.Mutex
		known   map[spiffeid.TrustDomain]*Known // nil until Run knows with whom
		changed chan struct{}                   // closed and replaced when what agents are told changes
	}
	// saving is held while the Store is written; unsaved are those that it did not take.
	saving struct {
		sync.Mutex
		unsaved map[spiffeid.TrustDomain]bool
	}
}

// New checks the configuration.
func New(cfg Config) (*Follower, error) {
	if cfg.Wanted == nil || cfg.Own == nil || cfg.Store == nil || cfg.Logger == nil {
		return nil, errors.New("new federation follower: Wanted, Own, Store and Logger are needed")
	}
	cfg.Often = cmp.Or(cfg.Often, mostOften)
	f := &Follower{cfg: cfg}
	f.state.changed = make(chan struct{})
	f.saving.unsaved = map[spiffeid.TrustDomain]bool{}
	return f, nil
}

// Said is what agents are told, nil while nothing is known yet, and a channel that is closed
// at the next change.
func (f *Follower) Said() (*meshpb.Federation, <-chan struct{}) {
	f.state.Lock()
	defer f.state.Unlock()
	if f.state.known == nil {
		return nil, f.state.changed
	}
	said := &meshpb.Federation{}
	for _, k := range f.sortedLocked() {
		d := &meshpb.DomainBundle{TrustDomain: k.Domain.TrustDomain.Name()}
		if k.Bundle != nil {
			d.Bundle = k.Bundle.Document
		}
		said.Domains = append(said.Domains, d)
	}
	return said, f.state.changed
}

// Known returns what is known of each trust domain, sorted by name.
func (f *Follower) Known() []Known {
	f.state.Lock()
	defer f.state.Unlock()
	all := make([]Known, 0, len(f.state.known))
	for _, k := range f.sortedLocked() {
		all = append(all, *k)
	}
	return all
}

func (f *Follower) sortedLocked() []*Known {
	all := make([]*Known, 0, len(f.state.known))
	for _, k := range f.state.known {
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b *Known) int {
		return cmp.Compare(a.Domain.TrustDomain.Name(), b.Domain.TrustDomain.Name())
	})
	return all
}

// GetX509BundleForTrustDomain implements x509bundle.Source: by it endpoints of profile
// https_spiffe are verified.
func (f *Follower) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	f.state.Lock()
	k := f.state.known[td]
	f.state.Unlock()
	switch {
	case k == nil:
		return f.cfg.Own.GetX509BundleForTrustDomain(td)
	case k.Bundle == nil:
		return nil, fmt.Errorf("no bundle for trust domain %q yet", td)
	}
	return k.Bundle.X509(), nil
}

// asking is who asks one endpoint.
type asking struct {
	of   mesh.FederatedDomain
	stop context.CancelFunc
	done chan struct{}
}

// Run asks until ctx is done, and returns nil.
func (f *Follower) Run(ctx context.Context) error {
	kept, ok := f.load(ctx)
	if !ok {
		return nil
	}
	running := map[spiffeid.TrustDomain]*asking{}
	defer func() {
		for _, a := range running {
			<-a.done // which end with ctx
		}
	}()
	var own spiffeid.TrustDomain
	var last []mesh.FederatedDomain
	for {
		view, changed := f.cfg.Wanted()
		if s := view.Settings(); view.Synced() && (s.TrustDomain != own || !slices.EqualFunc(s.Federation, last, mesh.FederatedDomain.Equal)) {
			f.follow(ctx, s, kept, running)
			kept, own, last = nil, s.TrustDomain, s.Federation // from now on, what is known is newer
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// load reads the Store, until it answers. What it will never give is done without: nobody
// else would be federated either.
func (f *Follower) load(ctx context.Context) (map[string]string, bool) {
	for delay := time.Second; ; delay = min(2*delay, backoffMost) {
		kept, err := f.cfg.Store.Load(ctx)
		if err == nil {
			return kept, true
		}
		if errors.Is(err, ErrUnusable) {
			f.cfg.Logger.Error("kept bundles of other trust domains are of no use: going on without, and with what endpoints give", "error", err)
			return nil, true
		}
		f.cfg.Logger.Error("kept bundles of other trust domains are not read: agents go on with theirs", "error", err, "retry", delay)
		select {
		case <-ctx.Done():
			return nil, false
		case <-time.After(delay):
		}
	}
}

// follow makes those that ask the ones that the settings want.
func (f *Follower) follow(ctx context.Context, s *mesh.Settings, kept map[string]string, running map[spiffeid.TrustDomain]*asking) {
	wanted := map[spiffeid.TrustDomain]mesh.FederatedDomain{}
	for _, d := range s.Federation {
		wanted[d.TrustDomain] = d
	}
	var stopped []*asking
	for td, a := range running {
		if d, ok := wanted[td]; ok && d.Equal(a.of) {
			continue
		}
		a.stop()
		stopped = append(stopped, a)
		delete(running, td)
	}
	unkept, gone := f.begin(s, wanted, kept)
	for _, a := range stopped {
		<-a.done // what it brings since is not taken
	}
	for td, d := range wanted {
		if running[td] != nil || d.Endpoint == "" { // a last good configuration does not say where
			continue
		}
		ctx, stop := context.WithCancel(ctx)
		a := &asking{of: d, stop: stop, done: make(chan struct{})}
		running[td] = a
		go func() {
			defer close(a.done)
			defer stop()
			f.ask(ctx, d)
		}()
	}
	for _, name := range gone {
		f.forget(ctx, name)
	}
	for _, td := range unkept {
		f.save(ctx, td)
	}
}

// begin says what is known of each, all of it at once. It returns whose bundle of the Mesh
// is not kept yet, and who is to be forgotten: the Store may hang, and holds up nobody here.
func (f *Follower) begin(s *mesh.Settings, wanted map[spiffeid.TrustDomain]mesh.FederatedDomain, kept map[string]string) (unkept []spiffeid.TrustDomain, gone []string) {
	next := map[spiffeid.TrustDomain]*Known{}
	f.state.Lock()
	defer f.state.Unlock()
	before := f.state.known
	for td, d := range wanted {
		if td == s.TrustDomain {
			continue // nobody else says what is believed of ours
		}
		k, anew := before[td], false
		if k == nil || !k.Domain.Equal(d) {
			if k, anew = f.known(d, k, kept[td.Name()]); anew {
				unkept = append(unkept, td)
			}
		}
		next[td] = k
	}
	for td := range before {
		if next[td] == nil {
			f.cfg.Logger.Info("federation ended", "trust_domain", td.Name())
			gone = append(gone, td.Name())
		}
	}
	for name := range kept {
		if td, err := spiffeid.TrustDomainFromString(name); err != nil || next[td] == nil {
			gone = append(gone, name)
		}
	}
	f.state.known = next
	if before == nil || !tellSame(before, next) {
		f.notifyLocked()
	}
	return unkept, gone
}

// known is what is known of a domain that is new, or whose settings are, and whether that is
// a bundle of the Mesh which is not kept yet.
func (f *Follower) known(d mesh.FederatedDomain, was *Known, kept string) (*Known, bool) {
	k := &Known{Domain: d}
	switch {
	case was != nil:
		k.Bundle, k.Fetched, k.bootstrap = was.Bundle, was.Fetched, was.bootstrap
	case kept != "":
		f.restore(k, kept)
	}
	if d.Bootstrap == "" || k.Bundle != nil && k.bootstrap == digest(d.Bootstrap) {
		return k, false
	}
	bundle, err := federated.Parse(d.TrustDomain, []byte(d.Bootstrap))
	if err != nil {
		k.Err = err
		return k, false
	}
	k.Bundle, k.Fetched, k.bootstrap = bundle, time.Time{}, digest(d.Bootstrap)
	return k, true
}

// tellSame says whether agents are told the same of both.
func tellSame(a, b map[spiffeid.TrustDomain]*Known) bool {
	return maps.EqualFunc(a, b, func(a, b *Known) bool {
		return a.Bundle == b.Bundle || a.Bundle != nil && b.Bundle != nil && bytes.Equal(a.Bundle.Document, b.Bundle.Document)
	})
}

// restore takes what was kept.
func (f *Follower) restore(k *Known, text string) {
	bundle, r, err := readRecord(k.Domain.TrustDomain, text)
	if err != nil {
		f.cfg.Logger.Warn("kept bundle is not used", "trust_domain", k.Domain.TrustDomain.Name(), "error", err)
		return
	}
	k.Bundle, k.Fetched, k.bootstrap = bundle, r.Fetched, r.Bootstrap
}

// notifyLocked needs the lock.
func (f *Follower) notifyLocked() {
	close(f.state.changed)
	f.state.changed = make(chan struct{})
}

// ask asks one endpoint until ctx is done.
func (f *Follower) ask(ctx context.Context, d mesh.FederatedDomain) {
	failures := 0
	for ctx.Err() == nil {
		got, err := fetch(ctx, &d, f)
		if err == nil {
			err = f.take(ctx, d, got)
		}
		if ctx.Err() != nil {
			return
		}
		if failures++; err == nil {
			failures = 0
		}
		wait := f.wait(d.TrustDomain, failures)
		f.note(d, err, time.Now().Add(wait))
		if err != nil && failures == 1 {
			f.cfg.Logger.Error("bundle of another trust domain is not refreshed: going on with the last good one", "trust_domain", d.TrustDomain.Name(), "error", err, "retry", wait)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// wait says how long until an endpoint is asked again: a quarter of the refresh hint, or
// sooner after a failure.
func (f *Follower) wait(td spiffeid.TrustDomain, failures int) time.Duration {
	f.state.Lock()
	hint := defaultHint
	if k := f.state.known[td]; k != nil && k.Bundle != nil {
		if said, ok := k.Bundle.Bundle.RefreshHint(); ok && said > 0 {
			hint = said
		}
	}
	f.state.Unlock()
	wait := min(max(hint/4, f.cfg.Often), leastOften)
	if failures > 0 {
		wait = min(f.cfg.Often<<min(failures-1, 10), wait, backoffMost)
	}
	return wait*9/10 + rand.N(wait/5+1)
}

// take puts a bundle in place of the one before, unless that is newer.
func (f *Follower) take(ctx context.Context, d mesh.FederatedDomain, got *federated.Domain) error {
	td := d.TrustDomain
	f.state.Lock()
	k := f.state.known[td]
	if k == nil || !k.Domain.Equal(d) {
		f.state.Unlock()
		return nil // no longer wanted, or of another endpoint
	}
	n, _ := got.Bundle.SequenceNumber()
	have, same := k.Sequence(), k.Bundle != nil && sameKeys(k.Bundle, got)
	if n < have {
		if !same {
			f.state.Unlock()
			return fmt.Errorf("the endpoint's bundle is older (spiffe_sequence %d) than the one that it gave before (%d); remedy: if that trust domain began anew, give its present bundle in spec.federation of the Mesh", n, have)
		}
		got = k.Bundle
	}
	next := *k
	next.Fetched, next.Bundle = time.Now(), got
	if !same {
		f.notifyLocked()
	}
	f.state.known[td] = &next
	f.state.Unlock()
	if !same || n > have || f.isUnsaved(td) {
		f.save(ctx, td)
	}
	if !same {
		f.cfg.Logger.Info("bundle of another trust domain", "trust_domain", td.Name(), "roots", len(got.X509().X509Authorities()), "jwt_keys", len(got.JWT().JWTAuthorities()), "sequence", next.Sequence())
	}
	return nil
}

// sameKeys says whether two bundles believe the same: replicas that serve one bundle may
// number it differently.
func sameKeys(a, b *federated.Domain) bool {
	return a.X509().Equal(b.X509()) && a.JWT().Equal(b.JWT())
}

// note says how the last attempt went.
func (f *Follower) note(d mesh.FederatedDomain, err error, again time.Time) {
	f.state.Lock()
	defer f.state.Unlock()
	k := f.state.known[d.TrustDomain]
	if k == nil || !k.Domain.Equal(d) {
		return
	}
	next := *k
	next.Err, next.Next = err, again
	f.state.known[d.TrustDomain] = &next
}

// save keeps what is known of a trust domain by the time that the Store is free, so that
// nobody writes what is older than what was written before.
func (f *Follower) save(ctx context.Context, td spiffeid.TrustDomain) {
	f.saving.Lock()
	defer f.saving.Unlock()
	f.state.Lock()
	k := f.state.known[td]
	f.state.Unlock()
	if k == nil || k.Bundle == nil {
		return // forgotten meanwhile
	}
	r := record{Bundle: string(k.Bundle.Document), Bootstrap: k.bootstrap, Fetched: k.Fetched}
	text, err := r.text()
	if err == nil {
		err = f.cfg.Store.Save(ctx, td.Name(), text)
	}
	f.saving.unsaved[td] = err != nil
	if err != nil && ctx.Err() == nil {
		f.cfg.Logger.Error("bundle of another trust domain is not kept: a restart would begin with the one before", "trust_domain", td.Name(), "error", err)
	}
}

func (f *Follower) isUnsaved(td spiffeid.TrustDomain) bool {
	f.saving.Lock()
	defer f.saving.Unlock()
	return f.saving.unsaved[td]
}

func (f *Follower) forget(ctx context.Context, name string) {
	f.saving.Lock()
	defer f.saving.Unlock()
	for td := range f.saving.unsaved {
		if td.Name() == name {
			delete(f.saving.unsaved, td)
		}
	}
	if err := f.cfg.Store.Save(ctx, name, ""); err != nil && ctx.Err() == nil {
		f.cfg.Logger.Error("bundle of another trust domain is not forgotten", "trust_domain", name, "error", err)
	}
}
