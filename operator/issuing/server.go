package issuing

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/jointoken"
	"github.com/heddle-mesh/heddle/internal/identity/nodeauth"
	"github.com/heddle-mesh/heddle/internal/mesh"
)

// Snapshot is what deciding needs of a *mesh.View.
type Snapshot interface {
	Synced() bool
	OnNode(node string) []*mesh.Workload
	Barred(id spiffeid.ID) bool
}

// Issuer signs; *identity.Authority does.
type Issuer interface {
	TrustDomain() spiffeid.TrustDomain
	// SignCSR returns the chain, leaf first; ttl 0 is the default. Errors about
	// the request match identity.ErrBadCSR.
	SignCSR(csr []byte, id spiffeid.ID, ttl time.Duration) ([]*x509.Certificate, error)
	// Roots returns what verifies the chain. It must not be changed.
	Roots() []*x509.Certificate
}

// Tokens consumes join tokens; *jointoken.Store does.
type Tokens interface {
	Consume(secret []byte, node string, publicKey []byte) (jointoken.Record, error)
}

// Accounts vouches for nodes by their agents' service account tokens;
// *tokenreview.Reviewer does.
type Accounts interface {
	// NodeOf returns the node that the agent with this token runs on. The error
	// matches ErrNotVouched when the token is refused.
	NodeOf(ctx context.Context, token string) (string, error)
}

// ErrNotVouched is matched when a service account token is refused; the text,
// which the caller may see, says why.
var ErrNotVouched = errors.New("service account token is refused")

// Defaults of Config: a node that starts asks for every identity it has at
// once, a joining one asks once.
const (
	DefaultSignRate  = rate.Limit(50)
	DefaultSignBurst = 500
	DefaultJoinRate  = rate.Limit(2)
	DefaultJoinBurst = 20
)

// Config says what a Server needs. Issuer, View and Logger are needed.
type Config struct {
	Issuer Issuer
	// View returns the mesh as it is now, never nil.
	View func() Snapshot
	// Tokens and Accounts let nodes join, by join tokens and by service account
	// tokens (metadata "authorization: Bearer TOKEN"); nil refuses them all.
	Tokens   Tokens
	Accounts Accounts
	// JWTs signs JWT-SVIDs; nil refuses them all.
	JWTs JWTs
	// KnownNode reports whether a node is there to renew its own SVID; nil knows
	// them all.
	KnownNode func(node string) bool
	// ConfigurationKeys verify what the operator sends as configuration.
	ConfigurationKeys []ed25519.PublicKey
	// Logger receives one line per decision.
	Logger *slog.Logger
	// Registerer receives the metrics; nil leaves them out.
	Registerer prometheus.Registerer
	// SignRate (per second) and SignBurst bound each node, for certificates and for
	// JWT-SVIDs alike and apart, JoinRate and
	// JoinBurst each address (IPv6: each /64) that nodes join from; zero takes the default.
	SignRate, JoinRate   rate.Limit
	SignBurst, JoinBurst int
}

// Server implements meshpb.IssuingServer.
type Server struct {
	meshpb.UnimplementedIssuingServer
	cfg     Config
	signs   *limiters // by node
	jwts    *limiters // by node
	joins   *limiters // by network
	metrics metrics
}

