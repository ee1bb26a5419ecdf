package nodeauth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

// The bounds of an agent's mounted files.
const (
	maxTokenFile = 16 << 10
	maxRootsFile = 1 << 20
)

// AccountConfig says how an agent of a Kubernetes cluster joins: by the projected
// token of its own pod, which is bound to the node that the pod runs on.
type AccountConfig struct {
	// NodeConfig's Operator is needed: host:port.
	NodeConfig
	// Node is this node's name.
	Node string
	// TokenFile has the token; it is read anew for every attempt, since the
	// kubelet renews it. RootsFile has the mesh's roots in PEM.
	TokenFile, RootsFile string
	// Spare, on a tmpfs, has the credential when Dir's disk takes nothing: what is lost
	// with it, the token gives again. "" is nowhere.
	Spare string
}

// JoinByAccount returns the node's credential: the one in cfg.Dir, or in cfg.Spare, when
// it is valid and of this node and these roots, else one that it trades the token for.
// It tries until ctx is done while the operator is out of reach.
func JoinByAccount(ctx context.Context, cfg AccountConfig) (*Node, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Operator == "" || cfg.Node == "" {
		return nil, errors.New("join by service account: the operator's address or the node's name is not given")
	}
	bundle, err := ReadRoots(cfg.RootsFile)
	if err != nil {
		return nil, fmt.Errorf("join by service account: %w", err)
	}
	n, err := cfg.open(ctx, bundle)
	if err == nil {
		return n, nil
	}
	if spare, ok := cfg.spared(); ok && takesNothing(err) {
		n, second := spare.open(ctx, bundle)
		if second == nil {
			return n, nil
		}
		if !takesNothing(second) {
			return nil, second
		}
	}
	if !takesNothing(err) {
		return nil, err
	}
	cfg.Logger.Info("join mesh", "node", cfg.Node, "operator", cfg.Operator, "reason", err)
	if cfg.NodeConfig, err = joinByAccount(ctx, cfg, bundle); err != nil {
		return nil, fmt.Errorf("join trust domain %s at %s as node %s: %w", bundle.TrustDomain(), cfg.Operator, cfg.Node, err)
	}
	return OpenNode(ctx, cfg.NodeConfig)
}

// open loads the credential in cfg.Dir. The error matches ErrNotJoined when it is none of
// this node and these roots.
func (cfg AccountConfig) open(ctx context.Context, bundle *x509bundle.Bundle) (*Node, error) {
	n, err := OpenNode(ctx, cfg.NodeConfig)
	if err != nil {
		return nil, err
	}
	if err := n.isOf(bundle, cfg.Node); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrNotJoined, err), n.Close())
	}
	return n, nil
}

// spared is cfg with Spare for its Dir.
func (cfg AccountConfig) spared() (AccountConfig, bool) {
	cfg.Dir = cfg.Spare
	return cfg, cfg.Dir != ""
}

// takesNothing reports whether an error means that there is no credential, or no room for one.
func takesNothing(err error) bool { return errors.Is(err, ErrNotJoined) || noRoom(err) }

// noRoom reports whether a disk is full, or has become one that is only read.
func noRoom(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EROFS)
}

// ReadRoots reads a file of roots in PEM; they name their trust domain themselves.
func ReadRoots(path string) (*x509bundle.Bundle, error) {
	text, err := keystore.ReadFile(path, maxRootsFile)
	if err != nil {
		return nil, err
	}
	roots, err := keystore.ParseCertificates(text, identity.MaxBundle)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(roots[0].URIs) != 1 {
		return nil, fmt.Errorf("%s: the first root names no trust domain", path)
	}
	id, err := spiffeid.FromURI(roots[0].URIs[0])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return x509bundle.FromX509Authorities(id.TrustDomain(), roots), nil
}

// isOf says whether a stored credential is the one that is asked for.
func (n *Node) isOf(bundle *x509bundle.Bundle, name string) error {
	if n.Name() != name || n.TrustDomain() != bundle.TrustDomain() {
		return fmt.Errorf("stored credential is %s, this is node %s of %s", n.ID(), name, bundle.TrustDomain())
	}
	stored, err := n.Bundle()
	if err != nil {
		return err
	}
	for _, root := range stored.X509Authorities() {
		if bundle.HasX509Authority(root) {
			return nil
		}
	}
	return errors.New("stored credential is of another authority than the cluster's")
}

