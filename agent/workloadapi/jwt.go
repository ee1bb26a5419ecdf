package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/heddle-mesh/heddle/internal/identity/jwtkeys"
)

// errUnsigned is why an agent without a tokencache.Sign has no JWT-SVIDs.
var errUnsigned = errors.New("this agent has nobody who signs JWT-SVIDs")

// unsigned is a tokencache.Sign where there is nobody to sign.
func unsigned(context.Context, spiffeid.ID, []string) (string, time.Duration, error) {
	return "", 0, errUnsigned
}

// FetchJWTSVID implements the JWT-SVID profile (SPIFFE Workload API, section 6.2.1).
func (e *endpoint) FetchJWTSVID(ctx context.Context, req *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	id, err := e.identity(e.cfg.Store.View())
	if err != nil {
		return nil, err
	}
	audience, err := jwtkeys.Audience(req.GetAudience())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if wanted := req.GetSpiffeId(); wanted != "" && wanted != id.String() {
		if _, err := spiffeid.FromString(wanted); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		return nil, status.Errorf(codes.PermissionDenied, "the pod is %s, and has no other identity", id)
	}
	if err := e.withheld(); err != nil {
		return nil, err
	}
	token, err := e.token(ctx, id, audience)
	if err != nil {
		e.metrics.jwts.WithLabelValues(string(failed)).Inc()
		return nil, err
	}
	return &workload.JWTSVIDResponse{Svids: []*workload.JWTSVID{{SpiffeId: id.String(), Svid: token}}}, nil
}

// token is a JWT-SVID of the pod's identity, or a status.
func (e *endpoint) token(ctx context.Context, id spiffeid.ID, audience []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, e.cfg.Limits.Patience)
	defer cancel()
	defer context.AfterFunc(e.ended, cancel)()
	token, fresh, err := e.tokens.Token(ctx, id, audience, e.mayMint)
	if err == nil {
		// It may have been waited for: the pod may not be any more who it was.
		if now, err := e.identity(e.cfg.Store.View()); err != nil || now != id {
			return "", errors.Join(err, status.Errorf(codes.Unavailable, "the pod was %s when it asked", id))
		}
		j := cached
		if fresh {
			j = signed
			e.cfg.Log.Debug("pod is given a JWT-SVID", "workload", e.pod.Key, "identity", id, "audience", audience)
		}
		e.metrics.jwts.WithLabelValues(string(j)).Inc()
		return token, nil
	}
	return "", e.noToken(err)
}

// noToken is the status of a request for which none was signed. Unimplemented tells clients never to ask again (Workload
// API, section 6.1), and is for those that never get one: an operator may be replaced by a newer one.
func (e *endpoint) noToken(err error) error {
	switch code := status.Code(err); code {
	case codes.PermissionDenied, codes.ResourceExhausted, codes.InvalidArgument:
		return status.Error(code, err.Error())
	case codes.Unimplemented:
		if err := e.withheld(); err != nil {
			return err
		}
		return status.Errorf(codes.Unavailable, "the operator is of a version before JWT-SVIDs, or has not said yet why it signs none: %v", err)
	}
	if errors.Is(err, errUnsigned) {
		return status.Error(codes.Unimplemented, err.Error())
	}
	if e.ended.Err() != nil {
		return status.Error(codes.Unavailable, "the agent ends or is replaced, or enrolls the pod anew: ask again")
	}
	return status.Errorf(codes.Unavailable, "there is no JWT-SVID to be had now: %v", err)
}

// mayMint refuses a pod that has too many tokens signed: those of a node have a limit, too.
func (e *endpoint) mayMint() error {
	if e.mint.Allow() {
		return nil
	}
	return status.Errorf(codes.ResourceExhausted, "more than %d JWT-SVIDs of the pod in a second that it was not given before", e.cfg.Limits.JWTs)
}

