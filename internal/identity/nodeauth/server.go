package nodeauth

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/internal/identity"
)

const (
	// connectionAge is how old a connection gets before its new calls move to
	// a new one, and so to the node's present SVID. Streams under way stay
	// until their SVID's end.
	connectionAge = time.Hour
	// handshakeTimeout bounds a connection that has not proven anything yet.
	handshakeTimeout = 10 * time.Second
)

// ServerOptions are what the operator's gRPC server needs, so that every method
// but the anonymous ones (full names, such as
// meshpb.Issuing_Join_FullMethodName) is called by nodes of td only, and only
// while their SVID lasts.
func ServerOptions(creds credentials.TransportCredentials, td spiffeid.TrustDomain, anonymous ...string) []grpc.ServerOption {
	admit := func(ctx context.Context, method string) error {
		if slices.Contains(anonymous, method) {
			return nil
		}
		_, err := PeerNodeOf(ctx, td)
		return err
	}
	return []grpc.ServerOption{
		grpc.Creds(creds),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: connectionAge, Time: 30 * time.Second, Timeout: 15 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, call *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := admit(ctx, call.FullMethod); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, stream grpc.ServerStream, call *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			// The stream's end is the connection's, see endAt.
			if err := admit(stream.Context(), call.FullMethod); err != nil {
				return err
			}
			return next(srv, stream)
		}),
	}
}

// PeerNode returns the name of the node that called, which it proved by its
// SVID, spiffe://TD/node/NAME. Without such a proof the error is a gRPC status:
// UNAUTHENTICATED or PERMISSION_DENIED.
func PeerNode(ctx context.Context) (string, error) {
	info, err := peerNode(ctx)
	if err != nil {
		return "", err
	}
	name, _ := identity.NodeName(info.peer) // peerNode checked that it is one
	return name, nil
}

// PeerNodeOf is PeerNode for nodes of one trust domain only: what ServerOptions asks of all
// but anonymous methods.
func PeerNodeOf(ctx context.Context, td spiffeid.TrustDomain) (string, error) {
	info, err := peerNode(ctx)
	if err != nil {
		return "", err
	}
	if info.peer.TrustDomain() != td {
		return "", status.Errorf(codes.PermissionDenied, "%s is not of trust domain %s", info.peer, td)
	}
	name, _ := identity.NodeName(info.peer) // peerNode checked that it is one
	return name, nil
}

// EndPeer closes the connection of whoever called, where that presented an SVID, and with it
// all that goes on over it. It may be called more than once, and waits for some seconds at most for the other
// end to take the end of TLS.
func EndPeer(ctx context.Context) {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(PeerInfo); ok && info.end != nil {
			_ = info.end() // the reader and the writer see the error
		}
	}
}

func peerNode(ctx context.Context) (PeerInfo, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return PeerInfo{}, status.Error(codes.Unauthenticated, "no connection to take an identity from")
	}
	info, ok := p.AuthInfo.(PeerInfo)
	if !ok || info.peer.IsZero() {
		return PeerInfo{}, status.Error(codes.Unauthenticated, "a node's SVID is needed, and the client presented no certificate")
	}
	if time.Now().After(info.notAfter) {
		return PeerInfo{}, status.Error(codes.Unauthenticated, fmt.Sprintf("SVID of %s expired at %s", info.peer, info.notAfter.Format(time.RFC3339)))
	}
	if _, ok := identity.NodeName(info.peer); !ok {
		return PeerInfo{}, status.Error(codes.PermissionDenied, fmt.Sprintf("%s is not a node", info.peer))
	}
	return info, nil
}
