package trustfeed

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/cakey"
	"github.com/heddle-mesh/heddle/internal/identity/federated"
	"github.com/heddle-mesh/heddle/internal/identity/jwtkeys"
	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

const (
	// maxReported bounds a report, keystore an update's certificates.
	maxReported = 4096
	// coalesce is the least time between two reports.
	coalesce = 100 * time.Millisecond
	// maxSpread bounds what an operator may ask for.
	maxSpread = time.Hour

	backoffFirst = 250 * time.Millisecond
	backoffMost  = 15 * time.Second
	// askOlder is when an operator that does not know the service is asked again:
	// it may have been upgraded.
	askOlder = time.Minute
)

// FollowerConfig says what a Follower follows. All fields but Given, JWT,
// Amiss, Look, Drifted, Gated and Logger are needed.
type FollowerConfig struct {
	TrustDomain spiffeid.TrustDomain
	// Conn is to the operator, as this node. It stays its owner's.
	Conn grpc.ClientConnInterface
	// Node and Workloads are what trusts and holds.
	Node, Workloads *identity.Source
	// FederatedFile is where the bundles of other trust domains are kept, which Workloads and
	// Given are told of; Node is not, as nobody of theirs is an operator. "" keeps them in
	// memory only.
	FederatedFile string
	// Given holds what pods are given keys of, by the Workload API; nil for none.
	Given *identity.Source
	// JWT is told what verifies JWT-SVIDs, which JWTFile keeps, as FederatedFile does; nil
	// for nobody.
	JWT     *jwtkeys.Store
	JWTFile string
	// Amiss returns how many of the node's pods are not as the configuration says; nil
	// is none. It is called every Look, one second when zero, by one goroutine at a time.
	Amiss func() int
	Look  time.Duration
	// Drifted returns how many of those are so beyond doubt, as what the kernel holds of them was
	// changed, and a channel that is closed when that is found of one; nil is none. It is
	// reported at once.
	Drifted func() (pods int, found <-chan struct{})
	// Gated returns the node's pods that are behind their gates, which nobody changes
	// afterwards, and a channel that is closed when that may be different; nil says
	// nothing of them. It is called while the operator asks for them.
	Gated  func() (*meshpb.GatedPods, <-chan struct{})
	Logger *slog.Logger
}

// Follower makes Sources follow the operator's authority, and reports what they
// hold.
type Follower struct {
	cfg FollowerConfig
	// taking is held while an update is taken, so that no report is of a moment in
	// between; issuer is that of the last, by its SHA-256.
	taking sync.Mutex
	issuer [sha256.Size]byte
	// tellsGated is set while the operator wants to know which pods are behind their gates.
	tellsGated atomic.Bool
	// began is when this was made.
	began time.Time
	// amiss is what is reported of the pods, looked what the last look at them found, said
	// what was of their gates. They are the reporting goroutine's.
	amiss, looked uint32
	said          *meshpb.GatedPods
}

