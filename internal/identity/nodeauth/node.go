package nodeauth

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

// ErrNotJoined is matched when a node has no credential that it could use: it
// never joined, or was away until its SVID expired, or its files are damaged.
// The remedy is a new join token.
var ErrNotJoined = errors.New("node has no valid credential; remedy: make a join token on the operator and start the agent with it")

const (
	nodeFile     = "node.json"
	maxNodeFile  = 64 << 10
	nodeFileMode = 0o600
)

// NodeConfig says where a node's credential is.
type NodeConfig struct {
	// Dir is the node's own state directory, mode 0700. It may be on a disk:
	// see docs/decisions/0010-a-nodes-own-key-may-be-on-disk.md.
	Dir string
	// Operator overrides the operator's address, host:port, that the join token
	// gave.
	Operator string
	// DialOptions are added to the connection to the operator.
	DialOptions []grpc.DialOption
	// Logger receives renewals and refusals; nil discards.
	Logger *slog.Logger
}

// nodeState is the content of node.json: what a node knows besides its SVID.
type nodeState struct {
	TrustDomain       string              `json:"trustDomain"`
	Node              string              `json:"node"`
	Operator          string              `json:"operator"`
	ConfigurationKeys []ed25519.PublicKey `json:"configurationKeys"`
}

// Node is an agent's own credential, spiffe://TD/node/NAME, and its connection
// to the operator. It renews itself while Run runs. Close it when done.
type Node struct {
	id       spiffeid.ID
	dir      string
	operator string // host:port
	source   *identity.Source
	conn     *grpc.ClientConn
	client   *Client

	log *slog.Logger

	state struct {
		sync.Mutex
		nodeState
		// unsaved says that they are not on disk as they are here.
		unsaved bool
	}
}

// OpenNode loads the credential of a node that joined earlier. The error matches
// ErrNotJoined when there is no valid one.
func OpenNode(ctx context.Context, cfg NodeConfig) (*Node, error) {
	keys, err := keystore.Open(ctx, keystore.Config{Dir: cfg.Dir, Disk: true, Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	n := &Node{dir: keys.Dir(), log: cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler))}
	if err := n.load(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotJoined, err)
	}
	n.operator = n.state.Operator
	if cfg.Operator != "" {
		n.operator = cfg.Operator
	}
	// The Source calls n.Sign, which uses the connection, whose handshakes take
	// the certificate from the Source: all three exist before any is used.
	n.source, err = identity.NewSource(identity.SourceConfig{TrustDomain: n.id.TrustDomain(), Signer: n, Keys: keys, Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	if _, err := n.Certificate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotJoined, err)
	}
	options := append([]grpc.DialOption{
		grpc.WithTransportCredentials(NewClientCredentials(n.Certificate, n.source, identity.OperatorID(n.id.TrustDomain()))),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 15 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: true}),
	}, cfg.DialOptions...)
	if n.conn, err = grpc.NewClient(n.operator, options...); err != nil {
		return nil, fmt.Errorf("connect to operator %s: %w", n.operator, err)
	}
	n.client = NewClient(n.conn)
	return n, nil
}

func (n *Node) load() error {
	text, err := keystore.ReadSecretFile(filepath.Join(n.dir, nodeFile), maxNodeFile)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("never joined")
	} else if err != nil {
		return err
	}
	st := &n.state.nodeState
	if err := json.Unmarshal(text, st); err != nil {
		return fmt.Errorf("%s: %w", nodeFile, err)
	}
	td, err := spiffeid.TrustDomainFromString(st.TrustDomain)
	if err != nil {
		return fmt.Errorf("%s: %w", nodeFile, err)
	}
	if n.id, err = identity.NodeID(td, st.Node); err != nil {
		return fmt.Errorf("%s: %w", nodeFile, err)
	}
	if !validConfigurationKeys(st.ConfigurationKeys) {
		return fmt.Errorf("%s: configuration keys are malformed", nodeFile)
	}
	return nil
}