// withheld is the status of all that is asked where the mesh has no JWT-SVIDs; nil where it has, or the operator has not
// said yet.
func (e *endpoint) withheld() error {
	if keys := e.cfg.JWT.Keys(); keys != nil && keys.Withheld != "" {
		return status.Error(codes.Unimplemented, "this mesh has no JWT-SVIDs: "+keys.Withheld)
	}
	return nil
}

// FetchJWTBundles implements the JWT-SVID profile (section 6.2.2).
func (e *endpoint) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	if _, err := e.identity(e.cfg.Store.View()); err != nil {
		return err
	}
	if err := e.withheld(); err != nil {
		return err
	}
	return follow(e, stream.Context(), e.jwtBundles, stream.Send)
}

// errNoKeys is why there is nothing to verify tokens by.
var errNoKeys = errors.New("the operator has not said by which keys the mesh's JWT-SVIDs are verified: it has none yet, or is of a version before")

func (e *endpoint) jwtBundles(id spiffeid.ID) (*workload.JWTBundlesResponse, error) {
	keys := e.cfg.JWT.Keys()
	if keys == nil || keys.Bundle.Empty() {
		return nil, errNoKeys
	}
	all := map[string][]byte{id.TrustDomain().IDString(): keys.Document}
	for _, d := range e.cfg.Identities.Federated().Domains() {
		if d.JWT().Empty() {
			continue // nobody of it has a JWT-SVID that could be verified
		}
		document, err := jwtkeys.Document(d.JWT().JWTAuthorities())
		if err != nil {
			return nil, err
		}
		all[d.TrustDomain().IDString()] = document
	}
	return &workload.JWTBundlesResponse{Bundles: all}, nil
}

// GetJWTBundleForTrustDomain implements jwtbundle.Source: the mesh's own keys, and those of
// federated trust domains.
func (e *endpoint) GetJWTBundleForTrustDomain(td spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	if keys := e.cfg.JWT.Keys(); keys != nil && keys.Bundle.TrustDomain() == td {
		return keys.Bundle, nil
	}
	if d := e.cfg.Identities.Federated().Of(td); d != nil {
		return d.JWT(), nil
	}
	return nil, fmt.Errorf("no keys for trust domain %q", td)
}

// ValidateJWTSVID implements the JWT-SVID profile (section 6.2.3). What is not valid is an
// InvalidArgument, which says why.
func (e *endpoint) ValidateJWTSVID(_ context.Context, req *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	view := e.cfg.Store.View()
	if _, err := e.identity(view); err != nil {
		return nil, err
	}
	if err := e.withheld(); err != nil {
		return nil, err
	}
	if keys := e.cfg.JWT.Keys(); keys == nil || keys.Bundle.Empty() {
		return nil, status.Error(codes.Unavailable, errNoKeys.Error())
	}
	answer, err := validate(e, req, view.Revoked)
	if err != nil {
		e.metrics.jwts.WithLabelValues(string(rejected)).Inc()
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	e.metrics.jwts.WithLabelValues(string(valid)).Inc()
	return answer, nil
}

// validate looks at a token. Its signature, its time (to a minute, by this node's clock) and
// its audience are for go-spiffe to judge.
func validate(keys jwtbundle.Source, req *workload.ValidateJWTSVIDRequest, revoked func(spiffeid.ID) bool) (*workload.ValidateJWTSVIDResponse, error) {
	audience, err := jwtkeys.Audience([]string{req.GetAudience()})
	if err != nil {
		return nil, err
	}
	if n := len(req.GetSvid()); n == 0 || n > jwtkeys.MaxToken {
		return nil, fmt.Errorf("a token of %d bytes: 1 to %d are possible", n, jwtkeys.MaxToken)
	}
	svid, err := jwtsvid.ParseAndValidate(req.GetSvid(), keys, audience)
	if err != nil {
		return nil, err
	}
	if revoked(svid.ID) {
		return nil, fmt.Errorf("identity %s is revoked", svid.ID)
	}
	claims, err := structpb.NewStruct(svid.Claims)
	if err != nil {
		return nil, fmt.Errorf("claims: %w", err)
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: svid.ID.String(), Claims: claims}, nil
}