// NewFollower checks the configuration.
func NewFollower(cfg FollowerConfig) (*Follower, error) {
	if cfg.TrustDomain.IsZero() || cfg.Conn == nil || cfg.Node == nil || cfg.Workloads == nil {
		return nil, errors.New("new trust follower: TrustDomain, Conn, Node and Workloads are needed")
	}
	if cfg.Look < 0 {
		return nil, errors.New("new trust follower: Look is negative")
	}
	cfg.Look = cmp.Or(cfg.Look, time.Second)
	if cfg.Amiss == nil {
		cfg.Amiss = func() int { return 0 }
	}
	if cfg.Drifted == nil {
		cfg.Drifted = func() (int, <-chan struct{}) { return 0, nil }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	f := &Follower{cfg: cfg, began: time.Now()}
	if cfg.FederatedFile != "" {
		kept, err := federated.Load(cfg.FederatedFile, cfg.TrustDomain)
		if err != nil {
			cfg.Logger.Warn("kept bundles of other trust domains are not used: the operator has them", "error", err)
		}
		f.believe(kept)
	}
	if cfg.JWT != nil && cfg.JWTFile != "" {
		if err := cfg.JWT.Load(cfg.JWTFile, cfg.TrustDomain); err != nil {
			cfg.Logger.Warn("kept keys of JWT-SVIDs are not used: the operator has them", "error", err)
		}
	}
	return f, nil
}

// verify takes what the operator says of the keys of JWT-SVIDs.
func (f *Follower) verify(said *meshpb.JWTKeys) {
	if f.cfg.JWT == nil {
		return
	}
	changed, err := f.cfg.JWT.Take(f.cfg.TrustDomain, said)
	if err != nil {
		f.cfg.Logger.Error("what the operator says of the keys of JWT-SVIDs is refused: going on with what there is", "error", err)
	}
	if !changed || f.cfg.JWTFile == "" {
		return
	}
	if err := f.cfg.JWT.Save(f.cfg.JWTFile); err != nil {
		f.cfg.Logger.Error("keys of JWT-SVIDs are not kept: a start without an operator would have those of before", "error", err)
	}
}

// believe has those that verify peers know the bundles of other trust domains.
func (f *Follower) believe(others *federated.Set) {
	f.cfg.Workloads.SetFederated(others)
	if f.cfg.Given != nil {
		f.cfg.Given.SetFederated(others)
	}
}

// federate takes what the operator says of other trust domains; nothing changes what was
// said before.
func (f *Follower) federate(said *meshpb.Federation) error {
	if said == nil {
		return nil
	}
	before := f.cfg.Workloads.Federated()
	others, err := before.Take(f.cfg.TrustDomain, said)
	if err != nil || others.Equal(before) {
		return err
	}
	f.believe(others)
	if f.cfg.FederatedFile == "" {
		return nil
	}
	if err := others.Save(f.cfg.FederatedFile); err != nil {
		f.cfg.Logger.Error("bundles of other trust domains are not kept: a start without an operator would have those of before", "error", err)
	}
	return nil
}

// sources are those that follow, and are reported of.
func (f *Follower) sources() []*identity.Source {
	all := []*identity.Source{f.cfg.Node, f.cfg.Workloads}
	if f.cfg.Given != nil {
		all = append(all, f.cfg.Given)
	}
	return all
}

// Run follows until ctx is done, and returns nil. While the operator is away, what
// it said last holds.
func (f *Follower) Run(ctx context.Context) error {
	wait := backoffFirst
	for ctx.Err() == nil {
		worked, err := f.follow(ctx)
		if worked {
			wait = backoffFirst
		}
		pause := wait/2 + rand.N(wait/2+1)
		if status.Code(err) == codes.Unimplemented {
			pause = askOlder
		}
		f.cfg.Logger.Debug("operator's trust is not followed", "error", err, "retry", pause)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		wait = min(2*wait, backoffMost)
	}
	return nil
}

// follow is one stream. It has worked when an update came and was taken.
func (f *Follower) follow(ctx context.Context) (worked bool, err error) {
	g, ctx := errgroup.WithContext(ctx)
	stream, err := meshpb.NewTrustClient(f.cfg.Conn).Follow(ctx, grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	taken := make(chan struct{}, 1)
	g.Go(func() error {
		for {
			update, err := stream.Recv()
			if err != nil {
				return err
			}
			if err := f.take(update); err != nil {
				f.cfg.Logger.Error("operator's trust is refused: going on with what there is", "error", err)
				return err
			}
			worked = true
			select {
			case taken <- struct{}{}:
			default:
			}
		}
	})
	g.Go(func() error { return f.report(ctx, stream, taken) })
	err = g.Wait()
	return worked, err
}

// take does what an update says.
func (f *Follower) take(update *meshpb.TrustUpdate) error {
	trust, err := parseUpdate(f.cfg.TrustDomain, update)
	if err != nil {
		return err
	}
	f.taking.Lock()
	defer f.taking.Unlock()
	f.issuer = sha256.Sum256(trust.Issuer.Raw)
	var errs []error
	for _, s := range f.sources() {
		errs = append(errs, s.Follow(trust))
	}
	if err := f.federate(update.GetFederation()); err != nil {
		f.cfg.Logger.Error("what the operator says of other trust domains is refused: going on with what there is", "error", err)
	}
	f.verify(update.GetJwt())
	f.tellsGated.Store(update.GetTellGated() && f.cfg.Gated != nil)
	return errors.Join(errs...)
}

// parseUpdate checks an update's bounds.
func parseUpdate(td spiffeid.TrustDomain, update *meshpb.TrustUpdate) (identity.Trust, error) {
	if n := len(update.GetRoots()); n == 0 || n > identity.MaxBundle {
		return identity.Trust{}, fmt.Errorf("trust update with %d roots: 1 to %d are possible", n, identity.MaxBundle)
	}
	roots := make([]*x509.Certificate, 0, len(update.GetRoots()))
	for _, der := range update.GetRoots() {
		root, err := parseCertificate(der)
		if err != nil {
			return identity.Trust{}, fmt.Errorf("trust update: root: %w", err)
		}
		roots = append(roots, root)
	}
	issuer, err := parseCertificate(update.GetIssuer())
	if err != nil {
		return identity.Trust{}, fmt.Errorf("trust update: issuer: %w", err)
	}
	spread := time.Duration(update.GetSpreadNs())
	if spread < 0 || spread > maxSpread {
		return identity.Trust{}, fmt.Errorf("trust update: spread of %v: 0 to %v are possible", spread, maxSpread)
	}
	return identity.Trust{Bundle: x509bundle.FromX509Authorities(td, roots), Issuer: issuer, Spread: spread}, nil
}

func parseCertificate(der []byte) (*x509.Certificate, error) {
	cert, err := keystore.ParseDER(der)
	if err != nil {
		return nil, err
	}
	if !cert.IsCA {
		return nil, errors.New("certificate is not a CA's")
	}
	return cert, nil
}

// report says what is held once the first update is taken, and at each change.
func (f *Follower) report(ctx context.Context, stream grpc.BidiStreamingClient[meshpb.TrustReport, meshpb.TrustUpdate], taken <-chan struct{}) error {
	select {
	case <-taken:
	case <-ctx.Done():
		return ctx.Err()
	}
	look := time.NewTicker(f.cfg.Look)
	defer look.Stop()
	for {
		node, workloads := f.cfg.Node.Changed(), f.cfg.Workloads.Changed()
		var given <-chan struct{} // nil, which never is ready, without it
		if f.cfg.Given != nil {
			given = f.cfg.Given.Changed()
		}
		gated, regated := f.gated()
		drifted := f.lookAtDrift()
		said := f.holdings()
		said.PodsAmiss, said.Gated = f.amiss, gated
		if err := stream.Send(said); err != nil {
			return err
		}
		timer := time.NewTimer(coalesce)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		for same := true; same; {
			same = false
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-taken:
			case <-node:
			case <-workloads:
			case <-given:
			case <-regated:
				var now *meshpb.GatedPods
				now, regated = f.gated()
				same = proto.Equal(now, gated)
			case <-drifted: // the next report looks
			case <-look.C:
				same = !f.lookAtPods()
			}
		}
	}
}

// gated is what is said of the pods' gates, as Gated in FollowerConfig, with a number of its
// own; nil where nobody asks.
func (f *Follower) gated() (*meshpb.GatedPods, <-chan struct{}) {
	if !f.tellsGated.Load() {
		return nil, nil
	}
	said, changed := f.cfg.Gated()
	next := &meshpb.GatedPods{Pods: said.GetPods(), Complete: said.GetComplete(), AgentBeganNs: meshpb.Nanos(f.began), Change: f.said.GetChange()}
	if f.said == nil || !proto.Equal(next, f.said) {
		next.Change++
		f.said = next
	}
	return f.said, changed
}

// lookAtPods reports whether something else is to be said of the pods. What one look alone
// finds is passing, such as a namespace that goes a moment before its pod; what has drifted is not.
func (f *Follower) lookAtPods() (changed bool) {
	now, before := uint32(f.cfg.Amiss()), f.amiss
	drifted, _ := f.cfg.Drifted()
	f.amiss, f.looked = max(min(now, f.looked), uint32(drifted)), now
	return f.amiss != before
}

// lookAtDrift counts what has drifted among what is reported of the pods.
func (f *Follower) lookAtDrift() (found <-chan struct{}) {
	drifted, found := f.cfg.Drifted()
	f.amiss = max(f.amiss, uint32(drifted))
	return found
}

// holdings is the report of this moment: the roots that every Source trusts, and
// all certificates.
func (f *Follower) holdings() *meshpb.TrustReport {
	f.taking.Lock()
	defer f.taking.Unlock()
	report := &meshpb.TrustReport{}
	trusted := map[[sha256.Size]byte]int{}
	sources := f.sources()
	for _, s := range sources {
		roots, all := s.Holdings()
		for _, root := range roots {
			trusted[sha256.Sum256(root.Raw)]++
		}
		for _, h := range all {
			report.Certificates = append(report.Certificates, encode(h))
		}
	}
	for sum, n := range trusted {
		if n == len(sources) {
			report.Roots = append(report.Roots, sum[:])
		}
	}
	slices.SortFunc(report.Roots, slices.Compare)
	f.bound(report)
	slices.SortFunc(report.Certificates, func(a, b *meshpb.HeldCertificate) int {
		return cmp.Or(cmp.Compare(a.GetIdentity(), b.GetIdentity()), cmp.Compare(a.GetSerial(), b.GetSerial()))
	})
	return report
}

// bound leaves out what is too much, those of the present issuer first.
func (f *Follower) bound(report *meshpb.TrustReport) {
	all := report.GetCertificates()
	if len(all) <= maxReported {
		return
	}
	slices.SortStableFunc(all, func(a, b *meshpb.HeldCertificate) int {
		present := func(c *meshpb.HeldCertificate) int {
			if string(c.GetIssuer()) == string(f.issuer[:]) {
				return 1
			}
			return 0
		}
		return cmp.Compare(present(a), present(b))
	})
	report.Certificates, report.LeftOut = all[:maxReported], uint32(len(all)-maxReported)
}

func encode(h identity.Holding) *meshpb.HeldCertificate {
	c := &meshpb.HeldCertificate{Identity: h.ID.String(), Serial: h.Leaf.SerialNumber.Text(16), NotBeforeNs: h.Leaf.NotBefore.UnixNano(),
		NotAfterNs: h.Leaf.NotAfter.UnixNano(), RenewalNs: h.RenewAt.UnixNano(), Key: cakey.Type(h.Leaf)}
	if h.Issuer != [sha256.Size]byte{} {
		c.Issuer = h.Issuer[:]
	}
	if h.LastErr != nil {
		c.Error = h.LastErr.Error()
	}
	return c
}