func validConfigurationKeys(keys []ed25519.PublicKey) bool {
	return len(keys) <= maxConfigurationKeys &&
		!slices.ContainsFunc(keys, func(k ed25519.PublicKey) bool { return len(k) != ed25519.PublicKeySize })
}

func saveNode(dir string, st nodeState) error {
	text, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", nodeFile, err)
	}
	if err := keystore.ReplaceFile(filepath.Join(dir, nodeFile), text, nodeFileMode); err != nil {
		return fmt.Errorf("store %s: %w", nodeFile, err)
	}
	return nil
}

// Run renews the node's SVID at half life until ctx is done. It must be called
// once.
func (n *Node) Run(ctx context.Context) error {
	if err := n.source.Want([]spiffeid.ID{n.id}); err != nil {
		return err
	}
	return n.source.Run(ctx)
}

// Close ends the connection to the operator. Run must have returned.
func (n *Node) Close() error { return n.conn.Close() }

// ID returns spiffe://TD/node/NAME.
func (n *Node) ID() spiffeid.ID { return n.id }

// Name returns the node's name.
func (n *Node) Name() string { name, _ := identity.NodeName(n.id); return name }

// TrustDomain returns the mesh's trust domain.
func (n *Node) TrustDomain() spiffeid.TrustDomain { return n.id.TrustDomain() }

// Operator returns the operator's address, host:port.
func (n *Node) Operator() string { return n.operator }

// Conn returns the connection to the operator, authenticated as this node. It
// connects when it is first used. The Node closes it.
func (n *Node) Conn() *grpc.ClientConn { return n.conn }

// Certificate returns the node's SVID; it is an identity.CertificateFunc.
func (n *Node) Certificate() (*tls.Certificate, error) { return n.source.Certificate(n.id) }

// Source holds the node's SVID: for its status, metrics, Changed, and as the
// x509bundle.Source of the trust domain.
func (n *Node) Source() *identity.Source { return n.source }

// Bundle returns the trust domain's bundle as of the last renewal; it is the
// identity.SourceConfig.Bundle of the workloads' Source.
func (n *Node) Bundle() (*x509bundle.Bundle, error) {
	return n.source.GetX509BundleForTrustDomain(n.id.TrustDomain())
}

// ConfigurationKeys returns the keys of which any may sign configuration. They
// may change with every answer of the operator.
func (n *Node) ConfigurationKeys() []ed25519.PublicKey {
	n.state.Lock()
	defer n.state.Unlock()
	return slices.Clone(n.state.ConfigurationKeys)
}

// Sign implements identity.Signer, for the node itself and for the workloads on it, by
// asking the operator.
func (n *Node) Sign(ctx context.Context, id spiffeid.ID, csr []byte) (chain, bundle []*x509.Certificate, err error) {
	if _, err := n.Certificate(); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrNotJoined, err)
	}
	a, err := n.client.sign(ctx, id, csr)
	if err != nil {
		return nil, nil, err
	}
	n.setConfigurationKeys(a.configurationKeys)
	return a.chain, a.bundle, nil
}

// setConfigurationKeys takes keys over when they differ. An operator that sends
// none does not sign configuration, or is older; the keys stay. A disk that takes
// nothing keeps no certificate from being renewed: the next answer tries it again.
func (n *Node) setConfigurationKeys(keys []ed25519.PublicKey) {
	n.state.Lock()
	defer n.state.Unlock()
	same := slices.EqualFunc(keys, n.state.ConfigurationKeys, func(a, b ed25519.PublicKey) bool { return a.Equal(b) })
	if same && !n.state.unsaved || len(keys) == 0 {
		return
	}
	n.state.ConfigurationKeys = keys
	err := saveNode(n.dir, n.state.nodeState)
	if n.state.unsaved = err != nil; err != nil {
		n.log.Error("keep configuration keys: an agent that starts without an operator goes by the ones before", "error", err)
	}
}
