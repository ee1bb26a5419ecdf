package workloadapi

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/internal/mesh"
)

// FetchX509SVID implements the X.509-SVID profile (SPIFFE Workload API, section 5.2.1).
func (e *endpoint) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	return follow(e, stream.Context(), e.svids, func(m *workload.X509SVIDResponse) error {
		if err := stream.Send(m); err != nil {
			return err
		}
		e.metrics.keys.Inc()
		e.cfg.Log.Debug("pod is given its SVID", "workload", e.pod.Key, "identity", m.GetSvids()[0].GetSpiffeId())
		return nil
	})
}

// FetchX509Bundles implements the X.509-SVID profile (section 5.2.2).
func (e *endpoint) FetchX509Bundles(_ *workload.X509BundlesRequest, stream grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	return follow(e, stream.Context(), e.bundles, stream.Send)
}

// served returns the Workload API with what is not served of it, which is the experimental
// profile of WITs. That is refused without its message, which a client may never send; and the
// methods of one message and one answer are streams here, so that whoever asks is admitted
// before there is a message, for which generated code would wait. On the wire they are the same.
func served() *grpc.ServiceDesc {
	all := workload.SpiffeWorkloadAPI_ServiceDesc
	desc := all
	desc.Methods, desc.Streams = nil, nil
	single := map[string]grpc.StreamHandler{"FetchJWTSVID": one((*endpoint).FetchJWTSVID), "ValidateJWTSVID": one((*endpoint).ValidateJWTSVID)}
	for _, m := range all.Methods {
		do := single[m.MethodName]
		if do == nil {
			do = notServed
		}
		desc.Streams = append(desc.Streams, grpc.StreamDesc{StreamName: m.MethodName, ServerStreams: true, Handler: do})
	}
	for _, m := range all.Streams {
		switch m.StreamName {
		case "FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles":
		default:
			m.Handler = notServed
		}
		desc.Streams = append(desc.Streams, m)
	}
	return &desc
}

// one is a method of one message and one answer as a stream.
func one[Q, A any](do func(*endpoint, context.Context, *Q) (*A, error)) grpc.StreamHandler {
	return func(srv any, stream grpc.ServerStream) error {
		asked := new(Q)
		if err := stream.RecvMsg(asked); err != nil {
			return err
		}
		answer, err := do(srv.(*endpoint), stream.Context(), asked)
		if err != nil {
			return err
		}
		return stream.SendMsg(answer)
	}
}

// notServed is a grpc.StreamHandler.
func notServed(any, grpc.ServerStream) error {
	return status.Error(codes.Unimplemented, "only the profiles of X.509-SVIDs and JWT-SVIDs are served here")
}

// svids is the pod's one SVID.
func (e *endpoint) svids(id spiffeid.ID) (*workload.X509SVIDResponse, error) {
	cert, err := e.cfg.Identities.Certificate(id)
	if err != nil {
		return nil, err
	}
	bundle, err := e.bundle(id.TrustDomain())
	if err != nil {
		return nil, err
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("encode the key of %s: %w", id, err)
	}
	var chain []byte
	for _, der := range cert.Certificate {
		chain = append(chain, der...)
	}
	return &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{SpiffeId: id.String(), X509Svid: chain, X509SvidKey: key, Bundle: bundle}},
		FederatedBundles: e.others()}, nil
}

// others are the roots of federated trust domains.
func (e *endpoint) others() map[string][]byte {
	all := map[string][]byte{}
	for _, d := range e.cfg.Identities.Federated().Domains() {
		all[d.TrustDomain().IDString()] = concatenated(d.X509())
	}
	return all
}

// concatenated is a bundle's roots, one DER after the other.
func concatenated(bundle *x509bundle.Bundle) (all []byte) {
	for _, root := range bundle.X509Authorities() {
		all = append(all, root.Raw...)
	}
	return all
}

func (e *endpoint) bundles(id spiffeid.ID) (*workload.X509BundlesResponse, error) {
	bundle, err := e.bundle(id.TrustDomain())
	if err != nil {
		return nil, err
	}
	all := e.others()
	all[id.TrustDomain().IDString()] = bundle
	return &workload.X509BundlesResponse{Bundles: all}, nil
}

// bundle is the roots of the mesh's trust domain.
func (e *endpoint) bundle(td spiffeid.TrustDomain) ([]byte, error) {
	bundle, err := e.cfg.Identities.GetX509BundleForTrustDomain(td)
	if err != nil {
		return nil, err
	}
	if bundle.Empty() {
		return nil, errors.New("the bundle is empty")
	}
	return concatenated(bundle), nil
}

// identity is the pod's own, if it is to be served.
func (e *endpoint) identity(view *mesh.View) (spiffeid.ID, error) {
	w, ok := e.asking(view, e.pod)
	if !ok {
		return spiffeid.ID{}, status.Error(codes.PermissionDenied, "the pod does not ask for the Workload API any more, has left the mesh, or has a successor of its name")
	}
	if view.Revoked(w.Identity) {
		return spiffeid.ID{}, status.Errorf(codes.PermissionDenied, "identity %s is revoked", w.Identity)
	}
	return w.Identity, nil
}

// follow sends what there is now, and then each time that it is something else. While
// there is nothing, because a first certificate is not there, or the last one has
// expired, a client keeps what it has.
func follow[M proto.Message](e *endpoint, ctx context.Context, state func(spiffeid.ID) (M, error), send func(M) error) error {
	var last M
	var of spiffeid.ID // of the last message; zero for none
	patience := time.NewTimer(e.cfg.Limits.Patience)
	defer patience.Stop()
	for {
		view, changed := e.cfg.Store.Snapshot()
		renewed := e.cfg.Identities.Changed() // before looking
		_, rekeyed := e.cfg.JWT.Now()
		id, err := e.identity(view)
		if err != nil {
			return err
		}
		if !of.IsZero() && of != id {
			return status.Errorf(codes.Unavailable, "the pod is %s now", id)
		}
		next, why := state(id)
		if why == nil && (of.IsZero() || !proto.Equal(last, next)) {
			if err := send(next); err != nil {
				return err
			}
			last, of = next, id
		}
		late := patience.C
		if !of.IsZero() {
			late = nil // it has been answered
		}
		select {
		case <-changed:
		case <-renewed:
		case <-rekeyed:
		case <-late:
			return status.Errorf(codes.Unavailable, "there is nothing to be had yet: %v", why)
		case <-e.ended.Done():
			if _, asks := e.asking(e.cfg.Store.View(), e.pod); !asks {
				continue // that is why
			}
			return status.Error(codes.Unavailable, "the agent ends or is replaced, or enrolls the pod anew: ask again")
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}
