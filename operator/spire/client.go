package spire

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffegrpc/grpccredentials"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/cakey"
	"github.com/heddle-mesh/heddle/operator/spire/svidpb"
)

const (
	// patience is how long one answer may take, of the Workload API or the server.
	patience = 10 * time.Second
	// maxAnswer bounds the server's answer, in bytes.
	maxAnswer = 256 << 10
	// maxRoots bounds what is looked at of a bundle; identity.MaxBundle of it are trusted.
	maxRoots = 8 * identity.MaxBundle
)

// Config says where SPIRE is. All fields are needed.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	// Server is the host:port of the SPIRE server's API.
	Server string
	// WorkloadAPI is the address of a SPIRE agent's Workload API:
	// unix:///run/spire/agent-sockets/spire-agent.sock.
	WorkloadAPI string
}

// Check says what is wrong with the addresses. It asks nobody.
func Check(server, workloadAPI string) error {
	if host, port, err := net.SplitHostPort(server); err != nil || host == "" || port == "" {
		return fmt.Errorf("SPIRE server %q: host:port is needed, as spire-server.spire:8081", server)
	}
	// Others could be anybody's, and send anybody's roots.
	if path, ok := strings.CutPrefix(workloadAPI, "unix://"); !ok || !strings.HasPrefix(path, "/") {
		return fmt.Errorf("SPIRE agent's Workload API %q: unix:///PATH of its socket is needed", workloadAPI)
	}
	return nil
}

// Client is the operator as a workload of SPIRE.
type Client struct {
	cfg    Config
	source *workloadapi.X509Source
}

// Open waits for a first answer of the Workload API, for 10 s at most. The error says
// what it waited for. Close the Client.
func Open(ctx context.Context, cfg Config) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	at := workloadapi.WithAddr(cfg.WorkloadAPI)
	// A source tries for as long as it may, and does not say why in vain.
	if _, err := workloadapi.FetchX509Context(ctx, at); err != nil {
		return nil, fmt.Errorf("ask the SPIRE agent at %s for the operator's SVID: %w%s", cfg.WorkloadAPI, err, remedy(err))
	}
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(at))
	if err != nil {
		return nil, fmt.Errorf("ask the SPIRE agent at %s for the operator's SVID: %w", cfg.WorkloadAPI, err)
	}
	c := &Client{cfg: cfg, source: source}
	if err := c.check(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// remedy is what can be done about an answer of SPIRE.
func remedy(err error) string {
	switch status.Code(err) {
	case codes.PermissionDenied:
		return "; remedy: a registration entry for the operator, marked as downstream"
	case codes.Unavailable, codes.DeadlineExceeded:
		return "; remedy: start SPIRE, or mend the address"
	}
	return ""
}

// check says whether this SPIRE is of the mesh's trust domain.
func (c *Client) check() error {
	svid, err := c.source.GetX509SVID()
	if err != nil {
		return err
	}
	if !svid.ID.MemberOf(c.cfg.TrustDomain) {
		return fmt.Errorf("the SPIRE agent at %s says that the operator is %s, and the mesh is of %s; remedy: a SPIRE of the mesh's trust domain", c.cfg.WorkloadAPI, svid.ID, c.cfg.TrustDomain.IDString())
	}
	return nil
}

// Close ends what Open began.
func (c *Client) Close() error { return c.source.Close() }

// Roots returns SPIRE's roots of the trust domain, as of the last answer, which must not
// be so old that the operator's SVID has ended. Not all of them may be usable.
func (c *Client) Roots() ([]*x509.Certificate, error) {
	svid, err := c.source.GetX509SVID()
	if err != nil {
		return nil, err
	}
	if end := svid.Certificates[0].NotAfter; time.Now().After(end) {
		return nil, fmt.Errorf("the SPIRE agent at %s has not renewed the operator's SVID %s, which ended at %s; remedy: start the agent, or restore the registration entry", c.cfg.WorkloadAPI, svid.ID, end.UTC().Format(time.RFC3339))
	}
	bundle, err := c.source.GetX509BundleForTrustDomain(c.cfg.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("SPIRE's bundle: %w", err)
	}
	roots := bundle.X509Authorities()
	if len(roots) == 0 || len(roots) > maxRoots {
		return nil, fmt.Errorf("SPIRE's bundle of %s has %d roots, 1 to %d are possible", c.cfg.TrustDomain, len(roots), maxRoots)
	}
	return roots, nil
}

// CA is an intermediate that SPIRE has signed.
type CA struct {
	// Texts has tls.crt, from the CA up to its root, and tls.key.
	Texts map[string][]byte
	Cert  *x509.Certificate
	// Root is the one of SPIRE's roots that Cert is below.
	Root *x509.Certificate
}

// NewCA makes a key and has the SPIRE server sign a CA for it. What the server says is
// taken from nobody but the trust domain's spire/server.
func (c *Client) NewCA(ctx context.Context) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key of intermediate: %w", err)
	}
	csr, err := identity.NewCSR(key, c.cfg.TrustDomain.ID())
	if err != nil {
		return nil, err
	}
	answer, err := c.ask(ctx, csr)
	if err != nil {
		return nil, fmt.Errorf("ask the SPIRE server at %s for a CA: %w%s", c.cfg.Server, err, remedy(err))
	}
	ca, err := parseCA(answer, key)
	if err != nil {
		return nil, fmt.Errorf("the SPIRE server at %s has answered with a CA that is not usable: %w", c.cfg.Server, err)
	}
	return ca, nil
}