// New returns a Server. The gRPC server that it is registered with must have
// nodeauth.ServerOptions with Issuing/Join as an anonymous method.
func New(cfg Config) (*Server, error) {
	if cfg.Issuer == nil || cfg.View == nil || cfg.Logger == nil {
		return nil, errors.New("issuing needs an issuer, a view and a logger")
	}
	if cfg.SignRate == 0 {
		cfg.SignRate = DefaultSignRate
	}
	if cfg.SignBurst == 0 {
		cfg.SignBurst = DefaultSignBurst
	}
	if cfg.JoinRate == 0 {
		cfg.JoinRate = DefaultJoinRate
	}
	if cfg.JoinBurst == 0 {
		cfg.JoinBurst = DefaultJoinBurst
	}
	s := &Server{
		cfg:     cfg,
		signs:   newLimiters(cfg.SignRate, cfg.SignBurst),
		jwts:    newLimiters(cfg.SignRate, cfg.SignBurst),
		joins:   newLimiters(cfg.JoinRate, cfg.JoinBurst),
		metrics: newMetrics(),
	}
	if cfg.Registerer != nil {
		if err := s.metrics.register(cfg.Registerer, cfg.Issuer.Roots); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Join implements meshpb.IssuingServer.
func (s *Server) Join(ctx context.Context, req *meshpb.JoinRequest) (*meshpb.JoinResponse, error) {
	d := decision{method: "join", node: req.GetNode(), remote: remoteAddress(ctx), began: time.Now()}
	chain, err := s.join(ctx, &d, req)
	if err = s.conclude(ctx, &d, err, issued(chain)...); err != nil {
		return nil, err
	}
	return &meshpb.JoinResponse{Chain: raw(chain), Bundle: raw(s.cfg.Issuer.Roots()), ConfigurationKeys: s.configurationKeys()}, nil
}

func (s *Server) join(ctx context.Context, d *decision, req *meshpb.JoinRequest) ([]*x509.Certificate, error) {
	if !s.joins.allow(network(d.remote), d.began) {
		return nil, refuse(reasonRate, codes.ResourceExhausted, "too many attempts to join from %s", d.remote)
	}
	id, err := identity.NodeID(s.cfg.Issuer.TrustDomain(), req.GetNode())
	if err != nil {
		d.node = "" // not worth repeating
		return nil, refuse(reasonBadRequest, codes.InvalidArgument, "%v", err)
	}
	d.id = id
	// Before the token is consumed: a bad request must not cost it.
	key, err := identity.ParseCSR(req.GetCsr())
	if err != nil {
		return nil, refuse(reasonBadCSR, codes.InvalidArgument, "%v", err)
	}
	view := s.cfg.View()
	if err := known(view); err != nil {
		return nil, err
	}
	if view.Barred(id) {
		return nil, refuse(reasonRevoked, codes.PermissionDenied, "identity %s is revoked", id)
	}
	if token, ok := bearer(ctx); ok {
		if err := s.vouched(ctx, req.GetNode(), token); err != nil {
			return nil, err
		}
		return s.cfg.Issuer.SignCSR(req.GetCsr(), id, 0)
	}
	if s.cfg.Tokens == nil {
		return nil, refuse(reasonTokenUnknown, codes.PermissionDenied, "this operator takes no join tokens")
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	record, err := s.cfg.Tokens.Consume(req.GetSecret(), req.GetNode(), der)
	d.token = record.ID
	if err != nil {
		if reason, ok := tokenReason(err); ok {
			return nil, refuse(reason, codes.PermissionDenied, "%v", err)
		}
		return nil, err
	}
	return s.cfg.Issuer.SignCSR(req.GetCsr(), id, 0)
}

// bearer returns the service account token of a call.
func bearer(ctx context.Context) (string, bool) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	if len(values) != 1 {
		return "", false
	}
	return strings.CutPrefix(values[0], "Bearer ")
}

// vouched refuses a node whose agent's token does not say that it runs there.
func (s *Server) vouched(ctx context.Context, node, token string) error {
	if s.cfg.Accounts == nil {
		return refuse(reasonAccountRefused, codes.PermissionDenied, "this operator takes no service account tokens: it is not on Kubernetes")
	}
	runs, err := s.cfg.Accounts.NodeOf(ctx, token)
	switch {
	case errors.Is(err, ErrNotVouched):
		return refuse(reasonAccountRefused, codes.PermissionDenied, "%v", err)
	case err != nil:
		s.cfg.Logger.ErrorContext(ctx, "token cannot be reviewed", "node", node, "error", err)
		return refuse(reasonAccountUnknown, codes.Unavailable, "operator cannot have the token reviewed now: the API server does not answer, or refuses; its log says why")
	case runs != node:
		return refuse(reasonTokenWrongNode, codes.PermissionDenied, "the token is of an agent on node %s, which may not join as %s", runs, node)
	}
	return nil
}

// Sign implements meshpb.IssuingServer.
func (s *Server) Sign(ctx context.Context, req *meshpb.SignRequest) (*meshpb.SignResponse, error) {
	d := decision{method: "sign", remote: remoteAddress(ctx), began: time.Now()}
	chain, err := s.sign(ctx, &d, req)
	if err = s.conclude(ctx, &d, err, issued(chain)...); err != nil {
		return nil, err
	}
	return &meshpb.SignResponse{Chain: raw(chain), Bundle: raw(s.cfg.Issuer.Roots()), ConfigurationKeys: s.configurationKeys()}, nil
}

func (s *Server) sign(ctx context.Context, d *decision, req *meshpb.SignRequest) ([]*x509.Certificate, error) {
	id, err := s.caller(ctx, d, s.signs, req.GetIdentity())
	if err != nil {
		return nil, err
	}
	if err := s.mayHave(d.node, id); err != nil {
		return nil, err
	}
	return s.cfg.Issuer.SignCSR(req.GetCsr(), id, 0)
}

// caller takes note of which node calls, and returns the identity that it wants.
func (s *Server) caller(ctx context.Context, d *decision, limit *limiters, wanted string) (spiffeid.ID, error) {
	node, err := nodeauth.PeerNode(ctx)
	if err != nil {
		return spiffeid.ID{}, refuse(reasonUnauthenticated, status.Code(err), "%s", status.Convert(err).Message())
	}
	d.node = node
	if !limit.allow(node, d.began) {
		return spiffeid.ID{}, refuse(reasonRate, codes.ResourceExhausted, "node %s asks for too many SVIDs", node)
	}
	if n := len(wanted); n > identity.MaxIDBytes {
		return spiffeid.ID{}, refuse(reasonBadRequest, codes.InvalidArgument, "identity of %d bytes, the limit is %d", n, identity.MaxIDBytes)
	}
	id, err := spiffeid.FromString(wanted)
	if err != nil {
		return spiffeid.ID{}, refuse(reasonBadRequest, codes.InvalidArgument, "identity %q: %v", wanted, err)
	}
	d.id = id
	return id, nil
}

// known refuses until there is a configuration: before, an operator that has just started does
// not know who is revoked.
func known(view Snapshot) error {
	if !view.Synced() {
		return refuse(reasonNotSynced, codes.Unavailable, "operator has no configuration yet")
	}
	return nil
}

// mayHave decides whether a node may have an identity's SVID: its own, and those
// of the workloads that the present View has on it.
func (s *Server) mayHave(node string, id spiffeid.ID) error {
	view, td := s.cfg.View(), s.cfg.Issuer.TrustDomain()
	own, err := identity.NodeID(td, node)
	if err != nil {
		return refuse(reasonBadRequest, codes.InvalidArgument, "%v", err)
	}
	if err := known(view); err != nil {
		return err
	}
	for _, revoked := range []spiffeid.ID{own, id} {
		if view.Barred(revoked) {
			return refuse(reasonRevoked, codes.PermissionDenied, "identity %s is revoked: node %s gets no certificate for %s", revoked, node, id)
		}
	}
	if id == own {
		if s.cfg.KnownNode != nil && !s.cfg.KnownNode(node) {
			return refuse(reasonNodeUnknown, codes.PermissionDenied, "node %s is not, or no more, a node of the cluster", node)
		}
		return nil
	}
	// Whatever a View may hold, nodes never get the operator's or another
	// node's identity.
	if !identity.IsWorkloadID(td, id) {
		return refuse(reasonNotOnNode, codes.PermissionDenied, "identity %s is not a workload's of trust domain %s: node %s may not have it", id, td, node)
	}
	for _, w := range view.OnNode(node) {
		if w.Identity == id {
			return nil
		}
	}
	return refuse(reasonNotOnNode, codes.PermissionDenied, "no workload on node %s has identity %s", node, id)
}

func (s *Server) configurationKeys() [][]byte {
	keys := make([][]byte, 0, len(s.cfg.ConfigurationKeys))
	for _, k := range s.cfg.ConfigurationKeys {
		keys = append(keys, k)
	}
	return keys
}

func raw(certs []*x509.Certificate) [][]byte {
	ders := make([][]byte, 0, len(certs))
	for _, c := range certs {
		ders = append(ders, c.Raw)
	}
	return ders
}

// remoteAddress returns the caller's address without its port.
func remoteAddress(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return ""
	}
	if addr, err := netip.ParseAddrPort(p.Addr.String()); err == nil {
		return addr.Addr().Unmap().String()
	}
	return p.Addr.String()
}

// network is what a limit on unknown callers goes by: an IPv6 machine has all
// the addresses of its /64.
func network(remote string) string {
	addr, err := netip.ParseAddr(remote)
	if err != nil || !addr.Is6() {
		return remote
	}
	return netip.PrefixFrom(addr.WithZone(""), 64).Masked().String()
}