// joinByAccount trades the token for a credential, stores it, and says where.
func joinByAccount(ctx context.Context, cfg AccountConfig, bundle *x509bundle.Bundle) (NodeConfig, error) {
	id, err := identity.NodeID(bundle.TrustDomain(), cfg.Node)
	if err != nil {
		return NodeConfig{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return NodeConfig{}, fmt.Errorf("generate node key: %w", err)
	}
	csr, err := identity.NewCSR(key, id)
	if err != nil {
		return NodeConfig{}, err
	}
	none := func() (*tls.Certificate, error) { return &tls.Certificate{}, nil } // that is what is asked for
	creds := NewClientCredentials(none, bundle, identity.OperatorID(bundle.TrustDomain()))
	a, err := tradeAccount(ctx, cfg, creds, &meshpb.JoinRequest{Node: cfg.Node, Csr: csr})
	if err != nil {
		return NodeConfig{}, err
	}
	entry := keystore.Entry{ID: id, Key: key, Chain: a.chain, Received: time.Now().Round(0)}
	err = storeAccount(ctx, cfg, bundle, entry, a)
	spare, ok := cfg.spared()
	switch {
	case ok && noRoom(err):
		cfg.Logger.Warn("node's credential is in memory only, and asked for anew after a reboot: make room on the node's disk", "error", err)
		return spare.NodeConfig, storeAccount(ctx, spare, bundle, entry, a)
	case ok && err == nil:
		err = keystore.Remove(cfg.Spare) // it is older
	}
	return cfg.NodeConfig, err
}

// tradeAccount asks until there is an answer that will not change.
func tradeAccount(ctx context.Context, cfg AccountConfig, creds credentials.TransportCredentials, request *meshpb.JoinRequest) (answer, error) {
	conn, err := grpc.NewClient(cfg.Operator, append([]grpc.DialOption{grpc.WithTransportCredentials(creds)}, cfg.DialOptions...)...)
	if err != nil {
		return answer{}, err
	}
	// Nothing is lost with a connection that fails to close.
	defer func() { _ = conn.Close() }()
	client := meshpb.NewIssuingClient(conn)
	for failures := 1; ; failures++ {
		response, err := askOnce(ctx, cfg, client, request)
		if err == nil {
			return parseAnswer(response)
		}
		if _, answered := status.FromError(err); answered && !passing(err) {
			return answer{}, fmt.Errorf("%w: %s", ErrJoinRefused, status.Convert(err).Message())
		}
		delay := backoff(failures)
		cfg.Logger.Warn("join mesh", "node", cfg.Node, "operator", cfg.Operator, "error", err, "retry", delay)
		select {
		case <-ctx.Done():
			return answer{}, fmt.Errorf("%w; last attempt: %w", ctx.Err(), err)
		case <-time.After(delay):
		}
	}
}

func askOnce(ctx context.Context, cfg AccountConfig, client meshpb.IssuingClient, request *meshpb.JoinRequest) (*meshpb.JoinResponse, error) {
	token, err := keystore.ReadFile(cfg.TokenFile, maxTokenFile)
	if err != nil {
		return nil, fmt.Errorf("read service account token: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, identity.DefaultSignTimeout)
	defer cancel()
	return client.Join(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+strings.TrimSpace(string(token))), request)
}

// storeAccount verifies the operator's answer against the mounted roots and
// makes it the node's credential, as storeJoined does.
func storeAccount(ctx context.Context, cfg AccountConfig, mounted *x509bundle.Bundle, e keystore.Entry, a answer) error {
	bundle := x509bundle.FromX509Authorities(mounted.TrustDomain(), a.bundle)
	if err := identity.CheckIssued(e, mounted); err != nil {
		return err
	}
	return storeCredential(ctx, cfg.Dir, nodeState{
		TrustDomain: mounted.TrustDomain().Name(), Node: cfg.Node, Operator: cfg.Operator, ConfigurationKeys: a.configurationKeys,
	}, bundle, e)
}
