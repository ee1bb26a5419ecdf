// Package uplink is what an agent has from the operator: the node's own
// credential, the SVIDs of the workloads on it, and the mesh's configuration.
//
// It decides nothing: which SVIDs are wanted is said by who enrolls, and what
// the configuration means by internal/mesh. Everything in it goes on while the
// operator is away, for as long as what was received last is valid.
//
// An Uplink is safe for concurrent use. Join starts nothing that goes on; Run
// blocks.
package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/discovery"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/jwtkeys"
	"github.com/heddle-mesh/heddle/internal/identity/keystore"
	"github.com/heddle-mesh/heddle/internal/identity/nodeauth"
	"github.com/heddle-mesh/heddle/internal/identity/trustfeed"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Config says how the agent reaches the operator and where it keeps what it
// received.
type Config struct {
	// Node is the node's name. Token is the text of a join token; "" when the
	// node joined earlier. Operator overrides the address in the token.
	Node, Token, Operator string
	// TokenFile and RootsFile, when set, are the files of an agent that joins by its
	// pod's own token, in place of Token; Operator is needed then.
	TokenFile, RootsFile string
	// StateDir, mode 0700, keeps the node's credential and the last good
	// configuration over reboots.
	StateDir string
	// KeyDir is a tmpfs for the workloads' keys, which outlives the process;
	// MountKeys mounts one there when it is none.
	KeyDir    string
	MountKeys bool
	Log       *slog.Logger
}

// Uplink is the agent's end of the operator's services.
type Uplink struct {
	node   *nodeauth.Node
	source *identity.Source
	given  *identity.Source
	jwt    jwtkeys.Store
	client *discovery.Client
	trust  *trustfeed.Follower
	store  *mesh.Store
	amiss  func() int
	drift  func() (pods int, found <-chan struct{})
	gated  func() (*meshpb.GatedPods, <-chan struct{})
}

// Join loads or gets the node's credential, trying until ctx is done while the
// operator is out of reach, and prepares everything else. A configuration that
// was kept is in the Store as soon as Run runs.
func Join(ctx context.Context, cfg Config) (*Uplink, error) {
	for _, dir := range []string{cfg.StateDir, filepath.Dir(cfg.KeyDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make directory: %w", err)
		}
	}
	node, err := join(ctx, cfg)
	if err != nil {
		return nil, err
	}
	u := &Uplink{node: node, store: mesh.NewStore(), amiss: func() int { return 0 },
		drift: func() (int, <-chan struct{}) { return 0, nil },
		gated: func() (*meshpb.GatedPods, <-chan struct{}) { return nil, nil }}
	if err := u.prepare(ctx, cfg); err != nil {
		return nil, errors.Join(err, node.Close())
	}
	return u, nil
}

// Meant returns the trust domain that an agent of this Config will be of; "" where only
// joining tells.
func Meant(cfg Config) string {
	if cfg.RootsFile == "" {
		return ""
	}
	roots, err := nodeauth.ReadRoots(cfg.RootsFile)
	if err != nil {
		return "" // joining says why
	}
	return roots.TrustDomain().Name()
}

// TrustDomain returns the node's own.
func (u *Uplink) TrustDomain() string { return u.node.TrustDomain().Name() }

func join(ctx context.Context, cfg Config) (*nodeauth.Node, error) {
	place := nodeauth.NodeConfig{Dir: filepath.Join(cfg.StateDir, nodeDir), Operator: cfg.Operator, Logger: cfg.Log}
	if cfg.TokenFile == "" {
		return nodeauth.Join(ctx, nodeauth.JoinConfig{NodeConfig: place, Token: cfg.Token, Node: cfg.Node})
	}
	return nodeauth.JoinByAccount(ctx, nodeauth.AccountConfig{NodeConfig: place, Node: cfg.Node, TokenFile: cfg.TokenFile, RootsFile: cfg.RootsFile, Spare: spare(cfg.KeyDir)})
}

// The names of what is in StateDir.
const (
	nodeDir       = "node"
	lastGoodFile  = "last-good"
	federatedFile = "federated-bundles"
	jwtKeysFile   = "jwt-keys"
)

// spare is where a node's credential is while its disk takes nothing: beside the workloads' keys.
func spare(keyDir string) string { return filepath.Join(filepath.Dir(keyDir), nodeDir) }

// Files are all that an Uplink leaves on a node, but for KeyDir.
func Files(stateDir, keyDir string) []string {
	all := []string{spare(keyDir)}
	for _, name := range []string{nodeDir, lastGoodFile, federatedFile, jwtKeysFile} {
		all = append(all, filepath.Join(stateDir, name))
	}
	return all
}

