package workloadapi

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
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

// served returns the Workload API with what is not served of it, which is the JWT-SVID
// profile (section 6) and the experimental one of WITs: see docs/workload-api.md. That
// is refused without its message, which a client may never send: generated code would
// wait for one before anything else is asked.
func served() *grpc.ServiceDesc {
	all := workload.SpiffeWorkloadAPI_ServiceDesc
	desc := all
	desc.Methods, desc.Streams = nil, nil
	refuse := func(name string) {
		desc.Streams = append(desc.Streams, grpc.StreamDesc{StreamName: name, ServerStreams: true, Handler: noTokens})
	}
	for _, m := range all.Methods {
		refuse(m.MethodName)
	}
	for _, m := range all.Streams {
		if m.StreamName == "FetchX509SVID" || m.StreamName == "FetchX509Bundles" {
			desc.Streams = append(desc.Streams, m)
			continue
		}
		refuse(m.StreamName)
	}
	return &desc
}

// noTokens is a grpc.StreamHandler. To call a token invalid would be to have looked at it.
func noTokens(any, grpc.ServerStream) error {
	return status.Error(codes.Unimplemented, "only the X.509-SVID profile is served: this mesh's authority signs certificates, and no tokens")
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
	return &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{SpiffeId: id.String(), X509Svid: chain, X509SvidKey: key, Bundle: bundle}}}, nil
}

func (e *endpoint) bundles(id spiffeid.ID) (*workload.X509BundlesResponse, error) {
	bundle, err := e.bundle(id.TrustDomain())
	if err != nil {
		return nil, err
	}
	return &workload.X509BundlesResponse{Bundles: map[string][]byte{id.TrustDomain().IDString(): bundle}}, nil
}

// bundle is the trust domain's roots, one DER after the other.
func (e *endpoint) bundle(td spiffeid.TrustDomain) (all []byte, err error) {
	bundle, err := e.cfg.Identities.GetX509BundleForTrustDomain(td)
	if err != nil {
		return nil, err
	}
	for _, root := range bundle.X509Authorities() {
		all = append(all, root.Raw...)
	}
	if len(all) == 0 {
		return nil, errors.New("the bundle is empty")
	}
	return all, nil
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
		w, ok := e.asking(view, e.pod)
		if !ok {
			return status.Error(codes.PermissionDenied, "the pod does not ask for the Workload API any more, has left the mesh, or has a successor of its name")
		}
		id := w.Identity
		if view.Revoked(id) {
			return status.Errorf(codes.PermissionDenied, "identity %s is revoked", id)
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
		case <-late:
			return status.Errorf(codes.Unavailable, "there is no SVID to be had yet: %v", why)
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
