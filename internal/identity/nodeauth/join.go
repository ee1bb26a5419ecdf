package nodeauth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/jointoken"
	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

// ErrJoinRefused is matched when the operator refused to let a node join; the
// text says why (token used, expired, ...).
var ErrJoinRefused = errors.New("operator refused the join token")

// JoinConfig says how a node joins.
type JoinConfig struct {
	NodeConfig
	// Token is the text of a join token; "" when the node joined earlier.
	Token string
	// Node, when not "", is the name that this node must have.
	Node string
}

// Join returns the node's credential: the one in cfg.Dir when it is valid and of
// the mesh and node that the token is for, else one that it trades the token
// for. It tries until ctx is done while the operator is out of reach. A token
// that is not needed is not consumed, so that an agent may be restarted with
// the arguments of its first start.
func Join(ctx context.Context, cfg JoinConfig) (*Node, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	token, err := parseToken(cfg)
	if err != nil {
		return nil, err
	}
	n, err := OpenNode(ctx, cfg.NodeConfig)
	if err == nil {
		if err = fits(n, token, cfg.Node); err == nil {
			return n, nil
		}
		err = errors.Join(fmt.Errorf("%w: %w", ErrNotJoined, err), n.Close())
	}
	if token == nil || !errors.Is(err, ErrNotJoined) {
		return nil, err
	}
	cfg.Logger.Info("join mesh", "node", token.Node, "operator", cfg.Operator, "reason", err)
	if err := join(ctx, cfg, *token); err != nil {
		return nil, fmt.Errorf("join trust domain %s at %s as node %s: %w", token.TrustDomain, cfg.operator(*token), token.Node, err)
	}
	return OpenNode(ctx, cfg.NodeConfig)
}

func parseToken(cfg JoinConfig) (*jointoken.Token, error) {
	if cfg.Token == "" {
		return nil, nil
	}
	token, err := jointoken.Parse(cfg.Token)
	if err != nil {
		return nil, err
	}
	if cfg.Node != "" && cfg.Node != token.Node {
		return nil, fmt.Errorf("%w: it is for %s, this is %s", jointoken.ErrWrongNode, token.Node, cfg.Node)
	}
	if cfg.operator(token) == "" {
		return nil, errors.New("join token gives no operator's address, and none is configured")
	}
	return &token, nil
}

func (c JoinConfig) operator(t jointoken.Token) string {
	if c.Operator != "" {
		return c.Operator
	}
	return t.Operator
}

// fits says whether a stored credential is the one that is asked for.
func fits(n *Node, token *jointoken.Token, name string) error {
	if name != "" && n.Name() != name {
		return fmt.Errorf("stored credential is of node %s, this is %s", n.Name(), name)
	}
	if token == nil {
		return nil
	}
	if n.Name() != token.Node || n.TrustDomain() != token.TrustDomain {
		return fmt.Errorf("stored credential is %s, the join token is for node %s of %s", n.ID(), token.Node, token.TrustDomain)
	}
	bundle, err := n.Bundle()
	if err != nil {
		return err
	}
	if findPinned(bundle.X509Authorities(), token.CASHA256) == nil {
		return errors.New("stored credential is of another authority than the join token's")
	}
	return nil
}

// join trades the token for a credential and stores it.
func join(ctx context.Context, cfg JoinConfig, token jointoken.Token) error {
	id, err := identity.NodeID(token.TrustDomain, token.Node)
	if err != nil {
		return err
	}
	// One key for all attempts: when an answer got lost, the operator lets the
	// same key ask again.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("generate node key: %w", err)
	}
	csr, err := identity.NewCSR(key, id)
	if err != nil {
		return err
	}
	request := &meshpb.JoinRequest{Secret: token.Secret[:], Node: token.Node, Csr: csr}
	a, err := tradeToken(ctx, cfg, token, request)
	if err != nil {
		return err
	}
	entry := keystore.Entry{ID: id, Key: key, Chain: a.chain, Received: time.Now().Round(0)}
	return storeJoined(ctx, cfg, token, entry, a)
}

// tradeToken asks until there is an answer that will not change.
func tradeToken(ctx context.Context, cfg JoinConfig, token jointoken.Token, request *meshpb.JoinRequest) (answer, error) {
	var untrusted atomic.Pointer[error]
	creds := NewPinnedCredentials(token.CASHA256, identity.OperatorID(token.TrustDomain), func(err error) { untrusted.Store(&err) })
	options := append([]grpc.DialOption{grpc.WithTransportCredentials(creds)}, cfg.DialOptions...)
	conn, err := grpc.NewClient(cfg.operator(token), options...)
	if err != nil {
		return answer{}, err
	}
	// Nothing is lost with a connection that fails to close.
	defer func() { _ = conn.Close() }()
	client := meshpb.NewIssuingClient(conn)
	for failures := 1; ; failures++ {
		attempt, cancel := context.WithTimeout(ctx, identity.DefaultSignTimeout)
		response, err := client.Join(attempt, request)
		cancel()
		if err == nil {
			return parseAnswer(response)
		}
		if cause := untrusted.Load(); cause != nil {
			return answer{}, fmt.Errorf("operator cannot be trusted: %w", *cause)
		}
		if !passing(err) {
			return answer{}, fmt.Errorf("%w: %s", ErrJoinRefused, status.Convert(err).Message())
		}
		delay := backoff(failures)
		cfg.Logger.Warn("join mesh", "node", token.Node, "operator", cfg.operator(token), "error", err, "retry", delay)
		select {
		case <-ctx.Done():
			return answer{}, fmt.Errorf("%w; last attempt: %w", ctx.Err(), err)
		case <-time.After(delay):
		}
	}
}

// backoff doubles from half a second to 30, less a random fifth.
func backoff(failures int) time.Duration {
	delay := min(500*time.Millisecond<<min(failures-1, 16), 30*time.Second)
	return delay - mathrand.N(delay/5)
}

// passing reports whether asking again may help.
func passing(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Aborted, codes.Canceled:
		return true
	}
	return false
}

// storeJoined verifies the operator's answer and makes it the node's
// credential.
func storeJoined(ctx context.Context, cfg JoinConfig, token jointoken.Token, e keystore.Entry, a answer) error {
	bundle := x509bundle.FromX509Authorities(token.TrustDomain, a.bundle)
	if findPinned(a.bundle, token.CASHA256) == nil {
		return errors.New("operator's bundle lacks the root that the join token pins")
	}
	if err := identity.CheckIssued(e, bundle); err != nil {
		return err
	}
	return storeCredential(ctx, cfg.Dir, nodeState{
		TrustDomain: token.TrustDomain.Name(), Node: token.Node, Operator: cfg.operator(token), ConfigurationKeys: a.configurationKeys,
	}, bundle, e)
}

// storeCredential replaces whatever a node's directory holds. The SVID is
// written last: without it, the rest counts as nothing.
func storeCredential(ctx context.Context, dir string, st nodeState, bundle *x509bundle.Bundle, e keystore.Entry) error {
	keys, err := keystore.Open(ctx, keystore.Config{Dir: dir, Disk: true})
	if err != nil {
		return err
	}
	if err := keys.Prune(map[spiffeid.ID]struct{}{}); err != nil {
		return err
	}
	if err := saveNode(keys.Dir(), st); err != nil {
		return err
	}
	if err := keys.PutBundle(bundle); err != nil {
		return err
	}
	return keys.Put(e)
}