func (u *Uplink) prepare(ctx context.Context, cfg Config) error {
	keys, err := keystore.Open(ctx, keystore.Config{Dir: cfg.KeyDir, Mount: cfg.MountKeys, Logger: cfg.Log})
	if err != nil {
		return err
	}
	bundle, err := u.node.Bundle()
	if err != nil {
		return fmt.Errorf("read the trust bundle received at joining: %w", err)
	}
	u.source, err = identity.NewSource(identity.SourceConfig{
		TrustDomain: u.node.TrustDomain(), Signer: u.node, Keys: keys, Bundle: bundle, Logger: cfg.Log,
	})
	if err != nil {
		return err
	}
	if u.given, err = u.prepareGiven(ctx, cfg, bundle); err != nil {
		return err
	}
	u.trust, err = trustfeed.NewFollower(trustfeed.FollowerConfig{
		TrustDomain: u.node.TrustDomain(), Conn: u.node.Conn(), Node: u.node.Source(), Workloads: u.source, Given: u.given,
		FederatedFile: filepath.Join(cfg.StateDir, federatedFile),
		JWT:           &u.jwt, JWTFile: filepath.Join(cfg.StateDir, jwtKeysFile), Amiss: func() int { return u.amiss() },
		Drifted: func() (int, <-chan struct{}) { return u.drift() },
		Gated:   func() (*meshpb.GatedPods, <-chan struct{}) { return u.gated() }, Logger: cfg.Log,
	})
	if err != nil {
		return err
	}
	operator := identity.OperatorID(u.node.TrustDomain())
	u.client, err = discovery.NewClient(discovery.ClientConfig{
		Node: u.node.Name(), Target: u.node.Operator(),
		Credentials: nodeauth.NewClientCredentials(u.node.Certificate, u.node.Source(), operator),
		Store:       u.store, LastGood: filepath.Join(cfg.StateDir, lastGoodFile),
		Keys: u.node.ConfigurationKeys, Logger: cfg.Log,
	})
	return err
}

// prepareGiven makes the Source of what pods are given. Its keys are others than the
// tunnel's: what a pod has of its own must not open what the agent carries for it.
func (u *Uplink) prepareGiven(ctx context.Context, cfg Config, bundle *x509bundle.Bundle) (*identity.Source, error) {
	keys, err := keystore.Open(ctx, keystore.Config{Dir: filepath.Join(cfg.KeyDir, "workload-api"), Logger: cfg.Log})
	if err != nil {
		return nil, err
	}
	return identity.NewSource(identity.SourceConfig{
		TrustDomain: u.node.TrustDomain(), Signer: u.node, Keys: keys, Bundle: bundle, Logger: cfg.Log.With("for", "workload-api"),
	})
}

// Run streams the configuration, follows the authority, and renews certificates
// until ctx is done.
func (u *Uplink) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, run := range []func(context.Context) error{u.node.Run, u.source.Run, u.given.Run, u.trust.Run, u.client.Run} {
		group.Go(func() error {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				return err
			}
			return nil
		})
	}
	return group.Wait()
}

// Tell has the operator told how many of the node's pods are not as the configuration says,
// and, while it asks, which are behind their gates; without it all are as it says. It must be called before Run; amiss is called
// about once a second, and drift and gated are FollowerConfig.Drifted and Gated of package trustfeed.
func (u *Uplink) Tell(amiss func() int, drift func() (pods int, found <-chan struct{}), gated func() (*meshpb.GatedPods, <-chan struct{})) {
	u.amiss, u.drift, u.gated = amiss, drift, gated
}

// Close ends the connections. Run must have returned.
func (u *Uplink) Close() error { return u.node.Close() }

// Store holds the configuration of the moment.
func (u *Uplink) Store() *mesh.Store { return u.store }

// Source holds the workloads' SVIDs and the bundles.
func (u *Uplink) Source() *identity.Source { return u.source }

// Given holds the SVIDs that pods are given with their keys, by the Workload API, and
// the bundles. No tunnel uses them.
func (u *Uplink) Given() *identity.Source { return u.given }

// JWTKeys are what verifies the JWT-SVIDs of the node's own trust domain.
func (u *Uplink) JWTKeys() *jwtkeys.Store { return &u.jwt }

// SignJWT has the operator sign a JWT-SVID for a workload on this node; see
// nodeauth.Client.
func (u *Uplink) SignJWT(ctx context.Context, id spiffeid.ID, audience []string) (string, time.Duration, error) {
	return nodeauth.NewClient(u.node.Conn()).SignJWT(ctx, id, audience)
}

// Discovery is the client that fills the Store, for its status.
func (u *Uplink) Discovery() *discovery.Client { return u.client }

// Operator returns the operator's address.
func (u *Uplink) Operator() string { return u.node.Operator() }

// NodeStatus returns the state of the node's own certificate.
func (u *Uplink) NodeStatus() []identity.Status { return u.node.Source().Statuses() }

// Collectors returns the metrics of identity and discovery.
func (u *Uplink) Collectors() []prometheus.Collector {
	return []prometheus.Collector{u.source.Collector(), u.client}
}
