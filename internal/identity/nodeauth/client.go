package nodeauth

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/jwtkeys"
	"github.com/heddle-mesh/heddle/internal/identity/keystore"
)

// maxConfigurationKeys bounds an answer, besides the bounds of identity and keystore.
const (
	maxConfigurationKeys = 8
	maxJWTLife           = 24 * time.Hour
)

// Client is the identity.Signer of an agent: it asks the operator. The connection must
// be the node's own (Node.Conn): the operator goes by the node's SVID.
type Client struct{ rpc meshpb.IssuingClient }

// NewClient returns a Client that uses conn and leaves it to its owner.
func NewClient(conn grpc.ClientConnInterface) *Client {
	return &Client{rpc: meshpb.NewIssuingClient(conn)}
}

// Sign implements identity.Signer. While the operator is out of reach it waits for ctx,
// and goes on as soon as the operator is back.
func (c *Client) Sign(ctx context.Context, id spiffeid.ID, csr []byte) (chain, bundle []*x509.Certificate, err error) {
	a, err := c.sign(ctx, id, csr)
	return a.chain, a.bundle, err
}

func (c *Client) sign(ctx context.Context, id spiffeid.ID, csr []byte) (answer, error) {
	resp, err := c.rpc.Sign(ctx, &meshpb.SignRequest{Identity: id.String(), Csr: csr}, grpc.WaitForReady(true))
	if err != nil {
		return answer{}, fmt.Errorf("ask operator to sign for %s: %w", id, err)
	}
	a, err := parseAnswer(resp)
	if err != nil {
		return answer{}, fmt.Errorf("operator's answer for %s: %w", id, err)
	}
	return a, nil
}

// SignJWT returns a JWT-SVID of a workload on this node, and how long it is valid from now on.
// The error has the operator's gRPC status. While the operator is out of reach it waits for ctx.
func (c *Client) SignJWT(ctx context.Context, id spiffeid.ID, audience []string) (token string, life time.Duration, err error) {
	resp, err := c.rpc.SignJWT(ctx, &meshpb.SignJWTRequest{Identity: id.String(), Audience: audience}, grpc.WaitForReady(true))
	if err != nil {
		return "", 0, fmt.Errorf("ask operator to sign a JWT-SVID for %s: %w", id, err)
	}
	token, life = resp.GetToken(), time.Duration(resp.GetLifetimeNs())
	if n := len(token); n == 0 || n > jwtkeys.MaxToken || life <= 0 || life > maxJWTLife {
		return "", 0, fmt.Errorf("operator's answer for %s: a JWT-SVID of %d bytes that is valid for %v", id, n, life)
	}
	return token, life, nil
}

// answer is the content of a JoinResponse or SignResponse.
type answer struct {
	chain, bundle     []*x509.Certificate
	configurationKeys []ed25519.PublicKey
}

// parseAnswer applies the bounds of the protocol.
func parseAnswer(m interface {
	GetChain() [][]byte
	GetBundle() [][]byte
	GetConfigurationKeys() [][]byte
}) (answer, error) {
	var a answer
	var err error
	if a.chain, err = parseDER(m.GetChain(), identity.MaxChain); err != nil {
		return answer{}, fmt.Errorf("chain: %w", err)
	}
	if a.bundle, err = parseDER(m.GetBundle(), identity.MaxBundle); err != nil {
		return answer{}, fmt.Errorf("bundle: %w", err)
	}
	if n := len(m.GetConfigurationKeys()); n > maxConfigurationKeys {
		return answer{}, fmt.Errorf("%d configuration keys, the limit is %d", n, maxConfigurationKeys)
	}
	for _, k := range m.GetConfigurationKeys() {
		if len(k) != ed25519.PublicKeySize {
			return answer{}, fmt.Errorf("configuration key of %d bytes, Ed25519 has %d", len(k), ed25519.PublicKeySize)
		}
		a.configurationKeys = append(a.configurationKeys, ed25519.PublicKey(k))
	}
	return a, nil
}

func parseDER(ders [][]byte, limit int) ([]*x509.Certificate, error) {
	if len(ders) == 0 {
		return nil, errors.New("no certificate")
	}
	if len(ders) > limit {
		return nil, fmt.Errorf("%d certificates, the limit is %d", len(ders), limit)
	}
	certs := make([]*x509.Certificate, 0, len(ders))
	for _, der := range ders {
		cert, err := keystore.ParseDER(der)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	return certs, nil
}
