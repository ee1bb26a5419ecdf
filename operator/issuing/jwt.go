package issuing

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"

	"github.com/heddle-mesh/heddle/api/meshpb"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/jwtkeys"
)

// JWTs signs JWT-SVIDs; *jwtauthority.Authority does.
type JWTs interface {
	// Sign returns a token and how long it is valid from now on. The error matches
	// ErrJWTsWithheld or ErrNoJWTKey where that is why there is none.
	Sign(id spiffeid.ID, audience []string) (token string, life time.Duration, err error)
}

// Errors of JWTs, whose text the caller may see.
var (
	ErrJWTsWithheld = errors.New("this mesh signs no JWT-SVIDs")
	ErrNoJWTKey     = errors.New("there is no key for JWT-SVIDs yet; the operator that leads makes it")
)

// SignJWT implements meshpb.IssuingServer.
func (s *Server) SignJWT(ctx context.Context, req *meshpb.SignJWTRequest) (*meshpb.SignJWTResponse, error) {
	d := decision{method: "jwt", remote: remoteAddress(ctx), began: time.Now()}
	token, life, err := s.signJWT(ctx, &d, req)
	// The token is a secret: a hash tells it from others.
	sum := sha256.Sum256([]byte(token))
	err = s.conclude(ctx, &d, err, slog.Any("audience", req.GetAudience()), slog.String("sha256", hex.EncodeToString(sum[:8])), slog.Duration("life", life))
	if err != nil {
		return nil, err
	}
	return &meshpb.SignJWTResponse{Token: token, LifetimeNs: int64(life)}, nil
}

func (s *Server) signJWT(ctx context.Context, d *decision, req *meshpb.SignJWTRequest) (token string, life time.Duration, err error) {
	id, err := s.caller(ctx, d, s.jwts, req.GetIdentity())
	if err != nil {
		return "", 0, err
	}
	audience, err := jwtkeys.Audience(req.GetAudience())
	if err != nil {
		return "", 0, refuse(reasonBadRequest, codes.InvalidArgument, "%v", err)
	}
	if !identity.IsWorkloadID(s.cfg.Issuer.TrustDomain(), id) { // not even a node's own
		return "", 0, refuse(reasonNotOnNode, codes.PermissionDenied, "identity %s is not a workload's of trust domain %s: it has no JWT-SVID", id, s.cfg.Issuer.TrustDomain())
	}
	if err := s.mayHave(d.node, id); err != nil {
		return "", 0, err
	}
	if s.cfg.JWTs == nil {
		return "", 0, refuse(reasonNoJWTs, codes.Unimplemented, "%v", ErrJWTsWithheld)
	}
	token, life, err = s.cfg.JWTs.Sign(id, audience)
	switch {
	case errors.Is(err, ErrJWTsWithheld):
		return "", 0, refuse(reasonNoJWTs, codes.Unimplemented, "%v", err)
	case errors.Is(err, ErrNoJWTKey):
		return "", 0, refuse(reasonNoKey, codes.Unavailable, "%v", err)
	}
	return token, life, err
}