func (c *Client) ask(ctx context.Context, csr []byte) (answer *svidpb.NewDownstreamX509CAResponse, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	server, err := spiffeid.FromSegments(c.cfg.TrustDomain, "spire", "server")
	if err != nil {
		return nil, err
	}
	creds := grpccredentials.MTLSClientCredentials(c.source, c.source, tlsconfig.AuthorizeID(server))
	conn, err := grpc.NewClient(c.cfg.Server, grpc.WithTransportCredentials(creds), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	return svidpb.NewSVIDClient(conn).NewDownstreamX509CA(ctx, &svidpb.NewDownstreamX509CARequest{Csr: csr})
}

// parseCA checks the bounds, that the CA is for the key, and that it has a root. What else
// makes a CA usable is checked where all are, by identity.Authority.
func parseCA(answer *svidpb.NewDownstreamX509CAResponse, key *ecdsa.PrivateKey) (*CA, error) {
	chain, err := parseAll("chain", answer.GetCaCertChain(), identity.MaxChain-1)
	if err != nil {
		return nil, err
	}
	roots, err := parseAll("authorities", answer.GetX509Authorities(), maxRoots)
	if err != nil {
		return nil, err
	}
	ca := &CA{Cert: chain[0]}
	if !cakey.Belongs(key, ca.Cert.PublicKey) {
		return nil, errors.New("it is for another key")
	}
	if identity.IsRoot(chain[len(chain)-1]) { // of an answer that has it in both
		roots = append(roots, chain[len(chain)-1])
		chain = chain[:len(chain)-1]
	}
	if len(chain) == 0 {
		return nil, errors.New("it is a root")
	}
	top := chain[len(chain)-1]
	for _, root := range roots {
		if identity.IsRoot(root) && bytes.Equal(top.RawIssuer, root.RawSubject) && top.CheckSignatureFrom(root) == nil {
			ca.Root = root
		}
	}
	if ca.Root == nil {
		return nil, fmt.Errorf("none of the %d authorities is a root that has signed it", len(roots))
	}
	text, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	ca.Texts = map[string][]byte{"tls.crt": identity.CertificatesText(append(chain, ca.Root)), "tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text})}
	return ca, nil
}

func parseAll(what string, ders [][]byte, limit int) ([]*x509.Certificate, error) {
	if len(ders) == 0 || len(ders) > limit {
		return nil, fmt.Errorf("%s of %d certificates, 1 to %d are possible", what, len(ders), limit)
	}
	var all []*x509.Certificate
	for i, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%s, certificate %d: %w", what, i, err)
		}
		all = append(all, cert)
	}
	return all, nil
}

// First asks for a first CA, and returns it with SPIRE's roots as the texts of an authority,
// without a configuration key.
func First(ctx context.Context, cfg Config) (texts map[string][]byte, err error) {
	client, err := Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	ca, err := client.NewCA(ctx)
	if err != nil {
		return nil, err
	}
	roots, err := client.Roots()
	if err != nil {
		return nil, err
	}
	base := []*x509.Certificate{ca.Root}
	// What is left out, the Follower says.
	roots, _ = usable(base, minus(roots, base), identity.MaxBundle, func(with []*x509.Certificate) error {
		texts := maps.Clone(ca.Texts)
		texts["ca.crt"] = identity.CertificatesText(with)
		if _, err := identity.AddConfigurationKey(texts, nil); err != nil {
			return err
		}
		_, _, err := identity.AuthorityFromTexts(texts, identity.AuthorityConfig{TrustDomain: cfg.TrustDomain})
		return err
	})
	ca.Texts["ca.crt"] = identity.CertificatesText(roots)
	return ca.Texts, nil
}
